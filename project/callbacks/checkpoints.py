"""Checkpoints that appear whole or not at all, wherever temporary files lie, and that choose no code."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from project.errors import ConfigurationError
from project.models import read_checkpoint
from project.runtime import atomic_save


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; Lightning copies from the folder for temporary files.

    What it reads is taken for a stranger's.

    A process that is killed while such a copy goes on, on another disk, leaves a broken ``last.ckpt`` behind.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint to a local file; elsewhere as Lightning does."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            atomic_save(checkpoint, Path(path).expanduser())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a local checkpoint without importing or calling anything that it names.

        Args:
            path: The file.
            map_location: Plays no part: its tensors come on the CPU, from where whoever takes them moves them.
            weights_only: Plays no part: objects are never imported.

        Raises:
            CheckpointError: If it is no checkpoint; see :func:`~project.models.read_checkpoint`.
        """
        if "://" in str(path):
            raise ConfigurationError(f"ckpt_path is {path}; allowed: a file on this machine, so download it first.")
        return read_checkpoint(Path(path).expanduser())


def write_atomically(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints by AtomicCheckpointIO, unless a plugin or the strategy has a way of its own.

    What Lightning's AsyncCheckpointIO wraps is Lightning's own.

    Args:
        trainer: As built.
    """
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()
