"""What is wrong with the arguments, in one sentence."""

from pathlib import Path

import pytest

from project.cli import main
from project.errors import ConfigurationError

TINY = Path(__file__).resolve().parent.parent / "configs" / "tiny"


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        ("merge", ["--data.batchsize", "3"],
         ["DomainDataModule has no option 'batchsize', but batch_size", "merge --data.help"]),
        ("merge", ["--data.batch_size", "many"], ["data.batch_size", "int", "many"]),
        ("merge", ["--model.budget", "[1.0]"], ["MergeModule has no option 'budget', but budgets"]),
        ("merge", ["--model.methods", '[{"class_path": "project.methods.PLeaS", "init_args": {"ridg": 3}}]'],
         ["model.methods", "project.methods.PLeaS has no option 'ridg', but ridge"]),
        ("merge", ["--trainer.max_epok", "3"], ["trainer.max_epok"]),
        ("merge", ["--config", "absent.yaml"], ["absent.yaml"]),
        ("predict", ["--model.networks", "student.ckpt"], ["model.networks", "a list is expected, such as '[FILE]'"]),
        ("merge", ["--model.methods", '[{"class_path": "project.methods.Plaes"}]'],
         ["module 'project.methods' has no attribute 'Plaes', but PLeaS"]),
        ("merge", ["--model.methods",
                   '[{"class_path": "project.methods.Average", "init_args": {"align": "activation"}}]'],
         ["model.methods.align: expected 'none', 'activations', 'weights', 'both'; got value: activation; see"]),
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
    assert "no option 'bugdets', but budgets" in told
    assert "pleas merge --model.help project.modules.MergeModule" in told


def test_options_before_the_file_that_they_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--model\.budgets stands before --config") as refused:
        main(["merge", "--model.budgets=[1.0]", "--config", str(TINY / "merge.yaml")])
    assert "put --config first" in str(refused.value)
