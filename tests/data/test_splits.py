"""Splits depend on the seed and the files alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from project.data.domain import Domain, Sample
from project.data.splits import hold_out, hold_out_by_path, shuffled, split
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


HOLDING = [(count, fraction) for count in (2, 3, 30, 400) for fraction in (0.1, 0.2, 0.7)]


@pytest.mark.parametrize(("count", "fraction"), HOLDING)
def test_a_picture_that_is_added_moves_no_other(count: int, fraction: float) -> None:
    """But where a class would else have none on one side, which is where the hashes of all lie on the other."""
    root = Path("data")
    given = [(root / path, label) for path, label in samples(count, 1 + count // 2)]
    before = hold_out_by_path(given, fraction, 3, root)
    assert sorted(before[0] + before[1]) == sorted(given)
    moved = 0
    for number in range(20):
        added = (root / f"0/new{number}.png", 0)
        after = hold_out_by_path([*given, added], fraction, 3, root)
        moved += any(set(one) - set(other) for one, other in zip(before, after, strict=True))
        assert hold_out_by_path([*given, added][::-1], fraction, 3, root) == after
    lone = min(sum(label == 0 for _, label in part) for part in before) == 1
    assert lone or not moved


def test_a_drawn_share_is_what_is_expected() -> None:
    root, given = Path("."), samples(3000, 3000)
    for fraction in (0.05, 0.2, 0.6):
        for seed in range(3):
            aside = hold_out_by_path(given, fraction, seed, root)[1]
            for label in range(2):
                count = sum(one == label for _, one in aside)
                assert abs(count - 3000 * fraction) < 6 * (3000 * fraction * (1 - fraction)) ** 0.5  # six deviations
    assert hold_out_by_path(given, 0.2, 0, root) != hold_out_by_path(given, 0.2, 1, root)


def test_every_class_of_two_is_on_both_sides() -> None:
    for seed in range(50):
        stay, aside = hold_out_by_path(samples(1, 2, 3, 2), 0.1 + 0.8 * (seed % 2), seed, Path("."))
        assert {label for _, label in stay} == {0, 1, 2, 3}
        assert {label for _, label in aside} == {1, 2, 3}
    assert hold_out_by_path(samples(3, 2), 0.0, 0, Path(".")) == (samples(3, 2), [])


def test_where_the_data_lie_plays_no_part() -> None:
    here, there = Path("a/b"), Path("/elsewhere")
    one = hold_out_by_path([(here / path, label) for path, label in samples(40)], 0.3, 0, here)
    other = hold_out_by_path([(there / path, label) for path, label in samples(40)], 0.3, 0, there)
    assert [path.relative_to(here) for path, _ in one[1]] == [path.relative_to(there) for path, _ in other[1]]
    accents = [[(Path(form), 0), (Path("x"), 0), (Path("y"), 0)] for form in ("caf\u00e9", "cafe\u0301")]
    aside = [hold_out_by_path(given, 0.5, 0, Path("."))[1] for given in accents]
    assert [path.name[:3] for path, _ in aside[0]] == [path.name[:3] for path, _ in aside[1]]


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
