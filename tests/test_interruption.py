"""Ctrl-C and SIGTERM: a command says in one line how it goes on, and its status is the one that shells give to them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import resnet
from killing import killed_anew
from lightning.pytorch import LightningModule

from project import __main__ as command
from project import adding, checking
from project.cli import main
from project.errors import ConfigurationError
from project.fit import SequentialFit
from project.modules import EvaluationModule, FineTuneModule, MergeModule, ScoringModule
from project.runtime.lock import NAME, alone_in
from project.signals import STARTER, Ending

ROOT = Path(__file__).resolve().parent.parent
CLUSTER, TINY = ROOT / "configs" / "cluster", ROOT / "configs" / "tiny"
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
NETWORKS = '["clipart.pth", "sketch.pth"]'
FIT = ["fit", "--config", str(TINY / "fit_clipart.yaml"), "--trainer.max_epochs", "3"]
MERGE = ["merge", "--config", str(TINY / "merge.yaml"), "--model.init_args.sources", NETWORKS,
         "--model.init_args.methods", '[{"class_path": "project.methods.PLeaS"}]',
         "--model.init_args.budgets", "[1.0]"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random sources."""
    folder = tmp_path_factory.mktemp("interrupted")
    for seed, domain in enumerate(("clipart", "sketch")):
        torch.save(resnet("resnet8", seed, 12).state_dict(), folder / f"{domain}.pth")
    return folder


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Signals do what they do by default, whoever has started the tests: what nohup starts ignores them."""
    plain = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in plain.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def evaluated(subcommand: str) -> list[str]:
    networks = '["clipart.pth"]'
    return [subcommand, "--config", str(TINY / f"{subcommand}.yaml"), "--model.init_args.networks", networks]


@pytest.fixture
def ended(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., str]:
    """Run a command that gets a signal, and see what must hold of all; returns the line that it says."""

    def run(number: signal.Signals, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["pleas", *arguments])
        before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
        assert command.console() == 128 + number
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert "Detected KeyboardInterrupt" not in caplog.text + told
        assert not list(place.rglob(NAME))
        (line,) = (line for line in told.splitlines() if line.startswith("pleas:"))
        return line

    return run


def signalled(
    patch: pytest.MonkeyPatch, owner: Any, name: str, number: signal.Signals, when: Callable[..., bool]
) -> None:
    """Raise a signal before some calls of a function."""
    plain = getattr(owner, name)

    def told(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            signal.raise_signal(number)
        return plain(*args, **kwargs)

    patch.setattr(owner, name, told)


def always(*_: Any) -> bool:
    return True


def counting(least: int) -> Callable[..., bool]:
    """From some call on."""
    calls = [0]

    def when(*_: Any) -> bool:
        calls[0] += 1
        return calls[0] == least

    return when


BOTH = pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGINT, "interrupted"), pytest.param(signal.SIGTERM, "told to end", marks=pytest.mark.slow)],
)


@BOTH
def test_a_fit_names_the_checkpoint_from_which_it_goes_on(
    number: signal.Signals, words: str, ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["--run", f"runs/fit-{number}"]
    best = f"runs/fit-{number}/checkpoints/best.ckpt"
    epoch = [0]
    signalled(monkeypatch, FineTuneModule, "training_step", number, lambda module, *_: module.current_epoch == epoch[0])
    told = ended(number, *FIT, *run)
    assert told == f"pleas: {words}; no checkpoint was kept from which it could go on."
    epoch[0] = 1
    goes_on = f"pleas: {words}; the same command goes on with --ckpt_path {best}."
    assert ended(number, *FIT, *run, "--overwrite", "true") == goes_on
    kept = ["--config", str(CLUSTER / "resume.yaml"), "--overwrite", "true"]
    ended(number, *FIT, *run, *kept)
    epoch[0] = 2
    assert ended(number, *FIT, *run, *kept, "--ckpt_path", "last") == f"pleas: {words}; the same command goes on."


def test_a_fit_that_keeps_weights_alone_does_not_go_on(
    ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_weights_only": True}}
    signalled(monkeypatch, FineTuneModule, "training_step", signal.SIGINT, lambda module, *_: module.current_epoch == 1)
    told = ended(signal.SIGINT, *FIT, "--run", "runs/weights", "--trainer.callbacks", json.dumps([weights]))
    assert told == "pleas: interrupted; no checkpoint was kept from which it could go on."


@BOTH
def test_a_merge_says_whether_it_goes_on(
    number: signal.Signals, words: str, ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["--run", f"runs/merge-{number}"]
    with monkeypatch.context() as patch:
        signalled(patch, MergeModule, "validation_step", number, counting(2))
        assert ended(number, *MERGE, *run) == f"pleas: {words}."
    goes_on = f"pleas: {words}; the same command goes on with what is finished."
    with monkeypatch.context() as patch:
        signalled(patch, SequentialFit, "_solve", number, counting(3))
        assert ended(number, *MERGE, *run) == goes_on
    signalled(monkeypatch, ScoringModule, "test_step", number, always)
    assert ended(number, *MERGE, *run) == goes_on


@BOTH
@pytest.mark.parametrize("subcommand", ["test", "validate", "predict"])
def test_what_only_reads_says_that_it_was_ended(
    subcommand: str, number: signal.Signals, words: str, ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"test": "test_step", "validate": "validation_step", "predict": "predict_step"}[subcommand]
    signalled(monkeypatch, EvaluationModule, step, number, always)
    assert ended(number, *evaluated(subcommand), "--run", f"runs/{subcommand}-{number}") == f"pleas: {words}."


@BOTH
def test_so_do_commands_without_a_trainer(
    number: signal.Signals, words: str, ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    signalled(monkeypatch, adding, "add_statistics", number, always)
    for name in "ab":
        Path(f"{name}.safetensors").touch()
    assert ended(number, "add-statistics", "a.safetensors", "b.safetensors", "--out", "c") == f"pleas: {words}."
    assert not Path("c").exists()
    signalled(monkeypatch, checking, "check_network", number, always)
    assert ended(number, "check", "--model", "clipart.pth", "--image-size", "16") == f"pleas: {words}."


def test_while_data_are_prepared_and_loaded(ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that load are told as well by a terminal, and leave it to the command."""
    workers: list[int] = []

    def told(module: LightningModule, *_: Any) -> None:
        loader = module.trainer.train_dataloader._iterator._workers  # type: ignore[union-attr]
        workers.extend(worker.pid for worker in loader)
        for one in (*workers, os.getpid()):
            os.kill(one, signal.SIGINT)

    monkeypatch.setattr(FineTuneModule, "on_train_batch_start", told)
    assert ended(signal.SIGINT, *FIT, "--run", "runs/loading", "--data.init_args.num_workers", "2").startswith(
        "pleas: interrupted"
    )
    assert len(workers) == 2
    monkeypatch.setattr("project.data.shapes.dataset.render", lambda *_: signal.raise_signal(signal.SIGINT))
    assert (
        ended(signal.SIGINT, *FIT, "--run", "runs/drawing", "--data.init_args.sets.init_args.root", "other")
        == "pleas: interrupted."
    )


