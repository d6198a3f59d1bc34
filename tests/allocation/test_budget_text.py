"""Budgets as users write them."""

import pytest
from helpers import budgets_of

from project.allocation import Budget, check_budgets
from project.errors import ConfigurationError

WRITTEN = {
    "1.5": (Budget(1.5), "1.50"),
    "2x": (Budget(2.0), "2.00"),
    "900 MMAC": (Budget(900.0, "M", "MACs"), "900_MMAC"),
    "2.5 gmacs": (Budget(2.5, "G", "MACs"), "2.5_GMAC"),
    "900 MAC": (Budget(900.0, "", "MACs"), "900_MAC"),
    "14M params": (Budget(14.0, "M", "parameters"), "14M_params"),
    "1.2x params": (Budget(1.2, "x", "parameters"), "1.20x_params"),
    "700k parameters": (Budget(700.0, "k", "parameters"), "700k_params"),
    "48 MB": (Budget(48.0, "M", "bytes"), "48_MB"),
    "1.5x bytes": (Budget(1.5, "x", "bytes"), "1.50x_B"),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_what_is_written_is_read(text: str) -> None:
    budget, name = WRITTEN[text]
    assert Budget.of(text) == budget
    assert budget.name == name
    assert Budget.of(str(budget)) == Budget.of(budget.plain) == budget


@pytest.mark.parametrize("text", ["", "big", "5 FLOPs", "14M", "1.2.3", "-1", "MB", "3 x params 4", "1.5x x", "2 TMAC"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"budgets holds '.*'; allowed: .*'48 MB'"):
        Budget.of(text)


ONE = {"MACs": 1.8e9, "parameters": 11_180_103.0, "bytes": 44.8e6}


@pytest.mark.parametrize(
    "budget", ["1x params", "2x params", "12M params", "11.2M params", "22.3M params", "50 MB", "2 GMAC"]
)
def test_limits_hold_for_every_unit(budget: str) -> None:
    check_budgets(budgets_of(budget), 2, lambda unit: ONE[unit])


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("11M params", r"budgets holds 11M params; .* between 11\.19M params \(one .* and 22\.36M params \(all"),
        ("23M params", "budgets holds 23M params"),
        ("0.9x params", r"between 1x params .* and 2x params"),
        ("90 MB", r"between 44\.8 MB .* and 89\.6 MB"),
        ("900 MMAC", r"between 1800 MMAC .* and 3600 MMAC"),
        ("5 params", r"budgets holds 5 params"),
    ],
)
def test_sizes_that_no_student_can_have(budget: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_budgets(budgets_of(1.0, budget), 2, lambda unit: ONE[unit])


def test_one_size_written_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no two the same"):
        check_budgets(budgets_of("14M params", "14.0M params"), 2)
