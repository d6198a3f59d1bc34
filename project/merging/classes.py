"""Which classes the columns of a network mean, and whether they and its pictures are the data's."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import chain
from typing import Any

from project.errors import ConfigurationError
from project.models import Description, LabelSpace, Preprocessing
from project.runtime import warn

SHOWN = 4  # classes in a line
RESIZE, CROP_PCT = "resize", "crop_pct"  # two ways to say one thing


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
        if places is None:
            if known is None:
                spelled = set(map(_plain, theirs))
                extra = [name for name in mine if _plain(name) not in spelled] or list(mine)
                warn(
                    f"{origin} names classes that the data do not have ({len(extra)} of {len(mine)}, such as {extra[0]}"
                    f"; the data have {theirs[mine.index(extra[0])]} and others); its columns are taken to be the "
                    f"data's classes in their order."
                )
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


def agreed_preprocessing(known: Mapping[str, Preprocessing | None], stated: Collection[str] = ()) -> dict[str, Any]:
    """What pictures must go through for all networks that say it, where the user does not.

    Args:
        known: File -> what it says; None where it says nothing.
        stated: Fields of Preprocessing that the user has stated.

    Returns:
        The other fields, as plain values, ``crop_pct`` in place of ``resize`` where the size is stated; empty where no
        file says any.

    Raises:
        ConfigurationError: If two files say different things.
    """
    saying = {name: {**asdict(one), CROP_PCT: one.crop_pct} for name, one in known.items() if one is not None}
    # A side to which pictures are resized goes with one size of what is kept of them; a share goes with any.
    asked = [field.name for field in fields(Preprocessing) if field.name not in {*stated, RESIZE}]
    if not {RESIZE, CROP_PCT} & set(stated):
        asked.append(CROP_PCT if "image_size" in stated else RESIZE)
    agreed: dict[str, Any] = {}
    for key in asked:
        for name, values in saying.items():
            first = next(iter(saying))
            if values[key] != saying[first][key]:
                raise ConfigurationError(
                    f"{first} was made for {key} {saying[first][key]}, but {name} for {values[key]}; say which the "
                    f"pictures are to have: {key} of the data."
                )
            agreed[key] = values[key]
    return agreed


def sized(agreed: Mapping[str, Any], origins: Collection[str]) -> None:
    """Refuse to guess at which size networks read pictures.

    Args:
        agreed: What pictures go through as far as it is known, see :func:`agreed_preprocessing`.
        origins: The files.

    Raises:
        ConfigurationError: If the size is not known.
    """
    if "image_size" not in agreed:
        raise ConfigurationError(
            f"image_size is missing: {', '.join(origins)} do not say on pictures of which size they were trained; say "
            f"it, such as --image-size 224 (image_size=224 in Python)."
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


def warn_of_preprocessing(name: str, known: Preprocessing | None, given: Preprocessing | None) -> None:
    """Say so where the data's pictures are prepared in another way than a network's, as far as that is known."""
    if known is None or given is None:
        return
    mine, theirs = asdict(known), asdict(given)
    differing = [one for one in mine if mine[one] != theirs[one]]
    if differing:
        words = (", ".join(f"{one} {values[one]}" for one in differing) for values in (mine, theirs))
        warn("{} was made for {}, but data gives {}.".format(name, *words))
