"""What every command refuses, in one process: one sentence with the argument, its value and what is allowed, a status
that is not 0, and nothing left on the disk."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from helpers import resnet
from PIL import Image

import project
from project import __main__ as command
from project.data import DomainDataModule, Domains, ImageFolders
from project.errors import ConfigurationError
from project.modules import MergeModule
from project.trainer import MergeTrainer, check_options

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
SIZE, CLASSES = 16, 2
QUIET = {"accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False}
FOLDERS = {"class_path": "project.data.ImageFolders", "init_args": {"root": "pictures"}}
DATA = {"sets": FOLDERS, "image_size": SIZE, "batch_size": 4, "validation_fraction": 0.25}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}
SOURCES = ["clipart.pth", "sketch.pth"]
FIT = {"architecture": "resnet8", "optimizer": SGD}
RUNS: dict[str, tuple[str, tuple[str, Mapping[str, Any]], tuple[str, Mapping[str, Any]]]] = {
    "fit": ("fit", ("FineTuneModule", FIT), ("DomainDataModule", DATA)),
    "federated": ("fit", ("FederatedModule", FIT), ("ClientDataModule", DATA)),
    "refine": ("fit", ("RefineModule", {"student": "student.safetensors", "sources": SOURCES}),
               ("UnlabelledDataModule", DATA)),
    "coefficients": ("fit", ("CoefficientModule", {"sources": SOURCES, "base": "mean", "method": {
        "class_path": "project.methods.AdaMerging"}}), ("UnlabelledDataModule", DATA)),
    "validate": ("validate", ("EvaluationModule", {"networks": SOURCES}), ("DomainDataModule", DATA)),
    "test": ("test", ("EvaluationModule", {"networks": SOURCES}), ("DomainDataModule", DATA)),
    "predict": ("predict", ("EvaluationModule", {"networks": ["student.safetensors"]}),
                ("UnsortedDataModule", {"root": "pictures"})),
    "merge": ("merge", ("MergeModule", {"sources": SOURCES, "methods": [{"class_path": "project.methods.Average"}]}),
              ("DomainDataModule", DATA)),
}  # fmt: skip
"""Name -> a subcommand, its module and its data, with their arguments: each would run as it stands."""
SHORT = ["merge", *SOURCES, "--pictures", "pictures", "--out", "runs/short", "--method", "average"]
SIZED = [*SHORT, "--image-size", str(SIZE)]


def configuration(name: str) -> dict[str, Any]:
    """What the YAML file of a run holds."""
    _, (module, arguments), (data, options) = RUNS[name]
    content = {
        "run": f"runs/{name}",
        "trainer": {**QUIET, "max_epochs": 1} if RUNS[name][0] == "fit" else QUIET,
        "model": {"class_path": f"project.modules.{module}", "init_args": arguments},
        "data": {"class_path": f"project.data.{data}", "init_args": options},
    }
    return json.loads(json.dumps(content))  # type: ignore[no-any-return]


def draw(folder: Path, count: int = 5, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        noise = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, sources, a student, the checkpoint of a fit, and a file for every run."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["pleas", "fit", "--config", "fit.yaml", "--trainer.logger", "false"])
        for seed, domain in enumerate(("clipart", "sketch")):
            draw(Path("pictures", domain, "cat"), seed=2 * seed)
            draw(Path("pictures", domain, "dog"), seed=2 * seed + 1)
            draw(Path("single", domain, "cat"))
            torch.save(resnet("resnet8", seed, CLASSES).state_dict(), f"{domain}.pth")
        for name in RUNS:
            Path(f"{name}.yaml").write_text(yaml.safe_dump(configuration(name)))
        pictures = Domains(ImageFolders("pictures"), image_size=SIZE)
        student = project.merge(SOURCES, pictures, method="average", progress=False)
        project.save_student(student, "student.safetensors")
        assert command.console() == 0
        (checkpoint,) = Path("runs/fit/checkpoints").glob("*.ckpt")
        checkpoint.rename("fitted.ckpt")
        shutil.rmtree("runs")
        Path("finished/checkpoints").mkdir(parents=True)
        shutil.copy("fitted.ckpt", "finished/checkpoints/epoch=0.ckpt")
        content = torch.load("fitted.ckpt", weights_only=True)
        torch.save({**content, "optimizer_states": [{"state": {}, "param_groups": []}]}, "other.ckpt")
        torch.save({name: content[name] for name in ("state_dict", "pytorch-lightning_version")}, "weights.ckpt")
        torch.save([1, 2], "list.ckpt")
        torch.save(resnet("resnet8", 0, CLASSES), "pickle.ckpt")
        Path("garbage.ckpt").write_bytes(b"no checkpoint at all" * 9)
        Path("short.ckpt").write_bytes(Path("fitted.ckpt").read_bytes()[:3000])
        Path("file").write_text("in the way")
        Path("binary.yaml").write_bytes(bytes(range(128, 256)))
    return folder


Refused = Callable[..., str]


@pytest.fixture
def refused(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused, and gives its sentence."""
    monkeypatch.chdir(place)

    def tree() -> dict[bytes, int]:
        return {
            os.path.join(folder, name): os.stat(os.path.join(folder, name)).st_mtime_ns
            for folder, folders, files in os.walk(b".")
            for name in [*folders, *files]
            if (folder, name) != (b".", b"bad.yaml")
        }

    def run(*words: str, status: int = 2) -> str:
        monkeypatch.setattr("sys.argv", ["pleas", *words])
        before = tree()
        try:
            code: object = command.console()
        except SystemExit as left:
            code = left.code
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pleas: error: ")]
        assert code == status, told
        assert len(told) == 1, "one sentence"
        assert set(tree()) == set(before), "nothing is left"
        return told[0]

    return run


