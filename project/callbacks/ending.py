"""Ending a merge by a signal, in every process that it has started."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer


class EndingCallback(Callback):
    """Restores a signal handler that Lightning has replaced by its own, as it does for every loop.

    Lightning's broadcasts from within the handler that the signal has come. Processes that it meets at different places
    then wait for each other, or take the broadcast for the one that they were waiting for.

    Args:
        number: The signal.
        end: Its handler.
    """

    def __init__(self, number: signal.Signals, end: Callable[[int, FrameType | None], NoReturn]) -> None:
        self.number = number
        self.end = end

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handler before the first batch."""
        signal.signal(self.number, self.end)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handler before the first batch."""
        signal.signal(self.number, self.end)


@contextmanager
def ended_by(number: signal.Signals, trainer: Trainer) -> Iterator[None]:
    """Let a signal, while open, end this process and those that the trainer has started, each by itself.

    Lightning takes note of SIGTERM, and looks at its note in a fit alone. While it sets up a loop its own handler
    stands; and a process that waits for others within an operation comes to its handler once that is over.

    Args:
        number: The signal.
        trainer: Which validates and tests meanwhile.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.Signals(number))
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is not signal.SIG_DFL:
        yield  # handlers are the main thread's matter, and the user's own come first
        return
    callback = EndingCallback(number, end)
    trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    signal.signal(number, end)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)
        trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
