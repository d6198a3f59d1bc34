"""Names of classes that a file of weights holds beside its tensors, under the keys by which scripts write them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from project.errors import encodable
from project.models.description import Description
from project.models.reading.stand_ins import StandIn

LISTS = ("class_names", "classes", "CLASSES", "label_names", "names", "vocab")
"""Keys under which names stand in the order of their columns."""
BY_NAME = ("class_to_idx", "label2id")
"""Keys under which each name has the number of its column."""
BY_NUMBER = ("id2label", "idx_to_class")
"""Keys under which each column, as a number or as text, has its name."""
PLACES = (
    ("meta", "dataset_meta"),  # mmengine
    ("meta",),  # mmcv before it
    ("config",),
    (),
    ("hyper_parameters",),  # Lightning
    ("args",),
    ("hparams",),
    ("opt",),
)
"""Where these keys stand, the first that holds names first."""
LARGEST = 10**6  # classes of one file: more, no head has


def class_names_in(tree: Any) -> tuple[str, ...] | None:
    """Names of the columns of a file's network, where the file says them in one of the usual ways.

    Whether they are as many as the network has logits is left for whoever knows it.

    Args:
        tree: What a file holds, objects as stand-ins, whose attributes are looked at as a mapping's entries.

    Returns:
        The names in the order of the columns, those that stand twice with their number behind them; None where nothing
        tells.
    """
    for place in PLACES:
        held = tree
        for key in place:
            held = _mapping(held).get(key)
        for names in _said(_mapping(held)):
            return distinct(names)
    return None


def named(description: Description, tree: Any) -> Description:
    """What is known of a network, with the names of its classes where the file holds them and nothing else told them.

    Args:
        description: What is known.
        tree: See :func:`class_names_in`.
    """
    if description.label_space is not None or description.class_names is not None:
        return description
    return replace(description, class_names=class_names_in(tree))


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names of which each stands once: those that stand twice have the number of their column behind them."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))


def _said(held: Mapping[Any, Any]) -> Iterator[list[str]]:
    """Names that a mapping holds, in any of the usual ways."""
    for key in LISTS:
        given = held.get(key)
        if isinstance(given, list | tuple):
            if _are_names(given):
                yield list(given)
        elif isinstance(given, Mapping):
            yield from _by_number(given)
    for key in BY_NAME:
        given = held.get(key)
        if isinstance(given, Mapping):
            yield from _by_number({number: name for name, number in given.items() if isinstance(number, int | str)})
    for key in BY_NUMBER:
        given = held.get(key)
        if isinstance(given, Mapping):
            yield from _by_number(given)


def _by_number(given: Mapping[Any, Any]) -> Iterator[list[str]]:
    """Names in the order of their numbers, if these are 0, 1, 2 and so on."""
    if not 2 <= len(given) <= LARGEST:
        return
    try:
        numbered = {int(number): name for number, name in given.items() if not isinstance(number, bool | float)}
    except (TypeError, ValueError, OverflowError):
        return
    names = [numbered.get(number) for number in range(len(given))]
    if _are_names(names):
        yield [str(name) for name in names]


def _are_names(given: Sequence[Any]) -> bool:
    """Whether these can be names of classes, and are no numbers that nobody has named."""
    if not 2 <= len(given) <= LARGEST or not all(_is_name(name) for name in given):
        return False
    return any(name not in (str(index), f"LABEL_{index}") for index, name in enumerate(given))


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name) and encodable(name)


def _mapping(held: Any) -> Mapping[Any, Any]:
    """A mapping, the attributes of an object that stands for one, or nothing."""
    if isinstance(held, Mapping):
        return held
    return {**held.attributes, **held.entries} if isinstance(held, StandIn) else {}
