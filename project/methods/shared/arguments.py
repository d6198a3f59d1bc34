"""Checks of arguments that several methods share."""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from numbers import Real

from project.errors import ConfigurationError
from project.methods.problem import Problem
from project.moments import Classes


def check_weights(weights: Sequence[float] | None) -> None:
    """Refuse what are no weights.

    Raises:
        ConfigurationError: With what is allowed.
    """
    if weights is None:
        return
    numbers = (
        isinstance(weights, Sequence)
        and not isinstance(weights, str | bytes)
        and all(isinstance(weight, Real) for weight in weights)
    )
    if not (numbers and all(0 <= weight < inf for weight in weights) and 0 < sum(weights) < inf):
        raise ConfigurationError(f"weights is {weights}; allowed: a list of numbers, 0 or more each, and not all 0.")


def check_domain_weights(weights: Mapping[str, float] | None) -> None:
    """Refuse what are no weights of domains.

    Raises:
        ConfigurationError: With what is allowed.
    """
    if weights is None:
        return
    if not isinstance(weights, Mapping):
        raise ConfigurationError(f"weights is {weights!r}; allowed: a mapping of domains to numbers.")
    for domain, weight in weights.items():
        if not isinstance(domain, str):
            raise ConfigurationError(f"weights names {domain!r}; allowed: names of domains.")
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= weight < inf:
            raise ConfigurationError(f"weights gives {domain!r} {weight}; allowed: 0 or more.")


def check_count(weights: Sequence[float] | None, problem: Problem) -> None:
    """Refuse weights of another number of sources.

    Raises:
        ConfigurationError: With both numbers.
    """
    if weights is not None and len(weights) != len(problem.sources):
        raise ConfigurationError(f"weights holds {len(weights)} numbers for {len(problem.sources)} sources.")


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