def variant(name: str, change: Callable[[dict[str, Any]], object]) -> list[str]:
    """The words of a run whose configuration was changed."""
    content = configuration(name)
    change(content)
    Path("bad.yaml").write_text(yaml.safe_dump(content))
    return [RUNS[name][0], "--config", "bad.yaml"]


def given(name: str, *words: str) -> list[str]:
    return [RUNS[name][0], "--config", f"{name}.yaml", *words]


# ---- words and files that mean nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("modle", {"init_args": {}}, ["bad.yaml holds 'modle'", "nearest: model"]),
        ("modle", {}, ["bad.yaml holds 'modle'"]),
        ("modle", None, ["bad.yaml holds 'modle'"]),
        ("seed_everthing", 3, ["'seed_everthing'", "nearest: seed_everything"]),
        ("budgets", [1.5], ["'budgets', which"]),
        (3, 4, ["bad.yaml holds 3"]),
        ("trainer", {"max_epok": 3}, ["trainer in bad.yaml holds 'max_epok'", "nearest: max_epochs"]),
        ("trainer", {"max_epok": {}}, ["trainer in bad.yaml holds 'max_epok'"]),
        ("model", {"class_path": "project.modules.MergeModule", "init_agrs": {}},
         ["model in bad.yaml holds 'init_agrs'", "nearest: init_args"]),
        ("data", {"init_args": {}, "batch_size": 3}, ["data in bad.yaml holds 'batch_size'", "init_args"]),
    ],
)  # fmt: skip
def test_keys_that_mean_nothing(refused: Refused, name: str, key: Any, value: Any, words: list[str]) -> None:
    told = refused(*variant(name, lambda content: content.update({key: value})))
    assert all(word in told for word in words), told


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("merge", "model.init_args.sources", [{"path": "clipart.pth", "domians": ["clipart"]}, "sketch.pth"],
         ["model.sources", "no option 'domians'; nearest: domains"]),
        ("merge", "model.init_args.sources", [{"domains": ["clipart"]}, "sketch.pth"],
         ["model.sources", "path is missing"]),
        ("merge", "model.init_args.sources", [3, "sketch.pth"], ["model.sources", "expected SourceFile", "value: 3"]),
        ("merge", "model.init_args.methods", [{"class_path": "project.methods.TIES", "int_args": {}}],
         ["model.init_args.methods[1] in bad.yaml holds 'int_args'; ", "init_args"]),
        ("merge", "model.init_args.methods", [{"class_path": "project.methods.TIES", "init_args": 3}],
         ["init_args of model.init_args.methods[1]"]),
        ("merge", "model.init_args.budgtes", {}, ["model in bad.yaml holds 'budgtes'", "nearest: budgets"]),
        ("merge", "data.init_args.sets", [{**FOLDERS, "init_args": {"testfraction": 1}}],
         ["data.sets", "project.data.ImageFolders has no option 'testfraction'; nearest: test_fraction"]),
        ("fit", "model.init_args.optimizer.init_args", {"lrr": 1},
         ["model.optimizer", "torch.optim.SGD has no option 'lrr'; nearest: lr"]),
        ("predict", "model.init_args.networks", [{"path": "student.safetensors", "nmae": "x"}],
         ["model.networks", "no option 'nmae'; nearest: name"]),
    ],
)  # fmt: skip
def test_keys_deeper_inside(refused: Refused, name: str, path: str, value: Any, words: list[str]) -> None:
    def change(content: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for part in outer:
            content = content[part]
        content[last] = value

    told = refused(*variant(name, change))
    assert all(word in told for word in words), told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "which is empty; allowed: a mapping"),
        ("[1]", "which holds a list; allowed: a mapping"),
        ("3", "which holds a int"),
        ("a: b: c", "which is no YAML: mapping values are not allowed"),
        ("run: a\nrun: b\n", "which is no YAML: 'run' stands twice in line 2"),
        ("model: {init_args: {}}\ndata: {x: 1, x: 2}\n", "'x' stands twice"),
        ("a: " + "1" * 5000, "which is no YAML: "),
        ("[" * 3000, "which is no YAML: "),
    ],
    ids=range(8),
)
def test_configurations_that_are_none(refused: Refused, text: str, words: str) -> None:
    Path("bad.yaml").write_text(text)
    told = refused("fit", "--config", "bad.yaml")
    assert told.startswith("pleas: error: config is bad.yaml, ")
    assert words in told


