"""Which entries of values and tensors are one unit: union-find over numbered atoms."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Value:
    """What the entries of a value stand for.

    Args:
        labels: Atom of every entry; of the value's rank, with size 1 along axes on which nothing changes.
        free: Whether it comes from parameters alone, whose atoms mean nothing until they meet a layer's.
    """

    labels: Tensor
    free: bool = False

    @property
    def varying(self) -> tuple[int, ...]:
        """Axes on which different entries stand for different units."""
        return tuple(dim for dim, size in enumerate(self.labels.shape) if size > 1)


class Units:
    """Atoms, and which of them have turned out to be the same unit.

    A class of atoms is known by its smallest one.
    """

    def __init__(self) -> None:
        self.parent = torch.empty(0, dtype=torch.long)
        self.writers: list[tuple[int, str | None]] = []  # (first atom, the layer that writes it and those after it)

    def new(self, count: int, writer: str | None) -> Tensor:
        """Further atoms.

        Args:
            count: How many.
            writer: Layer whose output units they are; None for a parameter's entries.
        """
        start = len(self.parent)
        self.writers.append((start, writer))
        atoms = torch.arange(start, start + count)
        self.parent = torch.cat([self.parent, atoms])
        return atoms

    def find(self, atoms: Tensor) -> Tensor:
        """The class of each atom."""
        result = self.parent[atoms]
        while not torch.equal(result, above := self.parent[result]):
            result = above
        return result

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Make the atoms of two tensors the same, entry by entry; they broadcast."""
        shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
        a, b = a.expand(shape).flatten(), b.expand(shape).flatten()
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not bool(differ.any()):
                return
            a, b = a[differ], b[differ]
            self.parent.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")

    def value(self, labels: Tensor, *, free: bool = False) -> Value:
        """A value of these labels, axes without change brought to size 1."""
        labels = self.find(labels)
        for dim, size in enumerate(labels.shape):
            first = labels.narrow(dim, 0, 1)
            if size > 1 and bool((labels == first).all()):
                labels = first
        return Value(labels, free)
