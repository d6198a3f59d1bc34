"""What can go wrong by the user's hand, each told in one sentence: the argument, its value, what is allowed."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from math import inf
from numbers import Integral
from typing import Any, get_args


def nearest(word: str, known: Iterable[str]) -> str:
    """What somebody may have meant, to go on with behind a refusal: ``; nearest: those names``, or nothing."""
    names: dict[str, list[str]] = {}
    for name in known:
        names.setdefault(name.lower(), []).append(name)
    found = [name for lower in get_close_matches(word.lower(), names) for name in names[lower]]
    return f"; nearest: {', '.join(found)}" if found else ""


class PleasError(Exception):
    """Base of every error that a user can mend; the command prints its message without a traceback."""


class ConfigurationError(PleasError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class DataError(PleasError):
    """A data set that is missing, empty, or holds a picture that cannot be read."""


class CheckpointError(PleasError):
    """A file of weights that is missing, truncated, of another kind, or holds values that are not finite."""


class TraceError(PleasError):
    """An architecture whose permutation groups cannot be derived; the message names the layer."""


class MergeError(PleasError):
    """Sources or statistics from which no sound student can be made."""


def one_of(allowed: Any, **arguments: object) -> None:
    """Refuse arguments that are none of a few values.

    Args:
        allowed: The values, or a ``Literal`` of them.
        arguments: What was given, by the name that the user knows it by.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    known = tuple(get_args(allowed) or allowed)
    _refuse(arguments, lambda value: value in known, ", ".join(map(repr, known)))


def at_least(least: float, **arguments: float) -> None:
    """Refuse arguments below a number, infinite ones and ``nan``; see :func:`one_of`.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    _refuse(arguments, lambda value: least <= value < inf, f"{least:g} or more")


def above(bound: float, **arguments: float) -> None:
    """Refuse arguments that are not above a number, infinite ones and ``nan``; see :func:`one_of`.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    _refuse(arguments, lambda value: bound < value < inf, f"above {bound:g}")


def between(least: float, most: float, **arguments: float) -> None:
    """Refuse arguments below one number or above another; see :func:`one_of`.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    _refuse(arguments, lambda value: least <= value <= most, f"{least:g} to {most:g}")


def whole(least: int, most: int | None = None, **arguments: object) -> None:
    """Refuse arguments that are no whole numbers, below one number or above another; see :func:`one_of`.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    allowed = f"whole numbers, {least} or more" if most is None else f"whole numbers from {least} to {most}"

    def fits(value: object) -> bool:
        plain = isinstance(value, Integral) and not isinstance(value, bool)
        return plain and least <= int(value) and (most is None or int(value) <= most)  # type: ignore[call-overload]

    _refuse(arguments, fits, allowed)


def share(*, whole: bool = True, none: bool = False, **arguments: float) -> None:
    """Refuse arguments that are no share of something; see :func:`one_of`.

    Args:
        whole: Whether 1 is allowed.
        none: Whether 0 is.
        arguments: What was given.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    lower, upper = "0 or more" if none else "above 0", "up to 1" if whole else "below 1"
    _refuse(
        arguments,
        lambda value: (value >= 0 if none else value > 0) and (value <= 1 if whole else value < 1),
        f"{lower}, {upper}",
    )


def _refuse(arguments: dict[str, Any], fits: Callable[[Any], bool], allowed: str) -> None:
    for name, value in arguments.items():
        if not fits(value):
            told = repr(value) if isinstance(value, str) else value
            raise ConfigurationError(f"{name} is {told}; allowed: {allowed}.")
