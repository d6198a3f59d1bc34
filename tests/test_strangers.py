"""No file chooses code: every command and option that takes one is given what strangers write, in every form."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import resnet, same_state
from strangers import FORMS, Stranger
from torch import nn

import project
from project.cli import main
from project.errors import CheckpointError, PleasError
from project.models import LabelSpace, Preprocessing
from project.models.description import Description
from project.student import Student

pytestmark = pytest.mark.usefixtures("shown_once")

DOMAINS = ("clipart", "sketch")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fit of one step and its checkpoint."""
    folder = tmp_path_factory.mktemp("strangers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pleas"])
        main(fit(folder, folder / "fit"))
    return folder


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    (tmp_path / "strange").mkdir()
    with Stranger(tmp_path / "strange") as one:
        yield one


def data(place: Path, *, kind: str = "DomainDataModule", domains: Sequence[str] = DOMAINS) -> list[str]:
    shapes = {"root": str(place / "data"), "size": 16, "train_per_class": 4, "test_per_class": 1}
    sets = json.dumps({"class_path": "project.data.Shapes", "init_args": shapes})
    return [
        "--data", f"project.data.{kind}", "--data.sets", sets, "--data.domains", f"[{', '.join(domains)}]",
        "--data.image_size", "16", "--data.validation_fraction", "0.25", "--data.batch_size", "16",
    ]  # fmt: skip


def quiet(run: Path) -> list[str]:
    return [
        "--run", str(run), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
        "--trainer.enable_model_summary", "false", "--trainer.logger", "false",
    ]  # fmt: skip


def fit(place: Path, run: Path, *extra: str, command: str = "fit") -> list[str]:
    limits = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1", "--trainer.log_every_n_steps", "1"]
    model = ["--model", "project.modules.FineTuneModule", "--model.architecture", "resnet20"]
    return [command, *quiet(run), *limits, *model, *data(place, domains=["clipart"]), *extra]


def described(content: dict[str, Any], domain: str, classes: Sequence[str]) -> dict[str, Any]:
    labels = LabelSpace({domain: tuple(classes)})
    return {**content, **Description(None, labels, Preprocessing(16)).to_entries()}


def written(place: Path, folder: Path, form: str, stranger: Stranger) -> dict[str, Path]:
    """Files of all kinds that commands take, with a stranger's objects in each."""
    objects, write = stranger.objects(), FORMS[form]
    (path,) = (place / "fit").rglob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    classes = checkpoint["pleas"]["classes"]["clipart"]
    networks = [resnet("resnet20", seed, len(classes)) for seed in range(3)]
    hyper = {**checkpoint["hyper_parameters"], **objects, "label_smoothing": 0.9, "_class_path": f"{stranger.name}.Net"}
    given = dict(zip(DOMAINS, networks, strict=False))
    student: Student = project.merge(
        given, None, method="average", image_size=16, classes=classes, label_space="shared"
    )
    project.save_student(student, folder / "own.ckpt")
    contents = {
        "resumed": {**checkpoint, "callbacks": {}, "hyper_parameters": hyper, "more": None},
        "training": {**checkpoint, "optimizer_states": [objects]},
        "clipart": described({"state_dict": networks[0].state_dict(), **objects}, "clipart", classes),
        "sketch": described({"model": nn.DataParallel(networks[1]), "args": objects["args"]}, "sketch", classes),
        "base": {"net": networks[2].state_dict(), "acc": objects["accuracy"], "config": objects["config"]},
        "student": {**torch.load(folder / "own.ckpt", weights_only=True), "hyper_parameters": objects},
        "objects": objects,
    }
    for name, content in contents.items():
        write(content, folder / f"{name}.{form}")
    return {**{name: folder / f"{name}.{form}" for name in contents}, "own": folder / "own.ckpt"}


