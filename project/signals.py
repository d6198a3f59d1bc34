"""Ctrl-C and SIGTERM, from a command's first moment on; imports nothing, as torch takes seconds to be imported."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

STARTER = "PLEAS_STARTED_BY"
GRACE = 3.0
"""Seconds after which a process that another has started no longer waits to be ended by it."""
SAME = 1.0
"""Seconds within which further signals are taken for the same one: launchers add theirs to that of a terminal."""


WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "told to end"}


class Ending:
    """Ends a command that is told to end: at once while it is being imported, afterwards by an exception.

    That is KeyboardInterrupt for SIGINT, at which Lightning clears up and ends the processes that it has started, and
    SystemExit for SIGTERM. Those processes, which a terminal tells as well, leave it to the first: one that ended by
    itself would be taken for one that has failed. Those that load data leave it to whoever they load for. Who is told
    again, because clearing up takes long, ends at once.

    Attributes:
        received: What this process was told, if anything.
        begun: Whether there is something to clear up.
        noted: Whether somebody else has taken note of SIGTERM and is about to act on it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.begun = False
        self.noted: Callable[[], bool] = lambda: False
        self._process = os.getpid()
        self._helping = os.environ.get(STARTER) == str(os.getppid())
        self._before: dict[signal.Signals, Any] = {}
        self._since = 0.0

    def __enter__(self) -> "Ending":
        """Become the handler of both signals, as far as nobody has said what they should do."""
        self._starter, os.environ[STARTER] = os.environ.get(STARTER), str(os.getpid())
        if threading.current_thread() is threading.main_thread():  # handlers are its matter
            for number in WORDS:
                if (before := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = before
                    signal.signal(number, self)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the signals to what handled them before."""
        if self._starter is None:
            del os.environ[STARTER]
        else:
            os.environ[STARTER] = self._starter
        for number, before in self._before.items():
            signal.signal(number, before)

    @property
    def status(self) -> int:
        """The exit status of a command that was told to end, as a shell has it."""
        return 128 + (self.received or 0)

    def message(self, *further: str) -> str:
        """What the command says last.

        Args:
            further: What is to be said of how it goes on.
        """
        assert self.received is not None
        return f"pleas: {'; '.join((WORDS[self.received], *further))}.\n"

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        told = signal.Signals(number)
        if os.getpid() != self._process:
            if told is signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        again = self.received is not None
        if again and (self._helping or time.monotonic() - self._since < SAME):
            return
        self.received, self._since = told, time.monotonic()
        if self._helping:
            last = threading.Timer(GRACE, os._exit, (self.status,))
            last.daemon = True
            last.start()
            return
        if again or not self.begun:
            os.write(2, self.message().encode())
            os._exit(self.status)
        if told is signal.SIGINT:
            raise KeyboardInterrupt
        if not self.noted():
            raise SystemExit(self.status)