@pytest.mark.parametrize("name", ["fit", "validate", "test", "predict", "merge"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("absent.yaml", "is not there"),
        ("pictures", "is no file"),
        ("binary.yaml", "is no YAML"),
        ("x" * 300, "is not there"),
    ],
    ids=["absent", "folder", "binary", "long"],
)
def test_configurations_that_are_no_files(refused: Refused, name: str, path: str, words: str) -> None:
    assert words in refused(name, "--config", path)


@pytest.mark.parametrize("name", ["fit", "validate", "test", "predict"])
def test_options_that_there_are_not(refused: Refused, name: str) -> None:
    assert "there is no option '--runn'; nearest: run" in refused(*given(name, "--runn", "x"))


def test_what_stands_nowhere(refused: Refused) -> None:
    told = refused(*given("fit", "--trainer.max_epok=3"))
    assert "there is no option '--trainer.max_epok'; nearest: trainer.max_epochs" in told
    assert "'stray' stands where an option is expected" in refused(*given("test", "stray"))
    told = refused("fit")
    assert "data and model are missing; see 'pleas fit --help'" in told
    assert "there is no option '--runn'; nearest: run" in refused(*given("merge", "--runn", "x"))


def test_words_that_are_not_utf_8(refused: Refused) -> None:
    odd = os.fsdecode(b"runs/\xe9")
    for words in (given("predict", "--run", odd), ["check", "--model", odd], ["add-statistics", odd, "--out", "x"]):
        assert r"'runs/\udce9', which is not UTF-8" in refused(*words)


