"""Which units stay separate within a budget: whole groups from one end, all groups alike, or where it gains most."""

from bisect import bisect_left
from collections.abc import Mapping
from fractions import Fraction
from functools import partial

import numpy as np
from torch import Tensor

from project.alignment import Alignment, Splitting, UnitMap
from project.allocation.budget import Budget
from project.allocation.candidates import Choices, Vector, step_of
from project.allocation.limits import growing
from project.allocation.search import best_counts
from project.allocation.size import price, source_size
from project.symmetry import Spec


def stagewise(
    spec: Spec,
    alignment: Alignment,
    fixed: Mapping[str, UnitMap],
    budget: Budget,
    *,
    front: bool = False,
    step: int | None = 1,
) -> dict[str, UnitMap]:
    """Meet a budget by separating whole groups, one after the other (PLeaS' "zip" budgets).

    Groups are separated from the back of the network (or the front) as long as the budget lasts. The first that fits
    only in part splits the rows whose merging costs most, of three sources or more also in part: one source leaves
    while the others stay merged.

    Args:
        spec: Groups of the sources.
        alignment: Matched units and how far they are from each other.
        fixed: Unit maps of the picture and of the logits.
        budget: Largest size of the student.
        front: Separate from the front instead.
        step: A group takes so many steps at once, but for its last ones; of two sources, a step separates one row.
            None: see :func:`~project.allocation.candidates.step_of`.

    Returns:
        Unit map of every group; the student's size is within the budget, but never below a full merge. In its last
        group, one step more would be too much.
    """
    maps, fits = _merged(spec, alignment, fixed), _Fits(spec, fixed, budget)
    for group in growing(spec) if front else growing(spec)[::-1]:
        splitting = alignment.splitting(group.name)
        after = partial(_with, maps, group.name, splitting)
        steps = bisect_left(range(1, splitting.steps + 1), True, key=lambda steps: not fits(after(steps)))
        maps = after(_whole(steps, splitting, step))
        if steps < splitting.steps:
            break
    return maps


def uniform(
    spec: Spec,
    alignment: Alignment,
    fixed: Mapping[str, UnitMap],
    budget: Budget,
    *,
    step: int | None = 1,
) -> dict[str, UnitMap]:
    """Meet a budget by taking the same share of every group's steps, those that cost most first.

    Args:
        spec: Groups of the sources.
        alignment: Matched units and how far they are from each other.
        fixed: Unit maps of the picture and of the logits.
        budget: Largest size of the student.
        step: A group takes so many steps at once, but for its last ones; of two sources, a step separates one row.
            None: see :func:`~project.allocation.candidates.step_of`.

    Returns:
        Unit map of every group; the largest share within the budget, rounded down to whole steps in each group.
    """
    merged, fits = _merged(spec, alignment, fixed), _Fits(spec, fixed, budget)
    splittings = {group.name: alignment.splitting(group.name) for group in growing(spec)}
    steps = [splitting.steps for splitting in splittings.values()]
    shares = sorted({Fraction(0), *(Fraction(count, total) for total in steps for count in range(1, total + 1))})

    def at(share: Fraction) -> dict[str, UnitMap]:
        partial_maps = {
            name: splitting.after(_whole(int(share * splitting.steps), splitting, step))
            for name, splitting in splittings.items()
        }
        return {**merged, **partial_maps}

    most = bisect_left(shares, True, lo=1, key=lambda share: not fits(at(share)))
    return at(shares[most - 1])


def by_gain(
    spec: Spec,
    alignment: Alignment,
    fixed: Mapping[str, UnitMap],
    budget: Budget,
    gains: Mapping[str, Tensor],
    *,
    step: int | None = 1,
) -> dict[str, UnitMap]:
    """Meet a budget by separating the rows that gain most together.

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
    choices = Choices(spec, alignment, fixed, budget, step)
    ranked = choices.ranked(gains)
    values = [_running(gains[kind.group][rows]) for kind, rows in zip(choices.kinds, ranked, strict=True)]
    return choices.maps(best_counts(choices, values), ranked)


def widest_maps(spec: Spec, alignment: Alignment, fixed: Mapping[str, UnitMap], budget: Budget) -> dict[str, UnitMap]:
    """Make each group as wide as the budget would allow it alone: no student of it is wider anywhere.

    Args:
        spec: Groups of the sources.
        alignment: Matched units.
        fixed: Unit maps of the picture and of the logits.
        budget: Largest size of a student; these maps themselves need not be within it.

    Returns:
        Unit map of every group.
    """
    choices = Choices(spec, alignment, fixed, budget)
    return choices.maps(choices.most, [kind.rows for kind in choices.kinds])


def separated(maps: Mapping[str, UnitMap]) -> dict[str, float]:
    """Measure what is kept apart: for every group, the share of the sources' units with student units of their own.

    Args:
        maps: Unit maps of a student.

    Returns:
        Group -> share, 0 to 1.
    """
    return {name: float((units.present.sum(1) == 1).sum()) / sum(units.sizes) for name, units in maps.items()}


def _running(gains: Tensor) -> Vector:
    """Add gains, shape (rows,), up to the values of separating the first 0, 1, … rows, shape (rows + 1,)."""
    return np.concatenate([[0.0], np.cumsum(gains.double().numpy())])


class _Fits:
    """Tells whether a student of some unit maps is within a budget."""

    def __init__(self, spec: Spec, fixed: Mapping[str, UnitMap], budget: Budget) -> None:
        self.spec, self.price = spec, price(spec, budget.unit)
        self.limit = budget.limit(lambda unit: source_size(spec, fixed[spec.output.name], unit)) * (1 + 1e-9)

    def __call__(self, maps: Mapping[str, UnitMap]) -> bool:
        return self.price.total(self.spec, maps) <= self.limit


def _merged(spec: Spec, alignment: Alignment, fixed: Mapping[str, UnitMap]) -> dict[str, UnitMap]:
    return {**fixed, **{group.name: UnitMap.sorted(alignment.members[group.name]) for group in spec.free}}


def _whole(steps: int, splitting: Splitting, step: int | None) -> int:
    """Round steps down to a multiple of ``step``; all of a group's steps stay all."""
    return steps if steps == splitting.steps else steps - steps % step_of(step, len(splitting.members))


def _with(maps: Mapping[str, UnitMap], name: str, splitting: Splitting, steps: int) -> dict[str, UnitMap]:
    """Replace the unit map of one group by that after so many steps."""
    return {**maps, name: splitting.after(steps)}
