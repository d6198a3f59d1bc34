"""Batches of several domains at once."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from torch.utils.data import DataLoader


class MixedLoader:
    """Takes a batch of every loader at a time, until all are through.

    Args:
        loaders: domain -> its loader. Without any there is one batch, which maps nothing.
    """

    def __init__(self, loaders: Mapping[str, DataLoader[Any]]) -> None:
        self.loaders = dict(loaders)

    def __len__(self) -> int:
        """Number of batches: those of the longest loader in this process."""
        return max(map(len, self.loaders.values()), default=1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches that map every domain to what its loader gives, or to None once that has no more."""
        if not self.loaders:
            yield {}
            return
        for parts in zip_longest(*self.loaders.values()):
            yield dict(zip(self.loaders, parts, strict=True))
