"""What no argument of a method can be is refused where the method is made, in a sentence that names the argument."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import project.methods
from project.errors import ConfigurationError
from project.methods import Average, Method

METHODS = [
    kind
    for kind in vars(project.methods).values()
    if inspect.isclass(kind) and issubclass(kind, Method) and not inspect.isabstract(kind)
]
ODD: list[Any] = [object(), 1j, lambda: 0, b"x", torch.ones(2), np.ones(2), {1: 2}, [object()], [[]], -(10**400)]
"""What no argument takes."""
OTHERS: list[Any] = [
    *("wrong", "activations", "", None, 1.5, -1, 0, 10**400, float("nan"), float("inf"), True),
    *([], ["a"], [1, "x"], {}, {"a": "b"}, {"by": 3}, {"alpha": object()}, {"a": True}, {"a": 10**400}, (1, 2), set()),
]
"""What some arguments take."""


def made(kind: type[Method], name: str, value: Any) -> Method:
    needed = {"method": Average(), "grid": {"align": ["none"]}}
    given = {one: needed[one] for one in needed if one in inspect.signature(kind).parameters}
    return kind(**{**given, name: value})


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_what_an_argument_cannot_be_is_refused_by_its_name(kind: type[Method]) -> None:
    for name, parameter in inspect.signature(kind).parameters.items():
        for value in ODD:
            with pytest.raises(ConfigurationError, match=rf"\b{name}\b"):
                made(kind, name, value)
        for value in OTHERS:
            refusal = refused(kind, name, value)
            assert refusal is None or name in refusal
            assert refusal is not None or not isinstance(parameter.default, bool) or isinstance(value, bool)


def refused(kind: type[Method], name: str, value: Any) -> str | None:
    try:
        made(kind, name, value)
    except ConfigurationError as error:
        return str(error)
    return None


def test_the_average_takes_no_name_for_weights() -> None:
    with pytest.raises(ConfigurationError, match="weights is activations; allowed: a list of numbers"):
        Average("activations")  # type: ignore[arg-type]
