"""Plots whose words keep their size on every screen: places in per cent, lines in a stretched SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from project.report.page.markup import Markup, join, tag

PHONE = 280
"""Pixels that a plot has on a phone, at least."""
STYLES = 8
"""Styles of lines, ``s0`` to ``s7``, before they begin anew."""
LETTER = 7
"""Pixels of a letter of a tick, about."""


@dataclass(frozen=True)
class Point:
    """A point of a plot.

    Args:
        x: Where it is.
        y: Where it is.
        words: What a reader is told of it.
        spread: How far y may be off; None draws no bar.
        size: Factor on the size of its mark.
    """

    x: float
    y: float
    words: str
    spread: float | None = None
    size: float = 1.0


@dataclass(frozen=True)
class Series:
    """Points under one name.

    Args:
        name: In the legend.
        points: The points.
        style: Which of the sheet's styles: ``s0`` to ``s7``, ``source``, ``reference``, ``level`` or ``guide``.
        line: Whether they are joined.
        dots: Whether they are marked.
    """

    name: str
    points: Sequence[Point]
    style: str
    line: bool = True
    dots: bool = True


@dataclass(frozen=True)
class Axis:
    """An axis.

    Args:
        title: What it shows.
        low: Where it begins.
        high: Where it ends.
        ticks: Places and their names.
    """

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def place(self, value: float) -> float:
        """Where a value lies, in per cent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def within(self, value: float) -> float:
        """The nearest place on the axis."""
        return self.place(min(max(value, self.low), self.high))


def axis_of(title: str, values: Sequence[float], unit: str = "", margin: float = 0.06, least: float = 1e-9) -> Axis:
    """An axis that holds values, with round numbers on it.

    Args:
        title: What it shows.
        values: What must lie on it.
        unit: Behind the numbers.
        margin: Share of its length that stays free at either end.
        least: What it spans at least.
    """
    low, high = min(values), max(values)
    room = max(high - low, least, 1e-9 * abs(high)) * margin + (0 if high - low >= least else least / 2)
    low, high = low - room, high + room
    step = _step((high - low) / 5)
    digits = max(0, -floor(log10(step)))
    places = [number * step for number in range(ceil(low / step), floor(high / step) + 1)]
    return Axis(title, low, high, [(place, f"{place:z.{digits}f}{unit}") for place in places])


def _step(length: float) -> float:
    """A round number near a length."""
    scale = 10.0 ** floor(log10(length))
    return scale * min((1, 2, 5, 10), key=lambda factor: abs(log10(factor * scale / length)))


def names_axis(title: str, names: Sequence[str]) -> Axis:
    """An axis with a place for each of some names; those of sections are written where they have room on a phone."""
    count = max(len(names) - 1, 1)
    sections = [place for place, name in enumerate(names) if not place or _section(name) != _section(names[place - 1])]
    if len(sections) < 3:
        sections = [0, len(names) // 2, len(names) - 1]
    ticks: list[tuple[float, str]] = []
    end = 0.0
    for place in dict.fromkeys(sections):
        name = _section(names[place]) if len(sections) > 3 else f"{place + 1}"
        middle, half = PHONE * place / count, len(name) * LETTER / 2
        if not ticks or middle - half > end + LETTER:
            ticks.append((place, name))
            end = middle + half
    return Axis(title, -0.03 * count, 1.03 * count, [tick for tick in ticks if len(tick[1]) < 12])


def _section(name: str) -> str:
    return name.split(".")[0]


def plot(title: str, series: Sequence[Series], x: Axis, y: Axis, square: bool = False) -> Markup:
    """A plot, with a legend where it has several series.

    Args:
        title: What it shows, for those who do not see it.
        series: What is drawn, the last on top.
        x: The axis from left to right.
        y: The axis from bottom to top.
        square: Whether it is no wider than high.
    """
    lines = [_lines(one, x, y) for one in series]
    dots = [_dots(one, x, y) for one in series if one.dots]
    grid = [tag("line", x1=0, x2=100, y1=100 - y.place(v), y2=100 - y.place(v), class_="grid") for v, _ in y.ticks]
    canvas = tag(
        "div",
        tag("svg", *grid, *lines, viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true"),
        *[tag("span", words, class_="tick y", style=f"bottom:{y.place(value)}%") for value, words in y.ticks],
        *[tag("span", words, class_="tick x", style=f"left:{x.place(value)}%") for value, words in x.ticks],
        *dots,
        class_="canvas",
    )
    keys = [tag("li", tag("i", class_=f"key {one.style}"), one.name) for one in series]
    return tag(
        "figure",
        tag("figcaption", y.title, class_="y-title"),
        canvas,
        tag("div", x.title, class_="x-title"),
        tag("ul", *keys, class_="legend") if len(series) > 1 else None,
        class_="plot square" if square else "plot",
        aria_label=title,
    )


def _lines(series: Series, x: Axis, y: Axis) -> Markup:
    places = [(x.within(point.x), round(100 - y.within(point.y), 3)) for point in series.points]
    joined = " ".join(f"{left},{top}" for left, top in places)
    bars = [
        tag(
            "line", x1=x.within(one.x), x2=x.within(one.x), y1=round(100 - y.within(one.y - one.spread), 3),
            y2=round(100 - y.within(one.y + one.spread), 3), class_=f"bar {series.style}",
        )
        for one in series.points if one.spread is not None
    ]  # fmt: skip
    return join(*bars, tag("polyline", points=joined, class_=series.style) if series.line and joined else None)


def _dots(series: Series, x: Axis, y: Axis) -> Markup:
    return join(
        *[
            tag(
                "i",
                class_=f"dot {series.style}",
                style=f"left:{x.within(one.x)}%;bottom:{y.within(one.y)}%" + ("" if one.size == 1 else _size(one.size)),
                title=one.words,
            )
            for one in series.points
        ]
    )


def _size(size: float) -> str:
    return f";--size:{size:.2f}"


def level(name: str, value: float, x: Axis, style: str) -> Series:
    """A line across the plot."""
    return Series(name, [Point(x.low, value, name), Point(x.high, value, name)], style, dots=False)
