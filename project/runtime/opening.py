"""Files that somebody names: opened if they are files at all, before anything waits for what never comes."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from project.errors import CheckpointError

NO_FILES = (
    (stat.S_ISDIR, "a folder, not a file"),
    (stat.S_ISFIFO, "a pipe, not a file; write what comes out of it to a file first"),
    (stat.S_ISSOCK, "a socket, not a file"),
    (stat.S_ISCHR, "a device, not a file"),
    (stat.S_ISBLK, "a device, not a file"),
)
"""Tests of a file's mode, and what passes them; opening one of these may wait for ever."""


def open_file(path: Path, what: str) -> BinaryIO:
    """Open a regular file to read its bytes.

    Args:
        path: The file.
        what: What messages call it, such as ``The file of weights``.

    Raises:
        CheckpointError: If it is not there, not readable, or a folder, pipe, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
        for test, name in NO_FILES:
            if test(mode):
                raise CheckpointError(f"{what} {path} is {name}.")
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{what} {path} is not there.") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        reason = error.strerror if isinstance(error, OSError) else "its name holds a null character"
        raise CheckpointError(f"{what} {path} cannot be read: {reason}.") from error
