"""Sums over samples, gathered in pieces; of x xᵀ, they are a second moment."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor

from project.errors import MergeError
from project.moments.patches import exact_products
from project.runtime import Reduce

LEAF = 128  # rows below which halving a product no longer pays
WIDE_LEAF = 1024  # the same on accelerators, where a launch takes as long as a small product
SAMPLES_PER_PRODUCT = 2048  # waited for: adding to a wide float64 total costs as much as a product over a few hundred
PRODUCT_BYTES = 64 * 2**20  # of the products of one launch on accelerators


"""Sums a tensor over all processes, in place."""

Pull = Callable[[Tensor, int], Tensor]
"""A linear map M of a vector's units, each with so many entries: what it makes of rows; (rows, …) to (others, …)."""


class Sums(ABC):
    """A sum over samples, held in float64 totals, which is additive over samples and can be kept in files.

    Args:
        shapes: Shapes of the totals.
        device: Where the totals live.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._pending: list[Tensor] = []
        with torch.inference_mode(False):  # a total made under inference mode could not be reduced later
            self._totals = [torch.zeros(*shape, dtype=torch.float64, device=device) for shape in shapes]
        self.device = self._totals[0].device
        """Where the sum is worked on."""

    @property
    def totals(self) -> list[Tensor]:
        """What holds the sum, float64: additive over samples. Brought to the device where they lie in a file."""
        self._flush()
        return [total.to(self.device) for total in self._totals]

    @property
    def total_bytes(self) -> int:
        """Bytes of the totals, as a file holds them."""
        return sum(8 * total.numel() for total in self._totals)

    @property
    def bytes(self) -> int:
        """Bytes of the totals, and at most of what waits for one more batch."""
        return self.total_bytes

    @property
    def unflushed(self) -> tuple[list[Tensor], list[Tensor]]:
        """The totals as they are and the samples that wait to be added to them, by which a pass goes on bit for bit."""
        return self._totals, self._pending

    def load(
        self, totals: Sequence[Tensor], count: int, pending: Sequence[Tensor] = (), device: torch.device | None = None
    ) -> None:
        """Hold this sum instead.

        Args:
            totals: In the shapes of this moment's own; kept as they are, such as mapped from a file.
            count: Samples in totals and pending.
            pending: Samples that wait.
            device: Where the sum is worked on from now on; default: as before.

        Raises:
            MergeError: If the shapes are others.
        """
        if [total.shape for total in totals] != [total.shape for total in self._totals]:
            found, own = ([tuple(total.shape) for total in these] for these in (totals, self._totals))
            raise MergeError(f"a moment of shapes {own} cannot hold totals of shapes {found}.")
        self._totals, self._pending, self.count = list(totals), list(pending), count
        self.device = device or self.device

    def clone(self) -> Self:
        """The same sum in memory of its own."""
        totals = [total.clone() for total in self.totals]  # with what was waiting
        twin = copy(self)
        twin._totals, twin._pending = totals, []
        return twin

    def add(self, other: Self) -> None:
        """Add another moment of the same form, such as another shard's."""
        self._totals = self.totals  # copies, where they lay in a file and the sum is worked on elsewhere
        for mine, theirs in zip(self._totals, other.totals, strict=True):
            mine.add_(theirs.to(mine.device))
        self.count += other.count

    def reduce(self, all_reduce: Reduce) -> None:
        """Sum over processes, in place and without copies.

        Args:
            all_reduce: Sums a tensor over all processes in place.
        """
        count = torch.tensor(self.count, device=self.device)
        all_reduce(count)
        self._totals = self.totals  # copies, where they lay in a file and the sum is worked on elsewhere
        for total in self._totals:
            all_reduce(total)
        self.count = int(count)

    @abstractmethod
    def mean(self) -> Tensor:
        """The sum over the number of samples, float64."""

    @abstractmethod
    def _flush(self) -> None:
        """Add what waits to the totals."""