# ---- files that are not there, before anything is imported or built --------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "clipart.pth", "absent.pth", "--pictures", "pictures"],
        given("merge", "--model.sources", "[clipart.pth, absent.pth]"),
        given("merge", "--model.init_args.sources=[clipart.pth, {path: absent.pth}]"),
        given("test", "--model.networks", "[absent.pth]"),
        given("predict", "--model.networks+=absent.pth"),
        given("refine", "--model.student", "absent.pth"),
        given("fit", "--model.base", "absent.pth"),
        given("fit", "--model.scope", "{target: [clipart.pth, absent.pth]}"),
        given("coefficients", "--model.sources", "[clipart.pth, absent.pth]"),
        given("fit", "--ckpt_path", "absent.pth"),
        ["check", "--model", "absent.pth"],
    ],
    ids=" ".join,
)
def test_files_of_weights_that_are_not_there(refused: Refused, words: list[str]) -> None:
    assert refused(*words) == "pleas: error: The file of weights absent.pth is not there."


def test_statistics_that_are_not_there(refused: Refused) -> None:
    told = refused("add-statistics", "absent", "garbage.ckpt", "--out", "sum")
    assert told == "pleas: error: The file of statistics absent is not there."


# ---- numbers, through each command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option", "value", "words"),
    [
        ("fit", "data.image_size", "0", "image_size is 0; allowed: whole numbers from 1 to 16384"),
        ("fit", "data.batch_size", str(10**30), "batch_size is 1000000"),
        ("fit", "seed_everything", "-1", "seed_everything is -1; allowed: whole numbers from 0 to 4294967295"),
        ("fit", "model.optimizer.init_args.lr", "-1.0", "optimizer cannot be made: Invalid learning rate: -1.0"),
        ("fit", "model.optimizer.init_args.lr", ".nan", "lr of the optimizer is nan; allowed: finite numbers"),
        ("federated", "data.clients", "0", "clients is 0; allowed: whole numbers from 1 to 10000"),
        ("refine", "model.warmup", "1", "warmup is 1"),
        ("coefficients", "model.method.init_args.rate", "0", "rate is 0"),
        ("validate", "data.num_workers", "-1", "num_workers is -1; allowed: whole numbers from 0 to 1024"),
        ("test", "data.validation_fraction", "1", "validation_fraction is 1"),
        ("predict", "data.batch_size", "0", "batch_size is 0"),
        ("merge", "model.keep_every", "-1", "keep_every is -1"),
    ],
)  # fmt: skip
def test_numbers_out_of_range(refused: Refused, name: str, option: str, value: str, words: str) -> None:
    assert words in refused(*given(name, f"--{option}", value))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--image-size", "1000000000", "image_size is 1000000000; allowed: whole numbers from 1 to 16384"),
        ("--image-size", "nan", "data.image_size: expected int; got value: nan"),
        ("--seed", "-1", "seed_everything is -1"),
        ("--memory", "0", "memory is '0'"),
        ("--budget", "inf", "budgets holds inf"),
    ],
)  # fmt: skip
def test_numbers_of_the_short_form(refused: Refused, option: str, value: str, words: str) -> None:
    assert words in refused(*(SHORT if option == "--image-size" else SIZED), option, value)


@pytest.mark.parametrize(
    ("words", "expected", "status"),
    [
        (["--image-size", "0"], "image_size is 0; allowed: whole numbers from 1 to 16384", 2),
        (["--image-size", "1000000000"], "image_size is 1000000000", 2),
        (["--tolerance", "-1"], "tolerance is -1.0; allowed: 0 or more", 2),
        (["--tolerance", "nan"], "tolerance: expected float; got value: nan", 2),
        (["--model-args", '{"num_classes": -1}'], "cannot be built with {'num_classes': -1}", 2),
        (["--model-args", "[]"], "model-args is '[]'", 2),
    ],
)
def test_what_check_refuses(refused: Refused, words: list[str], expected: str, status: int) -> None:
    assert expected in refused("check", "--model", "resnet18", *words, status=status)


