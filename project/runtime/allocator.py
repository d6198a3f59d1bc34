"""Freed memory that goes back to the system: glibc keeps what is freed for blocks to come, and a limit would count it.

Other C libraries, those of macOS and musl among them, are left to themselves.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's ``mallopt``."""

LARGE = 2**20
"""Bytes of blocks that go back to the system at once where memory is limited."""

USUAL = 32 * 2**20
"""Where glibc's own limit for these ends, in a process that has freed large blocks; it cannot be made to move again."""


def give_back() -> None:
    """Give freed memory back to the system: up to all that a pass has held."""
    if (trim := glibc("malloc_trim")) is not None:
        trim(0)


@contextmanager
def held_tight(limited: bool) -> Iterator[None]:
    """While open, large blocks that are freed go back to the system at once.

    Every one of them then has pages of its own, which take time to come by.

    Args:
        limited: Whether there is a limit; else nothing is done.
    """
    options = glibc("mallopt") if limited else None
    if options is None:
        yield
        return
    give_back()  # what the heap keeps of before would be taken up again
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        options(option, LARGE)
    try:
        yield
    finally:
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            options(option, USUAL)


def glibc(name: str) -> Callable[..., int] | None:
    """Look up a function of the C library.

    Args:
        name: Of a function that glibc alone has.

    Returns:
        The function; None where another library is in use.
    """
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except OSError:  # of a Python that is one static file
        return None
