"""Tensors that wait on disk: mapped from files without a name, so that the system drops them from memory as it must.

The files are gone with the tensors, or with the process, however that ends.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload
from uuid import uuid4

import torch
from torch import Tensor, fx

from project.runtime.space import writing

ZEROS = bytes(2**20)


class Spilled:
    """One tensor in a memory-mapped file without a name.

    Args:
        tensor: Of any shape, dtype and device; not empty.
        folder: Of the file; made where it is missing.

    Raises:
        StorageError: If there is no room for it, or the disk fails.
    """

    def __init__(self, tensor: Tensor, folder: Path) -> None:
        self.device = tensor.device
        path = folder / uuid4().hex
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                _reserve(path, tensor.nbytes)
                flat = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
            finally:
                with suppress(OSError):  # of a disk that fails in this, too
                    path.unlink(missing_ok=True)
        layout = torch.empty_like(tensor, device="meta")  # the same order of axes in memory, on which kernels depend
        self.mapped = flat.as_strided(layout.size(), layout.stride()).copy_(tensor)

    def get(self) -> Tensor:
        """Read the tensor, on the device that it came from."""
        return self.mapped.to(self.device)


class OnDisk(dict[fx.Node, Any]):
    """Values of a graph's nodes, node -> value, as ``fx.Interpreter.env`` holds them; tensors lie on disk.

    Args:
        folder: Of the tensors' files.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __setitem__(self, node: fx.Node, value: Any) -> None:
        """Store a node's value; empty tensors and other values stay in memory."""
        spills = isinstance(value, Tensor) and value.numel() > 0
        super().__setitem__(node, Spilled(value, self.folder) if spills else value)

    def __getitem__(self, node: fx.Node) -> Any:
        """Read a node's value, on the device that it came from."""
        return _loaded(super().__getitem__(node))

    def get(self, node: fx.Node, default: Any = None) -> Any:
        """Read a node's value, on the device that it came from, or a default where there is none."""
        return _loaded(super().get(node, default))


class Waiting(Sequence[Tensor]):
    """List of tensors that grows, in files or in memory.

    Args:
        folder: Of the tensors' files; None for memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._entries: list[Any] = []

    def append(self, tensor: Tensor) -> None:
        """Add a tensor that is not empty."""
        self._entries.append(tensor if self.folder is None else Spilled(tensor, self.folder))

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Read one tensor or several, on the devices that they came from."""
        if isinstance(index, slice):
            return [_loaded(entry) for entry in self._entries[index]]
        tensor: Tensor = _loaded(self._entries[index])
        return tensor


def waiting(tensors: Iterable[Tensor], folder: Path | None) -> Waiting:
    """Collect tensors in a list, one after the other.

    Args:
        tensors: None of them empty.
        folder: Of their files; None for memory.
    """
    result = Waiting(folder)
    for tensor in tensors:
        result.append(tensor)
    return result


def lengths(tensors: Sequence[Tensor]) -> list[int]:
    """Count the rows of every tensor, shape (rows, ...); those on disk are not loaded for it."""
    entries = tensors._entries if isinstance(tensors, Waiting) else tensors
    return [len(entry.mapped if isinstance(entry, Spilled) else entry) for entry in entries]


def _reserve(path: Path, count: int) -> None:
    """Make a file of so many bytes that the disk has set aside.

    Into a mapped file with holes a full disk lets nobody write: the process would die of SIGBUS, not of an error.
    """
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, count)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems that cannot set aside
                    raise
        for start in range(0, count, len(ZEROS)):
            file.write(ZEROS[: count - start])


def _loaded(value: Any) -> Any:
    """Read a value from disk if it lies there."""
    return value.get() if isinstance(value, Spilled) else value
