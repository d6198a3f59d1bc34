"""A second moment: the sum of x xᵀ over samples, gathered in pieces."""

from collections.abc import Callable

import torch
from torch import Tensor

LEAF = 512  # rows below which halving a product no longer pays
PENDING = 2048  # samples to wait for: adding to a wide float64 total costs as much as a product over a few hundred


class Moment:
    """The sum over samples of x xᵀ for vectors x of one size.

    Products are made in float32 over some thousand samples and added to float64 totals, whatever precision the model
    runs in. Only the lower triangle is computed, which halves the work of a plain product.

    Args:
        size: Length of x.
        device: Where the total lives.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        with torch.inference_mode(False):  # a total made under inference mode could not be reduced later
            self._lower = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._pending: list[Tensor] = []
        self.count = 0

    @property
    def size(self) -> int:
        """Length of x."""
        return self._lower.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the total lives."""
        return self._lower.device

    @property
    def lower(self) -> Tensor:
        """The sum's lower triangle, float64, shape (size, size); what is above the diagonal has no meaning."""
        self._flush()
        return self._lower

    def update(self, columns: Tensor) -> None:
        """Add samples.

        Args:
            columns: Float32, shape (size, samples); kept for a while, so it must not change.
        """
        self._pending.append(columns)
        self.count += columns.shape[1]
        if sum(part.shape[1] for part in self._pending) >= PENDING:
            self._flush()

    def add(self, other: "Moment") -> None:
        """Add another moment of the same size, such as another shard's."""
        self.lower.add_(other.lower.to(self._lower.device))
        self.count += other.count

    def reduce(self, all_reduce: Callable[[Tensor], object]) -> None:
        """Sum over processes, in place and without copies.

        Args:
            all_reduce: Sums a tensor over all processes in place.
        """
        count = torch.tensor(self.count, device=self.device)
        all_reduce(count)
        all_reduce(self.lower)
        self.count = int(count)

    def sum(self) -> Tensor:
        """The full symmetric sum, float64, shape (size, size)."""
        full = self.lower.tril()
        return full.add_(full.tril(-1).mT)

    def mean(self) -> Tensor:
        """E[x xᵀ], float64, shape (size, size)."""
        return self.sum().div_(max(1, self.count))

    def _flush(self) -> None:
        if not self._pending:
            return
        columns = self._pending[0] if len(self._pending) == 1 else torch.cat(self._pending, 1)
        self._pending = []
        with torch.autocast(columns.device.type, enabled=False):
            _add_lower(self._lower, columns)


def _add_lower(total: Tensor, columns: Tensor) -> None:
    """Add columns · columnsᵀ to the lower triangle of a total, halving recursively; diagonal blocks are whole."""
    size = columns.shape[0]
    if size <= LEAF:
        total += columns @ columns.mT
        return
    half = size // 2
    _add_lower(total[:half, :half], columns[:half])
    total[half:, :half] += columns[half:] @ columns[:half].mT
    _add_lower(total[half:, half:], columns[half:])
