"""What to look at first: accuracy against size, and where in the network merging hurts."""

from collections.abc import Mapping, Sequence
from itertools import cycle, product
from typing import TYPE_CHECKING

from project.report.results import TOP_1, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED = "#222222", "#8a8a8a"
MARKERS = ("o-", "s--", "^-.", "v:", "D-", "P--", "X-.", "*:")
COLOURS = ("#3366cc", "#dc7b1e", "#2a8c5a", "#a23b9a", "#b8322a", "#5b7083")


def blank_figure(size: tuple[float, float]) -> "Figure":
    """A figure of so many inches; matplotlib is imported with the first, for much of the project draws none."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def accuracy_figure(rows: Sequence[Row], measure: str = TOP_1) -> "Figure":
    """Plot mean accuracy against executed multiply-accumulates: a line a method, a mark for every reference.

    Args:
        rows: Of the table.
        measure: What stands for accuracy in them.
    """
    methods = dict.fromkeys(row.name.rsplit("-", 1)[0] for row in rows if row.kind == "student")
    many = len(methods) > len(COLOURS)
    figure = blank_figure((9, max(4.2, 0.2 * len(methods) + 0.6)) if many else (7, 4.2))
    axes = figure.subplots()
    for (marker, colour), method in zip(cycle(product(MARKERS, COLOURS)), methods, strict=False):
        points = [(r.executed, r.mean) for r in rows if r.kind == "student" and r.name.rsplit("-", 1)[0] == method]
        axes.plot(*zip(*sorted(points), strict=True), marker, color=colour, label=method, linewidth=2, markersize=6)
    for row in (row for row in rows if row.kind == "reference"):
        axes.plot(row.executed, row.mean, "D", color=INK, markersize=7)
        axes.annotate(row.name, (row.executed, row.mean), (-8, 6), textcoords="offset points", ha="right", color=INK)
    own = [max(row.accuracy.values()) for row in rows if row.kind == "source"]
    if own:
        limit = sum(own) / len(own)
        axes.axhline(limit, color=MUTED, linestyle="--", linewidth=1)
        axes.annotate("every source on its best domain", (1, limit), (2, 4), textcoords="offset points", color=MUTED)
    axes.set(xlabel="multiply-accumulates, over one source", ylabel=f"mean over domains of the {measure}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    if many:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    elif methods:
        axes.legend(frameon=False)
    return figure


def separate_figure(shares: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Plot the share of each group's units that is kept separate, along the network, a line for each student.

    Args:
        shares: Student -> group -> share.
    """
    groups = list(next(iter(shares.values())))
    series = {name: [by_group[group] for group in groups] for name, by_group in shares.items()}
    return layer_figure(series, groups, "share kept separate")


def layer_figure(values: Mapping[str, Sequence[float]], labels: Sequence[str], ylabel: str) -> "Figure":
    """Plot values along the layers of the network, a line for each series."""
    many = len(values) > len(COLOURS)
    width, height = max(6, 0.32 * len(labels)), 4.2
    size = (width + 3, max(height, 0.2 * len(values) + 0.6)) if many else (width, height)
    figure = blank_figure(size)
    axes = figure.subplots()
    for colour, (name, series) in zip(COLOURS * len(values), values.items(), strict=False):
        axes.plot(range(len(series)), series, "o-", color=colour, label=name, markersize=4)
    axes.set(ylabel=ylabel)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    if many:  # within the axes it would leave no room for them
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    else:
        axes.legend(frameon=False, fontsize=8)
    return figure
