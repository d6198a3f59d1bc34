"""Merges that are killed, that find statistics in a file, and that have little memory: all make the same students."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import resnet, same_state, started
from killing import killed_anew, run_to_the_end

import project
from project.__main__ import console
from project.cli import main
from project.data import DomainDataModule
from project.errors import ConfigurationError
from project.fit import SequentialFit
from project.merging import memory_plan
from project.methods import MaTS
from project.moments import Collector, read_statistics
from project.runtime.spill import Spilled
from project.trainer import MergeTrainer

EXACT = True  # see tests/conftest.py
METHODS: list[dict[str, Any]] = [{"class_path": f"project.methods.{name}"} for name in ("Permutation", "PLeaS")]
JOINT = {"class_path": "project.methods.PLeaS", "init_args": {"fit": "joint", "label": "joint"}}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random sources and a merge of them that nothing has interrupted."""
    return merged(tmp_path_factory.mktemp("resume"), "resnet8")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of networks whose statistics take more memory than their fit."""
    return merged(tmp_path_factory.mktemp("deep"), "resnet20")


def merged(folder: Path, architecture: str) -> Path:
    for seed in range(2):
        torch.save(resnet(architecture, seed, 12).state_dict(), folder / f"{seed}.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pleas"])
        main(arguments(folder, "reference"))
    return folder


def arguments(folder: Path, run: str, *extra: str, methods: list[dict[str, Any]] = METHODS) -> list[str]:
    sets = {"root": str(folder / "data"), "size": 16, "train_per_class": 1, "test_per_class": 1}
    return [
        "merge", "--run", str(folder / run), "--trainer.accelerator", "cpu",
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
        "--trainer.logger", "false",  # figures are drawn for TensorBoard alone
        "--model", "project.modules.MergeModule", "--model.budgets", "[1.0, 1.5]",
        "--model.sources", json.dumps([str(folder / f"{seed}.pth") for seed in range(2)]),
        "--model.methods", json.dumps(methods),
        "--data", "project.data.DomainDataModule",
        "--data.sets", json.dumps({"class_path": "project.data.Shapes", "init_args": sets}),
        "--data.domains", "[clipart, sketch]", "--data.image_size", "16", "--data.validation_fraction", "0",
        "--data.calibration_batch_size", "4", "--data.calibration_views", "1", *extra,
    ]  # fmt: skip


@contextmanager
def little_for_statistics() -> Iterator[None]:
    """Limits between what a fit takes and what statistics take, which in networks so small the students fill."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_plan, "student_bytes", lambda *_: 0)
        yield


def students(folder: Path, run: str) -> dict[str, dict[str, torch.Tensor]]:
    paths = sorted((folder / run / "students").glob("*.safetensors"))
    return {path.stem: project.load_student(path).network.state_dict() for path in paths}


def same_students(folder: Path, run: str) -> bool:
    mine, theirs = students(folder, run), students(folder, "reference")
    assert list(theirs) == ["permutation-1.00", "permutation-1.50", "pleas-1.00", "pleas-1.50"]
    return list(mine) == list(theirs) and all(same_state(mine[name], theirs[name]) for name in mine)


def table(folder: Path, run: str) -> list[dict[str, Any]]:
    rows = json.loads((folder / run / "results.json").read_text())["table"]
    return [{**row, "seconds": None} for row in rows]


def layers(folder: Path, student: str) -> int:
    """How many layers the sequential fit solves."""
    return len(json.loads((folder / "reference" / "results.json").read_text())["layers"][student])


def counted(patch: pytest.MonkeyPatch, owner: type, name: str) -> list[int]:
    """Count the calls of a method."""
    calls, plain = [0], getattr(owner, name)

    def counting(self: Any, *args: Any) -> Any:
        calls[0] += 1
        return plain(self, *args)

    patch.setattr(owner, name, counting)
    return calls


def begun(command: list[str]) -> None:
    """Run a command as a process of its own does."""
    os.setsid()
    torch.set_num_threads(1)  # of a copied process, only the thread that copied it is there
    sys.argv = ["pleas", *command]
    sys.exit(console())


