"""Networks with several heads of unequal class counts, from the command: scored, asked, merged, probed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import resnet, same_state
from PIL import Image

import project
from project.cli import MergeCLI, main
from project.data import ImageFolders
from project.errors import ConfigurationError
from project.merging import SourceFile
from project.models import Architecture, Description, LabelSpace, Preprocessing
from project.modules.scored import load_scored_networks
from project.runtime.saving import atomic_save
from project.student import load_source

pytestmark = pytest.mark.usefixtures("shown_once")

CLASSES = {"art": ("cat", "dog", "eel"), "birds": ("auk", "cat"), "cars": ("bus", "cab", "van", "vw")}
METHODS = [
    {"class_path": "project.methods.PLeaS"},
    {"class_path": "project.methods.PLeaS", "init_args": {"fit": "joint", "label": "joint"}},
    {"class_path": "project.methods.PLeaS", "init_args": {"fit": "joint", "heads": "fitted", "label": "fitted"}},
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise in three domains, a network for each, as a checkpoint and as a bare state dict."""
    folder = tmp_path_factory.mktemp("heads")
    random = np.random.default_rng(0)
    for seed, (domain, classes) in enumerate(CLASSES.items()):
        for name in classes:
            for number in range(8):
                path = folder / "pictures" / domain / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        network = resnet("resnet8", seed, len(classes))
        torch.save(network.state_dict(), folder / f"{domain}.pth")
        described = Description(Architecture("resnet8", len(classes)), LabelSpace({domain: classes}), Preprocessing(8))
        atomic_save({"state_dict": network.state_dict(), **described.to_entries()}, folder / f"{domain}.ckpt")
    return folder


