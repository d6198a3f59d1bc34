"""Paths between sources and the barriers on them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from project.report.figures import COLOURS, INK, blank_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def connectivity(points: Sequence[tuple[Mapping[str, Any], Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Gather the accuracies along every path between sources, and the barriers on it.

    The barrier is the largest gap between (1 − t) times the accuracy of the start plus t times that of the end, and
    the accuracy at t (arXiv 2110.06296); 0 where no point lies below.

    Args:
        points: For each point where it lies (method, from, to, t), and domain -> top-1 in per cent there.

    Returns:
        ``method: from – to`` -> ``t``, ascending; ``accuracy``, domain and ``mean`` -> values along it; and
        ``barrier``, the same -> points.
    """
    paths: dict[str, list[tuple[float, dict[str, float]]]] = defaultdict(list)
    for position, accuracy in points:
        figures = {**accuracy, "mean": sum(accuracy.values()) / len(accuracy)}
        paths[f"{position['method']}: {position['from']} – {position['to']}"].append((position["t"], figures))
    gathered = {}
    for name, path in paths.items():
        path.sort(key=lambda point: point[0])
        ts = [t for t, _ in path]
        lines = {domain: [figures[domain] for _, figures in path] for domain in path[0][1]}
        barrier = {domain: _barrier(ts, values) for domain, values in lines.items()}
        gathered[name] = {"t": ts, "accuracy": lines, "barrier": barrier}
    return gathered


def _barrier(ts: Sequence[float], values: Sequence[float]) -> float:
    return max((1 - t) * values[0] + t * values[-1] - value for t, value in zip(ts, values, strict=True))


def connectivity_figure(paths: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Plot accuracy along every path, a panel each: the domains and, in bold, their mean, its barrier in the title."""
    figure = blank_figure((4.2 * min(3, len(paths)), 3.6 * ((len(paths) + 2) // 3)))
    panels = figure.subplots((len(paths) + 2) // 3, min(3, len(paths)), squeeze=False, sharey=True).flatten()
    for axes, (name, path) in zip(panels, paths.items(), strict=False):
        lines = path["accuracy"] if len(path["accuracy"]) > 2 else {"mean": path["accuracy"]["mean"]}  # of one domain
        for index, (domain, values) in enumerate(lines.items()):
            style = {"color": INK, "linewidth": 2.5} if domain == "mean" else {"color": COLOURS[index % len(COLOURS)]}
            axes.plot(path["t"], values, "o-", label=domain, markersize=4, **style)
        ends = [path["accuracy"]["mean"][index] for index in (0, -1)]
        axes.plot([0, 1], ends, ":", color=INK)
        axes.set(title=f"{name}\nbarrier {path['barrier']['mean']:.1f}", xlabel="t, from the first to the second")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    for axes in panels[len(paths) :]:
        axes.remove()
    panels[0].set_ylabel("top-1 (%)")
    panels[0].legend(frameon=False, fontsize=8)
    return figure
