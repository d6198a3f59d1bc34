"""Whether there is room for the checkpoints of a fit, asked before anything is written."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from project.modules.common import Writes
from project.runtime.space import check_space, present_bytes


def check_checkpoint_space(trainer: Trainer, model: LightningModule, folder: Path) -> None:
    """Refuse a fit whose checkpoints have no room.

    Args:
        trainer: As built, with the callbacks that write them.
        model: What is fitted; of one that does not say what it writes, nothing is known.
        folder: The run's, below which checkpoints lie where a callback names no other.

    Raises:
        StorageError: With the folder, what it needs and what is free.
    """
    if not isinstance(model, Writes):
        return
    writes = model.writes()
    needs = {folder / "students": writes.student}
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and "://" not in str(callback.dirpath):
            place = Path(callback.dirpath or folder / "checkpoints")
            each = writes.weights + (0 if callback.save_weights_only else writes.optimizer)
            needs[place] = needs.get(place, 0) + each * _files(callback, trainer.max_epochs or 1)
    check_space({place: needed - present_bytes(place) for place, needed in needs.items()})


def _files(callback: ModelCheckpoint, epochs: int) -> int:
    """How many files there are at once, that which is about to replace another among them."""
    epochs = max(1, epochs)  # -1: nobody knows how many
    kept = epochs if callback.save_top_k < 0 else min(callback.save_top_k, epochs)
    last = callback.save_last is True
    return kept + last + (0 < kept + last < epochs + last)
