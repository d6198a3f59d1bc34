"""What the progress bar says is being done."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar


@contextmanager
def named(trainer: Trainer, doing: str) -> Iterator[None]:
    """While open, the trainer's bar shows these words where it would speak of validation or testing.

    Lightning's bars take their words from properties of their classes, of which the user may have chosen any.

    Args:
        trainer: With a progress bar or without.
        doing: The words, such as ``gathering``.
    """
    bar = trainer.progress_bar_callback
    if not isinstance(bar, ProgressBar):
        yield
        return
    plain = type(bar)
    bar.__class__ = type(plain.__name__, (plain,), {"validation_description": doing, "test_description": doing})
    try:
        yield
    finally:
        bar.__class__ = plain
