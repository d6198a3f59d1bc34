"""Which classes the columns of a network mean, and whether they are the data's."""

import re
from collections.abc import Sequence
from dataclasses import fields
from itertools import chain

from project.errors import ConfigurationError
from project.models import Description, LabelSpace, Preprocessing
from project.runtime import tell, warn

SHOWN = 4  # classes in a line


def own_labels(
    description: Description, labels: LabelSpace | None, origin: str, domains: Sequence[str] | None = None
) -> LabelSpace:
    """What a network's columns mean: what its file says, else the data's classes where they can only be those.

    Args:
        description: What the file says.
        labels: The data's classes; None where these are not known.
        origin: The file, for messages.
        domains: Domains it is said to have heads for, in their order.

    Raises:
        ConfigurationError: If the file says something else, or neither it nor the number of its logits settles it.
    """
    known = description.label_space
    if known is not None:
        if domains is not None and list(domains) != list(known.domains):
            raise ConfigurationError(
                f"{origin} is said to have domains {', '.join(domains)}, but says itself: {', '.join(known.domains)}."
            )
        if labels and labels.mode == "different" and known.mode == "shared" and len(known.domains) == 1:
            return LabelSpace(known.classes, "different")  # one domain: its only head is its own
        return known
    if labels is None:
        raise ConfigurationError(
            f"{origin} says nothing of its classes; use a student or a checkpoint of pleas fit, or data that have them."
        )
    for domain in domains or ():
        if domain not in labels.domains:
            raise ConfigurationError(
                f"{origin} is said to have domain {domain!r}; the data have: {', '.join(labels.domains)}."
            )
    width = description.architecture.num_classes if description.architecture else 0
    fitting = [candidate for candidate in _candidates(labels, domains) if candidate.width == width]
    if len(fitting) == 1:
        return fitting[0]
    counts = ", ".join(f"{domain} {len(names)}" for domain, names in labels.classes.items())
    hint = "; state its domains" if labels.mode == "different" and domains is None else ""
    raise ConfigurationError(
        f"{origin} has {width} logits and says nothing of classes, of which the data have: {counts}{hint}."
    )


def _candidates(labels: LabelSpace, domains: Sequence[str] | None) -> list[LabelSpace]:
    """What the columns of a network that says nothing may mean: the stated domains, else any one of them, or all."""
    if labels.mode == "shared":
        return [labels]
    choices = (
        [domains] if domains is not None else dict.fromkeys([*((name,) for name in labels.domains), labels.domains])
    )
    return [LabelSpace({domain: labels.classes[domain] for domain in choice}, "different") for choice in choices]


def classes_of_heads(labels: LabelSpace, domains: Sequence[str]) -> list[tuple[str, ...]]:
    """The classes of each head that a network of some domains has."""
    return [labels.classes[domain] for domain in (domains if labels.mode == "different" else domains[:1])]


def column_order(
    description: Description, labels: LabelSpace, domains: Sequence[str], origin: str, logits: int
) -> list[int] | None:
    """Which of a network's columns comes in which place, for its classes to stand in the data's order.

    Names count as equal whatever their case, and whether words are joined by spaces, underscores or hyphens.

    Args:
        description: What its file says.
        labels: Domains and classes of the data.
        domains: Those it has heads for, in their order.
        origin: The file, for messages.
        logits: How many it has.

    Returns:
        The columns by place; None where its file does not name its classes, or names others, which a message tells.

    Raises:
        ConfigurationError: If it names most classes as the data do, and several others otherwise.
    """
    wanted = classes_of_heads(labels, domains)
    known = description.label_space
    if known is not None:
        said = [known.classes[domain] for domain in known.domains] if known.mode == "different" else []
        said = said or [next(iter(known.classes.values()))]
    elif description.class_names is not None and len(description.class_names) == logits:
        said = [description.class_names]
    else:
        return None
    if [len(names) for names in said] != [len(names) for names in wanted]:
        return None
    order: list[int] = []
    for mine, theirs in zip(said, wanted, strict=True):
        places = _places(mine, theirs)
        if places is None and known is None:
            places = _places_otherwise(mine, theirs, origin)
        if places is None:
            return None
        order += [len(order) + place for place in places]
    return order


