"""Locks that die with their process: who writes into a folder, or completes a file, does so alone."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from project.errors import ConfigurationError
from project.runtime.messages import first_process, tell

NAME = ".writing.lock"
HELD: set[int] = set()
"""Files that this process has locked."""

UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""What file systems without locks answer: some network file systems, as they are mounted by default."""


def _forget() -> None:
    """A process that loads data, forked while a lock is held, must not hold it beyond the one that it loads for."""
    for file in HELD:
        os.close(file)
    HELD.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def alone_in(folder: Path, given: str) -> Iterator[None]:
    """While open, let no other run write into a folder; of the processes of this run, the first sees to it.

    Args:
        folder: The folder; made where it is missing, and gone again if nothing has been written to it.
        given: What the user has given, such as ``run is here``, for the message.

    Raises:
        ConfigurationError: If another run writes into it.
    """
    if not first_process():
        yield
        return
    absolute = folder.absolute()
    made = [one for one in (absolute, *absolute.parents) if not one.exists()]
    try:
        absolute.mkdir(parents=True, exist_ok=True)
        refusal = f"{given}, into which another run is writing; choose another folder, or wait until that one is done."
        with only_writer(absolute / NAME, refusal):
            yield
    finally:
        for one in made:
            try:
                one.rmdir()
            except OSError:  # something is in it, or another has removed it
                break


@contextmanager
def only_writer(path: Path, refusal: str) -> Iterator[None]:
    """While open, let nobody else in who asks for the same lock, in this process or another, wherever it runs.

    A file is locked, not its folder: what holds on a network file system for all machines holds for files alone. It is
    there while the lock is held. Behind a process that was killed it stays, and locks nothing.

    Args:
        path: The file, in a folder that is there.
        refusal: What is told where another has the lock.

    Raises:
        ConfigurationError: If another has it, or the file cannot be made.
    """
    file = _locked(path, refusal)
    if file is None:
        yield
        return
    HELD.add(file)
    try:
        yield
    finally:
        if file in HELD:  # and not in a process that was forked meanwhile
            path.unlink(missing_ok=True)
            HELD.remove(file)
            os.close(file)


def _locked(path: Path, refusal: str) -> int | None:
    """The file, open and locked; None on a file system that knows no locks."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, file):
                return file
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(file)
                raise ConfigurationError(refusal) from error
            if error.errno not in UNKNOWN:
                os.close(file)
                raise
            tell(f"{path.parent} lies on a file system without locks; nothing keeps another run from writing there")
            path.unlink(missing_ok=True)
            os.close(file)
            return None
        os.close(file)  # whoever held it has removed it meanwhile


def _is(path: Path, file: int) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
