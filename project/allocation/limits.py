"""Which groups of a student may be larger than a source's, and what that means for budgets."""

from collections.abc import Mapping, Sequence

from project.alignment import UnitMap
from project.allocation.budget import Budget
from project.allocation.size import nominal_size, source_size
from project.errors import ConfigurationError
from project.symmetry import Group, Spec

MET = 0.97
"""The share of a budget from which on it counts as met: below it, groups grow by single units if need be."""


def growing(spec: Spec) -> tuple[Group, ...]:
    """Collect the groups of which units can be kept separate, one by one."""
    return tuple(group for group in spec.free if _reason(group) is None)


def why_not_larger(spec: Spec) -> str | None:
    """Explain why no student holds all units of all sources; None where one can."""
    groups = (group for group in spec.groups.values() if group.fixed not in ("input", "output"))
    return next((reason for group in groups if (reason := _reason(group)) is not None), None)


def check_growth(spec: Spec, fixed: Mapping[str, UnitMap], budgets: Sequence[Budget]) -> None:
    """Refuse budgets that students of this architecture cannot use up.

    Args:
        spec: Groups of the sources.
        fixed: Unit map of the logits, and perhaps of the picture.
        budgets: The budgets.

    Raises:
        ConfigurationError: With the budget, the largest that is allowed, and what stays merged.
    """
    reason = why_not_larger(spec)
    if reason is None:
        return
    heads = fixed[spec.output.name]
    grown = {group.name: UnitMap.apart((group.size,) * heads.sources) for group in growing(spec)}
    merged = {group.name: UnitMap.identity(group.size, heads.sources) for group in spec.groups.values()}
    for budget in budgets:
        size = source_size(spec, heads, budget.unit)
        largest = nominal_size(spec, {**merged, **fixed, **grown}, budget.unit) / size
        if budget.limit(lambda unit: source_size(spec, heads, unit)) > max(1.0, largest) * size * (1 + 1e-9):
            most = int(max(1.0, largest) * 1000) / 1000
            raise ConfigurationError(
                f"budgets holds {budget}, but students of this architecture reach {most:g} times one source's size at "
                f"most, since {reason} and stays merged."
            )


def unspent(spec: Spec, fixed: Mapping[str, UnitMap], maps: Mapping[str, UnitMap], budget: Budget) -> str | None:
    """Tell of a budget that a student does not use up; None where it is met.

    Args:
        spec: Groups of the sources.
        fixed: Unit maps of the picture and of the logits.
        maps: The student's unit maps.
        budget: What was asked for.
    """
    limit = budget.limit(lambda unit: source_size(spec, fixed[spec.output.name], unit))
    size = nominal_size(spec, maps, budget.unit)
    if size >= MET * limit:
        return None
    return f"a student of {budget} has {size / limit:.1%} of that size: what else could stay apart does not fit"


def _reason(group: Group) -> str | None:
    """Explain why a group cannot grow; None where it can."""
    if group.blocks > 1:
        return f"group {group.name!r} is laid out in {group.blocks} blocks"
    if group.fixed == "order":
        return f"the order of group {group.name!r} has a meaning ({group.rigid})"
    if group.whole:
        return f"group {group.name!r} is normalised as a whole"
    return None if group.rigid is None else f"group {group.name!r} cannot grow ({group.rigid})"
