"""Fits that are cut short and go on: they end where one ends that nothing has interrupted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same_state
from killing import killed_anew, run_to_the_end
from torch import Tensor
from torch.nn.functional import dropout

from project.cli import main
from project.modules import FineTuneModule

EPOCHS = 4
KEPT = [
    {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
     "init_args": {"filename": "best", "monitor": "val/loss", "save_weights_only": False}},
    {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"filename": "last", "mode": "max"}},
]  # fmt: skip
STOP = {"class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss", "stopping_threshold": 1e9}}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def command(run: str, schedule: dict[str, Any], callbacks: list[dict[str, Any]], *extra: str) -> list[str]:
    sets = {"root": "data", "size": 16, "train_per_class": 3, "test_per_class": 1, "domains": ["clipart"]}
    kind = schedule["class_path"].rpartition(".")[2]
    return [
        "fit", "--run", run, "--trainer.accelerator", "cpu", "--trainer.max_epochs", str(EPOCHS),
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
        "--trainer.logger", "false", "--trainer.callbacks", json.dumps(callbacks),
        "--model", "project.modules.FineTuneModule", "--model.architecture", "resnet8",
        "--model.optimizer", json.dumps({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}),
        "--model.lr_scheduler", json.dumps(schedule),
        "--model.lr_interval", "step" if kind == "OneCycleLR" else "epoch",
        "--data", "project.data.DomainDataModule",
        "--data.sets", json.dumps({"class_path": "project.data.Shapes", "init_args": sets}),
        "--data.image_size", "16", "--data.batch_size", "8", "--data.validation_fraction", "0.34", *extra,
    ]  # fmt: skip


def cut_at(epoch: int, patch: pytest.MonkeyPatch) -> None:
    """Let the second batch of an epoch fail."""
    plain = FineTuneModule.training_step

    def cut(module: FineTuneModule, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if (module.current_epoch, batch_idx) == (epoch, 1):
            raise InterruptedError
        return plain(module, batch, batch_idx)

    patch.setattr(FineTuneModule, "training_step", cut)


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that draws random numbers, as one with dropout does."""
    plain = FineTuneModule.forward
    monkeypatch.setattr(FineTuneModule, "forward", lambda self, x: plain(self, dropout(x, 0.1, self.training)))


def same(mine: Any, theirs: Any) -> bool:
    """Whether plain values and tensors, however nested, are the same to the last bit."""
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    return torch.equal(mine, theirs) if isinstance(mine, Tensor) else bool(mine == theirs)


def same_checkpoints(one: str, two: str, *names: str) -> None:
    for name in names:
        mine, theirs = (torch.load(Path(run, "checkpoints", f"{name}.ckpt"), weights_only=True) for run in (one, two))
        assert mine["epoch"] == theirs["epoch"], name
        assert same_state(mine["state_dict"], theirs["state_dict"]), name
        assert same(mine["optimizer_states"], theirs["optimizer_states"]), name
        assert same(mine["lr_schedulers"], theirs["lr_schedulers"]), name
        states = zip(mine["callbacks"].values(), theirs["callbacks"].values(), strict=True)
        for state, other in states:
            for key in state.keys() - {"current_score", "best_k_models"}:  # a note of no effect; and paths
                if "path" not in key:
                    assert same(state[key], other[key]), (name, key)


SCHEDULES: dict[str, dict[str, Any]] = {
    "every step": {"class_path": "torch.optim.lr_scheduler.OneCycleLR",
                   "init_args": {"max_lr": 0.1, "total_steps": 100}},
    "every epoch": {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": EPOCHS}},
    "watching": {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
                 "init_args": {"monitor": "train/loss", "mode": "max", "patience": 0, "factor": 0.5}},
}  # fmt: skip


LONG = {"every step": pytest.mark.slow}


@pytest.mark.parametrize("when", [pytest.param(one, marks=LONG.get(one, ())) for one in SCHEDULES])
def test_a_fit_that_goes_on_ends_as_if_nothing_had_been(
    when: str, noisy: None, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders, views, dropout, momentum, rates, best checkpoint: all the same bits, whatever epoch it is cut in."""
    main(command("whole", SCHEDULES[when], KEPT))
    for epoch in (1, 3) if when == "watching" else (2,):
        name = f"cut {epoch}"
        with monkeypatch.context() as patch:
            cut_at(epoch, patch)
            with pytest.raises(InterruptedError):
                main(command(name, SCHEDULES[when], KEPT))
        assert torch.load(Path(name, "checkpoints", "last.ckpt"), weights_only=True)["epoch"] == epoch - 1
        main(command(name, SCHEDULES[when], KEPT, "--ckpt_path", "last"))
        same_checkpoints("whole", name, "best", "last")


def test_a_fit_that_had_decided_to_stop_does_not_go_on(inside: Path) -> None:
    """Killed in the moment between its last checkpoint and its end."""
    given = SCHEDULES["every epoch"], [STOP, *KEPT]
    main(command("whole", *given))
    last = torch.load("whole/checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 0 < EPOCHS - 1
    main(command("whole", *given, "--ckpt_path", "last"))
    again = torch.load("whole/checkpoints/last.ckpt", weights_only=True)
    assert again["epoch"] == 0
    assert same_state(again["state_dict"], last["state_dict"])


TWO = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.num_workers", "1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have fitted without interruption."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = run_to_the_end(command("whole", SCHEDULES["every step"], KEPT, *TWO))
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["all", "first", "second"])
def test_a_killed_fit_of_two_processes_goes_on(victim: str, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the others are, and with workers that load its pictures."""
    monkeypatch.chdir(whole)
    cut = command(victim, SCHEDULES["every step"], KEPT, *TWO)
    told = killed_anew(cut, Path(victim), "checkpoints/last.ckpt", victim=victim)
    assert "Traceback" not in told
    assert torch.load(f"{victim}/checkpoints/last.ckpt", weights_only=True)["epoch"] < EPOCHS - 1
    done = run_to_the_end([*cut, "--ckpt_path", "last"])
    assert done.returncode == 0, done.stderr[-2000:]
    same_checkpoints("whole", victim, "best", "last")
