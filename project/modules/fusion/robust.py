"""Means that a few clients cannot move far, coordinate by coordinate (arXiv 1803.01498)."""

import torch
from torch import Tensor

from project.errors import ConfigurationError
from project.modules.fusion.base import Round, ServerFusion, by_tensor


class TrimmedMean(ServerFusion):
    """The mean of each weight over the clients, without its largest and its smallest values (arXiv 1803.01498).

    Clients count alike, whatever pictures they have. As long as no more than the trimmed share of them lies, every
    weight stays within what honest clients have sent.

    Args:
        share: Of the clients whose values are left out at each end, rounded down; from 0, the plain mean, to below 0.5.

    Raises:
        ConfigurationError: If the share is not from 0 to below 0.5.
    """

    def __init__(self, share: float = 0.2) -> None:
        if isinstance(share, bool) or not 0 <= share < 0.5:
            raise ConfigurationError(f"share is {share!r}; allowed: numbers from 0 to below 0.5.")
        self.share = share

    def fuse(self, given: Round) -> dict[str, Tensor]:
        """Take the trimmed mean."""
        left_out = int(self.share * len(given.clients))
        return by_tensor(given.clients, lambda tensors: _inner(torch.stack(tensors), left_out).mean(0))


class Median(ServerFusion):
    """The median of each weight over the clients; of an even number, the mean of the two in the middle.

    Clients count alike, whatever pictures they have (arXiv 1803.01498).
    """

    def fuse(self, given: Round) -> dict[str, Tensor]:
        """Take the median."""
        left_out = (len(given.clients) - 1) // 2
        return by_tensor(given.clients, lambda tensors: _inner(torch.stack(tensors), left_out).mean(0))


def _inner(values: Tensor, left_out: int) -> Tensor:
    """Values (clients, …) in ascending order, without so many at each end."""
    return values.sort(0).values[left_out : len(values) - left_out]
