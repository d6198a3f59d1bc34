"""Checkpoints that appear whole or not at all, wherever temporary files lie."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from project.runtime import atomic_save


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
