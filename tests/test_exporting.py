"""Students as other tools load them: the same logits, classes and preprocessing there."""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from disks import failing, free
from helpers import DOMAINS, make_problem, merge_case, pictures
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18

import project
from project.cli import main
from project.errors import ConfigurationError, MergeError, PleasError
from project.exports import common
from project.exports.export import obstacle
from project.methods import EMR, Method, Permutation
from project.models import Architecture, Preprocessing
from project.models.zoo import build_timm
from project.runtime.saving import atomic_folder
from project.student import Student, load_student, save_student

SHAPE = (3, 32, 32)
PREPARED = Preprocessing(32, (0.5, 0.4, 0.3), resize=36, interpolation="bicubic")


def varied(network: nn.Module, seed: int) -> nn.Module:
    """Norms with statistics of pictures, so that every one of them counts."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        network.train()
        network(torch.randn(4, *SHAPE))
    return network.eval()


def made(
    name: str, mode: str = "shared", budget: float = 1.0, method: Method | None = None, preprocessing: Any = PREPARED
) -> Student:
    """A student of two random networks."""
    architecture = Architecture(name, 5)
    it = make_problem(
        [varied(architecture.build(), seed) for seed in (1, 2)], mode, shape=SHAPE, architecture=architecture,
        base=varied(architecture.build(), 0), batches=[(DOMAINS[i], pictures(4, i, SHAPE)) for i in range(2)],
        needs=("units",), preprocessing=preprocessing,
    )  # fmt: skip
    (found,) = merge_case(method or Permutation("weights"), it, [budget])
    return found.student.eval()


@cache
def small(mode: str = "shared", budget: float = 1.0) -> Student:
    """The same for every test, which is to leave it as it is."""
    return made("resnet8", mode, budget)


def expected(student: Student, count: int = 3) -> tuple[Tensor, Tensor]:
    given = pictures(count, 7, SHAPE)
    with torch.no_grad():
        return given, student(given)


def test_weights_are_those_of_the_architecture(tmp_path: Path) -> None:
    student, path = small(), tmp_path / "w.safetensors"
    told = project.export(student, path, "safetensors")
    network = Architecture("resnet8", 5).build().eval()
    network.load_state_dict(load_file(path))
    given, logits = expected(student)
    with torch.no_grad():
        torch.testing.assert_close(network(given), logits)
    with safe_open(path, "pt") as file:
        said = {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}
    assert said["heads"] == told.heads == {"logits": list(student.labels.classes[DOMAINS[0]])}
    assert said["preprocessing"]["resize"] == 36
    assert Preprocessing(**said["preprocessing"]) == PREPARED
    assert (told.bytes, told.difference < 1e-5) == (path.stat().st_size, True)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "budget"), [("different", 1.5), ("shared", 1.0)])
def test_a_program_of_any_student(mode: str, budget: float, tmp_path: Path) -> None:
    student, path = small(mode, budget), tmp_path / "s.pt2"
    state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    told = project.export(student, path, "torch-export")
    extra = {"heads.json": "", "preprocessing.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    heads = list(DOMAINS[:2]) if mode == "different" else ["logits"]
    assert list(json.loads(extra["heads.json"])) == list(told.heads) == heads
    assert json.loads(extra["preprocessing.json"])["mean"] == list(PREPARED.mean)
    for count in (1, 5):
        given, logits = expected(student, count)
        found = program(given)
        assert list(found) == heads
        torch.testing.assert_close(torch.cat(list(found.values()), 1), logits)
    assert all(torch.equal(state[name], tensor) for name, tensor in student.state_dict().items())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_student(small("different"), tmp_path / "s.safetensors")
    main(["export", str(tmp_path / "s.safetensors"), "--to", "safetensors"])
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 's-weights.safetensors'}: ")
    assert f"{DOMAINS[0]} (5 classes), {DOMAINS[1]} (5 classes); logits within" in out
    with pytest.raises(ConfigurationError, match=r"out is .*s-weights\.safetensors, which is there already"):
        main(["export", str(tmp_path / "s.safetensors"), "--to", "safetensors"])
    with pytest.raises(PleasError, match=r"The student .*none\.pt is not there"):
        main(["export", str(tmp_path / "none.pt"), "--to", "onnx"])


@pytest.mark.parametrize(
    ("kind", "to", "words"),
    [
        (
            "shared 1.5",
            "timm",
            r"is larger than one of its sources \(\d of \d+ groups .*; it can go to: onnx, torch-export\.",
        ),
        ("shared 1.5", "safetensors", "is larger than one of its sources"),
        (
            "shared 1",
            "timm",
            "is of resnet8, which timm does not build; it can go to: onnx, torch-export, safetensors.",
        ),
        ("different 1", "timm", rf"has 2 heads, {DOMAINS[0]}, {DOMAINS[1]}, and a classifier there has one; it can go"),
        ("masked", "safetensors", "is several networks, put together for every picture or domain; it can go to: onnx"),
        ("masked", "pickle", "to is 'pickle'; allowed: 'timm', 'onnx', 'torch-export', 'safetensors'"),
    ],
)
def test_what_cannot_go_somewhere_is_told_where_it_can(kind: str, to: Any, words: str, tmp_path: Path) -> None:
    if kind == "masked":
        student = made("resnet8", "different", method=EMR())
    else:
        mode, budget = kind.split()
        student = small(mode, float(budget))
    with pytest.raises(ConfigurationError, match=words):
        project.export(student, tmp_path / "x", to)
    assert not list(tmp_path.iterdir())


def test_twins_of_timm() -> None:
    student = small()

    def of(architecture: Architecture, **changes: Any) -> str | None:
        from project.exports import folder

        twin = Student(
            student.network, student.spec, student.group_maps, student.labels, architecture,
            replace(PREPARED, **changes),
        )  # fmt: skip
        return folder.without_twin(twin)

    assert of(Architecture("resnet18", 5)) is None
    assert of(Architecture("timm/resnet26d", 5, arguments={"drop_rate": 0.1})) is None
    assert "resnet18 with a small stem, which" in str(of(Architecture("resnet18", 5, stem="small")))
    assert "a hidden layer in its head and a head without" in str(
        of(Architecture("resnet18", 5, hidden=3, head_bias=False))
    )
    assert "reads BGR" in str(of(Architecture("resnet18", 5), channels="BGR"))
    assert obstacle(student, "onnx") is None


def test_what_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "TOLERANCE", -1.0)
    with pytest.raises(MergeError, match="gives other logits than the student"):
        project.export(small(), tmp_path / "x", "safetensors")
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_refused_before_anything_is_traced(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        free(patch, default=1000)
        patch.setattr(torch.export, "export", None)
        for to in ("torch-export", "safetensors"):
            with pytest.raises(PleasError, match=r"needs about .* are free on that disk"):
                project.export(small(), tmp_path / "x", to)  # type: ignore[arg-type]
    with failing("x$", 28), pytest.raises(PleasError, match="cannot be written"):
        project.export(small(), tmp_path / "x", "safetensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(PleasError, match="cannot be written"), atomic_folder(tmp_path / "a" / "f") as draft:
        draft.joinpath("one", "two").touch()
    assert not list((tmp_path / "a").iterdir())
    with atomic_folder(tmp_path / "a" / "f") as draft:
        (draft / "one").write_text("1")
        assert not (tmp_path / "a" / "f").exists()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["f"]
    assert (tmp_path / "a" / "f" / "one").read_text() == "1"


def test_libraries_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigurationError, match=r"needs onnx: pip install 'pleas-lightning\[onnx\]'"):
        project.export(small(), tmp_path / "x", "onnx")


# What follows needs the libraries that load what is written.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "timm/resnet10t"])
def test_a_folder_that_timm_and_transformers_load(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    student = made(name)
    given, logits = expected(student)
    told = project.export(student, tmp_path / "f", "timm")
    names = told.heads["logits"]
    theirs = timm.create_model(f"local-dir:{tmp_path / 'f'}", pretrained=True).eval()
    hub = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "f").eval()
    with torch.no_grad():
        scale = float(logits.abs().max())
        torch.testing.assert_close(theirs(given), logits, atol=1e-5 * scale, rtol=0)
        torch.testing.assert_close(hub(given).logits, logits, atol=1e-5 * scale, rtol=0)
    assert [hub.config.id2label[index] for index in range(5)] == names
    data = timm.data.resolve_data_config({}, model=theirs)
    assert (tuple(data["input_size"]), tuple(data["mean"])) == (SHAPE, PREPARED.mean)
    assert data["interpolation"] == "bicubic"
    assert int(32 / data["crop_pct"]) == 36
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "f")
    assert processor is not None
    again = project.student.load_source(tmp_path / "f")  # and here
    assert again.description.preprocessing == PREPARED
    assert again.description.class_names == tuple(names)
    with torch.no_grad():
        torch.testing.assert_close(again.network(given), logits, atol=1e-5 * scale, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode", "budget"),
    [
        ("resnet8", "different", 1.5),
        ("resnet8", "shared", 1.0),
        ("masked", "different", 1.0),
        ("resnet18", "shared", 1.0),
    ],
)
def test_onnx_with_all_heads_and_any_number_of_pictures(kind: str, mode: str, budget: float, tmp_path: Path) -> None:
    for library in ("onnx", "onnxscript"):
        pytest.importorskip(library)
    runtime = pytest.importorskip("onnxruntime")
    student = made("resnet8", mode, method=EMR()) if kind == "masked" else made(kind, mode, budget)
    path = tmp_path / "s.onnx"
    told = project.export(student, path, "onnx")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    heads = [output.name for output in session.get_outputs()]
    assert heads == list(told.heads)
    for count in (1, 2, 7):
        given, logits = expected(student, count)
        found = session.run(None, {"pictures": given.numpy()})
        torch.testing.assert_close(torch.cat([torch.from_numpy(one) for one in found], 1), logits, atol=1e-4, rtol=1e-4)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["heads"]) == told.heads
    assert Preprocessing(**json.loads(said["preprocessing"])) == PREPARED


@pytest.mark.slow
def test_a_merge_of_folders_goes_out_as_a_folder(tmp_path: Path) -> None:
    """Two folders of timm in, one out: classes and preprocessing on the way."""
    for seed, name in enumerate(("a", "b")):
        network = varied(timm.create_model("resnet18", num_classes=3), seed)
        config = {"label_names": ["x", "y", "z"], "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        timm.models.save_for_hf(network, tmp_path / name, model_config=config, safe_serialization=True)
    given = {name: torch.randn(8, *SHAPE) for name in ("a", "b")}
    student = project.merge([tmp_path / "a", tmp_path / "b"], given, method="permutation", progress=False)
    assert student.labels.classes["a"] == ("x", "y", "z")
    assert student.preprocessing is not None
    assert student.preprocessing.mean == (0.5, 0.5, 0.5)
    told = project.export(student, tmp_path / "out", "timm")
    assert told.difference <= 1e-5
    save_student(student, tmp_path / "s.safetensors")
    assert load_student(tmp_path / "s.safetensors").architecture == Architecture("resnet18", 3)
    assert build_timm("timm/resnet18", 3, {}).state_dict().keys() == resnet18(num_classes=3).state_dict().keys()