class SecondMoment(Sums):
    """The sum over samples of x xᵀ for vectors x of one size, in whatever form it is held.

    Products are made in float32 over some thousand samples and added to float64 totals, whatever precision the model
    runs in. Beside its totals, a moment holds at most three times their bytes, of samples that wait to be added and of
    products, and what is added at once, twice, in float32; on accelerators that once more, and ``PRODUCT_BYTES``.

    Args:
        size: Length of x.
        shapes: Shapes of the totals that hold the sum.
        device: Where the totals live.
        entries: Numbers that are kept of a sample which waits.
        enough: Samples of a product that pays; fewer are waited for where they take more bytes than the totals.
    """

    def __init__(
        self, size: int, shapes: Sequence[Sequence[int]], device: torch.device | str, *, entries: int, enough: int
    ) -> None:
        super().__init__(shapes, device)
        self.size, self.entries = size, entries
        self.patience = max(1, min(enough, super().bytes // (4 * entries)))

    @property
    def bytes(self) -> int:
        """Bytes of the totals, and at most of what waits for one more batch."""
        return super().bytes + 4 * self.entries * self.patience

    @abstractmethod
    def sum(self, left: Pull | None = None, right: Pull | None = None, *, taps: int = 1) -> Tensor:
        """The full sum of x xᵀ, or of L x (R x)ᵀ.

        Args:
            left: L; default: the identity.
            right: R; default: the identity.
            taps: Entries of x that a unit owns, for L and R.

        Returns:
            Float64, shape (size, size), or as L and R make it.
        """

    def mean(self, left: Pull | None = None, right: Pull | None = None, *, taps: int = 1) -> Tensor:
        """E[x xᵀ], or E[L x (R x)ᵀ]; see :meth:`sum`."""
        return self.sum(left, right, taps=taps).div_(max(1, self.count))


class Moment(SecondMoment):
    """The sum as one matrix, of which only the lower triangle is computed: half the work of a plain product.

    Args:
        size: Length of x.
        device: Where the total lives.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        super().__init__(size, [(size, size)], device, entries=size, enough=SAMPLES_PER_PRODUCT)

    @property
    def lower(self) -> Tensor:
        """The sum's lower triangle, float64, shape (size, size); what is above the diagonal has no meaning."""
        return self.totals[0]

    def update(self, columns: Tensor, samples: int | None = None) -> None:
        """Add samples.

        Args:
            columns: Float32, shape (size, samples); kept for a while, so it must not change.
            samples: How many they count for, where several columns make one; default: one each.
        """
        self._pending.append(columns)
        self.count += columns.shape[1] if samples is None else samples
        if sum(part.shape[1] for part in self._pending) >= self.patience:
            self._flush()

    def add_sums(self, sums: Tensor, samples: int) -> None:
        """Add samples of a vector that ends with a 1 by their sum alone; see :meth:`hold`.

        Args:
            sums: Shape (size − 1,).
            samples: How many.
        """
        (total,) = self._totals
        total[-1, :-1] += sums
        total[-1, -1] += samples
        self.count += samples

    def hold(self, lower: Tensor, count: int) -> None:
        """Hold products that were made elsewhere, in place of those held so far.

        Args:
            lower: Lower triangle of the sum, or of its first rows and columns.
            count: Samples in it.
        """
        assert not self._pending
        self._totals[0][: len(lower), : len(lower)].copy_(lower)
        self.count = count

    def sum(self, left: Pull | None = None, right: Pull | None = None, *, taps: int = 1) -> Tensor:
        """The full sum of x xᵀ, or of L x (R x)ᵀ; see :meth:`SecondMoment.sum`."""
        full = self.lower.tril()
        full.add_(full.tril(-1).mT)
        full = full if left is None else left(full, taps)
        return full if right is None else right(full.mT.contiguous(), taps).mT

    def _flush(self) -> None:
        if not self._pending:
            return
        large = [part for part in self._pending if part.shape[1] >= SAMPLES_PER_PRODUCT]
        small = [part for part in self._pending if part.shape[1] < SAMPLES_PER_PRODUCT]
        self._pending = []
        with exact_products(self.device):
            for columns in (*large, *([torch.cat(small, 1)] if small else [])):
                for part in pieces(columns, min(len(columns), WIDE_LEAF)):
                    add_lower(self._totals[0], part)


def pieces(columns: Tensor, side: int) -> Iterator[Tensor]:
    """Samples in lots of one product each, and what is left over.

    Accelerators, where a launch takes as long as a small product, are given many lots at once: as many as have
    products of ``PRODUCT_BYTES``.

    Args:
        columns: Shape (size, samples).
        side: Rows and columns of one product, at most.

    Yields:
        Shape (size, samples of a lot), or (lots, size, samples of a lot).
    """
    whole = columns.shape[1] // SAMPLES_PER_PRODUCT * SAMPLES_PER_PRODUCT
    if columns.device.type == "cpu" or not whole:
        yield from torch.split(columns, SAMPLES_PER_PRODUCT, 1)
        return
    most = max(1, PRODUCT_BYTES // (4 * side**2))
    for part in torch.split(columns[:, :whole], most * SAMPLES_PER_PRODUCT, 1):
        yield torch.unflatten(part, 1, (-1, SAMPLES_PER_PRODUCT)).movedim(1, 0)
    if whole < columns.shape[1]:
        yield columns[:, whole:]


def add_lower(total: Tensor, columns: Tensor) -> None:
    """Add columns · columnsᵀ to the lower triangle of a total, halving recursively; diagonal blocks are whole.

    Args:
        total: Float64, shape (size, size).
        columns: One of :func:`pieces`.
    """
    size = columns.shape[-2]
    if size <= (LEAF if columns.device.type == "cpu" else WIDE_LEAF):
        add_product(total, columns, columns)
        return
    half = size // 2
    add_lower(total[:half, :half], columns[..., :half, :])
    add_product(total[half:, :half], columns[..., half:, :], columns[..., :half, :])
    add_lower(total[half:, half:], columns[..., half:, :])


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left · rightᵀ to a float64 total, that of every lot where there are several; see :func:`pieces`."""
    product = left @ right.mT
    total += product.sum(0, dtype=torch.float64) if product.dim() == 3 else product
