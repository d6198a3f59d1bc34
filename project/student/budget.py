"""The size of a student: multiply-accumulates by its unit maps, and as counted while it runs."""

from bisect import bisect_right
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from project.alignment import Alignment, UnitMap, overlap
from project.symmetry import Layer, Spec


def nominal_macs(spec: Spec, maps: Mapping[str, UnitMap]) -> int:
    """Multiply-accumulates of convolutions and linear layers on one picture, zero blocks left out."""
    return sum(layer.positions * layer.taps * _pairs(layer, maps) for layer in spec.layers)


def _pairs(layer: Layer, maps: Mapping[str, UnitMap]) -> int:
    """Pairs of an output and an input unit between which there are weights; a depthwise unit reads itself alone."""
    if layer.blocks > 1:
        return maps[layer.outputs].units
    return int(overlap(maps[layer.outputs], maps[layer.inputs]).sum())


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
    only in part gives up its worst matched units.

    Args:
        spec: Groups of the sources.
        alignment: Matched units and how well they match.
        fixed: Unit maps of the picture and of the logits.
        budget: Student's multiply-accumulates over one source's, 1 to N.
        front: Separate from the front instead.

    Returns:
        Unit map of every group; its nominal size is the largest within the budget, but never below a full merge.
    """
    maps = {**fixed, **{group.name: UnitMap(alignment.members[group.name]) for group in spec.free}}
    limit = budget * source_macs(spec, fixed) * (1 + 1e-9)
    for group in spec.free if front else spec.free[::-1]:
        worst = alignment.scores[group.name].argsort(stable=True)
        separated = partial(_separated, maps, group.name, worst)
        units = bisect_right(range(1, group.size + 1), limit, key=lambda units: nominal_macs(spec, separated(units)))
        maps = separated(units)
        if units < group.size:
            break
    return maps


def _separated(maps: Mapping[str, UnitMap], name: str, worst: Tensor, units: int) -> dict[str, UnitMap]:
    """The unit maps with a group's worst matched units given up: that many of them."""
    return {**maps, name: maps[name].split(worst[:units])}