def _places(mine: Sequence[str], theirs: Sequence[str]) -> list[int] | None:
    """Where each of their names stands among mine; None where these are other names."""
    for spelled in (str, _plain):
        places = {spelled(name): place for place, name in enumerate(mine)}
        found = [places.get(spelled(name)) for name in theirs]
        if len(set(found)) == len(mine) and None not in found:
            return [place for place in found if place is not None]
    return None


def _places_otherwise(mine: Sequence[str], theirs: Sequence[str], origin: str) -> list[int] | None:
    """Where each of their names stands among mine, some of which are other ones.

    Where one name differs, the two that are left over are one class. Where none is known again, a list of other names
    (codes, another language) is taken to be in the data's order, which a message tells.

    Raises:
        ConfigurationError: If several differ while others are the data's: which is which cannot be told.
    """
    known, wanted = set(map(_plain, mine)), set(map(_plain, theirs))
    extra = [name for name in mine if _plain(name) not in wanted]
    lacking = [name for name in theirs if _plain(name) not in known]
    if len(extra) == len(lacking) == 1 and len(mine) > 2:
        tell(f"{origin} names {extra[0]} where the data have {lacking[0]}; they are one class, as all others agree")
        return _places([lacking[0] if name == extra[0] else name for name in mine], theirs)
    if 2 * len(extra) < len(mine):
        raise ConfigurationError(
            f"{origin} names {len(extra)} classes that the data do not have ({', '.join(extra[:SHOWN])}), and the data "
            f"{len(lacking)} that it does not name ({', '.join(lacking[:SHOWN])}), so that which is which cannot be "
            f"told; name these folders as the file does."
        )
    named = extra or list(mine)
    warn(
        f"{origin} names classes that the data do not have ({len(named)} of {len(mine)}, such as {named[0]}"
        f"; the data have {theirs[mine.index(named[0])]} and others); its columns are taken to be the "
        f"data's classes in their order."
    )
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def check_classes(name: str, known: LabelSpace, labels: LabelSpace) -> None:
    """Refuse a network whose classes are not the data's.

    Raises:
        ConfigurationError: With the classes that differ.
    """
    for domain in labels.domains:
        mine = next(iter(known.classes.values())) if known.mode == "shared" else known.classes.get(domain)
        theirs = labels.classes[domain]
        if mine is None or mine == theirs:
            continue
        extra, lacking = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
        what = f"only the network has: {', '.join(extra) or '–'}; only the data have: {', '.join(lacking) or '–'}"
        raise ConfigurationError(
            f"{name} was trained on {len(mine)} classes that are not the {len(theirs)} of domain {domain} "
            f"({what if extra or lacking else 'the same ones in another order'})."
        )


def assumed(
    description: Description, labels: LabelSpace, domains: Sequence[str], given: Preprocessing | None
) -> list[str]:
    """What a run takes for granted of a source, and where it has that from.

    Args:
        description: What its file says.
        labels: The data's classes.
        domains: Its domains.
        given: What the data's pictures go through; None for pictures that were given prepared.
    """
    classes = labels.classes[domains[0]]
    wanted = list(chain(*classes_of_heads(labels, domains)))
    own_names = description.class_names
    whose = "its file"
    if description.label_space is None and (own_names is None or _places(own_names, wanted) is None):
        whose = f"order of the data, as its file names {'none' if own_names is None else 'others'}"
    listed = f"{', '.join(classes[:SHOWN])}{', …' if len(classes) > SHOWN else ''} ({len(classes)})"
    told = [f"classes {listed} ({whose})"]
    if given is None:
        return [*told, "pictures as they were given"]
    own, plain = description.preprocessing, {field.name: field.default for field in fields(Preprocessing)}
    by_origin: dict[str, list[str]] = {}
    for name in (field.name for field in fields(Preprocessing)):
        value = getattr(given, name)
        if own is None:
            origin = "as by default" if value == plain[name] else "option of the data, or another source's file"
        else:
            said = getattr(own, name)
            origin = "its file" if said == value else f"option of the data; its file says {said}"
        if value is not None:
            shown = list(value) if isinstance(value, tuple) else value
            by_origin.setdefault(origin, []).append(f"{name} {shown}")
    told += [f"{', '.join(values)} ({origin})" for origin, values in by_origin.items()]
    return told