def killed(command: list[str], folder: Path, sign: str, by: signal.Signals = signal.SIGKILL) -> None:
    """Run a command in a process of its own, and end it by a signal as soon as a file shows below a folder.

    The process is a copy of this one, which has imported everything; see killed_anew where Lightning starts others.
    """
    process = started(begun, command)
    deadline = time.monotonic() + 120
    while not any(folder.glob(sign)):
        if not process.is_alive() or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"no {sign} in {folder}: the command ended with {process.exitcode}")
        time.sleep(0.002)
    assert process.pid is not None
    os.killpg(process.pid, by)  # with the processes that it has started
    process.join(60)
    assert process.exitcode == (128 + by if by == signal.SIGTERM else -by)


def test_a_killed_merge_goes_on(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended twice: killed while it gathers, told to end while it fits its second student."""
    folder, command = workplace / "killed", arguments(workplace, "killed", "--model.keep_every", "0")
    killed(command, folder, "progress/*/0/gathering.pt")
    killed(command, folder, "progress/*/0/pleas-*/pleas-1.50/0003-*.pt", signal.SIGTERM)
    assert not (folder / "results.json").exists()
    gathered, solved = (
        counted(monkeypatch, owner, name) for owner, name in ((Collector, "gather"), (SequentialFit, "_solve"))
    )
    main(command)
    assert gathered == [0]
    assert solved[0] <= layers(workplace, "pleas-1.50") - 4
    assert same_students(workplace, "killed")
    assert table(workplace, "killed") == table(workplace, "reference")
    assert not (folder / "progress").exists()
    with pytest.raises(ConfigurationError, match="overwrite"):
        main(command)


@pytest.fixture(scope="module")
def gradients(workplace: Path) -> list[dict[str, Any]]:
    """Methods on the Fisher information and their merge, uninterrupted, which leaves a file of statistics."""
    settings: dict[str, dict[str, Any]] = {
        "TIES": {},
        "EMR": {},
        "Fisher": {"classes": "labels"},
        "MaTS": {"start": "ties", "iterations": 3},
    }
    methods = [{"class_path": f"project.methods.{name}", "init_args": given} for name, given in settings.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pleas"])
        main(
            gradient_arguments(
                workplace, "gradients", "--model.statistics", str(workplace / "fisher.st"), methods=methods
            )
        )
    return methods


def gradient_arguments(folder: Path, run: str, *extra: str, methods: list[dict[str, Any]]) -> list[str]:
    return arguments(
        folder, run, "--model.base", "mean", "--model.budgets", "[1.0]", "--model.keep_every", "0", *extra,
        methods=methods,
    )  # fmt: skip


def same_as_uninterrupted(folder: Path, run: str) -> bool:
    """Files and all that was measured: of students in one network, and of one that is several."""
    paths = sorted((folder / "gradients" / "students").glob("*.safetensors"))
    assert [path.stem for path in paths] == ["emr-1.00", "fisher-1.00", "mats-1.00", "ties-1.00"]
    for path in paths:
        mine, theirs = (project.load_student(folder / one / "students" / path.name) for one in (run, "gradients"))
        if type(mine) is not type(theirs) or not same_state(mine.state_dict(), theirs.state_dict()):
            return False
    curves, others = (json.loads((folder / one / "results.json").read_text())["curves"] for one in (run, "gradients"))
    assert "cg residual" in others["mats-1.00"]
    return bool(curves == others) and table(folder, run) == table(folder, "gradients")


@pytest.mark.slow
def test_a_killed_merge_by_gradients_goes_on(
    workplace: Path, gradients: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it gathers, and once K-FAC's student is there, which starts from another method's."""
    folder, command = workplace / "mats", gradient_arguments(workplace, "mats", methods=gradients)
    killed(command, folder, "progress/*/0/gathering.pt")
    killed(command, folder, "progress/*/0/mats-*/mats-1.00.pt")
    assert not (folder / "results.json").exists()
    gathered, solved = (counted(monkeypatch, one, name) for one, name in ((Collector, "gather"), (MaTS, "combine")))
    main(command)
    assert gathered == solved == [0]
    assert same_as_uninterrupted(workplace, "mats")
    assert not (folder / "progress").exists()


def test_a_student_that_starts_from_another_is_made_again_with_it(
    workplace: Path, gradients: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [gradients[0], {**gradients[3], "init_args": {"start": "ties", "estimate": "average", "iterations": 0}}]
    with monkeypatch.context() as patch:
        patch.setattr(
            "project.merging.passes.ReestimationPass.start", lambda *_: (_ for _ in ()).throw(InterruptedError())
        )
        with pytest.raises(InterruptedError):
            main(gradient_arguments(workplace, "start", methods=given))
    other = [{**given[0], "init_args": {"scale": 0.5}}, given[1]]
    solved = counted(monkeypatch, MaTS, "combine")
    main(gradient_arguments(workplace, "start", methods=other))
    assert solved == [1]
    mine, ties = (
        project.load_student(workplace / "start" / "students" / f"{name}-1.00.safetensors") for name in ("mats", "ties")
    )
    for name, one in mine.network.named_parameters():  # no step was taken from there
        assert torch.equal(one, ties.network.get_parameter(name))


@pytest.mark.slow
def test_gradients_in_a_file_and_in_several_passes(
    workplace: Path, gradients: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each makes the same students; other labels are refused, but only where a method reads them."""
    path = workplace / "fisher.st"
    gathered = counted(monkeypatch, Collector, "gather")
    main(gradient_arguments(workplace, "filed", "--model.statistics", str(path), methods=gradients))
    assert gathered == [0]
    assert same_as_uninterrupted(workplace, "filed")
    with little_for_statistics():
        main(gradient_arguments(workplace, "small", "--model.memory", "16 MB", methods=gradients))
    assert re.search(r"statistics are gathered in \d+ passes", caplog.text)
    assert same_as_uninterrupted(workplace, "small")
    plain = DomainDataModule.samples

    def relabelled(self: DomainDataModule, domain: str, use: Any) -> Any:
        return [(file, (label + (use == "calibration")) % 12) for file, label in plain(self, domain, use)]

    monkeypatch.setattr(DomainDataModule, "samples", relabelled)
    gathered[0] = 0
    given = ("--model.statistics", str(path))
    with pytest.raises(ConfigurationError, match=r"statistics is .*, which was gathered from other labels of clipart"):
        main(gradient_arguments(workplace, "refused labels", *given, methods=gradients[2:3]))
    main(gradient_arguments(workplace, "no labels", *given, methods=[gradients[0], gradients[3]]))
    assert gathered == [0]


TWO = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--model.budgets", "[1.0]")


@pytest.fixture(scope="module")
def two(workplace: Path) -> dict[str, torch.Tensor]:
    """The student of two processes that nothing has interrupted."""
    done = run_to_the_end(arguments(workplace, "two", *TWO, methods=METHODS[1:]))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "none is gathered again" not in done.stderr
    return students(workplace, "two")["pleas-1.00"]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["all", "first", "second"])
def test_a_killed_merge_of_two_processes_goes_on(workplace: Path, two: dict[str, torch.Tensor], victim: str) -> None:
    """From what both have: one is robbed of a layer that the other kept."""
    command = arguments(workplace, f"{victim} killed", *TWO, methods=METHODS[1:])
    folder = workplace / f"{victim} killed"
    told = killed_anew(command, folder, "progress/*/1/pleas-*/pleas-1.00/0004-*.pt", victim=victim)
    assert "Traceback" not in told
    if victim == "first":
        assert "another process of this run has gone; the same command goes on with what is finished." in told
    (robbed,) = folder.glob("progress/*/1/pleas-*/pleas-1.00/0002-*.pt")
    robbed.unlink()
    done = run_to_the_end(command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{folder} holds an interrupted merge" in done.stderr
    assert "none is gathered again" in done.stderr
    assert same_state(students(workplace, folder.name)["pleas-1.00"], two)
    assert not (folder / "progress").exists()


def test_the_folder_of_an_interrupted_merge_is_for_no_other(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted by an error this time, after five layers. Nor is anything kept of passes that saw too little."""
    plain, solved = SequentialFit._solve, [0]
    given = ("--model.budgets", "[1.0]")

    def failing(self: SequentialFit, *args: Any) -> Any:
        solved[0] += 1
        if solved[0] > 5:
            raise InterruptedError
        return plain(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SequentialFit, "_solve", failing)
        with pytest.raises(InterruptedError):
            main(arguments(workplace, "other", *given, methods=METHODS[1:]))
    with pytest.raises(ConfigurationError, match=r"a merge with other arguments that failed \(InterruptedError\)"):
        main(arguments(workplace, "other", *given, "--data.calibration", "8", methods=METHODS[1:]))
    few = arguments(workplace, "few", *given, "--trainer.limit_val_batches", "1", methods=[JOINT])
    with pytest.raises(ConfigurationError, match=r"limit_val_batches is 1, but a merge looks at all"):
        main(few)
    monkeypatch.setattr(MergeTrainer, "_check_passes", lambda *_: None)  # a user's own loop has none
    with pytest.raises(ConfigurationError, match=r"saw 4 of the 12 .*limit_val_batches"):
        main(few)


def test_statistics_in_a_file_are_not_gathered_again(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Written, read, completed where another method needs more, and read once more by the first; then refused."""
    path = workplace / "statistics.safetensors"
    given = ("--model.statistics", str(path), "--model.budgets", "[1.5]")
    gathered, found = counted(monkeypatch, Collector, "gather"), {}
    for run, methods in {
        "writes": METHODS[:1],
        "reads": METHODS[:1],
        "adds": [*METHODS[:1], JOINT],
        "reads part": METHODS[:1],
    }.items():
        gathered[0] = 0
        main(arguments(workplace, run, *given, methods=methods))
        kinds = {name.partition("/")[0] for name in read_statistics(path).moments}
        found[run] = gathered[0] > 0, "layers" in kinds, "is gathered again" in caplog.text
        mine, theirs = (students(workplace, one)["permutation-1.50"] for one in (run, "reference"))
        assert same_state(mine, theirs)
        caplog.clear()
    assert found == {
        "writes": (True, False, False),
        "reads": (False, False, True),
        "adds": (True, True, False),
        "reads part": (False, True, True),
    }
    before = path.read_bytes()
    other = torch.load(workplace / "1.pth")
    other["fc.bias"][0] += 1
    torch.save(other, workplace / "2.pth")
    for words, extra in {
        "other pictures of clipart .12 instead of 8.": ("--data.calibration", "8"),
        "another transform .image_size 16 instead of 24": ("--data.image_size", "24"),
        "another transform .*views 1 instead of 2": ("--data.calibration_views", "2"),
        "sources in another order": ("--model.sources", json.dumps([str(workplace / f"{i}.pth") for i in (1, 0)])),
        "from other sources": ("--model.sources", json.dumps([str(workplace / f"{i}.pth") for i in (0, 2)])),
    }.items():
        with pytest.raises(ConfigurationError, match=rf"statistics is .*statistics\.safetensors.*{words}"):
            main(arguments(workplace, "refused", *given, *extra, methods=METHODS[:1]))
    assert path.read_bytes() == before
    average = [{"class_path": "project.methods.Average"}]
    with pytest.raises(ConfigurationError, match="no method gathers any"):
        main(arguments(workplace, "refused", *given, methods=average))


@pytest.mark.slow
def test_little_memory_changes_no_student(
    deep: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Statistics in several passes, the waiting batches on disk: what much memory makes, to rounding.

    Where a moment and what it follows from are gathered in two passes, both are multiplied.
    """
    gathered, spilled = counted(monkeypatch, Collector, "gather"), counted(monkeypatch, Spilled, "__init__")
    with little_for_statistics():
        main(arguments(deep, "little", "--model.memory", "18 MB"))
    passes = re.search(r"statistics are gathered in (\d+) passes over the pictures and wait on disk", caplog.text)
    assert passes is not None
    assert int(passes[1]) > 1
    assert gathered[0] == 6 * int(passes[1])
    assert "the fit's waiting batches lie on disk" in caplog.text
    assert spilled[0] > 500
    mine, theirs = students(deep, "little"), students(deep, "reference")
    assert list(mine) == list(theirs)
    for name, tensors in theirs.items():
        for part, tensor in tensors.items():
            scale = float(tensor.abs().max()) + 1e-2
            assert torch.allclose(mine[name][part], tensor, rtol=0, atol=1e-3 * scale), (name, part)
    assert not (deep / "little" / "progress").exists()
    with pytest.raises(ConfigurationError, match=r"memory is 2\.0 MB, but .* takes about"):
        main(arguments(deep, "less", "--model.memory", "2 MB"))
    with pytest.raises(ConfigurationError, match="memory is 'much'; allowed"):
        main(arguments(deep, "less", "--model.memory", "much"))
