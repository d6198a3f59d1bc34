"""What is wrong with the arguments, in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from project.cli import MergeCLI, main, options_of
from project.commands import COMMANDS
from project.errors import ConfigurationError
from project.help import SUBCOMMANDS
from project.parser import OneSentenceParser, files_first
from project.short_options import SHORTS

TINY = Path(__file__).resolve().parent.parent / "configs" / "tiny"


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        ("merge", ["--data.batchsize", "3"],
         ["DomainDataModule has no option 'batchsize'; nearest: batch_size", "merge --data.help"]),
        ("merge", ["--data.batch_size", "many"], ["data.batch_size", "int", "many"]),
        ("merge", ["--model.budget", "[1.0]"], ["MergeModule has no option 'budget'; nearest: budgets"]),
        ("merge", ["--model.methods", '[{"class_path": "project.methods.PLeaS", "init_args": {"ridg": 3}}]'],
         ["model.methods", "project.methods.PLeaS has no option 'ridg'; nearest: ridge"]),
        ("merge", ["--trainer.max_epok", "3"], ["trainer.max_epok"]),
        ("predict", ["--model.networks", "student.ckpt"],
         ["model.networks", "a list is expected, such as '[student.ckpt]'"]),
        ("merge", ["--model.methods", '[{"class_path": "project.methods.Plaes"}]'],
         ["module 'project.methods' has no attribute 'Plaes'; nearest: PLeaS; see 'pleas merge --help'"]),
        ("merge", ["--model.methods",
                   '[{"class_path": "project.methods.Average", "init_args": {"align": "activation"}}]'],
         ["model.methods.align: expected 'none', 'activations', 'weights', 'both'; got value: activation; see"]),
        ("merge", ["--model.methods", '[{"class_path": "project.methods.MaTS", "init_args": {"estimate": "kfca"}}]'],
         ["model.methods.estimate: expected 'average', 'diagonal', 'gram', 'kfac'; got value: kfca; see"]),
        ("merge", ["--model.methods",
                   '[{"class_path": "project.methods.Average", "init_args": {"align": {"alpha": "x"}}}]'],
         ["model.methods.align.alpha: expected float"]),
        ("predict", ["--model.joint", "lgits"], ["model.joint", "lgits", "'logits', 'uniform', 'confidence'"]),
    ],
)  # fmt: skip
def test_misspelt_arguments(
    config: str,
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("student.ckpt").write_bytes(b"\x80 no text")
    with pytest.raises(SystemExit) as left:
        main(["predict" if config == "predict" else "merge", "--config", str(TINY / f"{config}.yaml"), *arguments])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("pleas: error: ")
    assert told.count("\n") == 1
    assert all(word in told for word in words), told


def test_misspelt_options_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (TINY / "merge.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(text.replace("    budgets:", "    bugdets:"))
    with pytest.raises(SystemExit) as left:
        main(["merge", "--config", str(tmp_path / "wrong.yaml")])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert "no option 'bugdets'; nearest: budgets" in told
    assert "pleas merge --model.help project.modules.MergeModule" in told


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["merge", "--run", "x", "--config", "f"], ["merge", "--config", "f", "--run", "x"]),
        (
            ["fit", "--model.a=1", "-c", "f", "--b", "--config=g"],
            ["fit", "-c", "f", "--config=g", "--model.a=1", "--b"],
        ),
        (["merge", "-cf", "--model.help", "X", "--config"], ["merge", "-cf", "--model.help", "X", "--config"]),
        (["--config", "f", "merge", "--run", "x", "-c", "g"], ["--config", "f", "merge", "--run", "x", "-c", "g"]),
        ([], []),
    ],
)
def test_files_come_first(given: list[str], expected: list[str]) -> None:
    assert files_first(given) == expected


def test_options_overrule_a_file_behind_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An option of a class that only the file names, too."""
    options = ["--run", str(tmp_path / "mine"), "--model.budgets", "[1.25]"]
    with pytest.raises(SystemExit) as left:
        main(["merge", *options, "--config", str(TINY / "merge.yaml"), "--print_config"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert f"run: {tmp_path / 'mine'}" in told
    assert "- 1.25" in told


def test_an_unknown_subcommand() -> None:
    with pytest.raises(ConfigurationError, match=r"no subcommand 'merg'; nearest: merge; see 'pleas --help'\."):
        main(["merg", "--config", "x"])
    with pytest.raises(
        ConfigurationError, match=r"'xyz'; allowed: fit, .*, merge, check, average, export, add-statistics, report; see"
    ):
        main(["xyz"])


def test_the_help_of_a_merge_begins_with_the_short_form(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["merge", "--help", "all"])
    told = capsys.readouterr().out
    assert told.startswith("usage: pleas merge FILE FILE ... --pictures FOLDER [options]\n")
    assert told.index("pleas merge photo.pth sketch.pth --pictures my_data") < told.index("--budget SIZE")
    assert told.index("--budget SIZE") < told.index("--trainer.devices")


def test_help_is_there_at_once_and_fits_on_two_screens() -> None:
    code = (
        "import sys; from project.__main__ import console; sys.argv = ['pleas', *sys.argv[1:]]; "
        "assert console() == 0; assert not {'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)"
    )
    for words, first, named in (
        ([], "usage: pleas COMMAND", SUBCOMMANDS),
        (["--help"], "usage: pleas COMMAND", SUBCOMMANDS),
        (["merge", "-h"], "usage: pleas merge FILE", [short.option for short in SHORTS]),
    ):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(first)
        assert done.stdout.count("\n") <= 48
        assert max(map(len, done.stdout.splitlines())) <= 120
        assert all(f"  {name} " in done.stdout for name in named)


def test_the_help_names_every_command() -> None:
    assert set(SUBCOMMANDS) == {*MergeCLI.subcommands(), *COMMANDS}


@pytest.mark.parametrize("name", MergeCLI.subcommands())
def test_keys_that_are_known_are_those_of_the_parser(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[OneSentenceParser] = []

    def kept(parser: OneSentenceParser, *_: object, **__: object) -> None:
        parsers.append(parser)
        raise KeyboardInterrupt

    monkeypatch.setattr(OneSentenceParser, "parse_args", kept)
    with pytest.raises(KeyboardInterrupt):
        main([name, "--run", "x"])
    parser = parsers[0]._subcommands_action.choices[name]  # type: ignore[union-attr]
    names = {option.lstrip("-").split(".")[0] for option in parser._option_string_actions}
    assert names - {"h", "help", "c", "print_config"} == options_of(name)


def test_what_is_not_there_is_told_before_anything_long_is_imported() -> None:
    code = (
        "import sys; from project.__main__ import console; sys.argv = ['pleas', 'merge', 'absent.pth', 'b.pth']; "
        "assert console() == 2; assert not {'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "pleas: error: The file of weights absent.pth is not there.\n")


def test_commands_without_a_trainer_do_without_what_trains_and_draws() -> None:
    code = (
        "import sys; from project import api, commands; "
        "found = [commands.command(name) for name in commands.COMMANDS]; "
        "assert len(found) > 3; print(*{'lightning', 'torchmetrics', 'matplotlib', 'tensorboard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
