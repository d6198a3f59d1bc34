"""Coordinate ascent: one group after the other is matched anew while all others stand still."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Visit = Callable[[T, Mapping[str, Tensor]], tuple[Mapping[str, Tensor], float]]


def ascend(
    coordinates: Sequence[T],
    visit: Visit[T],
    start: Mapping[str, Tensor],
    *,
    common: Callable[[Mapping[str, Tensor]], float] | None = None,
    seed: int = 0,
    sweeps: int = 100,
    patience: int = 5,
) -> dict[str, Tensor]:
    """Visit all coordinates in random order, sweep after sweep, until one changes nothing; the best sweep counts.

    Where the visits do not raise one common value, as with similarities that are normalised group by group, sweeps may
    go in circles, or end where nothing changes but less is reached than before.

    Args:
        coordinates: What is visited.
        visit: Given a coordinate and how everything stands, how its part shall stand, and what that is worth.
        start: How everything stands at first, by name.
        common: What a sweep is worth, given how everything stands after it. Default: what its visits are, together.
        seed: Seed of the order.
        sweeps: Most sweeps.
        patience: It stops at so many sweeps in a row that are worth no more than those before.
    """
    generator = torch.Generator().manual_seed(seed)
    found, best, most, idle = dict(start), dict(start), -torch.inf, 0
    for _ in range(sweeps):
        changed, worth = False, 0.0
        for index in torch.randperm(len(coordinates), generator=generator).tolist():
            moved, value = visit(coordinates[index], found)
            changed |= any(not torch.equal(found[name], tensor) for name, tensor in moved.items())
            found, worth = {**found, **moved}, worth + value
        worth = worth if common is None else common(found)
        if worth > most + 1e-9 * abs(worth):
            best, most, idle = found, worth, 0
        else:
            idle += 1
        if not changed or idle == patience:
            break
    return best