def commands(place: Path, files: dict[str, Path], out: Path) -> dict[str, tuple[list[str], str | None]]:
    """What is called -> arguments, and what it must say if it is refused."""
    sources = f"[{files['clipart']}, {files['sketch']}]"
    merge = ["merge", *quiet(out / "merge"), "--model", "project.modules.MergeModule", "--model.budgets", "[1.0]"]
    merge += ["--model.methods", "[{class_path: project.methods.TIES}]", "--model.sources", sources]
    merge += [*data(place), "--data.calibration", "2"]
    gathers = "[{class_path: project.methods.Permutation}]"
    evaluation = ["--model", "project.modules.EvaluationModule", *data(place)]
    refine = ["fit", *quiet(out / "refined"), "--trainer.max_epochs", "1", "--model", "project.modules.RefineModule"]
    refine += [*data(place, kind="UnlabelledDataModule"), "--model.student", str(files["student"])]
    average = ["average", str(files["clipart"]), str(files["sketch"])]
    one, networks = f"[{files['student']}]", f"[{files['student']}, {files['sketch']}]"
    return {
        "merge": ([*merge, "--model.base", str(files["base"])], None),
        "merge, statistics": (
            [*merge, "--overwrite", "true", "--model.methods", gathers, "--model.statistics", str(files["objects"])],
            "damaged or no file of statistics",
        ),
        "merge, base": ([*merge, "--overwrite", "true", "--model.base", str(files["objects"])], "is not a state dict"),
        "average": ([*average, "--out", str(out / "mean.pth"), "--image-size", "16"], None),
        "check": (["check", "--model", str(files["clipart"]), "--image-size", "16"], None),
        "check, a module": (["check", "--model", str(files["sketch"]), "--image-size", "16"], None),
        "add": (
            ["add-statistics", str(files["objects"]), str(files["clipart"]), "--out", str(out / "sum")],
            "damaged or no file of statistics",
        ),
        "fit, base": (fit(place, out / "base", "--model.base", str(files["base"])), None),
        "fit, scope": (fit(place, out / "s", "--model.scope", f"{{strength: 0.1, target: [{files['sketch']}]}}"), None),
        "fit, resumed": (fit(place, out / "resumed", "--ckpt_path", str(files["resumed"])), None),
        "fit, its optimizer": (
            fit(place, out / "training", "--ckpt_path", str(files["training"])), "in 'optimizer_states'; allowed",
        ),
        "validate": (fit(place, out / "v", "--ckpt_path", str(files["resumed"]), command="validate"), None),
        "test": (fit(place, out / "t", "--ckpt_path", str(files["resumed"]), command="test"), None),
        "predict": (fit(place, out / "p", "--ckpt_path", str(files["resumed"]), command="predict"), None),
        "test, networks": (["test", *quiet(out / "n"), *evaluation, "--model.networks", networks], None),
        "predict, student": (["predict", *quiet(out / "q"), *evaluation, "--model.networks", one], None),
        "refine": ([*refine, "--model.sources", f"[{files['clipart']}]"], "which the student was not made of"),
    }  # fmt: skip


def test_no_text_where_weights_should_be_chooses_code(place: Path, tmp_path: Path, stranger: Stranger) -> None:
    text = tmp_path / "network.pth"
    text.write_text(f"class_path: {stranger.name}.Net\ninit_args: {{path: other.pth}}\n")
    kinds = ("resumed", "clipart", "sketch", "base", "student", "objects", "training")
    stranger.rest()
    for name, (arguments, _) in commands(place, dict.fromkeys(kinds, text), tmp_path / "runs").items():
        with pytest.raises(PleasError, match=re.escape(str(text))):
            main(arguments)
        assert not stranger.ran, name


@pytest.mark.parametrize("form", ["zip", *(pytest.param(form, marks=pytest.mark.slow) for form in ("older", "pickle"))])
def test_no_file_chooses_code(place: Path, tmp_path: Path, stranger: Stranger, form: str) -> None:
    files = written(place, tmp_path, form, stranger)
    stranger.rest()
    for name, (arguments, refused) in commands(place, files, tmp_path / "runs").items():
        said = None
        try:
            done = main(arguments)
        except PleasError as error:
            said = str(error)
        assert not stranger.ran, name
        assert (said is None) == (refused is None), (name, said)
        assert (refused or "") in (said or ""), (name, said)
        if name in ("fit, resumed", "validate"):
            assert done is not None
            assert done.model.hparams["label_smoothing"] == 0, "a checkpoint's arguments are not the user's"
    student = project.load_student(files["student"])
    assert same_state(student.network.state_dict(), project.load_student(files["own"]).network.state_dict())
    sources = [files["clipart"], files["sketch"]]
    merged = project.merge(sources, method="ties", base=files["base"], image_size=16)
    assert merged.labels.domains == DOMAINS
    for what in ("objects", "clipart", "training"):
        with pytest.raises(CheckpointError, match=r"no student|not a state dict"):
            project.load_student(files[what])
    assert not stranger.ran
