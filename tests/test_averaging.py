"""``pleas average`` and ``project.average``: the mean of aligned networks, in a file like the one it was made from."""

import argparse
import copy
import errno
import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import failing
from helpers import permuted_copy, resnet, same_state, traced
from models.test_forms import FORMS, Learner, network
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import project
from project import __main__ as command
from project.cli import main
from project.errors import CheckpointError, ConfigurationError, DataError, PleasError, StorageError
from project.models import Architecture, Description, LabelSpace, Preprocessing, load_network, read_weights, written_out
from project.models.reading.rewriting import Form
from project.models.unfused.attention import fused

PICTURE = (3, 16, 16)
QUIET: dict[str, Any] = {"image_size": 16, "progress": False}


def twin_of(made: nn.Module, seed: int = 0) -> nn.Module:
    """The network with its units in another order."""
    twin = copy.deepcopy(made)
    permuted_copy(made, twin, traced(made, PICTURE), seed)
    return twin


def pictures(count: int = 8) -> Tensor:
    return torch.randn(count, *PICTURE, generator=torch.Generator().manual_seed(1))


def skeleton(value: Any) -> Any:
    """Keys, types and shapes."""
    if isinstance(value, Learner):
        value = {name: one for name, one in vars(value).items() if name != "loss_func"}
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return {key: skeleton(one) for key, one in value.items()} if isinstance(value, Mapping) else type(value)


@torch.no_grad()
def close(one: nn.Module, other: nn.Module) -> None:
    """Bound: sums of float32 in another order."""
    expected = one.eval()(pictures())
    torch.testing.assert_close(other.eval()(pictures()), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_files_are_written_as_they_were_read(form: str, tmp_path: Path) -> None:
    made, other = network(0), network(1)
    path, out = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(FORMS[form](made.state_dict(), made), path)
    left_out = Form(read_weights(path)).write(other.state_dict(), out)
    before, after = torch.load(path, weights_only=False), torch.load(out, weights_only=True)
    for key in ("args", "optimizer"):
        if isinstance(before, dict) and before.pop(key, None) is not None:
            assert any(one.startswith(f"{key} (") for one in left_out)
            assert key not in after
    assert ("state dict" in "".join(left_out)) == ("module" in form)
    assert skeleton(after) == skeleton(before)
    loaded, weights = load_network(out)
    assert weights.names == read_weights(path).names
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


def test_what_is_no_network_is_as_in_the_first_file_or_said(tmp_path: Path) -> None:
    made, other = network(0), network(1)
    shared = {"lr": 0.1, "size": torch.Size((3, 4)), "steps": {1, 2}}
    content = {
        "state_dict": made.state_dict() | {"criterion.weight": torch.arange(5.0)}, "epoch": 7, "best": (0.5, None),
        "hyper_parameters": {**shared, "loss": argparse.Namespace()}, "again": shared,
        "counts": torch.arange(6).view(2, 3).mT,
        "lr_schedulers": [{"last_epoch": 3}], "callbacks": {}, "views": [torch.arange(8)[2:4], argparse.Namespace()],
    }  # fmt: skip
    torch.save(content, tmp_path / "a.ckpt")
    left_out = Form(read_weights(tmp_path / "a.ckpt")).write(other.state_dict(), tmp_path / "b.ckpt")
    after = torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert after.keys() == content.keys() - {"lr_schedulers", "callbacks", "views"}
    assert torch.equal(after["state_dict"]["criterion.weight"], torch.arange(5.0))
    assert torch.equal(after["counts"], content["counts"])
    assert after["hyper_parameters"] == {"lr": 0.1, "size": (3, 4), "steps": {1, 2}}
    assert (after["epoch"], after["best"]) == (7, (0.5, None))
    assert left_out == [
        "hyper_parameters.loss (an object of argparse.Namespace)", "lr_schedulers (of one course of training)",
        "callbacks (of one course of training)", "views (an object of argparse.Namespace)",
    ]  # fmt: skip


def test_both_sets_of_a_file_hold_the_new_values(tmp_path: Path) -> None:
    """Whichever a loader takes."""
    raw, averaged, other = network(0), network(1), network(2)
    ema = FORMS["averaged"](averaged.state_dict(), averaged)
    torch.save({"model": raw.state_dict(), "model_ema": ema}, tmp_path / "a.pth")
    Form(read_weights(tmp_path / "a.pth")).write(other.state_dict(), tmp_path / "b.pth")
    for which in ("raw", "ema"):
        weights = read_weights(tmp_path / "b.pth", which)  # type: ignore[arg-type]
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in weights.state_dict.items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_the_files(kind: torch.dtype, tmp_path: Path) -> None:
    state = {name: one.to(kind) if one.is_floating_point() else one for name, one in network().state_dict().items()}
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        if path.suffix == ".pth":
            torch.save(state, path, _use_new_zipfile_serialization=False)
        else:
            save_file(state, path, metadata={"format": "pt", "of": "mine"})
        form, out = Form(read_weights(path)), path.with_stem("b")
        form.write(state, out)
        after = load_file(out) if form.safetensors else torch.load(out, weights_only=True)
        assert skeleton(after) == skeleton(state)
        assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
        if kind is torch.float16:
            with pytest.raises(CheckpointError, match="float16, which cannot hold the new values"):
                form.write(state | {"fc.bias": torch.full((5,), 1e6)}, path.with_stem("c"))
            assert not path.with_stem("c").exists()
    assert (tmp_path / "b.pth").read_bytes()[:2] != b"PK"  # as before torch 1.6, which some must still read
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "of": "mine"}


