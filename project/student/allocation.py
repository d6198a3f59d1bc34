"""Which units stay separate within a budget: whole groups from one end, all groups alike, or where it gains most."""

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from project.alignment import Alignment, UnitMap
from project.student.budget import Budget
from project.student.choices import Choices, Counts, Vector
from project.student.optimise import best_counts
from project.symmetry import Spec


def stagewise(
    spec: Spec,
    alignment: Alignment,
    fixed: Mapping[str, UnitMap],
    budget: Budget | float | str,
    *,
    front: bool = False,
    step: int = 1,
) -> dict[str, UnitMap]:
    """Unit maps that meet a budget by separating whole groups, one after the other (PLeaS' "zip" budgets).

    Groups are separated from the back of the network (or the front) as long as the budget lasts. The first that fits
    only in part gives up its worst matched units.

    Args:
        spec: Groups of the sources.
        alignment: Matched units and how well they match.
        fixed: Unit maps of the picture and of the logits.
        budget: Largest size of the student.
        front: Separate from the front instead.
        step: Rows of a group are separated this many at once, but for its last ones.

    Returns:
        Unit map of every group; the student's size is the largest within the budget, but never below a full merge.
    """
    choices = Choices(spec, alignment, fixed, Budget.of(budget), step)
    paths, counts = _paths(choices), np.zeros_like(choices.counts)
    for group in spec.free if front else spec.free[::-1]:
        path = paths[group.name]
        steps = bisect_right(range(1, len(path)), choices.limit, key=lambda n: choices.size(counts + path[n]))
        counts = counts + path[steps]
        if steps < len(path) - 1:
            break
    return _worst_apart(choices, counts)


def uniform(
    spec: Spec,
    alignment: Alignment,
    fixed: Mapping[str, UnitMap],
    budget: Budget | float | str,
    *,
    step: int = 1,
) -> dict[str, UnitMap]:
    """Unit maps that meet a budget by separating the same share of every group, the worst matched units of each.

    Args:
        spec: Groups of the sources.
        alignment: Matched units and how well they match.
        fixed: Unit maps of the picture and of the logits.
        budget: Largest size of the student.
        step: Rows of a group are separated this many at once, but for its last ones.

    Returns:
        Unit map of every group; the largest share within the budget, rounded down to whole steps in each group.
    """
    choices = Choices(spec, alignment, fixed, Budget.of(budget), step)
    paths = _paths(choices)
    sizes = {len(path) - 1 for path in paths.values()} - {0}
    shares = sorted({(rows / size, rows, size) for size in sizes for rows in range(1, size + 1)})

    def at(share: tuple[float, int, int]) -> Counts:
        _, rows, size = share
        counts: Counts = np.stack([path[(len(path) - 1) * rows // size] for path in paths.values()]).sum(0)
        return counts

    place = bisect_right(shares, choices.limit, key=lambda share: choices.size(at(share)))
    return _worst_apart(choices, at(shares[place - 1]) if place else np.zeros_like(choices.counts))


def by_gain(
    spec: Spec,
    alignment: Alignment,
    fixed: Mapping[str, UnitMap],
    budget: Budget | float | str,
    gains: Mapping[str, Tensor],
    *,
    step: int = 1,
) -> dict[str, UnitMap]:
    """Unit maps that meet a budget by separating the rows that gain most together.

    Args:
        spec: Groups of the sources.
        alignment: Matched units.
        fixed: Unit maps of the picture and of the logits.
        budget: Largest size of the student.
        gains: group -> what keeping the sources of each row apart is worth, 0 or more, in the order of its unit map.
        step: Rows of a group are separated this many at once, but for its last ones.

    Returns:
        Unit map of every group; the student's size is within the budget, but never below a full merge.
    """
    choices = Choices(spec, alignment, fixed, Budget.of(budget), step)
    ranked = choices.ranked(gains)
    values = [_running(gains[kind.group][rows]) for kind, rows in zip(choices.kinds, ranked, strict=True)]
    return choices.maps(best_counts(choices, values), ranked)


def separated(maps: Mapping[str, UnitMap]) -> dict[str, float]:
    """For every group, the share of the sources' units that student units of their own stand for.

    Args:
        maps: Unit maps of a student.
    """
    return {name: float((units.present.sum(1) == 1).sum()) / sum(units.sizes) for name, units in maps.items()}


def _running(gains: Tensor) -> Vector:
    """The value of separating the first 0, 1, … rows."""
    return np.concatenate([[0.0], np.cumsum(gains.double().numpy())])


def _paths(choices: Choices) -> dict[str, Counts]:
    """For every group, the counts after 0, 1, … steps of its worst matched rows; shape (steps + 1, kinds)."""
    paths = {}
    for group in choices.spec.free:
        mine = [(place, kind) for place, kind in enumerate(choices.kinds) if kind.group == group.name]
        places = torch.cat([torch.full_like(kind.rows, place) for place, kind in mine] or [torch.arange(0)])
        rows = torch.cat([kind.rows for _, kind in mine] or [torch.arange(0)])
        order = places[choices.scores[group.name][rows].argsort(stable=True)].numpy()
        path = np.zeros((len(order) + 1, len(choices.kinds)), dtype=np.int64)
        path[np.arange(1, len(order) + 1), order] = 1
        stops = np.unique([*range(0, len(order), choices.step), len(order)])
        paths[group.name] = path.cumsum(0)[stops]
    return paths


def _worst_apart(choices: Choices, counts: Counts) -> dict[str, UnitMap]:
    return choices.maps(counts, choices.ranked({name: -scores for name, scores in choices.scores.items()}))