@pytest.mark.parametrize("subcommand", ["fit", "merge", "test", "validate", "predict"])
def test_the_second_of_two_runs_into_one_folder_is_refused(subcommand: str, place: Path) -> None:
    """Before anything is built, and whatever the folder holds already."""
    given = {"fit": [*FIT, "--ckpt_path", "last"], "merge": [*MERGE, "--overwrite", "true"]}
    folder = Path("runs/twice")
    with (
        alone_in(folder, "run is here"),
        pytest.raises(
            ConfigurationError, match=rf"^run is {folder}, into which another run is writing; choose another"
        ),
    ):
        main([*given.get(subcommand, evaluated(subcommand)), "--run", str(folder)])
    assert not folder.exists()


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "victim"), [(signal.SIGINT, "all"), (signal.SIGINT, "first"), (signal.SIGTERM, "first")]
)
def test_two_processes_say_it_once(number: signal.Signals, victim: str, place: Path) -> None:
    """As a terminal tells all of a run, and as somebody tells the first alone."""
    two = ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    words = {signal.SIGINT: "interrupted", signal.SIGTERM: "told to end"}[number]
    goes_on = {
        "merge": "the same command goes on with what is finished",
        "fit": f"the same command goes on with --ckpt_path runs/fit-{number}-{victim}/checkpoints/best.ckpt",
    }
    for name, arguments, sign in (
        ("merge", MERGE, "progress/*/1/pleas-*/pleas-1.00/0003-*.pt"),
        ("fit", [*FIT, "--trainer.max_epochs", "99"], "checkpoints/best.ckpt"),
    ):
        run = Path("runs", f"{name}-{number}-{victim}")
        told = killed_anew([*arguments, *two, "--run", str(run)], run, sign, number, victim)
        assert "Traceback" not in told
        assert "zombies" not in told, "Lightning takes no process for one that has failed"
        (line,) = (line for line in told.splitlines() if line.startswith("pleas:"))
        assert line == f"pleas: {words}; {goes_on[name]}."


# ---- processes of their own, in which nothing heavy is imported ----------------------------------------------------

IMPORTING = """
import sys, time
print("importing", flush=True)
time.sleep(60)
"""
WORKING = """
import os, time
from project import signals
signals.GRACE = 0.1
with signals.Ending() as ending:
    ending.begun = True
    print("working", flush=True)
    time.sleep(0.5)
    print("went on", flush=True)
    time.sleep(60)
"""


def started(arguments: list[str], **environment: str) -> "subprocess.Popen[str]":
    """A process, once it has said its first line."""
    process = subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


@BOTH
def test_a_command_that_is_being_imported_can_be_ended(number: signal.Signals, words: str, tmp_path: Path) -> None:
    (tmp_path / "lightning").mkdir()
    (tmp_path / "lightning" / "__init__.py").write_text(IMPORTING)
    process = started(["-m", "project", "fit"], PYTHONPATH=f"{tmp_path}:{ROOT}")
    process.send_signal(number)
    assert process.communicate(timeout=20)[1] == f"pleas: {words}.\n"
    assert process.returncode == 128 + number


@BOTH
def test_a_process_that_another_has_started_leaves_it_to_that_one(number: signal.Signals, words: str) -> None:
    """But not for ever."""
    process = started(["-c", WORKING], **{STARTER: str(os.getpid())})
    process.send_signal(number)
    assert not process.communicate(timeout=20)[1]
    assert process.returncode == 128 + number
    alone = started(["-c", WORKING], **{STARTER: str(os.getppid())})
    alone.send_signal(number)
    assert "went on" not in alone.communicate(timeout=20)[0]


AGAIN = """
import time
from project import signals
signals.SAME = 0.2
with signals.Ending() as ending:
    ending.begun = True
    try:
        print("working", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("clearing up", flush=True)
        time.sleep(60)
"""


def test_who_is_told_again_ends_at_once() -> None:
    """But a launcher's signal right behind that of a terminal is the same."""
    process = started(["-c", AGAIN])
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "clearing up\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "pleas: interrupted.\n"
    assert process.returncode == 130


def test_a_handler_of_the_users_stays() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Ending():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
