"""What a run says: by its first process alone, however many there are."""

import logging
import os
import time
import warnings

from torch import distributed

from project.errors import printable

LOGGER = logging.getLogger("project")
LOGGER.setLevel(logging.INFO)  # whether it is shown anywhere, whoever runs the code decides with a handler

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Variables in which launchers (torchrun, Lightning, SLURM, LSF) tell a process its number before torch knows it."""


def first_process() -> bool:
    """Whether this process is the first of its run, or the only one."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), 0) == 0


def show_messages() -> None:
    """Write what a run says to standard error, unless whoever runs it has made arrangements of their own."""
    if not logging.getLogger().hasHandlers() and not LOGGER.handlers:
        LOGGER.addHandler(logging.StreamHandler())


def tell(message: str) -> None:
    """Log a message, from the first process alone, to the logger named ``project``."""
    if first_process():
        LOGGER.info(printable(message))


class Heartbeat:
    """Tells now and then how far long work is, where no terminal shows a bar.

    Args:
        words: What is counted, such as ``fitting pleas-1.00: layer``.
        total: How many there are.
        every: Seconds, at least, between two messages.
    """

    def __init__(self, words: str, total: int, every: float = 30.0) -> None:
        self.words, self.total, self.every = words, total, every
        self.done, self.told = 0, time.monotonic()

    def beat(self) -> None:
        """Count one more."""
        self.done += 1
        if time.monotonic() - self.told >= self.every:
            tell(f"{self.words} {self.done} of {self.total}")
            self.told = time.monotonic()


def warn(message: str) -> None:
    """Issue a ``UserWarning``, from the first process alone."""
    if first_process():
        warnings.warn(message, stacklevel=2)
