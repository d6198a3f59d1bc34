"""What can go wrong by the user's hand, each told in one sentence: the argument, its value, what is allowed."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from math import inf
from numbers import Integral, Real
from os import PathLike
from os.path import exists
from typing import Any, get_args

MANY = 2**31 - 1
"""The largest count where nothing else bounds it: what is beyond, no loop, buffer or generator takes."""
SEEDS = 2**32 - 1
"""The largest seed that all generators take."""
TOLD = 80
"""Characters of a value that a message repeats."""
HUB_NAMES = ("hf-hub:", "hf_hub:")
"""What stands before names of folders on the Hugging Face Hub."""
LOCAL_FOLDER = "local-dir:"
"""What may stand before a folder, as timm has it."""


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


class StorageError(PleasError):
    """A disk without the room that is needed, or one that fails while something is written to it."""


class MergeError(PleasError):
    """Sources or statistics from which no sound student can be made."""


class ProcessError(PleasError):
    """Another process of the run has gone, and this one cannot go on alone."""


def present(*paths: str | PathLike[str], what: str = "The file of weights") -> None:
    """Refuse files and folders that are not there; they are not opened, and what lies on the Hub is not looked for.

    Args:
        paths: Of the files.
        what: What the message calls one.

    Raises:
        CheckpointError: With the first that is missing.
    """
    for path in paths:
        named = str(path)
        if not named.startswith(HUB_NAMES) and not exists(named.removeprefix(LOCAL_FOLDER)):
            raise CheckpointError(f"{what} {path} is not there.")


def encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: names of files may hold any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


KEPT = 120  # characters of a name at either end
ENDLESS = re.compile(rf"\S{{{3 * KEPT},}}")


def printable(text: str) -> str:
    """A text as it may be written to a terminal, in one line.

    Names of files, domains and classes may hold characters that end a line, move the cursor or turn the direction of
    what follows; they are written as Python escapes them. Of names without end the middle is left out.
    """
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return ENDLESS.sub(lambda word: f"{word[0][:KEPT]}…{word[0][-KEPT:]}", shown)


def one_of(allowed: Any, **arguments: object) -> None:
    """Refuse arguments that are none of a few values.

    Args:
        allowed: The values, or a ``Literal`` of them.
        arguments: What was given, by the name that the user knows it by.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    known = tuple(get_args(allowed) or allowed)

    def fits(value: object) -> bool:
        try:
            return value in known
        except (TypeError, ValueError, RuntimeError):  # of arrays, which compare value by value
            return False

    _refuse(arguments, fits, ", ".join(map(repr, known)))


def flags(**arguments: object) -> None:
    """Refuse arguments that are neither true nor false; see :func:`one_of`.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    _refuse(arguments, lambda value: isinstance(value, bool), "true or false")


def whole(least: int, most: int | None = None, **arguments: object) -> None:
    """Refuse arguments that are no whole numbers, below one number or above another; see :func:`one_of`.

    Args:
        least: The smallest that is allowed.
        most: The largest; default: :data:`MANY`.
        arguments: What was given.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    most = MANY if most is None else most
    _refuse(
        arguments,
        lambda value: isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most,
        f"whole numbers from {least} to {most}",
    )


def seeds(**arguments: object) -> None:
    """Refuse arguments that are no seed of a generator; see :func:`one_of`.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    whole(0, SEEDS, **arguments)


def at_least(least: float, **arguments: object) -> None:
    """Refuse arguments that are no numbers, those below one, infinite ones and ``nan``; see :func:`one_of`.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    _refuse(arguments, _number(lambda value: least <= value < inf), f"{least:g} or more")


def above(bound: float, **arguments: object) -> None:
    """Refuse arguments that are no numbers above one, infinite ones and ``nan``; see :func:`one_of`.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    _refuse(arguments, _number(lambda value: bound < value < inf), f"above {bound:g}")


def between(least: float, most: float, **arguments: object) -> None:
    """Refuse arguments that are no numbers, below one or above another; see :func:`one_of`.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    _refuse(arguments, _number(lambda value: least <= value <= most), f"{least:g} to {most:g}")


def share(*, whole: bool = True, none: bool = False, **arguments: object) -> None:
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
        _number(lambda value: (value >= 0 if none else value > 0) and (value <= 1 if whole else value < 1)),
        f"{lower}, {upper}",
    )


def _number(fits: Callable[[Any], bool]) -> Callable[[object], bool]:
    """A test of numbers that nothing else passes; an integer beyond every float is taken for infinite."""

    def passes(value: object) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        try:
            return fits(float(value))
        except OverflowError:
            return False

    return passes


def _refuse(arguments: dict[str, Any], fits: Callable[[Any], bool], allowed: str) -> None:
    for name, value in arguments.items():
        if not fits(value):
            raise ConfigurationError(f"{name} is {_told(value)}; allowed: {allowed}.")


def _told(value: object) -> str:
    """A value as a sentence can hold it: on one line, of a length that can be read."""
    try:
        words = repr(value) if isinstance(value, str) else str(value)
    except ValueError:  # an integer of more digits than Python writes
        words = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    words = " ".join(words.split())
    return words if len(words) <= TOLD else f"{words[:TOLD]}…"
