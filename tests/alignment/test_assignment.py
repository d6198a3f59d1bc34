"""Rows of two and more sources against all permutations, planted ones, and matching with any one source."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from project.alignment import assign, match_units, total_similarity


def points(size: int, sources: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy copies of one set of points, each in an order of its own: (sources, size, 8), and the true rows."""
    random = np.random.default_rng(seed)
    base = random.normal(size=(size, 8))
    orders = np.stack([random.permutation(size) for _ in range(sources)])
    values = base[orders] + noise * random.normal(size=(sources, size, 8))
    return values, orders.argsort(1).T


def minus_distance(values: np.ndarray) -> Tensor:
    flat = torch.from_numpy(values).flatten(0, 1)
    return -(flat[:, None] - flat[None]).square().sum(2).sqrt()


def row_set(members: Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for row in members.tolist()}


def hub_totals(similarity: Tensor, sources: int) -> list[float]:
    """Totals of matching all sources with one of them, by SciPy."""
    size = len(similarity) // sources
    blocks = similarity.numpy().reshape(sources, size, sources, size)
    stars = [
        [linear_sum_assignment(blocks[hub, :, t], maximize=True)[1] if t != hub else np.arange(size)
         for t in range(sources)]
        for hub in range(sources)
    ]  # fmt: skip
    pairs = list(itertools.combinations(range(sources), 2))
    return [float(sum(blocks[s, star[s], t, star[t]].sum() for s, t in pairs)) for star in stars]


@pytest.mark.parametrize("seed", range(20))
def test_assignment_is_the_best_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 7))
    similarity = random.normal(size=(size, size)) + 10 * random.normal(size=size)
    best = max(sum(similarity[i, p] for i, p in enumerate(order)) for order in itertools.permutations(range(size)))
    found = assign(torch.from_numpy(similarity))
    assert sorted(found.tolist()) == list(range(size))
    assert sum(similarity[i, p] for i, p in enumerate(found.tolist())) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_two_sources_are_one_assignment(seed: int) -> None:
    similarity = minus_distance(points(12, 2, 2.0, seed)[0])
    order = assign(similarity[:12, 12:])
    assert row_set(match_units(similarity, 2)) == set(enumerate(order.tolist()))


@pytest.mark.parametrize(("sources", "noise"), [(2, 0.1), (3, 0.3), (4, 0.3), (6, 0.3)])
def test_planted_rows_are_found_under_noise(sources: int, noise: float) -> None:
    for seed in range(5):
        values, truth = points(20, sources, noise, seed)
        assert row_set(match_units(minus_distance(values), sources)) == row_set(torch.from_numpy(truth))


@pytest.mark.parametrize("sources", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_sources_does_not_matter(sources: int, seed: int) -> None:
    """On distances and on similarities without any structure."""
    values, _ = points(15, sources, 2.0, seed)
    noise = torch.randn(sources, 15, sources, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for similarity in (minus_distance(values).view(noise.shape), noise + noise.permute(2, 3, 0, 1)):
        first = match_units(similarity.reshape(sources * 15, -1), sources)
        for order in itertools.permutations(range(sources)):
            moved = similarity[list(order)][:, :, list(order)].reshape(sources * 15, -1)
            assert row_set(match_units(moved, sources)) == row_set(first[:, list(order)])


@pytest.mark.parametrize("sources", [3, 4, 5])
def test_never_worse_than_matching_with_any_one_source(sources: int) -> None:
    better = 0
    for seed in range(8):
        similarity = minus_distance(points(15, sources, 2.0, seed)[0])
        members = match_units(similarity, sources)
        assert torch.equal(members.sort(0).values, torch.arange(15)[:, None].expand(-1, sources))
        total, hubs = total_similarity(similarity, members), hub_totals(similarity, sources)
        assert total >= max(hubs) - 1e-9
        better += total > max(hubs) + 1e-6
    assert better > 0, "the search after the best hub does something"


@pytest.mark.parametrize("seed", range(5))
def test_it_never_falls_below_where_it_starts(seed: int) -> None:
    random = np.random.default_rng(seed)
    similarity = minus_distance(points(12, 4, 3.0, seed)[0])
    start = torch.from_numpy(np.stack([random.permutation(12) for _ in range(4)], 1))
    kept = start.clone()
    total = total_similarity(similarity, match_units(similarity, 4))
    for _ in range(3):  # each from where the last one ended
        start = match_units(similarity, 4, start)
        assert total_similarity(similarity, start) >= total - 1e-9
        total = total_similarity(similarity, start)
    assert total > total_similarity(similarity, kept)


def brute(similarity: Tensor, size: int) -> tuple[float, Sequence[tuple[int, ...]]]:
    """The best total of three sources, over all permutations of two of them."""
    a, b, c = range(0, 3 * size, size)
    entry = similarity.tolist()

    def total(rows: Sequence[tuple[int, ...]]) -> float:
        return sum(entry[a + i][b + j] + entry[a + i][c + k] + entry[b + j][c + k] for i, j, k in rows)

    orders = list(itertools.permutations(range(size)))
    best = max((list(zip(range(size), p, q, strict=True)) for p in orders for q in orders), key=total)
    return total(best), best


@pytest.mark.parametrize("seed", range(12))
def test_against_all_permutations(seed: int) -> None:
    """Within the factor that is known for metrics; and the optimum, once there, is kept."""
    similarity = minus_distance(points(4, 3, 2.0, seed)[0])
    best, rows = brute(similarity, 4)
    found = total_similarity(similarity, match_units(similarity, 3))
    assert best >= found - 1e-9
    assert -found <= (2 - 2 / 3) * -best
    optimum = torch.tensor(rows)
    assert total_similarity(similarity, optimum) == pytest.approx(best)
    assert row_set(match_units(similarity, 3, optimum)) == row_set(optimum)


def test_most_small_problems_are_solved_exactly() -> None:
    """The search ends in local optima; on twelve tiny problems of pure noise most of them are the best of all."""
    exact = 0
    for seed in range(12):
        similarity = minus_distance(points(4, 3, 2.0, seed)[0])
        exact += total_similarity(similarity, match_units(similarity, 3)) >= brute(similarity, 4)[0] - 1e-9
    assert exact > 6
