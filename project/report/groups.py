"""The permutation groups of a network as a table."""

from collections.abc import Mapping

from torch import nn

from project.symmetry import Group, Spec

COLUMNS = ("group", "units", "written by", "read by", "norms", "tables", "change", "structure")


def group_table(spec: Spec, network: nn.Module, changes: Mapping[str, float]) -> list[str]:
    """Tabulate the permutation groups, one line each.

    Args:
        spec: Groups of the network.
        network: The network.
        changes: Group -> relative change of the logits when it is permuted, alone or with all others.

    Returns:
        Lines: how many layers write and read the group, how many norms and further tensors hold its units, the
        change, and what its permutations must keep together.
    """
    rows = [COLUMNS, *(_row(spec, network, group, changes[group.name]) for group in spec.free)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, len(COLUMNS) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(spec: Spec, network: nn.Module, group: Group, change: float) -> tuple[str, ...]:
    state = network.state_dict()
    tables = {parameter.name for parameter in spec.parameters}
    matrices = [axis for axis in group.axes if axis.tensor not in tables and state[axis.tensor].dim() > 1]
    norms = {axis.tensor.rpartition(".")[0] for axis in group.axes} & {norm.name for norm in spec.norms}
    counts = (
        sum(axis.dim == 0 for axis in matrices),
        sum(axis.dim == 1 for axis in matrices),
        len(norms),
        sum(axis.tensor in tables for axis in group.axes),
    )
    return group.name, str(group.size), *map(str, counts), f"{change:.1e}", _structure(spec, group)


def _structure(spec: Spec, group: Group) -> str:
    """Describe what the permutations of a group must keep together."""
    parts = []
    if group.blocks > 1:
        others = [repr(other.name) for other in spec.tied(group) if other.name != group.name]
        parts.append(f"{group.blocks} blocks" + (f", ordered as in {' and '.join(others)}" if others else ""))
    if group.whole:
        parts.append("normalised all together")
    return "; ".join(parts)
