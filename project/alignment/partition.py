"""How rows come apart, one student unit more at every step: into parts of units that stay merged."""

from dataclasses import dataclass

import torch
from torch import Tensor

from project.alignment.unit_map import UnitMap


@dataclass(frozen=True, eq=False)
class Splitting:
    """The steps in which a group's fully merged rows come apart until every unit stands alone.

    A step splits one part of one row in two, so that it adds one student unit. Steps that remove more of the
    merging cost come first; those of one row stay in their order.

    Args:
        members: Integer, shape (size, sources): the fully merged rows.
        partitions: Integer, shape (sources, size, sources), see :func:`nested_partitions`.
        rows: Shape (size · (sources − 1),): which row each step splits.
        gains: Of the same shape: merging cost that each step removes.
    """

    members: Tensor
    partitions: Tensor
    rows: Tensor
    gains: Tensor

    @classmethod
    def of(cls, members: Tensor, distances: Tensor) -> "Splitting":
        """The steps of a group.

        Args:
            members: Integer, shape (size, sources).
            distances: Shape (size, sources, sources): squared distances between the units of each row.
        """
        partitions, costs = nested_partitions(distances)
        gains = costs[:-1] - costs[1:]
        worth = gains.cummin(0).values  # a step cannot be had before those that lead to it
        order = worth.flatten().argsort(descending=True, stable=True)
        return cls(members, partitions, order % len(members), gains.flatten()[order])

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.rows)

    def after(self, steps: int) -> UnitMap:
        """The unit map after the first so many steps."""
        size = len(self.members)
        taken = torch.bincount(self.rows[:steps], minlength=size)
        every = torch.arange(size)
        return UnitMap.sorted(self.members).split(every, self.partitions[taken, every])


def nested_partitions(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Split every row into two parts, then three and so on, each split the one that removes most merging cost.

    The merging cost of a part is the sum of the squared distances of its units from their mean, which is the sum of
    the squared distances over its pairs, divided by the number of its units. All splits are tried: some 3^N / 2.

    Args:
        distances: Shape (rows, N, N): squared distances between the units of each row.

    Returns:
        partitions: Integer, shape (N, rows, N): entry (k, j, s) numbers the part of row j in which source s is after
            k splits, from 0 to k; parts are subsets of those after k − 1 splits.
        costs: Shape (N, rows): merging cost of the row's parts, 0 after N − 1 splits.
    """
    rows, sources = distances.shape[:2]
    costs = _part_costs(distances)
    halves, gains = _best_splits(costs)
    every = torch.arange(rows)
    parts = torch.zeros(rows, sources, dtype=torch.long)  # as bits: source s is in a part with bit s
    parts[:, 0] = 2**sources - 1
    partitions, left = [], []
    for step in range(sources):
        if step:
            chosen = gains.gather(1, parts).argmax(1)
            whole = parts[every, chosen]
            half = halves[every, whole]
            parts[every, chosen], parts[:, step] = half, whole - half
        partitions.append((parts[:, :, None] >> torch.arange(sources) & 1).argmax(1))
        left.append(costs.gather(1, parts).sum(1))
    return torch.stack(partitions), torch.stack(left)


def _part_costs(distances: Tensor) -> Tensor:
    """Merging cost of every set of sources, as bits: shape (rows, 2^N)."""
    rows, sources = distances.shape[:2]
    pairs = distances.new_zeros(rows, 2**sources)
    count = torch.zeros(2**sources)
    for part in range(1, 2**sources):
        last = part.bit_length() - 1
        rest = part - 2**last
        others = [source for source in range(last) if rest >> source & 1]
        pairs[:, part] = pairs[:, rest] + distances[:, last, others].sum(1)
        count[part] = len(others) + 1
    return pairs / count.clamp_min(1).to(pairs)


def _best_splits(costs: Tensor) -> tuple[Tensor, Tensor]:
    """For every set of two sources or more the half whose split removes most cost, and how much: shape (rows, 2^N)."""
    halves = torch.zeros(costs.shape, dtype=torch.long)
    gains = torch.full_like(costs, -torch.inf)
    for part in range(costs.shape[1]):
        rest = part & (part - 1)  # the lowest source stays in the other half, so that no split is tried twice
        half = rest
        while half:
            gain = costs[:, part] - costs[:, half] - costs[:, part - half]
            halves[:, part] = torch.where(gain > gains[:, part], half, halves[:, part])
            gains[:, part] = torch.maximum(gain, gains[:, part])
            half = (half - 1) & rest
    return halves, gains
