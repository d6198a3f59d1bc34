"""Splits depend on the seed and the files alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from project.data.domain import Domain, Sample
from project.data.splits import hold_out, shuffled, split
from project.errors import DataError


def samples(*counts: int) -> list[Sample]:
    return [(Path(f"{label}/{index}.png"), label) for label, count in enumerate(counts) for index in range(count)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_every_class_gives_its_share(seed: int, fraction: float) -> None:
    counts = np.random.default_rng(seed).integers(1, 40, 5).tolist()
    given = samples(*counts)
    stay, aside = hold_out(given, fraction, seed)
    assert sorted(stay + aside) == sorted(given)
    kept, taken = (Counter(label for _, label in part) for part in (stay, aside))
    for label, count in enumerate(counts):
        assert abs(taken[label] - fraction * count) <= 1
        assert kept[label] >= 1
        assert taken[label] >= 1 or count == 1


def test_the_order_of_listing_does_not_matter() -> None:
    given = samples(8, 5, 20)
    other = [given[index] for index in np.random.default_rng(0).permutation(len(given))]
    assert hold_out(given, 0.3, 1) == hold_out(other, 0.3, 1)
    assert shuffled(given, 1) == shuffled(other, 1)
    assert hold_out(given, 0.3, 1) != hold_out(given, 0.3, 2)
    assert shuffled(given, 1) != shuffled(given, 2)


def test_another_class_does_not_change_the_split_of_one() -> None:
    few, many = hold_out(samples(8, 5), 0.3, 0), hold_out(samples(8, 5, 9), 0.3, 0)
    assert all(set(one) <= set(other) for one, other in zip(few, many, strict=True))


def test_nothing_set_aside() -> None:
    assert hold_out(samples(3, 2), 0.0, 0) == (samples(3, 2), [])


def test_nothing_held_out_trains() -> None:
    domain = Domain("d", ("a", "b", "c"), samples(20, 10, 5), [(Path("t.png"), 0)])
    parts = split(domain, 0.2, 0)
    assert sorted(parts.train + parts.validation) == sorted(domain.train)
    assert parts.test == domain.test


def test_labels_without_a_class_are_refused() -> None:
    with pytest.raises(DataError, match=r"1.0.png has label 1; d has the labels 0 to 0"):
        Domain("d", ("a",), samples(1, 1), [])
