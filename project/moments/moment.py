"""A second moment: the sum of x xᵀ over samples, gathered in pieces."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LEAF = 512  # columns below which halving a product no longer pays


class Moment:
    """The sum over samples of x xᵀ for vectors x of one size.

    Products are made in float32 batch by batch and added to float64 totals, whatever precision the model runs in.
    Only the lower triangle is computed, which halves the work of a plain product.

    Args:
        size: Length of x.
        device: Where the total lives.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        with torch.inference_mode(False):  # a total made under inference mode could not be reduced later
            self.lower = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.count = 0

    def update(self, rows: Tensor) -> None:
        """Add samples.

        Args:
            rows: Float32, shape (samples, size).
        """
        with torch.autocast(rows.device.type, enabled=False):
            _add_lower(self.lower, rows)
        self.count += rows.shape[0]

    def add(self, other: "Moment") -> None:
        """Add another moment of the same size, such as another shard's."""
        self.lower += other.lower.to(self.lower.device)
        self.count += other.count

    def sum(self) -> Tensor:
        """The full symmetric sum, float64, shape (size, size)."""
        return self.lower.tril() + self.lower.tril(-1).mT

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"lower": self.lower, "count": self.count}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Moment":
        """Rebuild from :meth:`state_dict`."""
        moment = cls(0)
        moment.lower, moment.count = state["lower"], int(state["count"])
        return moment


def _add_lower(total: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ rows to the lower triangle of a total, halving recursively; blocks on the diagonal are whole."""
    size = rows.shape[1]
    if size <= LEAF:
        total += rows.mT @ rows
        return
    half = size // 2
    _add_lower(total[:half, :half], rows[:, :half])
    total[half:, :half] += rows[:, half:].mT @ rows[:, :half]
    _add_lower(total[half:, half:], rows[:, half:])
