"""Constraints of arguments: what is refused, and in which words."""

from math import inf, nan
from typing import Literal

import pytest

from project.errors import ConfigurationError, above, at_least, between, one_of, share


def test_what_is_allowed_passes() -> None:
    one_of(("a", "b"), first="a", second="b")
    one_of(Literal["a", "b"], name="a")
    at_least(1, steps=1, rounds=7)
    above(0, rate=1e-9)
    between(0, 1, alpha=0, beta=1)
    share(keep=1)
    share(none=True, whole=False, test_fraction=0)


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
