"""Disk space: whether what a run is going to write has room, asked before the long work; and disks that fail."""

import errno
import os
import re
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from project.errors import PleasError, StorageError
from project.runtime.memory import size

FAILING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""What a disk says that is full, whose quota is used up, that may not be written to, or that is broken."""


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there already."""
    there = path.absolute()
    while not there.is_dir() and there != there.parent:
        there = there.parent
    return there


def present_bytes(folder: Path) -> int:
    """Count the bytes of the files in a folder, at any depth; 0 where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def check_space(needs: Mapping[Path, int]) -> None:
    """Refuse to begin what a disk has no room for; what goes to one disk adds up.

    Args:
        needs: File or folder -> bytes that are going to be written there, beside what lies there now.

    Raises:
        StorageError: With the paths, what they need together, and what is free.
    """
    disks: dict[int, dict[Path, int]] = defaultdict(dict)
    for path, needed in needs.items():
        if needed > 0:
            with writing(path):
                disks[_disk(path)][path] = needed
    for parts in disks.values():
        usage, needed = shutil.disk_usage(nearest_folder(next(iter(parts)))), sum(parts.values())
        if usage.total and needed > usage.free:  # some network file systems have no idea, and say 0
            named = [f"{path} needs about {size(count)}" for path, count in parts.items()]
            together = f", together {size(needed)}" if len(parts) > 1 else ""
            raise StorageError(
                f"{', '.join(named)}{together}, but {size(usage.free)} are free on that disk; free some, or write "
                f"elsewhere."
            )


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """While open, what a disk refuses is told in one sentence.

    Args:
        path: What is written, for the message.

    Raises:
        StorageError: With the path and the disk's reason.
    """
    try:
        yield
    except PleasError:
        raise
    except Exception as error:
        reason = failure(error)
        if reason is None:
            raise
        raise StorageError(f"{path} cannot be written: {reason}.") from error


@contextmanager
def disks_heard() -> Iterator[None]:
    """While open, what a disk refuses to others than this project is told in one sentence, too.

    Logs are written by libraries, some in threads of their own, which stop in silence: who writes to them next is told.
    What is printed goes to a file, perhaps.

    Raises:
        StorageError: With the path, where it is known, and the disk's reason.
    """
    shown = threading.excepthook

    def heard(arguments: threading.ExceptHookArgs) -> None:
        if not (isinstance(arguments.exc_value, OSError) and arguments.exc_value.errno in FAILING):
            shown(arguments)

    threading.excepthook = heard
    try:
        yield
        _print_all()
    except OSError as error:
        if error.errno not in FAILING:
            raise
        with suppress(OSError):
            _print_all()
        raise StorageError(f"{error.filename or 'a log or answer'} cannot be written: {error.strerror}.") from error
    finally:
        threading.excepthook = shown


def _print_all() -> None:
    """Flush what was printed; what cannot be is dropped, or Python would try again in the end, and complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on
        sys.stdout = None
    except OSError:
        sys.stdout = None
        raise


def failure(given: BaseException) -> str | None:
    """Why a file could not be written, in the system's words; None where an error is about something else.

    PyTorch's writer tells of a stream out of step while it handles what the disk has said; safetensors quotes it.
    """
    if isinstance(given, FileExistsError):  # where a folder is to be
        return os.strerror(errno.ENOTDIR)
    if isinstance(given, OSError):
        return given.strerror or str(given)
    if quoted := re.search(r"\(os error (\d+)\)|\bOs { code: (\d+)", str(given)):
        return os.strerror(int(quoted[1] or quoted[2]))
    error: BaseException | None = given
    while error is not None:
        if isinstance(error, OSError) and error.errno in FAILING:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def _disk(path: Path) -> int:
    """The file system on which a path lies, or is going to."""
    return nearest_folder(path).stat().st_dev
