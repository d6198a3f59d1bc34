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
    seed: int = 0,
    sweeps: int = 100,
    patience: int = 5,
) -> dict[str, Tensor]:
    """Visit all coordinates in random order, sweep after sweep, until one changes nothing.

    Where the visits do not raise one common value, as with similarities that are normalised group by group, sweeps may
    go in circles; then the best sweep counts.

    Args:
        coordinates: What is visited.
        visit: Given a coordinate and how everything stands, how its part shall stand, and what that is worth.
        start: How everything stands at first, by name.
        seed: Seed of the order.
        sweeps: Most sweeps.
        patience: It stops at so many sweeps in a row whose visits are together worth no more than those before.
    """
    generator = torch.Generator().manual_seed(seed)
    found, best, most, idle = dict(start), dict(start), -torch.inf, 0
    for _ in range(sweeps):
        changed, worth = False, 0.0
        for index in torch.randperm(len(coordinates), generator=generator).tolist():
            moved, value = visit(coordinates[index], found)
            changed |= any(not torch.equal(found[name], tensor) for name, tensor in moved.items())
            found, worth = {**found, **moved}, worth + value
        if not changed:
            return found
        if worth > most + 1e-9 * abs(worth):
            best, most, idle = found, worth, 0
        else:
            idle += 1
        if idle == patience:
            break
    return best
