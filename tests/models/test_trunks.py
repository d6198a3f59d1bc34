"""Trunks without heads for classes: told what they are, merged with pooled values in place of logits, averaged."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import permuted_copy, resnet, traced
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import project
from project.cli import main
from project.data import DomainDataModule, ImageFolders
from project.errors import CheckpointError, ConfigurationError
from project.methods import Permutation
from project.models import load_network, read_weights
from project.report.results import COSINE

pytestmark = pytest.mark.usefixtures("shown_once")

ALONE = [
    "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
    "--trainer.logger", "false",
]  # fmt: skip
QUIET: dict[str, Any] = {"image_size": 16, "progress": False}


def trunk(seed: int = 0) -> nn.Module:
    network = resnet("resnet8", seed)
    network.fc = nn.Identity()  # type: ignore[assignment]
    return network.eval()


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def moco(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Any]:
    head = {"fc.0.weight": torch.ones(64, 64), "fc.0.bias": torch.ones(64), "fc.2.weight": torch.ones(8, 64)}
    sides = {f"module.encoder_{side}.": {**one, **head} for side, one in (("q", state), ("k", other))}
    inner = {name: tensor for prefix, one in sides.items() for name, tensor in prefixed(prefix, one).items()}
    return {"epoch": 200, "state_dict": {**inner, "module.queue": torch.ones(8, 16)}}


LAYER = torch.ones(4, 8)
METHODS = {
    "MoCo": moco,
    "SimSiam": lambda t, _: {"state_dict": prefixed("module.encoder.", t) | {"module.predictor.0.weight": LAYER}},
    "SwAV": lambda t, _: prefixed("module.", t) | {"module.prototypes.weight": torch.ones(9, 8)},
    "DINO": lambda t, o: {"student": prefixed("module.backbone.", o), "teacher": prefixed("backbone.", t), "epoch": 3},
    "Barlow Twins": lambda t, _: {"model": prefixed("module.backbone.", t) | {"module.projector.0.weight": LAYER}},
    "backbone alone": lambda t, _: dict(t),
    "with a head": lambda t, _: {**t, "fc.weight": torch.ones(5, 64), "fc.bias": torch.ones(5)},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_pooled_values_are_the_trunks(method: str, tmp_path: Path) -> None:
    made = trunk()
    path = tmp_path / "w.pth"
    torch.save(METHODS[method](made.state_dict(), trunk(1).state_dict()), path)
    if method != "with a head":
        with pytest.raises(CheckpointError, match=r"no head (for classes|that is read).*project\.merge.*\"none\""):
            load_network(path)
    weights = read_weights(path, head="none")
    loaded, _ = project.models.build_network(weights)
    pictures = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pictures), made(pictures))  # by the identity: sums of zeros and one value


def test_what_is_no_trunk_has_none(tmp_path: Path) -> None:
    torch.save({"stem.weight": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"head is 'none', but .*w\.pth holds no trunk of a ResNet"):
        read_weights(tmp_path / "w.pth", head="none")


@pytest.fixture
def sources(inside: Path) -> dict[str, dict[str, str]]:
    """A trunk and its permuted copy, as two writers leave them, and pictures in class folders."""
    made, twin = resnet("resnet8", 0), resnet("resnet8", 1)
    permuted_copy(made, twin, traced(made, (3, 16, 16)), 3)
    states = [{name: t for name, t in one.state_dict().items() if not name.startswith("fc.")} for one in (made, twin)]
    torch.save(moco(states[0], states[1]), "photo.pth")
    torch.save(states[1], "sketch.pth")
    for number in range(16):
        folder = Path("pictures", ("photo", "sketch")[number % 2], f"class{number % 4 // 2}")
        folder.mkdir(parents=True, exist_ok=True)
        color = tuple(torch.randint(0, 256, (3,), generator=torch.Generator().manual_seed(number)).tolist())
        Image.new("RGB", (16, 16), color).save(folder / f"{number}.png")
    return {name: {"path": f"{name}.pth", "head": "none"} for name in ("photo", "sketch")}


def features(source: Mapping[str, str], pictures: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = project.student.load_source(source["path"], head="none").network(pictures)
    return found


def test_students_give_every_trunks_own_pooled_values(sources: dict[str, dict[str, str]]) -> None:
    pictures = torch.randn(2, 3, 16, 16)
    student = project.merge(sources, None, 1.0, Permutation(matching="weights"), **QUIET)
    project.save_student(student, "student.safetensors")
    again = project.load_student("student.safetensors")
    for domain, source in sources.items():
        expected = features(source, pictures)
        bound = 1e-4 * float(expected.abs().max())  # sums of float32 in another order
        for one in (student, again):
            torch.testing.assert_close(one(pictures)[:, one.labels.columns(domain)], expected, atol=bound, rtol=0)


def test_folders_of_any_classes_calibrate(sources: dict[str, dict[str, str]]) -> None:
    student = project.merge(sources, "pictures", 1.0, "permutation", image_size=16, progress=False)
    assert student.labels.width == 128
    assert bool(student(torch.randn(2, 3, 16, 16)).isfinite().all())


def test_the_command_holds_pooled_values_against_each_sources_own(sources: dict[str, dict[str, str]]) -> None:
    Path("merge.yaml").write_text(json.dumps({
        "model": {"class_path": "project.modules.MergeModule", "init_args": {
            "sources": list(sources.values()), "budgets": [1.0],
            "methods": [
                {"class_path": "project.methods.Average", "init_args": {"align": "none"}},
                {"class_path": "project.methods.Permutation", "init_args": {"matching": "weights"}},
            ],
        }},
        "data": {"class_path": "project.data.DomainDataModule", "init_args": {
            "sets": {"class_path": "project.data.ImageFolders", "init_args": {"root": "pictures"}},
            "image_size": 16, "calibration": 4, "batch_size": 4, "validation_fraction": 0,
        }},
    }))  # fmt: skip
    main(["merge", "--config", "merge.yaml", "--run", "run", *ALONE])
    results = json.loads(Path("run/results.json").read_text())
    means = {row["network"]: row["mean"] for row in results["table"]}
    assert results["measure"] == COSINE
    assert means["photo"] == means["sketch"] == means["ensemble"] == 100
    student = project.load_student(next(Path("run/students").glob("permutation*")))
    assert student.labels.width == 128
    data = DomainDataModule(ImageFolders("pictures"), image_size=16, calibration=4, batch_size=4, validation_fraction=0)
    data.setup("test")
    for domain, loader in zip(data.domain_names, data.test_dataloader(), strict=True):
        pictures = torch.cat([batch[0] for batch in loader])
        with torch.no_grad():
            given = student(pictures)[:, student.labels.columns(domain)]
        found = 100 * float(cosine_similarity(given, features(sources[domain], pictures)).mean())
        (row,) = (row for row in results["table"] if row["network"].startswith("permutation"))
        assert row[domain] == pytest.approx(found, abs=0.06)  # a tenth is shown


def test_trunks_are_averaged_without_their_heads(sources: dict[str, dict[str, str]]) -> None:
    project.average(list(sources.values()), "mean.pth", **QUIET)
    before, after = (torch.load(path, weights_only=True) for path in ("photo.pth", "mean.pth"))
    assert before["state_dict"].keys() == after["state_dict"].keys()
    for name, tensor in before["state_dict"].items():  # it and its permuted copy: the same, in its order
        torch.testing.assert_close(after["state_dict"][name], tensor, atol=1e-4, rtol=1e-4)


def test_where_there_must_be_classes_trunks_are_refused(sources: dict[str, dict[str, str]]) -> None:
    torch.save(copy.deepcopy(resnet("resnet8")).state_dict(), "headed.pth")
    with pytest.raises(ConfigurationError, match=r"head of photo\.pth is 'none', but others have heads"):
        project.merge([sources["photo"], "headed.pth"], method="average", **QUIET)
    files = [project.merging.SourceFile(Path(one["path"]), head="none") for one in sources.values()]
    with pytest.raises(ConfigurationError, match="no classes to score or to answer with"):
        project.modules.scored.load_scored_networks(files, None)
