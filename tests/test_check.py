"""``pleas check``, through the command."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import resnet
from kinds import SIDE
from PIL import Image
from torch import Tensor, nn

from project import __main__ as command
from project.cli import main
from project.data import Domains, ImageFolders
from project.errors import ConfigurationError, PleasError, TraceError
from project.student import batch_norms, reestimate


class Odd(nn.Module):
    """What cannot be traced."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(self.stem(x), 1)
        return self.head(x.mean((2, 3)))


def words(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    main(["check", *args])
    return capsys.readouterr().out.splitlines()


def test_a_torchvision_name(capsys: pytest.CaptureFixture[str]) -> None:
    lines = words(capsys, "--model", "resnet18", "--image-size", "32", "--model-args", '{"num_classes": 4}')
    assert lines[0] == "resnet18: 12 permutation groups on pictures of 32 × 32"
    assert lines[3].split()[:6] == ["conv1", "64", "3", "4", "3", "0"]
    assert len(lines) == 20
    assert lines[-2].startswith("trace, permute: yes; largest change of the logits (relative): ")
    assert 0 < float(lines[-2].split()[-1]) < 1e-4
    assert lines[-1] == "merge, at any budget: yes"


def test_a_dotted_path_with_structure(capsys: pytest.CaptureFixture[str]) -> None:
    lines = words(capsys, "--model", "kinds.transformer", "--image-size", str(SIDE))
    block = "encoder.layers.encoder_layer_0.self_attention"
    keys = next(line for line in lines if line.startswith(f"{block}.query"))
    assert keys.endswith(f"2 blocks, ordered as in '{block}.value'")
    stream = next(line for line in lines if line.startswith("conv_proj"))
    assert stream.endswith("normalised all together")
    assert "class" not in lines[-2]


def test_sources_are_held_against_their_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, random = resnet("resnet8", 0, 2).eval(), np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / "pictures" / "photo" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = 255 * random.random((16, 16, 3)) ** (1, 2, 4)
        Image.fromarray(values.astype(np.uint8)).save(folder / f"{number}.png")
    data = Domains(ImageFolders(tmp_path / "pictures"), image_size=16, validation_fraction=0)
    reestimate(network, [data.sample("photo", 40)])
    for norm in batch_norms(network).values():
        norm.num_batches_tracked.fill_(100)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    said = [str(tmp_path / "mine.pth"), "--pictures", str(tmp_path / "pictures")]
    lines = words(capsys, *said, "--image-size", "16")
    assert lines[0].startswith("mine (")
    assert lines[1].split() == ["reading", "distance", "present", "pictures"]
    assert "fit the present reading" in lines[-1]
    assert not any("clearly better" in line for line in lines)
    lines = words(capsys, *said, "--image-size", "16", "--channels", "BGR", "--mean", "0.406", "0.456", "0.485",
                  "--std", "0.225", "0.224", "0.229")  # fmt: skip
    better = [line for line in lines if "clearly better" in line]
    assert len(better) == 1
    assert "red before blue (RGB), but mean and deviation in the order as now" in better[0]
    for options, message in (
        (said, "image_size is missing"),
        (said[:1], "allowed: sources with their --pictures"),
        ([*said, "--model", "resnet18"], "allowed: sources with their --pictures"),
        (["--model", "resnet18", "--channels", "BGR"], "--channels is given"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            main(["check", *options])


def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(resnet("resnet20", 3).state_dict(), tmp_path / "mine.pth")
    lines = words(capsys, "--model", str(tmp_path / "mine.pth"), "--image-size", "32")
    assert lines[0].endswith("mine.pth: 12 permutation groups on pictures of 32 × 32")


def test_what_stops_it_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pleas", "check", "--model", "test_check.Odd", "--image-size", "16"])
    assert command.console() == 1
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("pleas: error: softmax calls 'softmax'")
    assert line.endswith("tests/test_check.py, line 28: x = torch.softmax(self.stem(x), 1).")


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            ["--model", "resnet19"],
            ConfigurationError,
            "model is 'resnet19'; there is none of that name; nearest: resnet1",
        ),
        (["--model", "nowhere.Net"], ConfigurationError, "'nowhere' cannot be imported"),
        (
            ["--model", "test_check.Nothing"],
            ConfigurationError,
            "model is 'test_check.Nothing'; there is none of that name; allowed",
        ),
        (["--model", "pathlib.Path"], ConfigurationError, "no nn.Module"),
        (["--model", "test_check.Odd", "--model-args", '{"depth": 3}'], ConfigurationError, "cannot be built with"),
        (["--model", "resnet18", "--model-args", "{"], ConfigurationError, "is not JSON"),
        (["--model", "resnet18", "--model-args", "[1]"], ConfigurationError, "a JSON object"),
        (["--model", __file__, "--model-args", '{"depth": 3}'], ConfigurationError, "is a file, which needs none"),
        (["--model", "squeezenet1_0", "--image-size", "1"], TraceError, "does not run on pictures"),
        (["--model", "kinds.grouped", "--image-size", "0"], ConfigurationError, "image_size is 0; allowed: whole"),
    ],
)
def test_bad_arguments(args: list[str], error: type[PleasError], message: str) -> None:
    with pytest.raises(error, match=message):
        main(["check", *args])


def test_groups_that_do_not_hold_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "project.report.check.group_differences", lambda *_: {"stem": 0.5, **dict.fromkeys(("left", "right"), 0.0)}
    )
    with pytest.raises(TraceError, match="permuting 'stem' changes the logits by 5"):
        main(["check", "--model", "kinds.Concatenated", "--image-size", "16"])


def test_the_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = " ".join(capsys.readouterr().out.split())
    assert "{fit,validate,test,predict,merge,check,average,export,add-statistics,report}" in listed
    assert "check Show the permutation groups of a network, and prove that they hold on it." in listed
    assert "add-statistics Add the statistics of shards" in listed


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("check", "--image-size"),
        ("average", "--pictures"),
        ("export", "--to"),
        ("add-statistics", "--out"),
        ("report", "run"),
    ],
)
def test_its_help(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert not left.value.code
    told = capsys.readouterr().out
    assert f"usage: pleas {name}" in told
    assert option in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["check"], "model is missing; see 'pleas check --help'."),
        (["check", "--model", "resnet18", "--image-size", "big"], "image_size: expected int; got value: big"),
        (["add-statistics"], "see 'pleas add-statistics --help'."),
        (["average", "a.pth", "b.pth"], "out is missing; see 'pleas average --help'."),
        (["average", "a.pth", "b.pth", "--out", "c", "--align", "luck"], "align: expected "),
    ],
)
def test_misspelt_arguments(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(args)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pleas: error: ")
    assert message in line


def test_options_before_the_command(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("{}")
    with pytest.raises(ConfigurationError, match="check comes first, and its options behind it"):
        main(["--config", str(tmp_path / "empty.yaml"), "check", "--model", "resnet18"])
