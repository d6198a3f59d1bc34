"""Differences of networks that saw the same pictures: their spread against what draws of pictures do."""

import numpy as np
import pytest
from drawn_results import drawn_results
from hypothesis import given
from hypothesis import strategies as st

from project.report.page.pair import Pair, difference, kept
from project.report.page.reading import understand
from project.report.page.share import DEVIATIONS, counted

CELLS = [(0.7, 0.1, 0.05), (0.5, 0.02, 0.02), (0.3, 0.3, 0.1)]
"""Shares of pictures that both have right, the first alone, and the second alone."""


def pair(both: int, first: int, second: int, pictures: int) -> Pair:
    return Pair(counted(both + first, pictures), counted(both + second, pictures), both)


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize("pictures", [60, 1000])
def test_nineteen_of_twenty_draws_of_pictures_hold_the_truth(cells: tuple[float, ...], pictures: int) -> None:
    both, first, second = cells
    draw = np.random.default_rng(0)
    draws = draw.multinomial(pictures, [*cells, 1 - sum(cells)], size=(2000, 2)).tolist()
    truth, ratio = 100 * (first - second), 100 * (both + first) / (both + second)
    inside, share, alone = 0, 0, 0
    for rows in draws:
        pairs = [pair(*row[:3], pictures) for row in rows]  # of two domains
        found, held = difference(pairs), kept(pairs)
        assert found.spread is not None
        assert held is not None
        assert held.spread is not None
        inside += abs(found.value - truth) <= found.spread
        share += abs(held.value - ratio) <= held.spread
        independent = difference([Pair(one.one, one.other) for one in pairs]).spread
        assert independent is not None
        alone += found.spread < independent
    assert 0.93 < inside / 2000 < 0.99, "wider where the two hardly differ on few pictures"
    assert 0.92 < share / 2000 < 0.99
    assert alone > 1950, "networks that are right on the same pictures vary together"


@given(st.tuples(*[st.integers(0, 500)] * 4), st.floats(0, 3))
def test_the_variance_is_that_of_the_four_cells(cells: tuple[int, int, int, int], factor: float) -> None:
    both, first, second, _ = cells
    if not sum(cells):
        return
    it = pair(both, first, second, sum(cells))
    spread = it.spread(factor)
    assert spread is not None
    weights = np.array(cells) + 0.5
    values = np.array([1 - factor, 1, -factor, 0])
    share = weights / weights.sum()
    variance = (share @ values**2 - (share @ values) ** 2) / weights.sum()
    assert spread == pytest.approx(100 * DEVIATIONS * np.sqrt(max(variance, 0)), abs=1e-6)
    assert Pair(it.other, it.one, both).spread() == pytest.approx(it.spread())


def test_networks_that_are_right_on_the_same_pictures_are_not_surely_alike() -> None:
    few, many = (pair(count, 0, 0, 2 * count).spread() for count in (10, 1000))
    assert few is not None
    assert many is not None
    assert 1 < few < 20
    assert 0 < many < 0.2


def test_the_counts_of_a_file_are_found_in_either_order_and_believed_if_they_can_be() -> None:
    results = drawn_results()
    merge = understand(results)
    one, other = merge.networks[:2]
    told = results["tests"]["both right"]["sketch"][one.name]
    (forth,) = merge.pairs({"sketch": one}, {"sketch": other})
    (back,) = merge.pairs({"sketch": other}, {"sketch": one})
    assert forth.both == back.both == told[other.name]
    for impossible in (-1, 10**6, "3", None, 2.0, True):
        told[other.name] = impossible
        (pair,) = merge.pairs({"sketch": one}, {"sketch": other})
        assert pair.both is None
        assert difference([pair]).spread == pytest.approx(
            np.hypot(pair.one.estimate.spread, pair.other.estimate.spread)  # type: ignore[arg-type]
        )
