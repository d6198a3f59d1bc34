"""Which classes a student takes for which others, and how often the domain's source does the same."""

from collections.abc import Sequence
from typing import NamedTuple

from project.report.page.markup import Markup, choice, section, tag
from project.report.page.reading import Merge, Network, part, tally

WORST = 8
"""Confusions of a domain that are shown."""


class Confusion(NamedTuple):
    """Pictures of one class that are taken for another.

    Args:
        name: Their class.
        told: What they are taken for.
        student: How many the student takes for it.
        source: How many the domain's source does; None where that is not recorded.
        pictures: How many test pictures of the class there are.
    """

    name: str
    told: str
    student: int
    source: int | None
    pictures: int


def confusions(merge: Merge, student: Network, domain: str) -> list[Confusion]:
    """The confusions of a domain, the most frequent first; empty where they were not counted."""
    names, pictures = merge.classes.get(domain, ()), tally(merge.part("tests", "pictures").get(domain))
    if len(names) != len(pictures):
        return []
    seen, source = dict(zip(names, pictures, strict=True)), merge.references.get(domain)
    mine = merge.part("tests", "confusions", student.name, domain)
    its = None if source is None else merge.part("tests", "confusions", source.name).get(domain)
    found = []
    for name, others in mine.items():
        for told, count in others.items() if isinstance(others, dict) else ():
            if name not in seen or told not in seen or not _sound(count, seen[name]):
                continue
            known = part(its, name).get(told, 0) if isinstance(its, dict) else None
            found.append(Confusion(name, told, count, known if _sound(known, seen[name]) else None, seen[name]))
    return sorted(found, key=lambda one: (-one.student, one.source or 0, one.pictures))


def _sound(count: object, pictures: int) -> bool:
    return type(count) is int and 0 <= count <= pictures


def confusion_section(merge: Merge, chosen: str | None) -> Markup | None:
    """The section of the confusions; None where they were not counted.

    Args:
        merge: What was found.
        chosen: Name of the student that is shown first.
    """
    panels = {}
    for student in merge.of_kind("student"):
        parts = [_domain(merge, student, domain) for domain in merge.domains]
        if any(parts):
            panels[student.name] = tag("div", *parts, class_="cards")
    if not panels:
        return None
    note = (
        "How many test pictures of a class the student takes for another one, and how many the domain's source does; "
        "results.json has them for every network, the 1000 most frequent of each domain."
    )
    return section(
        "confusions", "Classes taken for others", tag("p", note, class_="note"),
        choice("confusions", "Student", panels, chosen),
    )  # fmt: skip


def _domain(merge: Merge, student: Network, domain: str) -> Markup | None:
    rows, source = confusions(merge, student, domain), merge.references.get(domain)
    if not rows:
        return None
    held = "the source" if source is None else source.name
    words = f"The {WORST} most frequent of {len(rows)}:" if len(rows) > WORST else None
    shown = _table(rows[:WORST], held)
    return tag("div", tag("h3", domain), tag("p", words, class_="note") if words else None, shown, class_="card")


def _table(rows: Sequence[Confusion], source: str) -> Markup:
    heads = [tag("th", "class", scope="col"), tag("th", "taken for", scope="col")]
    heads += [tag("th", name, scope="col", class_="figures") for name in ("student", "source")]
    lines = []
    for row in rows:
        known = "–" if row.source is None else row.source
        words = (
            f"{row.name}: of {row.pictures} pictures, the student takes {row.student} for {row.told}, {source} {known}"
        )
        cells = [tag("th", row.name, scope="row"), tag("td", row.told)]
        cells += [tag("td", value, class_="figures") for value in (f"{row.student} of {row.pictures}", known)]
        lines.append(tag("tr", *cells, title=words))
    return tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines), class_="classes confused")