# ---- the trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option", "value", "words"),
    [
        ("fit", "accumulate_grad_batches", "0", "trainer.accumulate_grad_batches is 0; allowed: whole numbers from 1"),
        ("fit", "val_check_interval", "1000", "trainer: `val_check_interval` (1000) must be less than or equal"),
        ("fit", "num_nodes", "3", "trainer: num_nodes is 3, but nothing says where the others are"),
        ("fit", "devices", "x", "trainer: `devices`"),
        ("validate", "limit_val_batches", "0", "trainer.limit_val_batches is 0, which leaves validate nothing to do"),
        ("test", "limit_test_batches", "0.0", "trainer.limit_test_batches is 0, which leaves test nothing to do"),
        ("predict", "limit_predict_batches", "0", "trainer.limit_predict_batches is 0, which leaves predict nothing"),
        ("merge", "limit_test_batches", "0", "trainer.limit_test_batches is 0, which leaves merge nothing to do"),
        ("merge", "limit_val_batches", "0", "trainer.limit_val_batches is 0, but a merge looks at all"),
        ("merge", "limit_val_batches", "1", "trainer.limit_val_batches is 1, but a merge looks at all"),
        ("merge", "fast_dev_run", "true", "trainer.fast_dev_run is True, but a merge looks at all"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*You passed .?num_nodes")
def test_options_of_the_trainer(refused: Refused, name: str, option: str, value: str, words: str) -> None:
    assert words in refused(*given(name, f"--trainer.{option}", value))


@pytest.mark.parametrize(
    ("subcommand", "option", "value", "words"),
    [
        ("fit", "check_val_every_n_epoch", -1, "whole numbers from 1"),
        ("fit", "log_every_n_steps", -1, "whole numbers from 0"),
        ("fit", "num_sanity_val_steps", -3, "whole numbers from -1"),
        ("fit", "num_nodes", 0, "whole numbers from 1"),
        ("fit", "min_epochs", -1, "whole numbers from 0"),
        ("fit", "max_epochs", 10**20, "whole numbers from -1"),
        ("fit", "max_epochs", 0, "leaves fit nothing to do"),
        ("fit", "max_steps", 0, "leaves fit nothing to do"),
        ("fit", "limit_train_batches", 0.0, "leaves fit nothing to do"),
        ("fit", "val_check_interval", 0, "above 0"),
        ("fit", "val_check_interval", 0.0, "above 0"),
        ("fit", "gradient_clip_val", -1, "0 or more"),
        ("fit", "gradient_clip_val", float("nan"), "0 or more"),
        ("validate", "limit_val_batches", 0, "leaves validate nothing to do"),
        ("test", "limit_test_batches", 0, "leaves test nothing to do"),
        ("predict", "limit_predict_batches", 0, "leaves predict nothing to do"),
        ("merge", "limit_test_batches", 0, "leaves merge nothing to do"),
    ],
)
def test_numbers_of_the_trainer(subcommand: str, option: str, value: float, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^trainer.{option} is .*{words}"):
        check_options(subcommand, {"max_epochs": 3, option: value})
    sound = {"max_epochs": -1, "max_steps": -1, "limit_val_batches": None, "val_check_interval": "00:00:10:00"}
    check_options(subcommand, {**sound, "limit_test_batches": 1.0, "limit_predict_batches": 2, "gradient_clip_val": 0})
    check_options("fit", {"limit_val_batches": 0, "limit_test_batches": 0})


@pytest.mark.parametrize("limits", [{"limit_val_batches": 0.5}, {"overfit_batches": 1}, {"limit_test_batches": 0}])
def test_a_merge_in_python_refuses_what_the_command_does(place: Path, limits: dict[str, Any]) -> None:
    trainer = MergeTrainer(accelerator="cpu", logger=False, enable_progress_bar=False, **limits)
    module = MergeModule([place / name for name in SOURCES])
    data = DomainDataModule(ImageFolders(place / "pictures"), image_size=SIZE)
    with pytest.raises(ConfigurationError, match=f"trainer.{next(iter(limits))} is "):
        trainer.merge(module, data)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (("torch.optim.lr_scheduler.StepLR", {"step_size": 0}), "lr_scheduler cannot be made"),
        (("torch.optim.lr_scheduler.CosineAnnealingLR", {"T_max": 0}), "lr_scheduler cannot be made"),
        (("lightning.pytorch.cli.ReduceLROnPlateau", {"monitor": "val/acuracy"}),
         "monitor of lr_scheduler is 'val/acuracy'; nearest: val/accuracy"),
    ],
    ids=["step", "cosine", "plateau"],
)  # fmt: skip
def test_schedules_that_cannot_be(refused: Refused, schedule: tuple[str, dict[str, Any]], words: str) -> None:
    named = dict(zip(("class_path", "init_args"), schedule, strict=True))
    assert words in refused(*variant("fit", lambda content: content["model"]["init_args"].update(lr_scheduler=named)))


def test_figures_that_nobody_logs(refused: Refused) -> None:
    def watched(kind: str, monitor: str, held_out: float) -> list[str]:
        def change(content: dict[str, Any]) -> None:
            callback = {"class_path": f"lightning.pytorch.callbacks.{kind}", "init_args": {"monitor": monitor}}
            content["trainer"]["callbacks"] = [callback]
            content["data"]["init_args"]["validation_fraction"] = held_out

        return variant("fit", change)

    told = refused(*watched("EarlyStopping", "val/acuracy", 0.25))
    assert "monitor of EarlyStopping is 'val/acuracy'; nearest: val/accuracy" in told
    told = refused(*watched("ModelCheckpoint", "val/loss", 0))
    assert "monitor of ModelCheckpoint is 'val/loss'" in told, "nothing is held out to validate on"


# ---- paths to write to -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("fit", "file"),
        ("test", "file/below"),
        ("predict", "file/below/it"),
        ("merge", "x" * 300),
        ("fit", "new/" + "x" * 300),
    ],
    ids=range(5),
)
def test_runs_where_nothing_can_be_written(refused: Refused, name: str, path: str) -> None:
    assert f"run is {path}, which cannot be written to: " in refused(*given(name, "--run", path))


