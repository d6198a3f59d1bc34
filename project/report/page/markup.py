"""HTML in which nothing that a name holds can be taken for markup."""

import re
from html import escape

from project.errors import printable

KEPT = 30  # characters at either end of a word without end
ENDLESS = re.compile(r"\S{81,}")  # a hash is none

VOID = ("br", "img", "meta")
"""Elements without an end."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """What a reader is shown of a value: names may hold anything, characters that turn the direction included."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(ENDLESS.sub(lambda word: f"{word[0][:KEPT]}…{word[0][-KEPT:]}", printable(str(value)))))


def join(*parts: object) -> Markup:
    """Several pieces behind each other; what is no markup is escaped, and None left out."""
    return Markup("".join(text(part) for part in parts if part is not None))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
        name: Its name.
        children: What it holds; what is no markup is escaped, and None left out.
        attributes: By name: an underscore at the end is dropped, others stand for hyphens. None and False are left out,
            and True has no value.
    """
    shown = "".join(
        f" {_name(key)}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(*children)}</{name}>")


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def section(anchor: str, title: str, *children: object) -> Markup:
    """A part of the page under a heading."""
    heading = f"{anchor}-title"
    return tag("section", tag("h2", title, id=heading), *children, id=anchor, aria_labelledby=heading)


def choice(group: str, label: str, panels: dict[str, Markup], chosen: str | None = None) -> Markup:
    """Panels of which a reader chooses one.

    Args:
        group: Tells it from others on the page.
        label: What is chosen, in a word.
        panels: Name -> panel.
        chosen: The one that is shown at first; default: the first.
    """
    first = chosen if chosen in panels else next(iter(panels))
    options = [tag("option", name, value=place, selected=name == first) for place, name in enumerate(panels)]
    bodies = [
        tag("div", panel, class_="panel", data_panel=group, data_place=place, hidden=name != first)
        for place, (name, panel) in enumerate(panels.items())
    ]
    control = tag("label", f"{label} ", tag("select", *options, data_choose=group), class_="choice")
    return join(control if len(panels) > 1 else None, *bodies)
