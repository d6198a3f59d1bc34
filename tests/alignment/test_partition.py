"""How rows come apart, against all partitions of the points themselves."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from project.alignment import Splitting, UnitMap, nested_partitions

CASES = [(sources, seed) for sources in (2, 3, 4, 5) for seed in range(3)]


def rows_of_points(sources: int, seed: int, rows: int = 6) -> np.ndarray:
    """Units of each row as points: shape (rows, sources, 3)."""
    return np.random.default_rng(seed).normal(size=(rows, sources, 3))


def distances(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(((values[:, :, None] - values[:, None]) ** 2).sum(3))


def blocks(labels: list[int]) -> set[frozenset[int]]:
    return {frozenset(s for s, other in enumerate(labels) if other == label) for label in set(labels)}


def cost(values: np.ndarray, parts: set[frozenset[int]]) -> float:
    """Sum of the squared distances from the mean of each part."""
    return sum(float(((values[sorted(part)] - values[sorted(part)].mean(0)) ** 2).sum()) for part in parts)


def halved(parts: set[frozenset[int]]) -> Iterator[set[frozenset[int]]]:
    """All partitions that split one part in two."""
    for part in parts:
        for count in range(1, len(part)):
            for half in itertools.combinations(sorted(part), count):
                yield (parts - {part}) | {frozenset(half), part - frozenset(half)}


@pytest.mark.parametrize(("sources", "seed"), CASES)
def test_every_split_is_the_best_of_all(sources: int, seed: int) -> None:
    values = rows_of_points(sources, seed)
    partitions, costs = nested_partitions(distances(values))
    assert partitions.shape == (sources, len(values), sources)
    for row, here in enumerate(values):
        last = {frozenset(range(sources))}
        for step in range(sources):
            parts = blocks(partitions[step, row].tolist())
            assert len(parts) == step + 1
            assert float(costs[step, row]) == pytest.approx(cost(here, parts), abs=1e-9)
            if step:
                assert parts in list(halved(last))
                assert cost(here, parts) == pytest.approx(min(cost(here, other) for other in halved(last)), abs=1e-9)
            last = parts
        assert len(last) == sources


@pytest.mark.parametrize(("sources", "seed"), CASES)
def test_steps_add_one_unit_each_until_all_stand_alone(sources: int, seed: int) -> None:
    random, values = np.random.default_rng(seed), rows_of_points(sources, seed)
    members = torch.from_numpy(np.stack([random.permutation(len(values)) for _ in range(sources)], 1))
    splitting = Splitting.of(members, distances(values))
    assert splitting.steps == len(values) * (sources - 1)
    place = [
        {int(unit): row for row, unit in enumerate(members[:, s])} for s in range(sources)
    ]  # where a unit's row is

    def left(units: UnitMap) -> float:
        total = 0.0
        for row in units.members.tolist():
            part = [s for s, unit in enumerate(row) if unit >= 0]
            (home,) = {place[s][row[s]] for s in part}  # units of two rows never come together
            total += cost(values[home], {frozenset(part)})
        return total

    found = [left(splitting.after(steps)) for steps in range(splitting.steps + 1)]
    for steps in range(splitting.steps + 1):
        units = splitting.after(steps)
        assert units.units == len(values) + steps
        assert units.sizes == (len(values),) * sources  # every unit of every source once
    assert np.allclose(-np.diff(found), splitting.gains.numpy(), atol=1e-9)
    assert torch.equal(splitting.after(0).members, UnitMap.sorted(members).members)
    apart = sorted(map(tuple, UnitMap.apart((len(values),) * sources).members.tolist()))
    assert sorted(map(tuple, splitting.after(splitting.steps).members.tolist())) == apart


@pytest.mark.parametrize(("sources", "seed"), CASES)
def test_dearest_steps_come_first(sources: int, seed: int) -> None:
    values = rows_of_points(sources, seed)
    _, costs = nested_partitions(distances(values))
    splitting = Splitting.of(torch.arange(len(values))[:, None].expand(-1, sources), distances(values))
    taken, worth = [0] * len(values), []
    for row, gain in zip(splitting.rows.tolist(), splitting.gains.tolist(), strict=True):
        assert gain == pytest.approx(float(costs[taken[row], row] - costs[taken[row] + 1, row]), abs=1e-9)
        taken[row] += 1
        own = [float(costs[k, row] - costs[k + 1, row]) for k in range(taken[row])]
        worth.append(min(own))  # a step waits for those that lead to it
    assert taken == [sources - 1] * len(values)
    assert worth == sorted(worth, reverse=True)


def test_a_stranger_leaves_first() -> None:
    """Two sources that agree stay together when the third does not."""
    values = np.array([[[0.0], [0.1], [5.0]], [[5.0], [0.0], [0.1]]])
    members = torch.tensor([[0, 0, 0], [1, 1, 1]])
    units = Splitting.of(members, distances(values)).after(2)
    assert sorted(units.members.tolist()) == [[-1, -1, 0], [-1, 1, 1], [0, 0, -1], [1, -1, -1]]