def test_other_paths_where_nothing_can_be_written(refused: Refused) -> None:
    for path, words in (("file/below", "cannot be written to"), ("pictures", "is a folder")):
        assert words in refused(*given("merge", "--model.statistics", path))
        assert words in refused("add-statistics", "clipart.pth", "sketch.pth", "--out", path)
    assert "cannot be written to" in refused("add-statistics", "clipart.pth", "sketch.pth", "--out", "x" * 300)
    assert "statistics is file/below, which cannot be" in refused(*SIZED, "--statistics", "file/below")
    student = project.load_student("student.safetensors")
    for path in ("file/below.safetensors", "pictures", "x" * 300):
        with pytest.raises(ConfigurationError, match="path is "):
            project.save_student(student, path)


@pytest.mark.parametrize("path", ["x" * 300, "ü" * 200, "/".join(["z" * 200] * 25)], ids=["name", "bytes", "path"])
def test_paths_longer_than_a_disk_takes_are_named_by_their_argument(refused: Refused, path: str) -> None:
    """Names of 300 characters, or of 400 bytes, and paths of 5000."""
    root = json.dumps({"class_path": "project.data.ImageFolders", "init_args": {"root": path}})
    for name, words in {
        f"statistics is {path[:20]}": given("merge", "--model.statistics", path),
        f"statistics is {path[:19]}": [*SHORT, "--image-size", "16", "--statistics", path],
        f"run is {path[:20]}": given("merge", "--run", path),
        f"base is '{path[:20]}": given("merge", "--model.base", path),
        f"root is {path[:20]}": given("merge", "--data.sets", root),
        f"--pictures is {path[:20]}": ["merge", *SOURCES, "--pictures", path],
        f"out is {path[:20]}": ["add-statistics", "clipart.pth", "sketch.pth", "--out", path],
    }.items():
        assert name in refused(*words)


