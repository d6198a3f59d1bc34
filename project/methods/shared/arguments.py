"""Checks of arguments that several methods share."""

from collections.abc import Iterable, Sequence
from math import inf, isfinite
from typing import get_args

from project.errors import ConfigurationError
from project.methods.problem import Problem
from project.moments import Classes


def check_scale(scale: float) -> None:
    """Refuse a scale of task vectors that is none.

    Raises:
        ConfigurationError: With what is allowed.
    """
    if not (isfinite(scale) and scale >= 0):
        raise ConfigurationError(f"scale is {scale}; allowed: 0 or more.")


def check_share(name: str, share: float) -> None:
    """Refuse what is no share above 0.

    Raises:
        ConfigurationError: With what is allowed.
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"{name} is {share}; allowed: above 0, up to 1.")


def check_learning(steps: int, batch: int, rate: float, seed: int) -> None:
    """Refuse what no gradient descent goes by.

    Raises:
        ConfigurationError: With what is allowed.
    """
    for name, value, least in (("steps", steps, 0), ("batch", batch, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigurationError(f"{name} is {value}; allowed: {least} or more.")
    if not 0 < rate < inf:
        raise ConfigurationError(f"rate is {rate}; allowed: above 0.")


def check_weights(weights: Sequence[float] | None) -> None:
    """Refuse what are no weights.

    Raises:
        ConfigurationError: With what is allowed.
    """
    if weights is not None and not (all(0 <= weight < inf for weight in weights) and sum(weights) > 0):
        raise ConfigurationError(f"weights is {list(weights)}; allowed: 0 or more each, and not all 0.")


def check_count(weights: Sequence[float] | None, problem: Problem) -> None:
    """Refuse weights of another number of sources.

    Raises:
        ConfigurationError: With both numbers.
    """
    if weights is not None and len(weights) != len(problem.sources):
        raise ConfigurationError(f"weights holds {len(weights)} numbers for {len(problem.sources)} sources.")


def check_classes(classes: str) -> None:
    """Refuse an unknown choice of classes.

    Raises:
        ConfigurationError: With what is allowed.
    """
    if classes not in get_args(Classes):
        raise ConfigurationError(f"classes is {classes!r}; allowed: {', '.join(map(repr, get_args(Classes)))}.")


def check_labels(classes: Classes, problem: Problem, pictures: Iterable[str]) -> None:
    """Refuse labels of pictures that have none of the sources' classes.

    Raises:
        ConfigurationError: With the domain.
    """
    unowned = [domain for domain in pictures if domain not in problem.labels.domains]
    if classes == "labels" and unowned:
        raise ConfigurationError(
            f"classes is 'labels', but calibration pictures are of {unowned[0]!r}, whose classes are not the "
            f"sources'; use 'sampled' or 'exact'."
        )
