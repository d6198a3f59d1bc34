"""Constraints of arguments: what is refused, and in which words."""

from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Literal

import pytest

from project.errors import (
    CheckpointError,
    ConfigurationError,
    above,
    at_least,
    between,
    one_of,
    present,
    printable,
    seeds,
    share,
    whole,
)  # fmt: skip


def test_what_is_allowed_passes() -> None:
    one_of(("a", "b"), first="a", second="b")
    one_of(Literal["a", "b"], name="a")
    at_least(1, steps=1, rounds=7)
    above(0, rate=1e-9)
    between(0, 1, alpha=0, beta=1)
    share(keep=1)
    share(none=True, whole=False, test_fraction=0)


def test_what_is_written_to_a_terminal_is_one_line_of_what_can_be_seen() -> None:
    assert printable("Zebra, Äpfel 象 – 'x'") == "Zebra, Äpfel 象 – 'x'"
    assert printable(f"no {'x' * 5000} is there") == f"no {'x' * 120}…{'x' * 120} is there"
    assert printable("a\nb\x1b[2J\u202ec\udcff") == r"a\nb\x1b[2J\u202ec\udcff"


@pytest.mark.parametrize("value", [0, -1, nan, -inf, inf])
def test_numbers_out_of_range_are_refused_by_name_and_value(value: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"^steps is {value}; allowed: 1 or more\.$"):
        at_least(1, fine=1, steps=value)
    with pytest.raises(ConfigurationError, match=rf"^rate is {value}; allowed: above 0\.$"):
        above(0, rate=value)
    with pytest.raises(ConfigurationError, match=rf"^alpha is {value}; allowed: 0\.5 to 0\.9\.$"):
        between(0.5, 0.9, alpha=value)
    with pytest.raises(ConfigurationError, match=rf"^keep is {value}; allowed: above 0, up to 1\.$"):
        share(keep=value)
    if value != 0:
        with pytest.raises(ConfigurationError, match=rf"^keep is {value}; allowed: 0 or more, below 1\.$"):
            share(none=True, whole=False, keep=value)


def test_words_that_are_none_of_a_few_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^fit is 'both'; allowed: 'joint', 'sequential'\.$"):
        one_of(("joint", "sequential"), fit="both")
    with pytest.raises(ConfigurationError, match=r"^fit is 'both'; allowed: 'joint', 'sequential'\.$"):
        one_of(Literal["joint", "sequential"], fit="both")


@pytest.mark.parametrize("value", [0, -1, nan, inf, 1.0, 1.5, True, None, "2", [2], 2**31, 10**30, 10**999])
def test_what_is_no_count_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^steps is .{1,90}; allowed: whole numbers from 1 to 2147483647\.$"):
        whole(1, fine=1, steps=value)


@pytest.mark.parametrize("value", ["0.5", None, [0.5], True, 10**400])
def test_what_is_no_number_is_refused(value: object) -> None:
    for check in (partial(at_least, 0), partial(above, 0), partial(between, 0, 2), share):
        with pytest.raises(ConfigurationError, match=r"^rate is "):
            check(rate=value)


def test_seeds_are_those_of_all_generators() -> None:
    seeds(first=0, second=2**32 - 1)
    for value in (-1, 2**32, 1.0):
        with pytest.raises(ConfigurationError, match=r"^seed is .*; allowed: whole numbers from 0 to 4294967295\.$"):
            seeds(seed=value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    present(tmp_path, tmp_path / "..")
    for name in ("absent.pth", "x" * 300, "a\0b"):
        with pytest.raises(CheckpointError, match=r"^The file of weights .* is not there\.$"):
            present(tmp_path, tmp_path / name)