# ---- checkpoints to go on from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("fit", "garbage.ckpt", "ckpt_path: garbage.ckpt is not a file of weights"),
        ("fit", "short.ckpt", "ckpt_path: short.ckpt is truncated"),
        ("fit", "pickle.ckpt", "ckpt_path is pickle.ckpt, which holds weights alone"),
        ("fit", "list.ckpt", "ckpt_path is list.ckpt, which holds weights alone"),
        ("fit", "weights.ckpt", "ckpt_path is weights.ckpt, which holds weights alone"),
        ("fit", "pictures", "ckpt_path: "),
        ("fit", "best", "ckpt_path is best, which "),
        ("validate", "clipart.pth", "ckpt_path is clipart.pth, which holds weights alone"),
        ("test", "student.safetensors", "ckpt_path is student.safetensors, which holds weights alone"),
        ("predict", "garbage.ckpt", "ckpt_path: garbage.ckpt is not a file of weights"),
        ("predict", "hpc", "ckpt_path is hpc, which "),
    ],
)
def test_checkpoints_to_go_on_from(refused: Refused, name: str, path: str, words: str) -> None:
    assert words in refused(name, "--config", "fit.yaml", "--run", "runs/x", "--ckpt_path", path)


@pytest.mark.parametrize("name", ["fit", "predict"])
def test_a_last_checkpoint_that_there_is_not(refused: Refused, name: str) -> None:
    told = refused(name, "--config", "fit.yaml", "--run", "finished", "--overwrite", "true", "--ckpt_path", "last")
    assert "ckpt_path is 'last', but finished holds no checkpoint of that name, but finished/checkpoints/" in told


def test_checkpoints_of_other_fits(refused: Refused) -> None:
    told = refused(*given("fit", "--ckpt_path", "other.ckpt"))
    assert "ckpt_path is other.ckpt, which does not go with model and trainer: " in told
    told = refused(*given("fit", "--ckpt_path", "fitted.ckpt", "--model.architecture", "resnet20"))
    assert "The checkpoint holds a " in told
    assert "ckpt_path" in refused(*given("coefficients", "--ckpt_path", "fitted.ckpt"))


@pytest.mark.parametrize("value", ["a word", -1, 0.5, None, True])
def test_checkpoints_whose_loops_have_counted_nothing(refused: Refused, tmp_path: Path, value: Any) -> None:
    content = torch.load("fitted.ckpt", weights_only=True)
    content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] = value
    torch.save(content, tmp_path / "counted.ckpt")
    told = refused(*given("fit", "--ckpt_path", str(tmp_path / "counted.ckpt")))
    assert f"loops.fit_loop.epoch_loop.batch_progress.total.completed is {value!r}; allowed: a number" in told


@pytest.mark.parametrize("name", ["fit", "validate", "predict"])
def test_checkpoints_whose_weights_cannot_be(refused: Refused, tmp_path: Path, name: str) -> None:
    content = torch.load("fitted.ckpt", weights_only=True)
    variance = next(key for key in content["state_dict"] if key.endswith("running_var"))
    content["state_dict"][variance][0] = -0.001
    torch.save(content, tmp_path / "negative.ckpt")
    told = refused(name, "--config", "fit.yaml", "--run", "runs/x", "--ckpt_path", str(tmp_path / "negative.ckpt"))
    assert f"negative.ckpt holds negative variances in '{variance}'" in told


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_weights_that_nobody_has_trained(refused: Refused, name: str) -> None:
    told = refused(RUNS[name][0], "--config", "fit.yaml", "--run", "runs/x")
    assert "model is FineTuneModule, whose weights are random; allowed: with --ckpt_path FILE" in told


def test_a_checkpoint_that_plays_no_part(refused: Refused) -> None:
    told = refused(*given("test", "--ckpt_path", "fitted.ckpt"))
    assert "ckpt_path is fitted.ckpt, but model is EvaluationModule" in told


