"""Which classes a student loses most of, against the source that students are held against."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from project.report.page.markup import Markup, choice, join, section, tag
from project.report.page.reading import Merge, Network, tally

WORST = 8
"""Classes of a domain that are shown."""

Picture = Callable[[str, str, str], Markup | None]
"""Student, domain, class -> address of a picture; None where there is none."""


class Loss(NamedTuple):
    """A class of a domain.

    Args:
        name: Its name.
        place: Its index.
        pictures: How many test pictures there are of it.
        source: How many of them the source has right.
        student: How many of them the student has right.
    """

    name: str
    place: int
    pictures: int
    source: int
    student: int


def losses(merge: Merge, student: Network, domain: str) -> list[Loss]:
    """The classes of a domain, the worst hit first; empty where right answers were not counted by class."""
    source = merge.references.get(domain)
    names, pictures = merge.classes.get(domain, ()), tally(merge.part("tests", "pictures").get(domain))
    mine = tally(merge.part("tests", "right", student.name).get(domain))
    its = [] if source is None else tally(merge.part("tests", "right", source.name).get(domain))
    if not len(names) == len(pictures) == len(mine) == len(its):
        return []
    rows = [Loss(*row) for row in zip(names, range(len(names)), pictures, its, mine, strict=True)]
    return sorted(rows, key=lambda row: (row.student - row.source, row.student))


def hit_worst(merge: Merge, student: Network, domain: str) -> list[Loss]:
    """Those of them that are shown."""
    return [row for row in losses(merge, student, domain) if row.student < row.source][:WORST]


def class_section(merge: Merge, chosen: str | None, picture: Picture) -> Markup | None:
    """The section of the classes; None where right answers were not counted by class.

    Args:
        merge: What was found.
        chosen: Name of the student that is shown first.
        picture: Gives an example.
    """
    panels = {}
    for student in merge.of_kind("student"):
        parts = [_domain(merge, student, domain, picture) for domain in merge.domains]
        if any(parts):
            panels[student.name] = tag("div", *parts, class_="cards")
    if not panels:
        return None
    note = (
        "Test pictures that the source has right and how many of them are left with the student, class by class; a "
        "class with few pictures may be here by chance. A picture is one that the domain's source has right and this "
        "network has not."
    )
    return section(
        "classes", "Classes hit worst", tag("p", note, class_="note"), choice("classes", "Student", panels, chosen)
    )


def _domain(merge: Merge, student: Network, domain: str, picture: Picture) -> Markup | None:
    rows, source = losses(merge, student, domain), merge.references.get(domain)
    if not rows or source is None:
        return None
    lost, better = (sum(sign * (row.student - row.source) > 0 for row in rows) for sign in (-1, 1))
    classes = f"{len(rows)} classes" if len(rows) != 1 else "1 class"
    words = f"Fewer right than {source.name} in {lost} of {classes}, more in {better}" + (
        f"; the {WORST} worst:" if lost > WORST else "."
    )
    shown = hit_worst(merge, student, domain)
    pictures = [picture(student.name, domain, row.name) for row in shown]
    body = _table(shown, source.name, pictures) if shown else None
    return tag("div", tag("h3", domain), tag("p", words, class_="note"), body, class_="card")


def _table(rows: Sequence[Loss], source: str, pictures: Sequence[Markup | None]) -> Markup:
    lines = []
    for row, picture in zip(rows, pictures, strict=True):
        bars = join(
            tag("i", class_="lost", style=f"width:{100 * row.source / max(row.pictures, row.source, 1):.1f}%"),
            tag("i", class_="held", style=f"width:{100 * row.student / max(row.pictures, row.student, 1):.1f}%"),
        )
        words = f"{row.name}: {source} has {row.source} of {row.pictures} right, the student {row.student}"
        told = f"a picture of {row.name} that {source} has right and the student does not"
        small = None if picture is None else tag("img", src=picture, alt=told, title=told, class_="small")
        cells = [
            tag("td", small, class_="example") if any(pictures) else None,
            tag("th", row.name, scope="row"),
            tag("td", tag("div", bars, class_="bars", title=words), class_="chart"),
            tag("td", f"{row.source} → {row.student} of {row.pictures}", class_="figures"),
        ]
        lines.append(tag("tr", *cells))
    return tag("table", tag("tbody", *lines), class_="classes pictured" if any(pictures) else "classes")
