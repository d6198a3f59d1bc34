"""Whether networks are as often right as they are sure."""

from collections.abc import Sequence
from typing import NamedTuple

from project.report.page.markup import Markup, choice, join, section, tag
from project.report.page.plot import STYLES, Axis, Point, Series, plot
from project.report.page.reading import Merge, Network, number, tally
from project.report.page.share import counted

SMALLEST, LARGEST = 0.5, 2.2
"""Factors on the marks of a bin with no and with all pictures."""


class Bin(NamedTuple):
    """Pictures of nearly one confidence.

    Args:
        confidence: Its mean, from 0 to 1.
        right: How many were told rightly.
        pictures: Of how many.
    """

    confidence: float
    right: int
    pictures: int


def calibration_section(merge: Merge, chosen: str | None) -> Markup | None:
    """The section of calibration; None where nobody looked at confidences.

    Args:
        merge: What was found.
        chosen: Name of the network that is shown first.
    """
    found = {
        network.name: {domain: bins for domain in merge.domains if (bins := _bins(merge, network, domain))}
        for network in merge.networks
    }
    found = {name: domains for name, domains in found.items() if domains}
    if not found:
        return None
    note = (
        "A point on the line is right as often as it is sure; below it, it is too sure; large points "
        "hold many pictures. The expected calibration error "
        "is the mean distance from the line, over pictures; few pictures make it larger by themselves."
    )
    panels = {name: _curves(domains) for name, domains in found.items()}
    return section(
        "calibration", "Calibration", tag("p", note, class_="note"),
        tag("div",
            tag("div", choice("calibration", "Network", panels, chosen)),
            _errors(found, merge.domains, chosen), class_="beside"),
    )  # fmt: skip


def _bins(merge: Merge, network: Network, domain: str) -> list[Bin]:
    held = merge.part("tests", "reliability", network.name, domain)
    pictures, right, means = tally(held.get("pictures")), tally(held.get("right")), held.get("confidence")
    sure = [number(value) for value in means] if isinstance(means, list) else []
    if not len(pictures) == len(right) == len(sure):
        return []
    rows = zip(sure, right, pictures, strict=True)
    return [Bin(mean, told, there) for mean, told, there in rows if mean is not None and told <= there and there]


def expected_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error, in points."""
    gaps = sum(abs(one.right - one.confidence * one.pictures) for one in bins)
    return 100 * gaps / sum(one.pictures for one in bins)


def _curves(domains: dict[str, list[Bin]]) -> Markup:
    ticks = [(value, f"{value} %") for value in (0, 25, 50, 75, 100)]
    sure, right = Axis("confidence", -3, 103, ticks), Axis("right", -3, 103, ticks)
    diagonal = Series("as sure as right", [Point(0, 0, ""), Point(100, 100, "")], "guide", dots=False)
    series = [
        Series(domain, [_point(domain, one, sum(each.pictures for each in bins)) for one in bins], f"s{place % STYLES}")
        for place, (domain, bins) in enumerate(domains.items())
    ]
    return plot("right answers over confidence", [diagonal, *series], sure, right, square=True)


def _point(domain: str, one: Bin, pictures: int) -> Point:
    """A bin, its area by its share of all pictures."""
    share = counted(one.right, one.pictures)
    words = (
        f"{domain}: {one.pictures} pictures of {100 * one.confidence:.0f} % confidence, {one.right} right "
        f"({share.estimate.text} %)"
    )
    size = SMALLEST + (LARGEST - SMALLEST) * (one.pictures / pictures) ** 0.5
    return Point(100 * one.confidence, share.percent, words, size=size)


def _errors(found: dict[str, dict[str, list[Bin]]], domains: Sequence[str], chosen: str | None) -> Markup:
    heads = [tag("th", "expected calibration error, points", scope="col")]
    heads += [tag("th", domain, scope="col", class_="figures") for domain in domains]
    rows = []
    for name, known in found.items():
        cells = [f"{expected_error(known[domain]):.1f}" if domain in known else "–" for domain in domains]
        row = join(tag("th", name, scope="row"), *[tag("td", cell, class_="figures") for cell in cells])
        rows.append(tag("tr", row, class_="marked" if name == chosen else None))
    body = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    return tag("div", body, class_="scroll", tabindex="0", role="region", aria_label="expected calibration errors")
