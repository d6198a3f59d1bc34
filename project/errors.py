"""What can go wrong by the user's hand, each told in one sentence: the argument, its value, what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches


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
