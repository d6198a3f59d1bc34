"""The size of a student in multiply-accumulates, parameters and bytes, from its unit maps alone or counted by torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from project.alignment import UnitMap, overlap
from project.symmetry import Norm, Spec

Unit = Literal["MACs", "parameters", "bytes"]
FLOAT_BYTES = 4
COUNTER_BYTES = 8  # of the batch counter that a norm with running statistics keeps


@dataclass(frozen=True)
class Price:
    """Cost of a student in one unit of size: Σ pairs · (units that see each other) + Σ units · (width) + rest.

    Args:
        pairs: layer -> for each pair of an input and an output unit that share a source; without grouped layers,
            whose units read their own group of the convolution alone and count as such.
        units: group -> for each of its units.
        rest: What does not depend on widths.
    """

    pairs: Mapping[str, int]
    units: Mapping[str, int]
    rest: int = 0

    def total(self, spec: Spec, maps: Mapping[str, UnitMap]) -> int:
        """Compute the size of the student of some unit maps."""
        pairs = sum(
            self.pairs[layer.name] * int(overlap(maps[out], maps[into]).sum())
            for layer in spec.layers
            if layer.name in self.pairs
            for out in spec.parts(layer.outputs)
            for into in spec.parts(layer.inputs)
        )
        return pairs + sum(price * maps[name].units for name, price in self.units.items()) + self.rest


def price(spec: Spec, unit: Unit) -> Price:
    """Derive what widths cost in a unit of size.

    Args:
        spec: Groups of the sources.
        unit: ``MACs`` of convolutions and linear layers on one picture, ``parameters``, or ``bytes`` of all float32
            parameters and of all buffers.
    """
    size = FLOAT_BYTES if unit == "bytes" else 1
    weights = {layer.name: layer.taps * (layer.positions if unit == "MACs" else size) for layer in spec.layers}
    pairs = {layer.name: weights[layer.name] for layer in spec.layers if layer.blocks == 1}
    units = dict.fromkeys(spec.groups, 0)
    for layer in spec.layers:
        if layer.name not in pairs:
            for group in spec.parts(layer.outputs):
                units[group] += weights[layer.name] * (spec.sizes[layer.inputs] // layer.blocks)
    if unit == "MACs":
        for group, count in spec.products.items():
            units[group] += count
        return Price(pairs, units)
    added = [(layer.outputs, size * layer.bias) for layer in spec.layers]
    added += [(parameter.group, size * parameter.entries) for parameter in spec.parameters]
    tracked = [norm for norm in spec.norms if _tracked(spec, norm)] if unit == "bytes" else []
    added += [(norm.group, size * norm.entries) for norm in spec.norms]
    added += [(norm.group, size * 2) for norm in tracked]  # mean and variance
    for axis, count in added:
        for group in spec.parts(axis):
            units[group] += count
    return Price(pairs, units, COUNTER_BYTES * len(tracked))


def nominal_size(spec: Spec, maps: Mapping[str, UnitMap], unit: Unit) -> int:
    """Compute the size of a student by its unit maps, weights that are always zero left out; nothing is built."""
    return price(spec, unit).total(spec, maps)


def nominal_macs(spec: Spec, maps: Mapping[str, UnitMap]) -> int:
    """Count multiply-accumulates of convolutions and linear layers on one picture, by a student's unit maps."""
    return nominal_size(spec, maps, "MACs")


def source_size(spec: Spec, heads: UnitMap, unit: Unit) -> float:
    """Compute the size of one source, averaged over the sources, which may differ in their heads.

    Args:
        spec: Groups of the sources.
        heads: Unit map of the logits.
        unit: What to count.
    """
    cost, total = price(spec, unit), 0
    for logits in heads.sizes:
        sizes = {**spec.sizes, spec.output.name: logits}
        total += cost.total(spec, {name: UnitMap.identity(size, 1) for name, size in sizes.items()})
    return total / heads.sources


def source_macs(spec: Spec, fixed: Mapping[str, UnitMap]) -> float:
    """Count the multiply-accumulates of one source on one picture, averaged over the sources."""
    return source_size(spec, fixed[spec.output.name], "MACs")


def stored_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Count the bytes of a network's tensors, by name, as a file holds them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@torch.no_grad()
def executed_macs(network: nn.Module, picture: tuple[int, int, int]) -> int:
    """Count, by torch, the multiply-accumulates that running the network on one picture really costs.

    Attention runs as plain products meanwhile: not every release of torch counts its fused kernels.

    Args:
        network: In eval mode.
        picture: Shape (channels, height, width).
    """
    example = torch.zeros(1, *picture, device=next(network.parameters()).device)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(example)
    return int(counter.get_total_flops()) // 2  # a multiply-accumulate is two operations


def _tracked(spec: Spec, norm: Norm) -> bool:
    """Tell whether a norm keeps running statistics."""
    return any(axis.tensor == f"{norm.name}.running_mean" for axis in spec.groups[spec.parts(norm.group)[0]].axes)
