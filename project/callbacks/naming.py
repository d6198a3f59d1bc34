"""What the progress bar says is being done."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar


class NamedProgressBar(ProgressBar):
    """A bar that shows ``doing``, where there is any, in place of Lightning's words for a pass."""

    doing = ""

    @property
    def validation_description(self) -> str:
        """What stands before the bar of a validation."""
        return self.doing or super().validation_description

    @property
    def test_description(self) -> str:
        """What stands before the bar of a test."""
        return self.doing or super().test_description


class NamedRichProgressBar(NamedProgressBar, RichProgressBar):
    """Lightning's bar where ``rich`` is installed."""


class NamedTQDMProgressBar(NamedProgressBar, TQDMProgressBar):
    """Lightning's bar elsewhere."""


def progress_bar() -> NamedProgressBar:
    """The bar that Lightning would take, with words of its own for what a merge does."""
    return NamedRichProgressBar() if find_spec("rich") else NamedTQDMProgressBar()


@contextmanager
def named(trainer: Trainer, doing: str) -> Iterator[None]:
    """While open, the trainer's bar shows these words where it would speak of validation or testing.

    Args:
        trainer: With a :class:`NamedProgressBar`; other bars keep their words.
        doing: The words, such as ``gathering``.
    """
    bar = trainer.progress_bar_callback
    if not isinstance(bar, NamedProgressBar):
        yield
        return
    bar.doing = doing
    try:
        yield
    finally:
        bar.doing = ""
