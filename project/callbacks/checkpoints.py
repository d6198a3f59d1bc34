"""Checkpoints that appear whole or not at all, wherever temporary files lie."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.connectors import checkpoint_connector

from project.errors import CheckpointError
from project.runtime import atomic_save

SCORED = {"state_dict": Mapping, "pytorch-lightning_version": str}
"""What Lightning reads of a checkpoint to score its weights, and what each entry is."""
RESUMED = {"epoch": int, "global_step": int, "loops": Mapping, "optimizer_states": list, "lr_schedulers": list}
"""What it reads beside them to go on with a fit."""
LAST = "last"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; Lightning copies from the folder for temporary files.

    A process that is killed while such a copy goes on, on another disk, leaves a broken ``last.ckpt`` behind.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint to a local file; elsewhere as Lightning does."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            atomic_save(checkpoint, Path(path).expanduser())


def write_atomically(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints by AtomicCheckpointIO, unless a plugin or the strategy has a way of its own.

    What Lightning's AsyncCheckpointIO wraps is Lightning's own.

    Args:
        trainer: As built.
    """
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()


def check_checkpoint(path: Path, fitting: bool) -> None:
    """Refuse a file that no fit wrote, before anything is built; of its tensors only the shapes are read.

    Args:
        path: What the user named as ``ckpt_path``.
        fitting: Whether a fit is to go on from it, which takes more than weights.

    Raises:
        CheckpointError: With what the file is.
    """
    wanted = "a checkpoint that a fit wrote" + (", its optimizer with it, or 'last'" if fitting else "")
    given = f"ckpt_path is {path}, which"
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file" if path.exists() else "not there"
        raise CheckpointError(f"{given} is {what}; allowed: {wanted}.")
    try:
        archive = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="meta", mmap=archive or None, weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            pickled = archive or file.read(1) == b"\x80"
        what = "holds objects, which are not loaded since they can run code" if pickled else "is no checkpoint"
        raise CheckpointError(f"{given} {what}; allowed: {wanted}.") from error
    except Exception as error:  # of whatever bytes there may be
        raise CheckpointError(f"{given} is truncated or no checkpoint; allowed: {wanted}.") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{given} holds a {type(content).__name__}; allowed: {wanted}.")
    needed = SCORED | (RESUMED if fitting else {})
    if lacking := [name for name, kind in needed.items() if not isinstance(content.get(name), kind)]:
        what = "holds weights alone" if set(lacking) & {*SCORED, "optimizer_states"} else f"lacks {lacking[0]!r}"
        raise CheckpointError(f"{given} {what}; allowed: {wanted}.")


def check_last(trainer: Trainer, folder: Path, fitting: bool) -> None:
    """Refuse to look for a last checkpoint where there is none, but for a fit that has not written any yet.

    Args:
        trainer: Whose callbacks may have written one.
        folder: The run's.
        fitting: Whether a fit is to go on from it: one that was ended before its first checkpoint begins anew.

    Raises:
        CheckpointError: With the checkpoints that there are.
    """
    callbacks = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    if any(callback._find_last_checkpoints(trainer) for callback in callbacks):
        return
    found = sorted(path for part in ("checkpoints", "students") for path in (folder / part).glob("*"))
    if found or not fitting:
        others = f", but {', '.join(map(str, found[:3]))}" if found else ""
        raise CheckpointError(
            f"ckpt_path is 'last', but {folder} holds no checkpoint of that name{others}; allowed: a FILE, or 'last' "
            f"where a ModelCheckpoint with save_last wrote one."
        )


def restoring(error: Exception) -> bool:
    """Whether an error came up while Lightning took a checkpoint up again."""
    frames = (frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__))
    return checkpoint_connector.__file__ in frames
