"""Moments of units that follow from other moments exactly, so that no products are made for them.

- In eval mode a batch norm puts out y = s ∘ x + t, so that Σ (y; 1)(y; 1)ᵀ = A Σ (x; 1)(x; 1)ᵀ Aᵀ with
  A = (diag(s), t; 0, 1).
- The moment of what a layer reads holds that of the value which it reads, where some of its products are of every
  place of that value with itself: the pairs without a shift of a convolution, or all of a 1 × 1 one. Only the value's
  sums are missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from project.moments.layer import LayerMoment
from project.moments.moment import Moment
from project.symmetry import NORMS

CANCELLED = 100.0  # E[x²] over its variance beyond which a norm would show the rounding of float32 products

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def norm_scale_and_shift(norm: Norm) -> tuple[Tensor, Tensor]:
    """What a batch norm in eval mode multiplies each unit by and adds to it: float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift + norm.bias.detach().double() if norm.affine else shift


@dataclass(frozen=True, eq=False)
class ThroughNorm:
    """The moment of a batch norm's output, from that of its input.

    Args:
        read: Moment of (x¹; …; x^N; 1).
        scale: s of all sources.
        shift: t of all sources.
    """

    read: Moment
    scale: Tensor
    shift: Tensor

    def settle(self, moment: Moment) -> None:
        """Let the output's moment hold what follows."""
        full = self.read.sum()
        full[:-1] = self.scale[:, None] * full[:-1] + self.shift[:, None] * full[-1]
        full[:, :-1] = full[:, :-1] * self.scale + full[:, -1:] * self.shift
        moment.hold(full, self.read.count)


@dataclass(frozen=True, eq=False)
class ReadByLayer:
    """The moment of a value, from that of a layer which reads it; its sums are gathered.

    Args:
        layer: Moment of (z¹; …; z^N), with or without a constant.
    """

    layer: LayerMoment

    def settle(self, moment: Moment) -> None:
        """Let the value's moment hold what follows."""
        moment.hold(self.layer.places(), moment.count)


Rule = ThroughNorm | ReadByLayer


def rules(
    graph: fx.GraphModule,
    networks: Sequence[nn.Module],
    units: Mapping[str, Moment],
    layers: Mapping[str, LayerMoment],
) -> Iterator[tuple[str, Rule]]:
    """Which values' moments follow from others, each after those that it follows from.

    Args:
        graph: That the sources share.
        networks: The sources, in eval mode.
        units: Value -> its moment, of those that are gathered.
        layers: Call of a layer -> the moment of what it reads, of those that are gathered.
    """
    for node in graph.graph.nodes:
        if node.name not in units:
            continue
        before = node.args[0].name if node.args and isinstance(node.args[0], fx.Node) else ""
        if before in units and (found := _affine(node, networks)) is not None:
            yield node.name, ThroughNorm(units[before], *found)
            continue
        for user in node.users:
            if user.name in layers and user.args[0] is node and not user.kwargs:
                moment = layers[user.name]
                if moment.every_place and moment.channels == units[node.name].size - 1:
                    yield node.name, ReadByLayer(moment)
                    break


def _affine(node: fx.Node, networks: Sequence[nn.Module]) -> tuple[Tensor, Tensor] | None:
    """Scale and shift of all sources' norms, one behind the other, where nothing much cancels in them."""
    found = []
    for network in networks if node.op == "call_module" else ():
        norm = network.get_submodule(str(node.target))
        if not isinstance(norm, NORMS) or norm.running_mean is None or norm.running_var is None:
            return None
        variance = norm.running_var.double() + norm.eps
        if bool((norm.running_mean.double().square() + variance > CANCELLED * variance).any()):
            return None
        found.append(norm_scale_and_shift(norm))
    if not found:
        return None
    scales, shifts = zip(*found, strict=True)
    return torch.cat(scales), torch.cat(shifts)
