"""Accuracy over multiply-adds: students, references and sources, over all domains and on each."""

from collections.abc import Sequence

from project.report.page.markup import Markup, choice, section, tag
from project.report.page.plot import STYLES, Axis, Point, Series, axis_of, level, plot
from project.report.page.reading import Merge, Network
from project.report.page.share import Estimate, mean


def accuracy_section(merge: Merge) -> Markup | None:
    """The section of accuracy over size; None where nothing has both."""
    panels = {"all domains": _panel(merge, merge.domains)}
    if len(merge.domains) > 1:
        panels |= {domain: _panel(merge, [domain]) for domain in merge.domains}
    found = {name: panel for name, panel in panels.items() if panel is not None}
    if not found:
        return None
    note = "Bars are ± of the table. Dashed: each source on its own domain; dotted: the best single source."
    return section(
        "accuracy", "Accuracy over multiply-adds", tag("p", note, class_="note"), choice("accuracy", "Domain", found)
    )


def _panel(merge: Merge, domains: Sequence[str]) -> Markup | None:
    if not domains:
        return None
    placed = [one for one in merge.networks if one.cost is not None and set(one.accuracy) >= set(domains)]
    if not placed:
        return None
    values = [_value(one, domains) for one in placed]
    ends = [one.value + sign * (one.spread or 0.0) for one in values for sign in (-1, 1)]
    across = axis_of("multiply-adds, over those of one source", [one.cost or 0.0 for one in placed], least=0.5)
    what = "mean over domains, " if len(domains) > 1 else ""
    references = {domain: source for domain, source in merge.references.items() if domain in domains}
    wanted = mean(source.accuracy[domain] for domain, source in references.items()) if references else None
    up = axis_of(f"{what}{merge.measure}", [*ends, *([wanted.value] if wanted else [])], least=1.0)
    drawn = [*_levels(placed, domains, across, wanted), *_methods(placed, domains), *_marks(placed, domains)]
    return plot(f"{up.title} over {across.title}", drawn, across, up)


def _value(network: Network, domains: Sequence[str]) -> Estimate:
    return mean(network.accuracy[domain] for domain in domains)


def _point(network: Network, domains: Sequence[str]) -> Point:
    found = _value(network, domains)
    words = f"{network.name}: {found.text} % at {network.cost:.2f} times"
    return Point(network.cost or 0.0, found.value, words, found.spread)


def _levels(placed: Sequence[Network], domains: Sequence[str], across: Axis, wanted: Estimate | None) -> list[Series]:
    found = []
    if wanted is not None:
        found.append(level(f"each source on its own domain: {wanted.text} %", wanted.value, across, "level"))
    sources = [one for one in placed if one.kind == "source"]
    if sources and len(domains) > 1:
        best = max(sources, key=lambda one: _value(one, domains).value)
        value = _value(best, domains)
        found.append(level(f"best single source, {best.name}: {value.text} %", value.value, across, "level single"))
    return found


def _methods(placed: Sequence[Network], domains: Sequence[str]) -> list[Series]:
    """A line for every method."""
    found = []
    made = [one for one in placed if one.kind in ("student", "point")]
    for place, method in enumerate(dict.fromkeys(one.method for one in made)):
        own = sorted((one for one in made if one.method == method), key=lambda one: one.cost or 0.0)
        line = own[0].kind == "student"
        found.append(Series(method, [_point(one, domains) for one in own], f"s{place % STYLES}", line))
    return found


def _marks(placed: Sequence[Network], domains: Sequence[str]) -> list[Series]:
    """References and sources, each by itself."""
    kinds = {"reference": "reference", "source": "source"}
    return [
        Series(one.name, [_point(one, domains)], kinds[one.kind], line=False) for one in placed if one.kind in kinds
    ]
