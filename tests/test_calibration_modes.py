"""The command with few pictures, public ones, and none at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import resnet, same_state

import project
from project.cli import main
from project.errors import ConfigurationError
from project.moments import read_statistics

BY_WEIGHTS = [
    {"class_path": "project.methods.Average"},
    {"class_path": "project.methods.Permutation", "init_args": {"matching": "weights"}},
]
DRAWN: dict[str, Any] = {"size": 16, "train_per_class": 3, "test_per_class": 1}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random sources."""
    folder = tmp_path_factory.mktemp("modes")
    for seed in range(2):
        torch.save(resnet("resnet8", seed, 12).state_dict(), folder / f"{seed}.pth")
    return folder


def merge(workplace: Path, run: str, calibration: str, methods: list[Any], *extra: str) -> Path:
    """Merge the random sources; returns the run's folder."""
    sets = {"class_path": "project.data.Shapes", "init_args": {"root": str(workplace / "data"), **DRAWN}}
    main([
        "merge", "--run", str(workplace / run), "--trainer.accelerator", "cpu",
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
        "--trainer.logger", "false",  # figures are drawn for TensorBoard alone
        "--model", "project.modules.MergeModule",
        "--model.sources", json.dumps([str(workplace / f"{seed}.pth") for seed in range(2)]),
        "--model.methods", json.dumps(methods),
        "--data", "project.data.DomainDataModule", "--data.sets", json.dumps(sets),
        "--data.domains", "[clipart, sketch]", "--data.image_size", "16", "--data.validation_fraction", "0",
        "--data.calibration", calibration, *extra,
    ])  # fmt: skip
    return workplace / run


def table(run: Path) -> dict[str, dict[str, Any]]:
    return {row["network"]: row for row in json.loads((run / "results.json").read_text())["table"]}


def test_without_pictures_norms_stay_at_the_mean_and_the_table_says_so(workplace: Path) -> None:
    run = merge(workplace, "none", "none", BY_WEIGHTS)
    rows = table(run)
    for name in ("average-1.00", "permutation-1.00"):
        assert rows[name]["batch norm"] == "sources' mean"
        assert rows[name]["before BN"] is None
    assert json.loads((run / "results.json").read_text())["calibration"] == {}
    student = project.load_student(run / "students" / "average-1.00.safetensors").network.state_dict()
    sources = [torch.load(workplace / f"{seed}.pth") for seed in range(2)]
    for name in ("bn1.running_mean", "bn1.running_var"):
        assert torch.allclose(student[name], (sources[0][name] + sources[1][name]) / 2)


@pytest.mark.parametrize(("method", "name"), [("Permutation", "permutation"), ("PLeaS", "pleas")])
def test_without_pictures_what_needs_them_is_refused(workplace: Path, method: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name} needs calibration .* is 'none'; .* 'all', a number or 'pub"):
        merge(workplace, "refused", "none", [{"class_path": f"project.methods.{method}"}])
    assert not (workplace / "refused" / "results.json").exists()


@pytest.mark.slow
def test_public_pictures_serve_every_method(workplace: Path) -> None:
    methods = [*BY_WEIGHTS[:1], {"class_path": "project.methods.Permutation"}, {"class_path": "project.methods.PLeaS"}]
    public = {"class_path": "project.data.Shapes", "init_args": {"root": str(workplace / "data"), **DRAWN}}
    public["init_args"]["domains"] = ["painting", "photo"]  # type: ignore[index]
    run = merge(
        workplace,
        "public",
        "public",
        methods,
        "--data.public",
        json.dumps(public),
        "--data.public_pictures",
        "70",
        "--data.calibration_views",
        "1",
    )
    assert json.loads((run / "results.json").read_text())["calibration"] == {"public": 70}
    rows = table(run)
    assert rows["average-1.00"]["batch norm"] == "re-estimated"
    assert rows["pleas-1.00"]["batch norm"] == "fitted"


def test_one_picture_a_domain_is_enough_to_run_and_told_to_be_few(workplace: Path) -> None:
    with pytest.warns(UserWarning, match="2 calibration pictures give only .* would be enough"):
        run = merge(workplace, "one", "1", [{"class_path": "project.methods.PLeaS"}], "--data.calibration_views", "1")
    assert json.loads((run / "results.json").read_text())["calibration"] == {"clipart": 1, "sketch": 1}
    assert table(run)["pleas-1.00"]["batch norm"] == "fitted"


def test_few_pictures_are_shown_again_by_default_and_statistics_say_so(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole merge; what it has gathered is no other number of views'."""
    monkeypatch.setattr("project.data.calibration.ENOUGH", 12)
    methods, kept = [{"class_path": "project.methods.PLeaS"}], ("--model.statistics", str(workplace / "views.st"))
    run = merge(workplace, "views", "3", methods, *kept)
    assert json.loads((run / "results.json").read_text())["calibration"] == {"clipart": 3, "sketch": 3}
    assert read_statistics(workplace / "views.st").pictures == {"clipart": 12, "sketch": 12}
    again = merge(workplace, "views again", "3", methods, *kept)
    first, second = (project.load_student(next((one / "students").iterdir())) for one in (run, again))
    assert same_state(first.state_dict(), second.state_dict())
    with pytest.raises(ConfigurationError, match=r"statistics is .*views 4 instead of 1"):
        merge(workplace, "once", "3", methods, *kept, "--data.calibration_views", "1")
