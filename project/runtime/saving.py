"""Files that appear whole or not at all: the one door through which a run writes."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryFile
from typing import Any, BinaryIO
from uuid import uuid4

import torch
from torch import Tensor, nn

from project.errors import ConfigurationError
from project.runtime.space import check_space, writing

NAMES, PATHS = "PC_NAME_MAX", "PC_PATH_MAX"  # the length of a file's name, and of its path, that its disk takes
BELOW = 256  # bytes of a path for what lies below a folder, or is written beside a file
SHOWN = 24  # characters of a file's name that its draft's name repeats


def check_path(path: str | Path, given: str) -> None:
    """Refuse a path that no file or folder can have: too long, or with a zero byte in it.

    Args:
        path: Of a file or folder, there or not.
        given: What the user has given, such as ``root is here``, for the message.

    Raises:
        ConfigurationError: With what is wrong.
    """
    if reason := _impossible(path):
        raise ConfigurationError(f"{given}, which nothing can be called: {reason}.")


def check_writable(folder: Path, given: str, marks: int = 0) -> None:
    """Refuse a folder that can be neither written to nor made; nothing is made yet.

    Args:
        folder: The folder.
        given: What the user has given, such as ``run is here``, for the message.
        marks: Bytes by which names that are going to stand beside it are longer than its own.

    Raises:
        ConfigurationError: With the folder that is in the way.
    """
    reason = _impossible(folder, marks)
    if not reason:
        there = _nearest(folder)
        try:
            if not there.is_dir():
                reason = f"{there} is no folder"
            else:
                with TemporaryFile(dir=there):
                    pass
        except PermissionError:
            reason = f"{there} does not allow it"
        except OSError as error:
            reason = f"{there}: {error.strerror}"
    if reason:
        raise ConfigurationError(f"{given}, which cannot be written to: {reason}.")


def check_target(path: str | Path, given: str) -> None:
    """Refuse a file that can be neither written nor made, see :func:`check_writable`.

    Args:
        path: The file.
        given: What the user has given, such as ``out is here``, for the message.

    Raises:
        ConfigurationError: With what is in the way.
    """
    if os.path.isdir(path):
        raise ConfigurationError(f"{given}, which is a folder; allowed: a file.")
    if os.path.exists(path) and not os.path.isfile(path):  # what is written would take its place
        raise ConfigurationError(f"{given}, which is a pipe or a device; allowed: a file.")
    if os.path.exists(path):
        check_writable(Path(path).parent, given)
    else:
        check_writable(Path(path), given, len("..lock"))


def _nearest(path: str | Path) -> Path:
    """A path, or the nearest above it that is there."""
    there = Path(path).absolute()
    while not os.path.lexists(there):
        there = there.parent
    return there


def _impossible(path: str | Path, marks: int = 0) -> str:
    """Why nothing can be called so; empty where something can, or is."""
    if "\0" in str(path):
        return "its name holds a zero byte"
    there, whole = _nearest(path), Path(path).absolute()
    missing = [len(os.fsencode(part)) for part in whole.relative_to(there).parts]
    if not missing:
        return ""
    missing[-1] += marks
    try:
        longest, longest_path = os.pathconf(there, NAMES), os.pathconf(there, PATHS)
    except OSError as error:  # of a link that leads nowhere, say
        return f"{there}: {error.strerror}"
    if max(missing) > longest or len(os.fsencode(whole)) + BELOW > longest_path:
        return os.strerror(errno.ENAMETOOLONG)
    return ""


@contextmanager
def _drafted(path: Path, needed: int) -> Iterator[Path]:
    """Where to write what shall be at a path: beside it, as replacing works on one disk only, under a shorter name."""
    with writing(path):
        check_space({path: needed})
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = path.name[:SHOWN]  # with all of it, a name that the disk takes had a draft that it does not
        draft = path.with_name(f".{shown}.{uuid4().hex}.tmp")
        try:
            yield draft
            draft.replace(path)
        finally:
            with suppress(OSError):  # of a disk that fails in this, too
                rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)


def _kept(file: Path) -> None:
    """Wait until the disk holds a file."""
    with file.open("rb") as content:
        os.fsync(content.fileno())


@contextmanager
def atomic_path(path: str | Path, needed: int = 0, *, lasting: bool = True) -> Iterator[Path]:
    """Open a path to write a file at, which takes its name when the ``with`` statement ends and vanishes when it fails.

    Args:
        path: Where the file is to be; a file that is there already is replaced. Missing folders are made.
        needed: Bytes that it is going to have, as far as they are known; where there is no room, nothing is written.
        lasting: Whether to wait until the disk holds it, so that it is whole after a power cut, too.

    Raises:
        StorageError: If there is no room for it, or the disk fails.
    """
    with _drafted(Path(path), needed) as draft:
        yield draft
        if lasting:
            _kept(draft)


@contextmanager
def atomic_folder(path: str | Path, needed: int = 0) -> Iterator[Path]:
    """Open a folder to write files in, which takes its name when the ``with`` statement ends, or vanishes.

    Args:
        path: Where the folder is to be; nothing may be there yet. Missing folders above it are made.
        needed: See :func:`atomic_path`.

    Raises:
        StorageError: If there is no room for it, or the disk fails.
    """
    with _drafted(Path(path), needed) as draft:
        draft.mkdir()
        yield draft
        for one in draft.iterdir():
            _kept(one)


@contextmanager
def atomic_file(path: str | Path, needed: int = 0) -> Iterator[BinaryIO]:
    """Open a binary file, which takes its name when the ``with`` statement ends and vanishes when it fails.

    Args:
        path: See :func:`atomic_path`.
        needed: See :func:`atomic_path`.

    Raises:
        StorageError: If there is no room for it, or the disk fails.
    """
    with atomic_path(path, needed) as draft, draft.open("xb") as file:
        yield file


def atomic_save(content: Any, path: str | Path) -> None:
    """Write tensors and plain values to a file by ``torch.save``, which appears whole or not at all.

    Args:
        content: Tensors and plain values, so that ``torch.load(weights_only=True)`` reads them again.
        path: Where the file is to be.

    Raises:
        StorageError: If there is no room for it, or the disk fails.
    """
    with atomic_file(path, tensor_bytes(content)) as file:
        torch.save(content, file)


def atomic_text(text: str, path: str | Path) -> None:
    """Write a text file in UTF-8 that appears whole or not at all.

    Args:
        text: Its content.
        path: Where the file is to be.

    Raises:
        StorageError: If there is no room for it, or the disk fails.
    """
    content = text.encode()
    with atomic_file(path, len(content)) as file:
        file.write(content)


def tensor_bytes(content: Any) -> int:
    """Count the bytes of all tensors in mappings and lists, each memory once, as ``torch.save`` writes it."""
    found: dict[int, int] = {}

    def count(value: Any) -> None:
        if type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided:
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            for one in value.values():
                count(one)
        elif isinstance(value, list | tuple):
            for one in value:
                count(one)

    count(content)
    return sum(found.values())
