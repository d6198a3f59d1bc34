"""What a fit needs beside Lightning's checkpoints to go on as if nothing had interrupted it."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from project.data.sharding import seed_of

WATCHED = "watched"


class Continuation(Callback):
    """Makes a fit that goes on from a checkpoint of the end of an epoch equal to one that was not interrupted.

    Random numbers are drawn anew in every epoch, from the seed of the run, the number of the epoch and that of the
    process: no checkpoint holds where a generator stood, nor could a fit of other processes use it. Two things
    Lightning passes over where it goes on: the step of a schedule that watches a figure (ReduceLROnPlateau), which is
    due after the checkpoint is written, and that EarlyStopping had decided to stop.
    """

    def __init__(self) -> None:
        self._seed = 0
        self._watched: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the seed of the run."""
        self._seed = torch.initial_seed()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the figures that schedules are still to be told of this epoch."""
        progress, figures = trainer.fit_loop.epoch_progress.current, trainer.callback_metrics
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and progress.completed < progress.ready:
            checkpoint[WATCHED] = {
                str(config.monitor): float(figures[str(config.monitor)])
                for config in trainer.lr_scheduler_configs
                if config.reduce_on_plateau and config.interval == "epoch" and config.monitor in figures
                and progress.ready % config.frequency == 0
            }  # fmt: skip

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take these figures up again."""
        self._watched = dict(checkpoint.get(WATCHED, {}))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the steps that were due, and stop where that was decided."""
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and config.monitor in self._watched:
                pl_module.lr_scheduler_step(config.scheduler, float(self._watched[config.monitor]))
        self._watched = {}
        if any(
            isinstance(one, EarlyStopping) and one.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
            for one in trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        ):
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed what the networks draw, and what code of the user's may."""
        seed = seed_of(self._seed, trainer.current_epoch, trainer.global_rank)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - whoever draws from it should draw the same
        random.seed(seed)
