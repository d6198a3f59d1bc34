"""Ending a run by a signal, in every process that it has started."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn

from project.signals import Ending

Handler = Callable[[int, FrameType | None], None]


class EndingCallback(Callback):
    """Restores a signal handler that Lightning has replaced by its own, as it does for every loop.

    Lightning's broadcasts from within the handler that the signal has come. Processes that it meets at different places
    then wait for each other, or take the broadcast for the one that they were waiting for. Where there is one process,
    a fit is left to Lightning, which ends it after the batch that is under way: whatever is then kept of it is whole.

    Args:
        number: The signal.
        end: Its handler.
    """

    def __init__(self, number: signal.Signals, end: Handler) -> None:
        self.number = number
        self.end = end

    def _restore(self, trainer: Trainer) -> None:
        if not alone_in_a_fit(trainer):
            signal.signal(self.number, self.end)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handler before the first batch."""
        self._restore(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handler before the first batch."""
        self._restore(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handler before the first batch."""
        self._restore(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handler before the first batch."""
        self._restore(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handler before the first batch."""
        self._restore(trainer)


@contextmanager
def ended_by(number: signal.Signals, trainer: Trainer) -> Iterator[None]:
    """Let a signal, while open, end this process; however it is ended, those that the trainer has started go with it.

    Lightning's own handler stands while it sets up a loop; and a process that waits for others within an operation
    comes to its handler once that is over.

    Args:
        number: The signal; a handler of the user's stays.
        trainer: What runs meanwhile.
    """
    before = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread() or not (
        before is signal.SIG_DFL or isinstance(before, Ending)
    ):
        with _others_go_along(trainer):
            yield  # handlers are the main thread's matter, and the user's own come first
        return
    end = before if isinstance(before, Ending) else _end
    if isinstance(end, Ending):
        end.noted = lambda: alone_in_a_fit(trainer) and trainer.received_sigterm
    callback = EndingCallback(number, end)
    trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    signal.signal(number, end)
    try:
        with _others_go_along(trainer):
            yield
    finally:
        if isinstance(end, Ending):
            end.noted = lambda: False
        signal.signal(number, before)
        trainer.callbacks.remove(callback)  # type: ignore[attr-defined]


def alone_in_a_fit(trainer: Trainer) -> bool:
    """Whether a fit runs, in a single process."""
    return trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _others_go_along(trainer: Trainer) -> Iterator[None]:
    """End the processes that the trainer has started, where this one is told to end."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
            launcher.procs.clear()  # or Lightning, which watches them, takes them for failed and kills this one
        raise
