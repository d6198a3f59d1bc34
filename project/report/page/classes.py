"""Which classes a student loses most of, against the source that students are held against."""

from collections.abc import Sequence

from project.report.page.markup import Markup, choice, join, section, tag
from project.report.page.reading import Merge, Network, tally

WORST = 8
"""Classes of a domain that are shown."""


def class_section(merge: Merge, chosen: str | None) -> Markup | None:
    """The section of the classes; None where right answers were not counted by class.

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
        "Test pictures that the source has right and how many of them are gone with the student, class by class; a "
        "class with few pictures may be here by chance."
    )
    return section(
        "classes", "Classes hit worst", tag("p", note, class_="note"), choice("classes", "Student", panels, chosen)
    )


def _domain(merge: Merge, student: Network, domain: str) -> Markup | None:
    source = merge.references.get(domain)
    names, pictures = merge.classes.get(domain, ()), tally(merge.part("tests", "pictures").get(domain))
    mine = tally(merge.part("tests", "right", student.name).get(domain))
    its = [] if source is None else tally(merge.part("tests", "right", source.name).get(domain))
    if source is None or not names or not len(names) == len(pictures) == len(mine) == len(its):
        return None
    rows = sorted(zip(names, pictures, its, mine, strict=True), key=lambda row: (row[3] - row[2], row[3]))
    lost = [row for row in rows if row[3] < row[2]]
    better = sum(row[3] > row[2] for row in rows)
    words = (
        f"Fewer right than {source.name} in {len(lost)} of {_classes(len(rows))}, more in {better}"
        + (f"; the {WORST} worst:" if len(lost) > WORST else ".")
    )  # fmt: skip
    return tag(
        "div", tag("h3", domain), tag("p", words, class_="note"), _table(lost[:WORST], source.name), class_="card"
    )


def _classes(count: int) -> str:
    return f"{count} classes" if count != 1 else "1 class"


def _table(rows: Sequence[tuple[str, int, int, int]], source: str) -> Markup | None:
    if not rows:
        return None
    lines = []
    for name, seen, its, mine in rows:
        bars = join(
            tag("i", class_="lost", style=f"width:{100 * its / seen if seen else 0:.1f}%"),
            tag("i", class_="held", style=f"width:{100 * mine / seen if seen else 0:.1f}%"),
        )
        words = f"{name}: {source} has {its} of {seen} right, the student {mine}"
        counts = tag("td", f"{its} → {mine} of {seen}", class_="figures")
        lines.append(
            tag("tr", tag("th", name, scope="row"), tag("td", tag("div", bars, class_="bars", title=words)), counts)
        )
    return tag("table", tag("tbody", *lines), class_="classes")
