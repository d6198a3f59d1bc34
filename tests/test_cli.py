"""The command from end to end: fit, merge, test, predict, and the sentences for what cannot work."""

import csv
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import resnet, same_state
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

import project
from project import __main__ as command
from project.callbacks import MergeCallback
from project.cli import main
from project.data import DomainDataModule, DomainNet
from project.errors import CheckpointError, ConfigurationError, DataError, MergeError, PleasError
from project.merging import SourceFile
from project.methods import EMR, SMILE, TIES, MaTS, Permutation, Tuned
from project.modules import MergeModule
from project.student import batch_norms, load_source
from project.trainer import check_shares, tell_of_better_sources, warn_of_swapped_domains

pytestmark = pytest.mark.usefixtures("shown_once")

TINY = Path(__file__).resolve().parent.parent / "configs" / "tiny"
UNLOGGED = ("--trainer.logger", "false")
"""Figures, which are drawn for TensorBoard alone, take longer than a tiny merge."""


def run(subcommand: str, config: str, *extra: str) -> object:
    return main(
        [subcommand, "--config", str(TINY / f"{config}.yaml"), "--trainer.enable_progress_bar", "false", *extra]
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both tiny sources are trained and merged."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["pleas"])
        run("fit", "fit_clipart")
        run("fit", "fit_sketch")
        run("merge", "merge")
    return folder


def test_lightning_speaks_of_the_run_alone(tiny: Path) -> None:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addHandler(handler)
    Trainer(logger=False, enable_checkpointing=True, default_root_dir=tiny)
    log.removeHandler(handler)
    assert any("GPU available" in one for one in told)
    assert not any("Tip" in one for one in told)


@pytest.fixture
def tiny(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace / "runs" / "tiny"


def test_a_merge_leaves_its_table_students_and_logs(tiny: Path) -> None:
    folder = tiny / "merge"
    found = json.loads((folder / "results.json").read_text())
    rows = {row["network"]: row for row in found["table"]}
    assert {"clipart", "sketch", "ensemble", "average-1.00", "permutation-1.00", "pleas-1.50", "pleas-2.00"} <= set(
        rows
    )
    with (folder / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["network"] for row in table] == list(rows)
    for row in table:
        expected = {name: "" if value is None else str(value) for name, value in rows[row["network"]].items()}
        assert row == expected, "the CSV holds the numbers of the JSON"
    for row in rows.values():
        assert row["nominal"] == row["executed"], "blocks are executed without their zeros"
    assert rows["pleas-2.00"]["nominal"] == 2.0
    assert rows["permutation-1.50"]["batch norm"] == "re-estimated"
    assert rows["permutation-2.00"]["batch norm"] == "sources' own", "as each of its layers, but the head"
    assert all(value < 1e-4 for value in found["equivalence"].values())
    assert {phase["phase"] for phase in found["phases"]} >= {"gather", "fit", "re-estimate", "test"}
    tests = found["tests"]
    for domain, classes in tests["classes"].items():
        seen = tests["pictures"][domain]
        assert (len(classes), sum(seen)) == (12, 24)
        for name, row in rows.items():
            right, bins = tests["right"][name][domain], tests["reliability"][name][domain]
            assert row[domain] == round(100 * sum(right) / sum(seen), 1)
            assert (sum(bins["pictures"]), sum(bins["right"])) == (sum(seen), sum(right))
            assert all(told <= there for told, there in zip(right, seen, strict=True))
            confused = tests["confusions"][name][domain]
            wrong = {one: there - told for one, told, there in zip(classes, right, seen, strict=True) if there > told}
            assert {one: sum(others.values()) for one, others in confused.items()} == wrong, "of few classes, all"
            for other, both in tests["both right"][domain][name].items():
                assert both <= min(sum(right), sum(tests["right"][other][domain]))
                assert both >= sum(right) + sum(tests["right"][other][domain]) - sum(seen)
        assert sum(map(len, tests["both right"][domain].values())) == len(rows) * (len(rows) - 1) // 2
    assert list(folder.glob("events.out.tfevents.*"))
    assert (folder / "config.yaml").exists()
    report = (folder / "report.html").read_bytes()
    assert (b"<img " in report) == (folder / "examples.json").exists()
    assert report.startswith(b"<!doctype html>")
    (folder / "report.html").unlink()
    main(["report", str(folder)])
    assert (folder / "report.html").read_bytes() == report, "from what the run keeps"
    assert {path.stem for path in (folder / "students").iterdir()} == {n for n in rows if "-" in n}


def test_tensorboard_holds_figures_layers_and_the_table(tiny: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tiny / "merge"), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()
    figures = {
        "accuracy over size",
        "residual by layer",
        "match by group",
        "separate by group",
        "variance kept by norm",
    }
    assert figures <= set(tags["images"])
    assert "table/text_summary" in tags["tensors"]
    for quantity in ("residual_after", "condition", "fallbacks"):
        assert len(events.Scalars(f"{quantity}/pleas-1.00")) == 10, "one for every layer of a ResNet-8"
    assert {"accuracy/pleas/mean", "variance before/permutation-1.00", "variance after/permutation-1.00"} <= set(
        tags["scalars"]
    )


def test_a_student_loads_without_its_sources(tiny: Path, tmp_path: Path) -> None:
    kept = tmp_path / "student.safetensors"
    kept.write_bytes((tiny / "merge" / "students" / "pleas-1.50.safetensors").read_bytes())
    student = project.load_student(kept)
    assert not student.training
    assert student(torch.zeros(2, 3, 16, 16)).shape == (2, 12)
    assert student.labels.domains == ("clipart", "sketch")
    assert len(student.lineage["sources"]) == 2  # type: ignore[arg-type]


def test_test_scores_what_merge_scored(tiny: Path) -> None:
    run("test", "test")
    rows = {row["network"]: row for row in json.loads((tiny / "merge" / "results.json").read_text())["table"]}
    cli = run("test", "test", "--run", "runs/tiny/again")
    logged = {k: float(v) for k, v in cli.trainer.callback_metrics.items()}  # type: ignore[attr-defined]
    with (tiny / "again" / "scores.csv").open(newline="") as file:
        scores = {row["network"]: row for row in csv.DictReader(file)}
    assert set(scores) == {"pleas-1.50", "best"}
    assert float(scores["pleas-1.50"]["mean"]) == rows["pleas-1.50"]["mean"]
    for domain in ("clipart", "sketch"):
        assert 100 * logged[f"test/pleas-1.50/{domain}/accuracy"] == pytest.approx(rows["pleas-1.50"][domain], abs=0.05)
        assert 100 * logged[f"test/best/{domain}/accuracy"] == pytest.approx(rows["clipart"][domain], abs=0.05)


def test_a_student_is_refined_tested_and_merged_again(tiny: Path) -> None:
    run("fit", "fit_refine")
    folder = tiny / "refine"
    path = folder / "students" / "pleas-1.50-refined.safetensors"
    refined, (checkpoint,) = project.load_student(path), (folder / "checkpoints").iterdir()
    assert refined.lineage["refined"][0]["steps"] == 8  # type: ignore[index]
    assert same_state(refined.network.state_dict(), project.load_student(checkpoint).network.state_dict())
    before = project.load_student(tiny / "merge" / "students" / "pleas-1.50.safetensors")
    assert not same_state(refined.network.state_dict(), before.network.state_dict())
    run("test", "test", "--run", "runs/tiny/refined", "--model.init_args.networks", json.dumps([str(path)]))
    assert (tiny / "refined" / "scores.csv").exists()
    assert load_source(path).logits == refined.labels.width


@pytest.mark.slow
def test_coefficients_are_learned_in_epochs_tested_and_merged_again(tiny: Path) -> None:
    run("fit", "fit_coefficients")
    folder = tiny / "coefficients"
    path = folder / "students" / "adamerging-1.00.safetensors"
    student, (checkpoint,) = project.load_student(path), (folder / "checkpoints").iterdir()
    assert student.lineage["fitted"]["steps"] == 8  # type: ignore[index]
    assert same_state(student.network.state_dict(), project.load_student(checkpoint).network.state_dict())
    run("test", "test", "--model.init_args.networks", f"[{path}]", "--run", "runs/tiny/coefficients-tested")
    methods = ["--model.init_args.methods", '[{"class_path": "project.methods.Average"}]']
    files = ["--model.init_args.sources", json.dumps([{"path": str(path), "domains": ["sketch"]}, {
        "path": "runs/tiny/clipart/checkpoints/best.ckpt", "domains": ["clipart"]}])]  # fmt: skip
    run("merge", "merge", *files, *methods, "--model.init_args.budgets", "[1.0]", "--run", "runs/tiny/coefficients2")
    assert (tiny / "coefficients2" / "students" / "average-1.00.safetensors").exists()


def test_networks_of_one_file_name_are_told_apart(tiny: Path) -> None:
    both = json.dumps([str(tiny / name / "checkpoints" / "best.ckpt") for name in ("clipart", "sketch")])
    done = run("test", "test", "--run", "runs/tiny/both", "--model.init_args.networks", both)
    logged = set(done.trainer.callback_metrics)  # type: ignore[attr-defined]
    for name in ("clipart", "sketch"):
        assert f"test/{name}/checkpoints/best/{name}/accuracy" in logged


def test_sources_kept_apart_are_the_sources_to_the_end(tiny: Path, two_heads: Path) -> None:
    """Property 3 on the written students: nothing after the fit may undo it."""
    probe = torch.randn(4, 3, 16, 16)
    sources = [load_source(tiny / name / "checkpoints" / "best.ckpt").network for name in ("clipart", "sketch")]
    with torch.no_grad():
        expected = torch.cat([source(probe) for source in sources], 1)
        for name in ("permutation-2.00", "pleas-2.00"):
            student = project.load_student(two_heads / "students" / f"{name}.safetensors")
            assert torch.allclose(student(probe), expected, atol=1e-3 * float(expected.abs().max())), name


def test_the_callback_works_in_a_plain_trainer(tiny: Path) -> None:
    root = tiny / "data"
    data = DomainDataModule(DomainNet(root), image_size=16, batch_size=16, calibration=20)
    files = [SourceFile(tiny / name / "checkpoints" / "best.ckpt") for name in ("clipart", "sketch")]
    module = MergeModule(files, budgets=[1.0, 1.5])
    module.prepare(data)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    with pytest.raises(MergeError, match="needs a MergeCallback"):  # else the loop below would never end
        Trainer(**options).validate(module, dataloaders=data.calibration_dataloader(), verbose=False)
    trainer = Trainer(callbacks=[MergeCallback()], **options)
    while not module.finished:
        trainer.validate(module, dataloaders=data.calibration_dataloader(), verbose=False)
    assert [merged.name for merged in module.merged][-1] == "pleas-1.50"
    student = module.merged[-1].student
    student(torch.zeros(1, 3, 16, 16)).sum().backward()  # made under inference mode, it could not be trained


def test_an_error_while_batch_norm_is_open_leaves_it_closed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DomainDataModule(DomainNet(tiny / "data"), image_size=16, batch_size=16, calibration=20)
    files = [SourceFile(tiny / name / "checkpoints" / "best.ckpt") for name in ("clipart", "sketch")]
    module = MergeModule(files, methods=[Permutation()])
    module.prepare(data)
    trainer = Trainer(callbacks=[MergeCallback()], logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.validate(module, dataloaders=data.calibration_dataloader(), verbose=False)
    assert module.merged
    assert not module.finished
    monkeypatch.setattr(module.merged[0].student.network.layer2[0].conv1, "forward", lambda pictures: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.validate(module, dataloaders=data.calibration_dataloader(), verbose=False)
    norms = batch_norms(module.merged[0].student)
    assert not module.finished
    assert all(norm.momentum == 0.1 and not norm.training and not norm._forward_pre_hooks for norm in norms.values())


@pytest.mark.slow
def test_a_source_that_is_silent_takes_the_domain_that_is_left(tiny: Path) -> None:
    """The first file says sketch, so that the second is clipart's, whatever the order of the data."""
    said = tiny / "sketch" / "checkpoints" / "best.ckpt"
    silent = tiny / "silent.pth"
    torch.save(load_source(tiny / "clipart" / "checkpoints" / "best.ckpt").network.state_dict(), silent)
    sources = json.dumps([str(said), str(silent)])
    run(
        "merge",
        "merge",
        "--run",
        "runs/tiny/left",
        "--model.init_args.sources",
        sources,
        "--model.init_args.budgets",
        "[1.0]",
    )
    rows = json.loads((tiny / "left" / "results.json").read_text())["table"]
    assert [row["network"] for row in rows[:2]] == ["sketch", "clipart"]


@pytest.mark.slow
def test_budgets_in_any_unit_spent_by_gain(tiny: Path) -> None:
    methods = [{"class_path": "project.methods.PLeaS", "init_args": {"separate": "gain"}}]
    given = (
        "--model.init_args.budgets",
        '[1.0, 1.4x params, "2x B"]',
        "--model.init_args.methods",
        json.dumps(methods),
    )
    run("merge", "merge", "--run", "runs/tiny/units", *given)
    found = json.loads((tiny / "units" / "results.json").read_text())
    rows = {row["network"]: row for row in found["table"]}
    one = rows["clipart"]["parameters"]
    assert [row["budget"] for row in rows.values() if row["kind"] == "student"] == [1.0, "1.4x params", "2x B"]
    assert 1.3 * one < rows["pleas-1.40x_params"]["parameters"] <= 1.4 * one
    assert rows["pleas-1.40x_params"]["nominal"] == rows["pleas-1.40x_params"]["executed"]
    assert rows["pleas-2.00x_B"]["nominal"] == 2.0
    assert set(found["separated"]) == {name for name in rows if name.startswith("pleas")}
    assert (tiny / "units" / "students" / "pleas-1.40x_params.safetensors").exists()


@pytest.mark.slow
def test_three_sources(tiny: Path) -> None:
    run("fit", "fit_clipart", "--run", "runs/tiny/third", "--seed_everything", "7")
    names = {"clipart": "clipart", "sketch": "sketch", "third": "again"}
    sources = json.dumps([
        {"path": str(tiny / folder / "checkpoints" / "best.ckpt"), "name": name} for folder, name in names.items()
    ])  # fmt: skip
    with pytest.warns(UserWarning, match="domain 'clipart' has 2 sources"):
        run(
            "merge",
            "merge",
            "--run",
            "runs/tiny/three",
            "--model.init_args.sources",
            sources,
            "--model.init_args.budgets",
            "[1.0, 2.2, 3.0]",
        )
    rows = {row["network"]: row for row in json.loads((tiny / "three" / "results.json").read_text())["table"]}
    assert rows["pleas-3.00"]["executed"] == 3.0
    assert 2.1 < rows["pleas-2.20"]["executed"] <= 2.2


@pytest.mark.parametrize(
    ("mode", "count"),
    [pytest.param("shared", 4, marks=pytest.mark.slow), pytest.param("different", 3, marks=pytest.mark.slow)],
)
def test_as_many_sources_as_domains(inside: Path, mode: str, count: int) -> None:
    """From the command, by both fits and both targets; partly shared rows are executed without their zeros."""
    domains = ["clipart", "painting", "photo", "sketch"][:count]
    for seed, domain in enumerate(domains):
        torch.save(resnet("resnet8", seed, 12).state_dict(), inside / f"{domain}.pth")
    methods = [
        {"class_path": "project.methods.PLeaS", "init_args": {"step": 1}},
        {
            "class_path": "project.methods.PLeaS",
            "init_args": {"step": 1, "fit": "joint", "targets": "mean", "label": "joint"},
        },
    ]
    shapes = {"root": "data", "size": 16, "train_per_class": 2, "test_per_class": 1, "domains": domains}
    run(
        "merge", "merge", "--run", "merged",
        "--model.init_args.sources", json.dumps([f"{domain}.pth" for domain in domains]),
        "--model.init_args.methods", json.dumps(methods),
        "--model.init_args.budgets", "[1.7]",
        "--data.init_args.sets", json.dumps({"class_path": "project.data.Shapes", "init_args": shapes}),
        "--data.init_args.label_space", mode, "--data.init_args.validation_fraction", "0", *UNLOGGED,
    )  # fmt: skip
    rows = {row["network"]: row for row in json.loads(Path("merged/results.json").read_text())["table"]}
    assert [name for name in rows if name in domains] == domains
    for method in ("pleas", "joint"):
        partial = rows[f"{method}-1.70"]
        assert partial["nominal"] == partial["executed"] == pytest.approx(1.7, abs=0.03)
        student = project.load_student(f"merged/students/{method}-1.70.safetensors")
        shared = {int(sources.sum()) for units in student.maps.values() for sources in units.present}
        assert shared > {1, count}, "some units stand for some of the sources, not one, not all"


def test_a_source_twice_and_a_domain_without_source(tiny: Path, tmp_path: Path) -> None:
    good, bare = str(tiny / "clipart" / "checkpoints" / "best.ckpt"), str(tmp_path / "bare.pth")
    torch.save(load_source(good).network.state_dict(), bare)
    refused(ConfigurationError, ["bare.pth", "same network"], "--model.init_args.sources", json.dumps([good, bare]))
    refused(ConfigurationError, ["best.ckpt", "same file"], "--model.init_args.sources", json.dumps([good, good]))
    both = [{"path": str(tiny / name / "checkpoints" / "best.ckpt"), "domains": ["clipart"], "name": name}
            for name in ("clipart", "sketch")]  # fmt: skip
    refused(ConfigurationError, ["'sketch' has no source"], "--model.init_args.sources", json.dumps(both))


def test_sources_in_another_order_are_noticed(recwarn: pytest.WarningsRecorder) -> None:
    owners, names = {"left": 0, "right": 1}, ["a", "b"]
    easy_right = {"a": {"left": 80.0, "right": 90.0}, "b": {"left": 10.0, "right": 95.0}}
    by_chance = {"a": {"left": 25.0, "right": 33.3}, "b": {"left": 33.3, "right": 33.3}}
    for fine in (easy_right, by_chance):
        warn_of_swapped_domains(owners, names, fine)
    assert not recwarn
    swapped = {"a": easy_right["b"], "b": easy_right["a"]}
    with pytest.warns(UserWarning, match=r"other way round \(a on right, b on left\)"):
        warn_of_swapped_domains(owners, names, swapped)


def test_students_that_are_worse_than_a_source_alone_are_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    found = {
        "a": {"left": 80.0, "right": 60.0},
        "b": {"left": 10.0, "right": 95.0},
        "large": {"left": 75.0, "right": 90.0},
    }
    tell_of_better_sources(["a", "b"], ["large"], found)
    tell_of_better_sources(["a", "b"], [], found)
    tell_of_better_sources(["left"], ["large"], {"left": {"left": 99.0}, "large": found["large"]})  # knows one domain
    assert not caplog.messages
    found["small"] = {"left": 50.0, "right": 85.5}
    tell_of_better_sources(["a", "b"], ["large", "small"], found)
    (message,) = caplog.messages
    assert message.startswith("source a alone is right on 70.0 % over all domains; ")
    assert message.endswith(": small 2.2")


def test_another_picture_size_is_noticed(tiny: Path) -> None:
    student = json.dumps([str(tiny / "merge" / "students" / "pleas-1.50.safetensors")])
    larger = ["--data.init_args.image_size", "24", "--model.init_args.networks", student]
    with pytest.warns(UserWarning, match=r"pleas-1\.50 was made for image_size 16, but data gives image_size 24\."):
        run("test", "test", "--run", "runs/tiny/larger", *larger)


def test_validate_and_predict(tiny: Path) -> None:
    run("validate", "validate")
    run("predict", "predict")
    with (tiny / "predict" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 12 * 2, "two test pictures of each class in each domain"
    assert {row["domain"] for row in rows} == {"clipart", "sketch"}
    assert all(Path(row["picture"]).exists() for row in rows)


@pytest.fixture(scope="module")
def two_heads(workplace: Path) -> Path:
    """A run in which the sources were merged with a head each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setattr("sys.argv", ["pleas"])
        run("merge", "merge_different", "--model.init_args.budgets", "[1.0, 2.0]", *UNLOGGED)
    return workplace / "runs" / "tiny" / "merge_different"


def test_predict_takes_any_folder(tiny: Path, two_heads: Path, tmp_path: Path) -> None:
    """The same answers as for the same pictures in their domains; what is not known is said."""
    run("predict", "predict")
    with (tiny / "predict" / "predictions.csv").open(newline="") as file:
        known = {row["picture"]: row for row in csv.DictReader(file)}
    (tmp_path / "deep").mkdir()
    for number, picture in enumerate(sorted(known)[::5]):
        (tmp_path / ("deep" if number % 2 else "") / f"{number}.png").symlink_to(Path(picture).resolve())
    common = ["predict", "--config", str(TINY.parent / "predict.yaml"), "--data.init_args.root", str(tmp_path)]
    common += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    network = "--model.init_args.networks"

    def answers(run: str, *more: str) -> dict[str, dict[str, str]]:
        main([*common, "--run", f"runs/{run}", *more])
        with (tiny.parent / run / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["rank"] for row in rows] == ["1", "2", "3"] * (len(rows) // 3), "as the config has it"
        return {str(Path(row["picture"]).resolve()): row for row in rows if row["rank"] == "1"}

    whole = [network, json.dumps([str(tiny / "merge" / "students" / "pleas-1.50.safetensors")])]
    found = answers("any", *whole)
    expected = {str(Path(path).resolve()): row for path, row in known.items()}
    assert len(found) == len(sorted(known)[::5])
    for path, row in found.items():
        assert row["domain"] == ""
        assert row["class"] == expected[path]["class"]
        assert float(row["probability"]) == pytest.approx(float(expected[path]["probability"]), abs=2e-4)
    two = [network, json.dumps([str(two_heads / "students" / "pleas-1.00.safetensors")])]
    joint = answers("joint", *two)
    assert joint.keys() == found.keys()
    assert {row["head"] for row in joint.values()} <= {"clipart", "sketch"}
    assert {row["head"] for row in answers("named", *two, "--model.init_args.head", "sketch").values()} == {"sketch"}
    with pytest.warns(UserWarning, match=r"head is 'sketch', but network pleas-1\.50 has one head for all"):
        answers("one-head", *whole, "--model.init_args.head", "sketch")
    student = tiny / "merge" / "students" / "pleas-1.50.safetensors"
    pair = [str(student), str(student.with_name("pleas-1.00.safetensors"))]
    with pytest.warns(UserWarning, match=r"the first of 2 networks answers alone: pleas-1\.50"):
        assert answers("any", network, json.dumps(pair)) == found
    plain = tmp_path / "plain.pth"
    torch.save(load_source(tiny / "sketch" / "checkpoints" / "best.ckpt").network.state_dict(), plain)
    for words, asked, more in (
        (["plain.pth says nothing of its classes"], common, [network, json.dumps([str(plain)])]),
        (["UnsortedDataModule, which has no labels"], ["test", *common[1:]], two),
        (["allowed: own, joint, clipart, sketch"], common, [*two, "--model.init_args.head", "photo"]),
        (["joint is 'gate', but network pleas-1.50 has none"], common, [*whole, "--model.init_args.joint", "gate"]),
        (["nowhere is not there"], common, [*two, "--data.init_args.root", "nowhere"]),
        (["plain.pth is no folder"], common, [*two, "--data.init_args.root", str(plain)]),
        (["batch_size is 0"], common, [*two, "--data.init_args.batch_size", "0"]),
        (["holds no pictures"], common, [*two, "--data.init_args.root", str(tiny / "merge" / "students")]),
    ):
        with pytest.raises(PleasError) as error:
            main([*asked, "--run", "runs/refused", *more])
        assert all(word in str(error.value) for word in words), error.value
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ConfigurationError, match="head is 'photo'"):  # before any picture is opened
        answers("refused", *two, "--model.init_args.head", "photo")
    with pytest.raises(DataError, match=r"broken\.png"):
        answers("any", *whole)
    assert not (tiny.parent / "any" / "predictions.csv").exists(), "answers of an earlier run would be taken for these"
    skip = [*whole, "--data.init_args.on_error", "skip"]
    with pytest.warns(UserWarning, match="they are left out"):
        assert answers("skipped", *skip).keys() == found.keys()
    (tmp_path / "all").mkdir()
    (tmp_path / "broken.png").rename(tmp_path / "all" / "broken.png")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(DataError, match="no picture that can be read"):
        answers("refused", *skip, "--data.init_args.root", str(tmp_path / "all"))


def test_different_label_spaces_get_a_head_each(two_heads: Path) -> None:
    student = project.load_student(two_heads / "students" / "pleas-1.00.safetensors")
    assert student(torch.zeros(1, 3, 16, 16)).shape == (1, 24)
    assert student.labels.columns("sketch") == slice(12, 24)


@pytest.mark.slow
def test_a_saved_config_replays_its_run(tiny: Path) -> None:
    first = tiny / "merge"
    main(["merge", "--config", str(first / "config.yaml"), "--run", "runs/tiny/replayed"])
    second = tiny / "replayed"
    for name in ("average-1.00", "pleas-1.00", "pleas-1.50"):
        paths = (folder / "students" / f"{name}.safetensors" for folder in (first, second))
        mine, theirs = (project.load_student(path).state_dict() for path in paths)
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), "same seed, same files: bit for bit"
    tables = [json.loads((f / "results.json").read_text())["table"] for f in (first, second)]
    assert [{**row, "seconds": None} for row in tables[0]] == [{**row, "seconds": None} for row in tables[1]]


SHORT = [
    "--pictures", "runs/tiny/data", "--method", "average", "pleas", "--budget", "1.0", "1.5", "--image-size", "16",
    "--batch-size", "16", "--calibration", "40", "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false", *UNLOGGED,
]  # fmt: skip


@pytest.fixture(scope="module")
def silent(workplace: Path) -> list[str]:
    """Both sources as files that say nothing but by their names, in another order than the domains."""
    names = {"sketch": "SKETCH-net.pth", "clipart": "of_clipart.pth"}
    for domain, name in names.items():
        source = load_source(workplace / "runs" / "tiny" / domain / "checkpoints" / "best.ckpt")
        torch.save(source.network.state_dict(), workplace / name)
    return list(names.values())


def test_a_merge_without_yaml(tiny: Path, silent: list[str]) -> None:
    """Bit for bit the students of the YAML that says the same, and of the one that it writes."""
    main(["merge", *silent, *SHORT, "--out", "runs/tiny/short"])
    Path("same.yaml").write_text("""
run: runs/tiny/long
trainer: {accelerator: cpu, enable_progress_bar: false, logger: false}
model:
  class_path: project.modules.MergeModule
  init_args:
    sources:
      - {path: SKETCH-net.pth, domains: [sketch]}
      - {path: of_clipart.pth, domains: [clipart]}
    methods:
      - class_path: project.methods.Average
      - class_path: project.methods.PLeaS
    budgets: [1.0, 1.5]
data:
  class_path: project.data.DomainDataModule
  init_args:
    sets: {class_path: project.data.ImageFolders, init_args: {root: runs/tiny/data}}
    image_size: 16
    batch_size: 16
    calibration: 40
""")
    main(["merge", "--config", "same.yaml"])
    main(["merge", "--config", "runs/tiny/short/config.yaml", "--out", "runs/tiny/short2", "--budget", "1.5"])
    for other, names in (("long", {"average-1.00", "pleas-1.00", "pleas-1.50"}), ("short2", {"pleas-1.50"})):
        assert {path.stem for path in (tiny / other / "students").iterdir()} >= names
        for name in names:
            one, two = (
                project.load_student(tiny / run / "students" / f"{name}.safetensors") for run in ("short", other)
            )
            assert same_state(one.network.state_dict(), two.network.state_dict()), f"{other}: {name}"
    rows = json.loads((tiny / "short" / "results.json").read_text())["table"]
    assert [row["network"] for row in rows[:2]] == ["sketch", "clipart"]
    with pytest.raises(ConfigurationError, match="runs/tiny/short, which holds an earlier run"):
        main(["merge", *silent, *SHORT, "--out", "runs/tiny/short"])


def test_processes_take_over_what_the_short_form_stands_for(
    tiny: Path, silent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny / "others.yaml"
    config.write_text("model: {init_args: {memory: 1GB}}\n")
    monkeypatch.setattr("sys.argv", ["pleas", "merge", *silent, *SHORT, "--config", str(config)])
    monkeypatch.setattr("project.cli.MergeCLI.__init__", lambda *_, **__: None)
    main()
    assert sys.argv[:4] == ["pleas", "merge", "--config", str(config)]
    assert not set(sys.argv) & {*silent, "--pictures", "--method", "--budget", "--calibration"}
    assert {"--model.sources", "--data.sets", "--model.methods", "--model.budgets", "--data.calibration"} < {*sys.argv}


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_merge_without_yaml(tiny: Path, silent: list[str]) -> None:
    two = [*SHORT, "--out", "runs/tiny/short-two", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    command = [sys.executable, "-m", "project", "merge", *silent, *two]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tiny / "short-two" / "students" / "pleas-1.50.safetensors").exists()


def test_what_the_short_form_lacks_is_told_in_one_sentence(
    tiny: Path, silent: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pleas", "merge", silent[0], *SHORT])
    assert command.console() == 2
    assert capsys.readouterr().err == (f"pleas: error: 1 file is named, {silent[0]}; a merge needs two or more.\n")
    Path("bad.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"bad\.pth is not a file of weights"):
        main(["merge", silent[0], "bad.pth", *SHORT])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the sources do better the other way round")  # two pictures of a class decide
def test_students_are_sources_again(tiny: Path) -> None:
    students = tiny / "merge" / "students"
    sources = json.dumps([
        {"path": str(students / "permutation-1.50.safetensors"), "domains": ["clipart"]},
        {"path": str(students / "pleas-1.50.safetensors"), "domains": ["sketch"]},
    ])  # fmt: skip
    run(
        "merge",
        "merge",
        "--run",
        "runs/tiny/second",
        "--model.init_args.sources",
        sources,
        "--model.init_args.budgets",
        "[1.0]",
    )
    rows = json.loads((tiny / "second" / "results.json").read_text())["table"]
    assert rows[-1]["network"] == "pleas-1.00"
    assert rows[-1]["executed"] < 1.01


def test_print_config_and_help(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("merge", "merge", "--print_config")
    assert "project.modules.MergeModule" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["merge", "--model.help", "project.modules.MergeModule"])
    assert "from 1 to the number of sources" in " ".join(capsys.readouterr().out.split())


def refused(kind: type[PleasError], words: list[str], *arguments: str, folder: str = "runs/tiny/refused") -> None:
    """A merge that is refused with one sentence that holds some words, and leaves no students behind."""
    with pytest.raises(kind) as caught:
        run("merge", "merge", "--run", folder, *arguments)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not list(Path(folder).glob("students/*"))
    assert not list(Path(folder).glob("results.*"))


@pytest.mark.parametrize("budget", ["0.5", "2.5", ".nan"])
def test_impossible_budgets(tiny: Path, budget: str) -> None:
    refused(ConfigurationError, ["budgets", budget.strip("."), "between 1"], "--model.init_args.budgets", f"[{budget}]")


def test_parameters_that_no_student_can_have(tiny: Path) -> None:
    words = ["budgets holds 9k params", "between", "(one source's size)"]
    refused(ConfigurationError, words, "--model.init_args.budgets", "[1.0, 9k params]")


def test_sources_that_are_no_checkpoints(tiny: Path, tmp_path: Path) -> None:
    good = tiny / "clipart" / "checkpoints" / "best.ckpt"
    cases = {"text.ckpt": b"not a checkpoint", "short.ckpt": good.read_bytes()[:2000]}
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        refused(CheckpointError, [name], "--model.init_args.sources", json.dumps([str(good), str(path)]))
    refused(CheckpointError, ["absent.ckpt"], "--model.init_args.sources", json.dumps([str(good), "absent.ckpt"]))


def test_sources_with_nan_or_another_architecture(tiny: Path, tmp_path: Path) -> None:
    good = tiny / "clipart" / "checkpoints" / "best.ckpt"
    content = torch.load(good, weights_only=True)
    content["state_dict"]["network.conv1.weight"][0] = float("nan")
    torch.save(content, tmp_path / "nan.ckpt")
    refused(
        CheckpointError,
        ["nan.ckpt", "conv1.weight"],
        "--model.init_args.sources",
        json.dumps([str(good), str(tmp_path / "nan.ckpt")]),
    )
    wide = project.models.Architecture("resnet8", 12, width=2).build()
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    refused(
        ConfigurationError,
        ["wide.pth", "best.ckpt"],
        "--model.init_args.sources",
        json.dumps([str(good), str(tmp_path / "wide.pth")]),
    )


def test_one_source_or_unknown_domain(tiny: Path) -> None:
    good = str(tiny / "clipart" / "checkpoints" / "best.ckpt")
    refused(ConfigurationError, ["sources", "at least 2"], "--model.init_args.sources", json.dumps([good]))
    wrong = json.dumps([good, {"path": str(tiny / "sketch" / "checkpoints" / "best.ckpt"), "domains": ["birds"]}])
    refused(ConfigurationError, ["birds", "clipart, sketch"], "--model.init_args.sources", wrong)


def test_ridge_zero_needs_samples(tiny: Path) -> None:
    methods = json.dumps([{"class_path": "project.methods.PLeaS", "init_args": {"ridge": 0}}])
    refused(
        ConfigurationError, ["ridge is 0", "samples"],
        "--model.init_args.methods", methods, "--data.init_args.calibration", "8",
    )  # fmt: skip


def test_unequal_classes_in_shared_mode(tiny: Path) -> None:
    root = tiny.parent / "unequal"
    for domain, names in {"left": ("cat", "dog"), "right": ("cat", "bird")}.items():
        for name in names:
            folder = root / domain / name
            folder.mkdir(parents=True, exist_ok=True)
            source = next((tiny / "data" / "clipart" / "cup").glob("*.png"))
            for number in range(6):
                (folder / f"{number}.png").write_bytes(source.read_bytes())
    sets = json.dumps({"class_path": "project.data.ImageFolders", "init_args": {"root": str(root), "domains": None}})
    # Sources before data: what the domains are called comes from the data alone here.
    refused(
        ConfigurationError, ["dog", "bird", "shared"],
        "--data.init_args.sets", sets, "--data.init_args.domains", "[left, right]",
    )  # fmt: skip


@pytest.mark.slow
def test_pictures_that_cannot_be_read(tiny: Path) -> None:
    root = tiny.parent / "damaged"
    shutil.copytree(tiny / "data", root)
    for path in (root / "sketch" / "fish").glob("*.png"):
        path.write_bytes(path.read_bytes()[:100])
    refused(DataError, ["damaged", ".png"], "--data.init_args.root", str(root))
    with pytest.warns(UserWarning, match="pictures cannot be read"):
        run(
            "merge",
            "merge",
            "--run",
            "runs/tiny/skipped",
            "--data.init_args.root",
            str(root),
            "--data.init_args.on_error",
            "skip",
        )
    assert (tiny / "skipped" / "results.json").exists()


def test_two_runs_into_one_folder(tiny: Path) -> None:
    before = (tiny / "merge" / "results.json").read_bytes()
    with pytest.raises(ConfigurationError, match="overwrite"):
        run("merge", "merge")
    assert (tiny / "merge" / "results.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_a_fit_that_overwrites_leaves_its_own_checkpoint_alone(tiny: Path) -> None:
    folder, first = tiny / "twice" / "checkpoints", None
    for rate in ("0.001", "0.002"):
        run("fit", "fit_clipart", "--run", "runs/tiny/twice", "--model.init_args.optimizer.init_args.lr", rate,
            "--trainer.max_epochs", "1", "--overwrite", "true")  # fmt: skip
        weights = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
        first = first or weights
    assert [path.name for path in folder.iterdir()] == ["best.ckpt"]
    assert first is not None
    assert not same_state(weights, first)


def test_a_folder_that_cannot_be_written_to(tiny: Path) -> None:
    Path("runs/tiny/file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="cannot be written to"):
        run("merge", "merge", "--run", "runs/tiny/file/below")


@pytest.mark.ddp
def test_two_processes_make_the_student_of_one(tiny: Path) -> None:
    """Through the command line, since the second process runs it again; gloo on the CPU."""
    methods = json.dumps([
        {"class_path": "project.methods.PLeaS"},
        {"class_path": "project.methods.PLeaS", "init_args": {"fit": "joint", "label": "joint"}},
    ])  # fmt: skip
    shared = ["--model.init_args.methods", methods, "--model.init_args.budgets", "[1.5]"]
    shared += ["--data.init_args.calibration", "50", "--model.init_args.heads", "domains", *UNLOGGED]
    run("merge", "merge", *shared, "--run", "runs/tiny/one")
    command = [
        sys.executable, "-m", "project", "merge", "--config", str(TINY / "merge.yaml"), *shared, "--run",
        "runs/tiny/two", "--trainer.strategy", "ddp", "--trainer.devices", "2",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    probe = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for path in sorted((tiny / "one" / "students").glob("*.safetensors")):
        one, two = (project.load_student(tiny / name / "students" / path.name) for name in ("one", "two"))
        with torch.no_grad():
            a, b = one(probe), two(probe)
        if "joint" in path.name:  # batch norm sees other batches with two processes
            for layer in one.spec.layers:
                mine, theirs = (dict(s.network.get_submodule(layer.name).named_parameters()) for s in (one, two))
                for key in mine:
                    assert torch.allclose(mine[key], theirs[key], rtol=1e-3, atol=1e-4), f"{path.stem}: {layer.name}"
        else:
            assert torch.allclose(a, b, atol=1e-2 * float(a.abs().max())), path.stem
            with torch.no_grad():
                a, b = one.answer(probe, "sketch"), two.answer(probe, "sketch")
            assert torch.allclose(a, b, atol=1e-2 * float(a.abs().max())), path.stem
    for name in ("one", "two"):  # by heads in three ways
        rows = {row["network"]: row for row in json.loads((tiny / name / "results.json").read_text())["table"]}
        student, source = rows["pleas-1.50"], rows["clipart"]
        assert all(0 <= student[way] <= 100 and source[way] is None for way in ("told", "guessed"))


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_refine_one_student(tiny: Path) -> None:
    command = [
        sys.executable, "-m", "project", "fit", "--config", str(TINY / "fit_refine.yaml"), "--run", "runs/tiny/refine2",
        "--trainer.strategy", "ddp", "--trainer.devices", "2",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refined = project.load_student(tiny / "refine2" / "students" / "pleas-1.50-refined.safetensors")
    assert refined.lineage["refined"][0]["steps"] == 4, "each takes half of the pictures"  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_predict_one_picture_once(tiny: Path, tmp_path: Path) -> None:
    """Which leaves one of them none."""
    picture = next((tiny / "data").rglob("*.png"))
    (tmp_path / "one.png").symlink_to(picture.resolve())
    student = json.dumps([str(tiny / "merge" / "students" / "pleas-1.50.safetensors")])
    command = [
        sys.executable, "-m", "project", "predict", "--config", str(TINY.parent / "predict.yaml"),
        "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "2",
        "--trainer.callbacks.init_args.top", "1", "--data.init_args.root", str(tmp_path),
        "--model.init_args.networks", student, "--run", "runs/predict-one",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = []
    for path in (tiny.parent / "predict-one").glob("predictions*.csv"):
        with path.open(newline="") as file:
            rows += [row["picture"] for row in csv.DictReader(file)]
    assert rows == [str(tmp_path / "one.png")]


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_learn_one_set_of_coefficients(tiny: Path) -> None:
    """In a fit, which takes half as many steps, and in a merge, by itself and tuned."""
    methods = json.dumps([
        {"class_path": "project.methods.AdaMerging", "init_args": {"steps": 3, "batch": 99, "norms": "running"}},
        {"class_path": "project.methods.Tuned", "init_args": {
            "method": {"class_path": "project.methods.AdaMerging", "init_args": {"steps": 2}},
            "grid": {"scale": [0.1, 0.5]}, "criterion": "accuracy"}},
    ])  # fmt: skip
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    fit = ["fit", "--config", str(TINY / "fit_coefficients.yaml"), "--run", "runs/tiny/coefficients-two", *two]
    fit += ["--model.init_args.method.init_args.align", "activations"]
    merge = ["merge", "--config", str(TINY / "merge.yaml"), "--model.init_args.methods", methods]
    merge += ["--model.init_args.base", "mean", "--model.init_args.budgets", "[1.0]"]
    for arguments in (fit, [*merge, "--run", "runs/tiny/ada", *two]):
        command = [sys.executable, "-m", "project", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    fitted = project.load_student(tiny / "coefficients-two" / "students" / "adamerging-1.00.safetensors")
    assert fitted.lineage["fitted"]["steps"] == 4, "each takes half of the pictures"  # type: ignore[index]
    alone = ["--run", "runs/tiny/coefficients-one", *fit[-2:]]
    run("fit", "fit_coefficients", *alone)
    one = project.load_student(tiny / "coefficients-one" / "students" / "adamerging-1.00.safetensors")
    same = [torch.equal(units.members, fitted.maps[name].members) for name, units in one.maps.items()]
    assert all(same), "units are matched by what both have seen"
    merged = project.load_student(tiny / "ada" / "students" / "adamerging-1.00.safetensors").lineage["learned"]
    assert max(abs(one - 0.3) for one in merged["coefficients"]["sketch"].values()) > 2e-3  # type: ignore[index]
    assert (tiny / "ada" / "students" / "adamerging-tuned-1.00.safetensors").exists()


def test_a_process_without_pictures_is_refused() -> None:
    check_shares({"clipart": 2, "sketch": 3}, 2)
    check_shares({}, 2)
    with pytest.raises(ConfigurationError, match="sketch has 1 calibration pictures for 2 processes"):
        check_shares({"clipart": 2, "sketch": 1}, 2)


def test_what_lightning_refuses_is_told_in_one_sentence(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pleas", "test", "--config", str(TINY / "merge.yaml"), "--run", "runs/tiny/mixed"])
    assert command.console() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("pleas: error: No `test_step()` method defined")


def test_a_fit_that_is_told_to_end_does_not_say_that_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning raises a SystemExit without a number, at which make and schedulers would go on."""
    monkeypatch.setattr("sys.argv", ["pleas", "fit"])
    monkeypatch.setattr("project.cli.main", lambda: (_ for _ in ()).throw(SIGTERMException()))
    assert command.console() == 128 + 15


@pytest.mark.slow
def test_every_method_in_one_merge(tiny: Path) -> None:
    """On one pass over the pictures: students that load, curves that TensorBoard shows, names that answer."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run("merge", "merge_all")
    folder = tiny / "merge_all"
    found = json.loads((folder / "results.json").read_text())
    rows = {row["network"]: row for row in found["table"]}
    labels = [
        "average",
        "permutation",
        "pleas",
        "taskarithmetic",
        "ties",
        "pcb",
        "emr",
        "fisher",
        "regmean",
        "regmeanpp",
    ]
    labels += ["ties-aligned", "regmean-aligned", "mats-average", "mats-diagonal", "mats-gram", "mats-kfac"]
    labels += ["ties-both", "pleas-both", "fisher-both", "zipit", "zipit-both"]
    labels.append("wemoe")
    labels += ["adamerging", "adamerging-plus", "concrete", "concrete-adamerging", "taskarithmetic-tuned"]
    labels += ["regmean-by-labels", *(f"interpolation-1-2-{t}" for t in (0, 0.5, 1))]
    assert {name for name in rows if name.endswith("-1.00")} == {f"{label}-1.00" for label in labels}
    for label in labels:
        student = project.load_student(folder / "students" / f"{label}-1.00.safetensors")
        row = rows[f"{label}-1.00"]
        if label == "wemoe":
            assert row["nominal"] == row["executed"] > 1.0
        else:
            assert row["nominal"] == 1.0
            assert row["executed"] == (2.0 if label == "emr" else 1.0), "all of EMR's where none is named"
        assert row["MB"] == pytest.approx(student.bytes / 1e6, abs=1e-3)
        assert row["MB"] > rows["sketch"]["MB"] * (1.9 if label in ("emr", "wemoe") else 1) - 1e-3
        assert torch.isfinite(student.probabilities(torch.randn(2, 3, 16, 16), "sketch")).all()
        assert student.lineage["base"] == "mean"
        assert student.zipped == label.startswith("zipit")
        assert label != "ties-both" or student.lineage["options"]["align"]["alpha"] == 0.3
        assert label != "zipit-both" or student.lineage["options"]["within"] == 0.5
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    for tag in ("cg residual/mats-kfac-1.00/fc", "cg loss/mats-gram-1.00/all layers", "residual_after/regmean-1.00",
                "entropy/wemoe-1.00/all layers", "own gate/wemoe-1.00/layer3.0.conv1"):  # fmt: skip
        assert tag in scalars
    assert len(events.Scalars("cg residual/mats-kfac-1.00/all layers")) == 6
    assert [one.step for one in events.Scalars("cg divergence/mats-gram-1.00/all layers")] == [0, 5]
    assert {"entropy/adamerging-1.00/sketch", "coefficient/adamerging-1.00/clipart", "open/concrete-1.00"} <= scalars
    assert len(events.Scalars("coefficient clipart/adamerging-1.00")) == 10, "one for every layer of a ResNet-8"
    assert len(events.Scalars("held-out entropy/taskarithmetic-tuned-1.00/all layers")) == 3
    assert [one.step for one in events.Scalars("coefficient/concrete-adamerging-1.00/all layers")] == [0, 1, 2, 3, 4]
    chosen = project.load_student(folder / "students" / "regmean-by-labels-1.00.safetensors").lineage["learned"][
        "tuned"
    ]  # type: ignore[index]
    assert len(chosen["scores"]) == 4
    assert found["lineage"]["regmean-by-labels-1.00"]["learned"]["tuned"] == chosen
    assert chosen["setting"]["off_diagonal"] in (0.1, 0.9)
    path, middle = (
        found["connectivity"]["interpolation: clipart – sketch"],
        rows["interpolation-1-2-0.5-1.00"],
    )
    assert middle["kind"] == "point"
    assert path["accuracy"]["sketch"][1] == pytest.approx(middle["sketch"], abs=0.05)
    assert path["barrier"]["mean"] >= 0
    assert (folder / "connectivity.png").exists()


def test_mixtures_in_one_merge(tiny: Path) -> None:
    """Routed students stand in the same table, with what they cost; merged norms are re-estimated under their gates."""
    run("merge", "merge_mixture", *UNLOGGED)
    folder = tiny / "merge_mixture"
    rows = {row["network"]: row for row in json.loads((folder / "results.json").read_text())["table"]}
    norms = {"smile": "sources' own", "smile-merged": "re-estimated", "wemoe": "re-estimated"}
    for label, words in norms.items():
        row, path = rows[f"{label}-1.00"], folder / "students" / f"{label}-1.00.safetensors"
        student = project.load_student(path)
        assert row["batch norm"] == words
        assert row["nominal"] == row["executed"] > 1.0
        assert row["MB"] > rows["sketch"]["MB"]
        assert row["parameters"] == student.held
        with pytest.raises(PleasError, match="others for every picture"):
            load_source(path)
    assert rows["ensemble"]["MB"] == pytest.approx(2 * rows["sketch"]["MB"], abs=2e-3)
    found = MergeModule([SourceFile(tiny / name / "checkpoints" / "best.ckpt") for name in ("clipart", "sketch")],
                        methods=[SMILE()], base="mean")  # fmt: skip
    with pytest.raises(ConfigurationError, match="2 sources differ by the sign alone"):
        found.prepare(DomainDataModule(DomainNet(tiny / "data"), image_size=16, batch_size=16, calibration=20))


def test_a_base_is_read_from_a_file_and_of_the_sources_kind(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("project.trainer.MergeTrainer.validate", lambda *_, **__: pytest.fail("too late"))
    sources = [SourceFile(tiny / name / "checkpoints" / "best.ckpt") for name in ("clipart", "sketch")]
    data = DomainDataModule(DomainNet(tiny / "data"), image_size=16, batch_size=16, calibration=20)
    for name, classes in (("resnet8", 12), ("resnet8", 7), ("resnet32", 12)):
        path = tiny / f"{name}-{classes}.pth"
        torch.save(resnet(name, 3, classes).state_dict(), path)
    for classes in (12, 7):
        module = MergeModule(sources, methods=[TIES()], base=str(tiny / f"resnet8-{classes}.pth"))
        module.prepare(data)
        base = module.engine.problem.base
        assert same_state(base.state_dict(), load_source(tiny / f"resnet8-{classes}.pth").network.state_dict())  # type: ignore[union-attr]
    for base, words in (
        (str(tiny / "resnet32-12.pth"), "resnet32-12"),
        ("IMAGENET1K_V1", "base is 'IMAGENET1K_V1', which is no file, and as a name: .* no ImageNet weights of resnet"),
    ):
        with pytest.raises(PleasError, match=words):
            MergeModule(sources, methods=[TIES()], base=base).prepare(data)
    with pytest.raises(ConfigurationError, match="method ties needs base"):
        MergeModule(sources, methods=[TIES()]).prepare(data)
    with pytest.raises(ConfigurationError, match="start of method mats is 'ties-aligned'"):
        MergeModule(sources, [MaTS(start="ties-aligned"), TIES(label="ties-aligned")], base="mean").prepare(data)
    tuned, aligns = Tuned(TIES(), {"keep": [0.1, 0.2]}), {"align": ["none", "weights"]}
    MergeModule(sources, [tuned, MaTS(start="ties-tuned")], base="mean").prepare(data)
    for other in (Tuned(EMR(), {"align": ["none"]}), Tuned(TIES(), aligns)):
        with pytest.raises(ConfigurationError, match=f"start of method mats is '{other.name}'"):
            MergeModule(sources, [other, MaTS(start=other.name)], base="mean").prepare(data)


@pytest.mark.parametrize("command", ["validate", "test", pytest.param("fit", marks=pytest.mark.slow)])
def test_a_checkpoint_to_go_on_from_chooses_no_class(
    tiny: Path, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor any setting: a class that its hyper-parameters name leaves a trace where it is imported."""
    (tmp_path / "beside.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()\n\n\nclass Evil: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = torch.load(tiny / "clipart" / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["callbacks"] = {}  # they warn of another folder than their own
    checkpoint["hyper_parameters"] |= {"_class_path": "beside.Evil", "label_smoothing": 0.9}
    torch.save(checkpoint, tmp_path / "theirs.ckpt")
    done = run(
        command, "fit_clipart", "--run", f"runs/tiny/{command}-theirs", "--ckpt_path", str(tmp_path / "theirs.ckpt")
    )
    assert not (tmp_path / "trace").exists()
    assert "beside" not in sys.modules
    assert done.model.hparams["label_smoothing"] == 0  # type: ignore[attr-defined]