# ---- data, and what does not go together -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fit", "test", "merge"])
def test_data_of_one_class(refused: Refused, name: str) -> None:
    one = json.dumps({"class_path": "project.data.ImageFolders", "init_args": {"root": "single"}})
    told = refused(*given(name, "--data.sets", one))
    assert "domain clipart has one class, 'cat' in single/clipart/cat; allowed: two or more" in told


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("fit", "merge", "No `training_step()` method defined"),
        ("test", "merge", "No `test_step()` method defined"),
        ("predict", "merge", "`forward` method"),
        ("validate", "merge", "MergeModule is not prepared"),
        ("validate", "coefficients", "model is CoefficientModule, which is fitted"),
        ("merge", "fit", "model is FineTuneModule; merge needs a MergeModule"),
    ],
)
def test_modules_of_other_commands(refused: Refused, name: str, other: str, words: str) -> None:
    model = configuration(other)["model"]
    assert words in refused(*variant(name, lambda content: content.update(model=model)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fit", "data is a UnsortedDataModule, which has no label_space"),
        ("test", "data is UnsortedDataModule, which has no labels; allowed: with predict alone"),
        ("merge", "data is UnsortedDataModule; merge needs a DomainDataModule"),
    ],
)
def test_data_of_other_commands(refused: Refused, name: str, words: str) -> None:
    data = configuration("predict")["data"]
    assert words in refused(*variant(name, lambda content: content.update(data=data)))


def test_pictures_that_nobody_can_read_leave_no_folder(refused: Refused) -> None:
    """Found when loaders are made, long after the folder of the run could have been."""
    shutil.copytree("pictures", "broken")
    for picture in Path("broken", "clipart", "cat").iterdir():
        picture.write_bytes(b"no picture")
    folders = {**FOLDERS, "init_args": {"root": "broken"}}
    assert "pictures cannot be read: broken/clipart/cat/" in refused(*given("test", "--data.sets", json.dumps(folders)))
    assert "pictures cannot be read: broken/clipart/cat/" in refused(*given("predict", "--data.root", "broken"))
    shutil.rmtree("broken")


def test_a_refused_command_loses_nothing_of_an_earlier_one(refused: Refused, place: Path) -> None:
    kept = place / "kept"
    (kept / "inner").mkdir(parents=True)
    for name in ("config.yaml", "events.out.tfevents.1", "hparams.yaml"):
        (kept / name).write_text("earlier")
    refused(*given("test", "--run", "kept", "--overwrite", "true", "--model.head", "3", "--trainer.max_epochs", "-7"))
    refused(*variant("test", lambda content: content.update(run="kept", data=configuration("predict")["data"])))
    assert all(path.read_text() == "earlier" for path in kept.iterdir() if path.is_file())
    shutil.rmtree(kept)


# ---- names of pictures that are not UTF-8 ----------------------------------------------------------------------------


def test_answers_on_names_that_are_not_utf_8(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    draw(Path("odd"), 2)
    os.rename(b"odd/0.png", b"odd/caf\xe9.png")
    monkeypatch.setattr("sys.argv", ["pleas", *given("predict", "--data.root", "odd", "--run", "runs/odd")])
    assert command.console() == 0
    rows = Path("runs/odd/predictions.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[1] for row in rows] == ["picture", "odd/1.png", r"odd/caf\xe9.png"]
    shutil.rmtree("runs")
    shutil.rmtree("odd")


def test_domains_and_classes_whose_names_are_not_utf_8(refused: Refused, place: Path) -> None:
    for old, new in ((b"dog", b"d\xf6g"), (b"", b"sk\xe9tch")):
        before, after = (os.path.join(b"odd-tree", b"sketch", old), os.path.join(b"odd-tree", b"sketch", new))
        shutil.copytree("pictures", "odd-tree")
        if old:
            os.rename(before, after)
            os.rename(before.replace(b"sketch", b"clipart"), after.replace(b"sketch", b"clipart"))
        else:
            os.rename(b"odd-tree/sketch", b"odd-tree/" + new)
        one = json.dumps({"class_path": "project.data.ImageFolders", "init_args": {"root": "odd-tree"}})
        assert "is not UTF-8; rename its folder" in refused(*given("fit" if old else "merge", "--data.sets", one))
        shutil.rmtree("odd-tree")
