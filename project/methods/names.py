"""Methods by their names, as users write them."""

import re
from collections.abc import Mapping

from project import methods
from project.errors import ConfigurationError, nearest
from project.methods.base import Method


def methods_by_name() -> Mapping[str, type[Method]]:
    """Every merging method that needs no argument to be made, by the name of its class in lower case."""
    exported = (getattr(methods, name) for name in methods.__all__)
    kinds = [kind for kind in exported if isinstance(kind, type) and issubclass(kind, Method) and kind is not Method]
    return {kind.__name__.lower(): kind for kind in kinds if not kind.__abstractmethods__}


def find_method(name: str) -> Method:
    """A method of default settings.

    Args:
        name: Of its class, in any case, with dashes or without: ``pleas``, ``RegMean++``, ``task-arithmetic``.

    Raises:
        ConfigurationError: If there is none of that name, or it needs arguments.
    """
    known = methods_by_name()
    kind = known.get(re.sub("[-_ ]", "", name).lower().replace("++", "pp"))
    if kind is None:
        raise ConfigurationError(
            f"method is {name!r}{nearest(name, known)}; allowed: {', '.join(known)}, or a method of project.methods "
            f"with its settings."
        )
    try:
        return kind()
    except TypeError as error:
        raise ConfigurationError(
            f"method is {name!r}, which needs arguments: pass project.methods.{kind.__name__}(...)."
        ) from error
