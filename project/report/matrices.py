"""Matrices as pictures: which classes are taken for which, and how the units of two sources go together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from project.alignment import UnitMap, activation_similarity
from project.moments import Statistics
from project.report.figures import blank_figure
from project.symmetry import Group, Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

NAMED = 30
"""Classes of a domain that have room in a figure; of more, those of which most pictures are taken for others."""
GROUPS = 6
"""Groups whose units are drawn, from the first to the last."""
MOST_UNITS = 2048
"""Units of all sources together of the largest group that is drawn: its matrices take memory after the fit."""


@dataclass(frozen=True, eq=False)
class Correlations:
    """How the units of the first two sources go together in one group.

    Args:
        group: Its name.
        before: Pearson's correlation of each unit of the first source, a row each, with each of the second, in the
            sources' own order; float64, shape (units, units).
        after: The same with the units of the second in the order in which they were matched.
    """

    group: str
    before: Tensor
    after: Tensor


def correlations(
    statistics: Statistics, spec: Spec, maps: Mapping[str, UnitMap], groups: int = GROUPS
) -> list[Correlations]:
    """Correlate the units of the first two sources over the calibration pictures, before and after alignment.

    Args:
        statistics: With unit moments; groups without are left out.
        spec: Groups of the sources.
        maps: Group -> which units a student puts together; units that it keeps apart are left out.
        groups: How many groups, at most; of more, some from the first to the last.
    """
    known = [group for group in spec.free if _known(group, statistics, maps)]
    places = torch.linspace(0, len(known) - 1, min(groups, len(known))).round().int().tolist()
    return [_correlated(statistics, known[place], maps[known[place].name].members) for place in places]


def _known(group: Group, statistics: Statistics, maps: Mapping[str, UnitMap]) -> bool:
    measured = bool(group.nodes) and all(node in statistics.units for node in group.nodes)
    together = group.name in maps and bool((maps[group.name].members[:, :2] >= 0).all(1).any())
    return measured and together and group.size * maps[group.name].sources <= MOST_UNITS


def _correlated(statistics: Statistics, group: Group, members: Tensor) -> Correlations:
    found = activation_similarity(statistics, group, "correlation").cpu()[: group.size, group.size : 2 * group.size]
    both = members[(members[:, :2] >= 0).all(1)]
    rows, columns = both[both[:, 0].argsort()][:, :2].unbind(1)
    return Correlations(group.name, found[rows][:, columns.sort().values], found[rows][:, columns])


def correlation_figure(found: Sequence[Correlations], names: Sequence[str]) -> "Figure":
    """Draw correlations of units before (above) and after alignment (below), where matched units are the diagonal.

    Args:
        found: One a group.
        names: Of the two sources.
    """
    figure = blank_figure((2.6 * len(found) + 1, 5.6))
    panels = figure.subplots(2, len(found), squeeze=False)
    image: AxesImage | None = None
    for column, one in enumerate(found):
        for axes, matrix, order in zip(
            panels[:, column], (one.before, one.after), ("own order", "matched"), strict=True
        ):
            image = axes.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            mean = float(matrix.diagonal().mean())
            axes.set_title(f"{one.group}\n{order}: diagonal {mean:.2f}", fontsize=8)
            axes.tick_params(labelsize=6)
    panels[0, 0].set_ylabel(f"units of {names[0]}", fontsize=8)
    panels[1, 0].set_ylabel(f"units of {names[0]}", fontsize=8)
    panels[1, 0].set_xlabel(f"units of {names[1]}", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=panels, label="correlation", fraction=0.03)
    return figure


def confusion_figure(tests: Mapping[str, Any], network: str) -> "Figure":
    """Draw the confusion matrices of a network, a panel a domain: of every class, the share taken for each.

    Args:
        tests: ``classes``, ``pictures``, ``right`` and ``confusions``, as results hold them.
        network: Its name.
    """
    domains = list(tests["confusions"][network])
    columns = min(3, len(domains))
    side = 5.2 if max(len(tests["classes"][domain]) for domain in domains) > 12 else 4.2
    figure = blank_figure((side * columns + 0.8, side * ceil(len(domains) / columns)))
    panels = figure.subplots(ceil(len(domains) / columns), columns, squeeze=False).flatten()
    image: AxesImage | None = None
    for axes, domain in zip(panels, domains, strict=False):
        image = _draw_confusions(axes, tests, network, domain)
    for axes in panels[len(domains) :]:
        axes.remove()
    if image is not None:
        figure.colorbar(image, ax=list(panels[: len(domains)]), label="share of the pictures of a class", fraction=0.03)
    return figure


def _draw_confusions(axes: "Axes", tests: Mapping[str, Any], network: str, domain: str) -> "AxesImage":
    names, wrong = list(tests["classes"][domain]), tests["confusions"][network][domain]
    right, pictures = tests["right"][network][domain], tests["pictures"][domain]
    order = sorted(range(len(names)), key=lambda place: right[place] - pictures[place])[:NAMED]
    shown = sorted(order)
    shares = torch.zeros(len(shown), len(shown))
    for row, place in enumerate(shown):
        for column, other in enumerate(shown):
            told = right[place] if place == other else wrong.get(names[place], {}).get(names[other], 0)
            shares[row, column] = told / max(pictures[place], 1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    labels = [names[place] for place in shown]
    axes.set_xticks(range(len(shown)), labels, rotation=90, fontsize=6)
    axes.set_yticks(range(len(shown)), labels, fontsize=6)
    part = f", the {NAMED} most confused of {len(names)} classes" if len(names) > NAMED else ""
    axes.set_title(f"{domain}{part}", fontsize=9)
    axes.set(xlabel="taken for", ylabel="class")
    return image