@pytest.mark.parametrize("shown", [False, True])
def test_the_mean_of_a_network_and_its_permuted_copies_is_that_network(
    shown: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = resnet("resnet8", 0)
    for number, one in enumerate((made, twin_of(made, 1), twin_of(made, 2))):
        torch.save({"net": {f"module.{name}": t for name, t in one.state_dict().items()}}, tmp_path / f"{number}.pth")
    files = [tmp_path / f"{number}.pth" for number in range(3)]
    given = pictures(32) if shown else None
    options = {"progress": False} if shown else QUIET
    with caplog.at_level(logging.INFO):
        assert project.average(files, tmp_path / "mean.pth", given, **options) == tmp_path / "mean.pth"
    mean, fresh = torch.load(tmp_path / "mean.pth", weights_only=True), nn.DataParallel(copy.deepcopy(made))
    fresh.load_state_dict(mean["net"])
    norms = [name for name in made.state_dict() if "running" in name]
    for name, tensor in made.state_dict().items():  # units stand in the first network's order
        if name not in norms or not shown:
            torch.testing.assert_close(fresh.module.state_dict()[name], tensor, atol=1e-4, rtol=1e-4)
    if shown:
        project.student.reestimate(made, [pictures(32)])
    close(made, fresh.module)
    assert ("running statistics of batch norms are the mean" in caplog.text) is not shown


def test_a_network_and_itself_have_no_mean(tmp_path: Path) -> None:
    for name in ("a.pth", "copy.pth"):
        torch.save(resnet("resnet8").state_dict(), tmp_path / name)
    for other in ("a.pth", "copy.pth"):
        with pytest.raises(ConfigurationError, match=r"which (are|hold) the same (file|network)"):
            project.average([tmp_path / "a.pth", tmp_path / other], tmp_path / "mean.pth", align="none", **QUIET)
    assert not (tmp_path / "mean.pth").exists()


def test_a_pipe_is_not_replaced(files: Path) -> None:
    os.mkfifo("pipe.pth")
    with pytest.raises(ConfigurationError, match=r"out is pipe\.pth, which is a pipe or a device; allowed: a file"):
        main(["average", "photo.pth", "sketch.pth", "--out", "pipe.pth", "--overwrite", "true"])
    assert stat.S_ISFIFO(os.stat("pipe.pth").st_mode)


def test_attention_goes_back_into_one_tensor() -> None:
    with torch.random.fork_rng(devices=[]):
        made = VisionTransformer(32, 16, 1, 3, 48, 96, num_classes=5)
    state = {name: one.clone() for name, one in made.state_dict().items()}
    back = fused(written_out(made).state_dict(), state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.fixture
def files(inside: Path) -> Path:
    """Two checkpoints of one architecture that say what they are, one of other classes, and pictures in a heap."""
    for number, name in enumerate(("photo", "sketch", "other")):
        classes = tuple("abcde") if name != "other" else tuple("vwxyz")
        said = Description(Architecture("resnet8", 5), LabelSpace({name: classes}), Preprocessing(16))
        torch.save({"state_dict": network(number).state_dict(), **said.to_entries()}, f"{name}.ckpt")
        save_file(
            network(number).state_dict(), f"{name}.safetensors", {"pleas": json.dumps(said.to_entries()["pleas"])}
        )
        torch.save(network(number).state_dict(), f"{name}.pth")
    torch.save(network(0, Architecture("resnet8", 4)).state_dict(), "four.pth")
    torch.save(network(0, Architecture("resnet20", 5)).state_dict(), "twenty.pth")
    Path("heap/below").mkdir(parents=True)
    for number in range(6):
        color = tuple(pictures()[number, :, 0, 0].mul(40).add(128).clamp(0, 255).int().tolist())
        Image.new("RGB", (20, 16), color).save(f"heap/{'below/' * (number % 2)}{number}.png")
    return inside


@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("ckpt", marks=pytest.mark.slow)])
def test_the_command(suffix: str, files: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["average", f"photo.{suffix}", f"sketch.{suffix}", "--out", f"new/mean.{suffix}", "--pictures", "heap"]
    with caplog.at_level(logging.INFO):
        main(words)
    assert f"new/mean.{suffix}: the mean of 2 networks, as photo.{suffix} has them" in caplog.text
    _, weights = load_network(f"new/mean.{suffix}")
    assert weights.preprocessing == Preprocessing(16)
    assert weights.domains == ("photo", "sketch")
    assert weights.classes == tuple("abcde")
    with pytest.raises(ConfigurationError, match=r"mean\.\w+, which is there already; choose another"):
        main(words)
    before = Path(f"new/mean.{suffix}").read_bytes()
    main([*words, "--overwrite", "true", "--align", "none"])
    assert Path(f"new/mean.{suffix}").read_bytes() != before


def test_classes_in_another_order_are_put_into_the_firsts(files: Path) -> None:
    order = [3, 0, 4, 1, 2]
    project.average(["photo.ckpt", "sketch.ckpt"], "plain.ckpt", align="none", progress=False)
    state = network(1).state_dict()
    for name in ("fc.weight", "fc.bias"):
        state[name] = state[name][order]
    names = tuple("abcde"[place] for place in order)
    said = Description(Architecture("resnet8", 5), LabelSpace({"sketch": names}), Preprocessing(16))
    torch.save({"state_dict": state, **said.to_entries()}, "turned.ckpt")
    project.average(["photo.ckpt", "turned.ckpt"], "mean.ckpt", align="none", progress=False)
    (plain, _), (mean, weights) = load_network("plain.ckpt"), load_network("mean.ckpt")
    assert same_state(mean.state_dict(), plain.state_dict())
    assert weights.classes == tuple("abcde")


REFUSED: dict[str, tuple[list[str], type[PleasError], str]] = {
    "one file": (["photo.pth"], ConfigurationError, "holds 1 of at least 2 files"),
    "no file": (["photo.pth", "absent.pth"], CheckpointError, "absent.pth is not there"),
    "another head": (["photo.pth", "four.pth"], ConfigurationError, "has 5 logits, and four.pth 4"),
    "other classes": (["photo.ckpt", "other.ckpt"], ConfigurationError, "have other classes: there is no mean"),
    "another network": (["photo.pth", "twenty.pth"], ConfigurationError, "must be of one architecture"),
    "no size": (["photo.pth", "sketch.pth", "--pictures", "heap"], ConfigurationError, "image_size is missing"),
    "no pictures": (["photo.pth", "sketch.pth", "--pictures", "absent"], DataError, "is absent, which is not there"),
    "no folder": (["photo.pth", "sketch.pth", "--pictures", "four.pth"], DataError, "four.pth, which is no folder"),
    "nothing to match on": (["photo.pth", "sketch.pth", "--align", "both"], ConfigurationError, "which needs pictures"),
    "idle": (["photo.pth", "sketch.pth", "--crop", "squash"], ConfigurationError, "without a folder of pictures"),
    "no number": (["photo.pth", "sketch.pth", "--image-size", "0"], ConfigurationError, "image_size is 0; allowed"),
    "no deviation": (
        ["photo.ckpt", "sketch.ckpt", "--pictures", "heap", "--std", "0", "1", "1"], ConfigurationError, "std is"
    ),
    "no picture at all": (
        ["photo.ckpt", "sketch.ckpt", "--pictures", "heap", "--calibration", "0"], ConfigurationError, "ration is 0"
    ),
    "no JSON": (["photo.pth", "sketch.pth", "--arguments", "{"], ConfigurationError, "arguments is '{', which is not"),
    "another container": (["photo.safetensors", "sketch.pth"], ConfigurationError, "a file of safetensors, whose form"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_mean_is_told_in_one_sentence(case: str, files: Path) -> None:
    words, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        main(["average", *words, "--out", "mean.pth"])
    assert not Path("mean.pth").exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("photo.pth/mean.pth", "cannot be written to"),
        ("heap", "is a folder"),
        ("sketch.pth", "is one of the files that are averaged"),
        ("mean.safetensors", r"is a file of PyTorch, whose form the mean has; allowed: another suffix"),
    ],
)
def test_where_nothing_can_be_written(out: str, message: str, files: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        main(["average", "photo.pth", "sketch.pth", "--overwrite", "true", "--out", out])


def test_files_that_are_not_there_are_told_before_anything_is_imported(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pleas", "average", "absent.pth", "gone.pth", "--out", "mean.pth"])
    assert command.console() == 2
    assert capsys.readouterr().err == "pleas: error: The file of weights absent.pth is not there.\n"


def test_a_full_disk_leaves_nothing(files: Path) -> None:
    with failing("mean", errno.ENOSPC), pytest.raises(StorageError):
        project.average(["photo.pth", "sketch.pth"], "mean.pth", align="none", **QUIET)
    assert not list(files.glob("*mean*"))


def test_a_student_has_a_command_of_its_own(files: Path) -> None:
    student = project.merge(["photo.pth", "sketch.pth"], method="average", image_size=16, progress=False)
    project.save_student(student, "student.safetensors")
    with pytest.raises(CheckpointError, match="is a student of a merge"):
        project.average(["student.safetensors", "photo.pth"], "mean.safetensors")


class Standardised(nn.Conv2d):
    """Convolves with rows of mean 0 and deviation 1, whatever it holds."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
        return nn.functional.conv2d(
            x, rows.view_as(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Standardising(nn.Module):
    """A network of such a layer."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.conv = Standardised(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def test_there_is_no_mean_of_what_weights_are_computed_from(tmp_path: Path) -> None:
    files = [tmp_path / "first.pth", tmp_path / "second.pth"]
    for file in files:
        torch.save(Standardising().state_dict(), file)
    out = tmp_path / "mean.pth"
    with pytest.raises(ConfigurationError, match="computes its weights from its tensors"):
        project.average(files, out, architecture=Standardising, **QUIET)
    assert not out.exists()
