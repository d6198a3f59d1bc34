"""The size of a student: multiply-accumulates by its unit maps, and as counted while it runs."""

from bisect import bisect_right
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from project.alignment import Alignment, Splitting, UnitMap, overlap
from project.symmetry import Spec


def nominal_macs(spec: Spec, maps: Mapping[str, UnitMap]) -> int:
    """Multiply-accumulates of convolutions and linear layers on one picture, zero blocks left out."""
    return sum(
        layer.positions * layer.taps * int(overlap(maps[layer.outputs], maps[layer.inputs]).sum())
        for layer in spec.layers
    )


def source_macs(spec: Spec, fixed: Mapping[str, UnitMap]) -> float:
    """Multiply-accumulates of one source on one picture, averaged over the sources: the budget's unit."""
    sources = fixed[spec.output.name].sources
    apart = {group.name: UnitMap.apart((group.size,) * sources) for group in spec.free}
    return nominal_macs(spec, {**fixed, **apart}) / sources


@torch.no_grad()
def executed_macs(network: nn.Module, picture: tuple[int, int, int]) -> int:
    """Multiply-accumulates that running the network on one picture really costs, counted by torch.

    Args:
        network: In eval mode.
        picture: Shape (channels, height, width).
    """
    example = torch.zeros(1, *picture, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        network(example)
    return int(counter.get_total_flops()) // 2  # a multiply-accumulate is two operations


def stagewise(
    spec: Spec, alignment: Alignment, fixed: Mapping[str, UnitMap], budget: float, *, front: bool = False
) -> dict[str, UnitMap]:
    """Unit maps that meet a budget by separating whole groups, one after the other (PLeaS' "zip" budgets).

    Groups are separated from the back of the network (or the front) as long as the budget lasts. The first that fits
    only in part splits the rows whose merging costs most, of three sources or more also in part: one source leaves
    while the others stay merged.

    Args:
        spec: Groups of the sources.
        alignment: Matched units and how far they are from each other.
        fixed: Unit maps of the picture and of the logits.
        budget: Student's multiply-accumulates over one source's, 1 to N.
        front: Separate from the front instead.

    Returns:
        Unit map of every group; its nominal size is the largest within the budget, but never below a full merge.
    """
    maps = {**fixed, **{group.name: UnitMap(alignment.members[group.name]) for group in spec.free}}
    limit = budget * source_macs(spec, fixed) * (1 + 1e-9)
    for group in spec.free if front else spec.free[::-1]:
        splitting = alignment.splitting(group.name)
        after = partial(_split, maps, group.name, splitting)
        steps = bisect_right(range(1, splitting.steps + 1), limit, key=lambda steps: nominal_macs(spec, after(steps)))
        maps = after(steps)
        if steps < splitting.steps:
            break
    return maps


def _split(maps: Mapping[str, UnitMap], name: str, splitting: Splitting, steps: int) -> dict[str, UnitMap]:
    """The unit maps with so many steps taken in one group."""
    return {**maps, name: splitting.after(steps)}
