"""Errors before the long run, in one sentence with the value and what is allowed."""

from typing import Any

import pytest
from helpers import make_problem, pictures, random_network

from project.errors import ConfigurationError, MergeError
from project.methods import Permutation, PLeaS
from project.student import check_budgets
from project.student.memory import free_bytes, walk_bytes


@pytest.mark.parametrize("budgets", [[1], [1.0, 1.5, 2.0], [2]])
def test_budgets_that_students_can_have(budgets: list[float]) -> None:
    check_budgets(budgets, 2)


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        ([0.9], r"budgets holds 0\.9; with 2 sources it must lie between 1 .* and 2"),
        ([1.0, 2.1], r"budgets holds 2\.1"),
        ([float("nan")], "budgets holds nan"),
        ([], r"budgets is \[\]; at least one"),
        ([1.5, 1.501], "no two the same to two decimals"),
    ],
)
def test_budgets_that_no_student_can_have(budgets: list[float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_budgets(budgets, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"matching": "hope"}, "matching is 'hope'; allowed: 'activations', 'weights'"),
        ({"similarity": "cosine"}, "similarity is 'cosine'; allowed: 'correlation', 'distance'"),
        ({"separate": "middle"}, "separate is 'middle'; allowed: 'gain', 'front', 'back', 'uniform'"),
        ({"step": 0}, "step is 0; allowed: 1 or more"),
        ({"ridge": -1.0}, "ridge is -1.0; allowed: 0 or more"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"targets": "other"}, "targets is 'other'"),
        ({"heads": "none"}, "heads is 'none'"),
    ],
)
def test_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        PLeaS(**arguments)


def test_needs() -> None:
    assert Permutation("weights").needs == frozenset()
    assert Permutation().needs == {"units"}
    assert PLeaS("weights", fit="joint").needs == {"layers"}
    assert PLeaS(fit="joint").needs == {"units", "layers"}
    assert PLeaS().needs == {"units", "pictures"}


@pytest.mark.parametrize("mode", ["shared", "different"])
@pytest.mark.parametrize("count", [1, 4, 12, 40])
def test_what_is_refused_without_ridge_is_refused_before_the_pass(mode: str, count: int) -> None:
    """``check`` and the fit agree on whether the pictures suffice for a full merge."""
    sources = [random_network(0, weights) for weights in (0, 1)]
    problem = make_problem(sources, mode, batches=[("art", pictures(count, 0))])
    method = PLeaS(fit="joint", targets="mean", ridge=0.0)
    refusals = []
    for attempt in (lambda: list(method.merge(problem, [1.0])), lambda: method.check(problem, {"art": count}, [1.0])):
        try:
            attempt()
            refusals.append(False)
        except (MergeError, ConfigurationError):
            refusals.append(True)
    assert refusals[0] == refusals[1]
    PLeaS(fit="joint").check(problem, {"art": count}, [1.0])


def test_more_activations_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [random_network(0, weights) for weights in (0, 1)]
    problem = make_problem(sources)
    monkeypatch.setattr("project.methods.pleas.free_bytes", lambda: 2**30)
    pictures_of_a_gibibyte = {"art": 2**30 // walk_bytes(problem.spec, 1, 2.0)}
    PLeaS().check(problem, pictures_of_a_gibibyte, [1.0, 2.0])
    PLeaS(fit="joint").check(problem, {"art": 10**9}, [2.0])
    with pytest.raises(ConfigurationError, match=r"calibration_pictures .* 1\.0 GiB are free; use fewer"):
        PLeaS().check(problem, {"art": pictures_of_a_gibibyte["art"] + 1}, [1.0, 2.0])


def test_free_memory_is_some() -> None:
    assert free_bytes() > 2**20
