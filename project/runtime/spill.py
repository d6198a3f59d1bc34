"""Tensors that wait on disk: mapped from files without a name, so that the system drops them from memory as it must.

The files are gone with the tensors, or with the process, however that ends.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload
from uuid import uuid4

import torch
from torch import Tensor, fx


class Spilled:
    """One tensor on disk.

    Args:
        tensor: Not empty.
        folder: Where.
    """

    def __init__(self, tensor: Tensor, folder: Path) -> None:
        self.device = tensor.device
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / uuid4().hex
        try:
            flat = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
        finally:
            path.unlink(missing_ok=True)
        alike = torch.empty_like(tensor, device="meta")  # the same order of axes in memory, on which kernels depend
        self.mapped = flat.as_strided(alike.size(), alike.stride()).copy_(tensor)

    def get(self) -> Tensor:
        """The tensor, back where it was."""
        return self.mapped.to(self.device)


class OnDisk(dict[fx.Node, Any]):
    """The values of a network's pass, those which are tensors on disk.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __setitem__(self, node: fx.Node, value: Any) -> None:
        """Keep a value."""
        worthwhile = isinstance(value, Tensor) and value.numel() > 0
        super().__setitem__(node, Spilled(value, self.folder) if worthwhile else value)

    def __getitem__(self, node: fx.Node) -> Any:
        """A value, back where it was."""
        return _back(super().__getitem__(node))

    def get(self, node: fx.Node, default: Any = None) -> Any:
        """A value, back where it was, or something else where there is none."""
        return _back(super().get(node, default))


class Waiting(Sequence[Tensor]):
    """A list of tensors that grows.

    Args:
        folder: Where they wait; None for memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._held: list[Any] = []

    def append(self, tensor: Tensor) -> None:
        """Add a tensor that is not empty."""
        self._held.append(tensor if self.folder is None else Spilled(tensor, self.folder))

    def __len__(self) -> int:
        """How many they are."""
        return len(self._held)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """One or several, back where they were."""
        return _back(self._held[index]) if isinstance(index, int) else [_back(one) for one in self._held[index]]


def waiting(tensors: Iterable[Tensor], folder: Path | None) -> Waiting:
    """A list of tensors, made one after the other.

    Args:
        tensors: None of them empty.
        folder: Where they wait; None for memory.
    """
    found = Waiting(folder)
    for tensor in tensors:
        found.append(tensor)
    return found


def lengths(tensors: Sequence[Tensor]) -> list[int]:
    """How many rows each of some tensors has; those that wait are not loaded for it."""
    held = tensors._held if isinstance(tensors, Waiting) else tensors
    return [len(one.mapped if isinstance(one, Spilled) else one) for one in held]


def _back(value: Any) -> Any:
    return value.get() if isinstance(value, Spilled) else value