@pytest.fixture
def place(scene: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(scene)
    return scene


def run(subcommand: str, name: str, domains: list[str], *extra: str) -> MergeCLI:
    sets = {"class_path": "project.data.ImageFolders", "init_args": {"root": "pictures"}}
    module = "MergeModule" if subcommand == "merge" else "EvaluationModule"
    return main([
        subcommand, "--run", f"runs/{name}", "--overwrite", "true",
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false",
        "--model", f"project.modules.{module}", "--data", "project.data.DomainDataModule", "--data.sets",
        json.dumps(sets), "--data.domains", json.dumps(domains), "--data.label_space", "different",
        "--data.image_size", "8", "--data.validation_fraction", "0", *extra,
    ])  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def merged(scene: Path) -> Path:
    """Students of the three, merged from bare state dicts and scored with probes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(scene)
        patch.setattr("sys.argv", ["pleas"])
        sources = json.dumps([f"{domain}.pth" for domain in CLASSES])
        run(
            "merge", "three", list(CLASSES), "--model.sources", sources, "--model.budgets", "[1.7, 3.0]",
            "--model.methods", json.dumps(METHODS), "--probe", "true",
        )  # fmt: skip
    return scene / "runs" / "three"


def test_a_merge_reports_joint_accuracy_and_probes(merged: Path) -> None:
    rows = {row["network"]: row for row in table(merged / "results.csv")}
    students = [f"{method}-{budget}" for method in ("pleas", "joint", "fitted") for budget in ("1.70", "3.00")]
    assert set(rows) == {*CLASSES, "ensemble", *students}
    for name, row in rows.items():
        assert (row["joint"] == "") == (name in CLASSES), "a source has no head for the others' classes"
        assert (row["probe mean"] == "") == (name == "ensemble")
        if name not in CLASSES:
            assert float(row["joint"]) <= min(float(row["right head"]), float(row["mean"])) + 0.1
        if row["probe mean"]:
            probes = [float(row[f"probe {domain}"]) for domain in CLASSES]
            assert float(row["probe mean"]) == pytest.approx(np.mean(probes), abs=0.1)
    for name in students[1::2]:
        assert [rows[name][key] for key in ("art", "birds", "cars", "joint")] == [
            rows["ensemble"][key] for key in ("art", "birds", "cars", "joint")
        ], "side by side, the student is its sources"


def test_probing_leaves_the_students_alone(merged: Path, place: Path) -> None:
    sources = json.dumps([f"{domain}.pth" for domain in CLASSES])
    run("merge", "plain", list(CLASSES), "--model.sources", sources, "--model.budgets", "[1.7]",
        "--model.methods", json.dumps(METHODS[:1]))  # fmt: skip
    one, other = (
        project.load_student(folder / "students" / "pleas-1.70.safetensors").network.state_dict()
        for folder in (merged, place / "runs" / "plain")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert "probe mean" not in table(place / "runs" / "plain" / "results.csv")[0]


def test_a_test_scores_students_and_bare_state_dicts(
    merged: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = "runs/three/students/joint-1.70.safetensors"
    networks = [student, "art.pth", {"path": "cars.pth", "name": "cars again", "domains": ["cars"]}]
    done = run("test", "scored", list(CLASSES), "--model.networks", json.dumps(networks))
    assert "test/art/art/accuracy" in done.trainer.callback_metrics
    assert "Test metric" not in capsys.readouterr().out, "one table, ours"
    scored = {row["network"]: row for row in table(place / "runs" / "scored" / "scores.csv")}
    found = {row["network"]: row for row in table(merged / "results.csv")}
    for mine, theirs in (("joint-1.70", "joint-1.70"), ("art", "art"), ("cars again", "cars")):
        for column in (*CLASSES, "mean", "joint", "right head"):
            assert scored[mine][column] == found[theirs][column]


def test_a_folder_stands_for_the_file_of_weights_in_it(scene: Path) -> None:
    folder = scene / "trained" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "best.ckpt").write_bytes((scene / "art.ckpt").read_bytes())
    (scored,) = load_scored_networks([SourceFile(scene / "trained")], None)
    (same,) = load_scored_networks([SourceFile(scene / "art.ckpt")], None)
    assert scored.name == "trained"
    assert same_state(scored.network.state_dict(), same.network.state_dict())


def test_a_state_dict_that_could_be_any_says_so(place: Path) -> None:
    torch.save(resnet("resnet8", 0, 7).state_dict(), "seven.pth")
    with pytest.raises(ConfigurationError, match=r"seven.pth has 7 logits .* art 3, birds 2, cars 4; state"):
        run("test", "seven", list(CLASSES), "--model.networks", '["seven.pth"]')
    run("test", "stated", list(CLASSES), "--model.networks", '[{"path": "seven.pth", "domains": ["art", "cars"]}]')
    (row,) = table(place / "runs" / "stated" / "scores.csv")
    assert row["birds"] == ""
    with pytest.raises(ConfigurationError, match="said to have domains cars, but says itself: art"):
        run("test", "wrong", list(CLASSES), "--model.networks", '[{"path": "art.ckpt", "domains": ["cars"]}]')


def test_a_gate_that_is_not_there_is_refused(merged: Path, place: Path) -> None:
    student = project.load_student(merged / "students" / "pleas-1.70.safetensors")
    assert student.gate is not None, "the merge has learnt it"
    student.gate = None
    project.save_student(student, "bare.ckpt")
    for subcommand in ("test", "predict"):
        with pytest.raises(ConfigurationError, match="joint is 'gate', but network bare has none"):
            run(subcommand, "ungated", list(CLASSES), "--model.networks", '["bare.ckpt"]', "--model.head", "joint",
                "--model.joint", "gate")  # fmt: skip


@pytest.mark.parametrize("joint", ["gate", "uniform"])
def test_predictions_of_all_heads(merged: Path, place: Path, joint: str) -> None:
    student = "runs/three/students/pleas-1.70.safetensors"
    callback = ["--trainer.callbacks+=project.callbacks.PredictionTable", "--trainer.callbacks.top=9"]
    run("predict", "joint", list(CLASSES), "--model.networks", f'["{student}"]', "--model.head", "joint",
        "--model.joint", joint, *callback)  # fmt: skip
    rows = table(place / "runs" / "joint" / "predictions.csv")
    tested = [path for domain in ImageFolders("pictures").read() for path, _ in domain.test]
    assert len(rows) == 9 * len(tested), "nine classes of nine, for every test picture"
    for start in range(0, len(rows), 9):
        one = rows[start : start + 9]
        assert [row["rank"] for row in one] == [str(rank) for rank in range(1, 10)]
        assert {(row["head"], row["class"]) for row in one} == {(d, c) for d in CLASSES for c in CLASSES[d]}
        assert sum(float(row["probability"]) for row in one) == pytest.approx(1, abs=1e-3)


def test_predictions_by_name_and_by_domain(merged: Path, place: Path) -> None:
    networks = ["--model.networks", '["runs/three/students/pleas-3.00.safetensors"]']
    run("predict", "own", list(CLASSES), *networks)
    rows = table(place / "runs" / "own" / "predictions.csv")
    assert all(row["head"] == row["domain"] for row in rows)
    run("predict", "named", list(CLASSES), *networks, "--model.head", "birds")
    rows = table(place / "runs" / "named" / "predictions.csv")
    assert {row["head"] for row in rows} == {"birds"}
    assert {row["domain"] for row in rows} == set(CLASSES)


def test_a_wrong_head_is_refused_before_pictures_are_read(merged: Path, place: Path) -> None:
    networks = ["--model.networks", '["runs/three/students/pleas-3.00.safetensors"]']
    (place / "pictures" / "art" / "cat" / "9.png").write_bytes(b"no picture")
    try:
        with pytest.raises(ConfigurationError, match="head is 'brids'; allowed: own, joint, art, birds, cars"):
            run("predict", "refused", list(CLASSES), *networks, "--model.head", "brids")
    finally:
        (place / "pictures" / "art" / "cat" / "9.png").unlink()
    with pytest.raises(ConfigurationError, match="head is 'own', but network art has no head for birds; allow"):
        run("predict", "refused", ["birds"], "--model.networks", '["art.ckpt"]')


@pytest.mark.slow
def test_a_student_of_two_heads_is_a_source_again(place: Path) -> None:
    """Beside a source of one head, in another order of the domains; side by side, all heads are what they were."""
    pleas = ["--model.methods", json.dumps(METHODS[:1])]
    run("merge", "pair", ["art", "birds"], "--model.sources", '["art.ckpt", "birds.pth"]', *pleas)
    pair = "runs/pair/students/pleas-1.00.safetensors"
    sources = json.dumps(["cars.pth", pair])
    run("merge", "again", list(CLASSES), "--model.sources", sources, "--model.budgets", "[1.0, 1.5, 2.0]", *pleas)
    students = [
        project.load_student(f"runs/again/students/pleas-{budget}.safetensors") for budget in ("1.00", "1.50", "2.00")
    ]
    assert all(student.labels.classes == CLASSES for student in students)
    assert all(student.labels.domains == ("cars", "art", "birds") for student in students)
    batch = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before, cars = project.load_student(pair), load_source("cars.pth").network
    with torch.no_grad():
        assert torch.allclose(students[-1].probabilities(batch, "cars"), cars(batch).softmax(1), atol=1e-3)
    for head in ("art", "birds"):
        assert torch.allclose(students[-1].probabilities(batch, head), before.probabilities(batch, head), atol=1e-3)
