"""Moments of units that follow from other moments, to the rounding of the networks, so that no products are made.

- In eval mode a batch norm puts out y = s ∘ x + t, so that Σ (y; 1)(y; 1)ᵀ = A Σ (x; 1)(x; 1)ᵀ Aᵀ with
  A = (diag(s), t; 0, 1).
- The moment of what a layer reads holds that of the value which it reads, where some of its products are of every
  place of that value with itself: the pairs without a shift of a convolution, or all of a 1 × 1 one. Only the value's
  sums are missing.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from project.moments.layer import LayerMoment
from project.moments.moment import Moment
from project.symmetry import NORMS

MAX_CANCELLATION = 100.0  # E[x²] over its variance beyond which a norm would show the rounding of float32 products

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def norm_scale_and_shift(norm: BatchNorm) -> tuple[Tensor, Tensor]:
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
Affine = tuple[Tensor, Tensor]


def rules(
    graph: fx.GraphModule,
    affine: Mapping[str, Affine],
    units: Mapping[str, Moment],
    layers: Mapping[str, LayerMoment],
) -> Iterator[tuple[str, Rule]]:
    """Which values' moments follow from others, each after those that it follows from.

    Args:
        graph: That the sources share.
        affine: From :func:`affine_norms`.
        units: Value -> its moment, of those that are gathered.
        layers: Call of a layer -> the moment of what it reads, of those that are gathered.
    """
    for node in graph.graph.nodes:
        if node.name not in units:
            continue
        if node.name in affine and str(node.args[0]) in units:
            yield node.name, ThroughNorm(units[str(node.args[0])], *affine[node.name])
            continue
        for user in node.users:
            if user.name in layers and _unchanged(node, user, graph):
                moment = layers[user.name]
                if moment.every_place and moment.channels == units[node.name].size - 1:
                    yield node.name, ReadByLayer(moment)
                    break


def affine_norms(graph: fx.GraphModule, networks: Sequence[nn.Module]) -> dict[str, Affine]:
    """Calls of batch norms in which nothing much cancels: scale and shift of all sources, one behind the other.

    Args:
        graph: That the sources share.
        networks: The sources, in eval mode.
    """
    found: dict[str, Affine] = {}
    cancels = []
    for node in graph.graph.nodes:
        modules = [one.get_submodule(str(node.target)) for one in networks] if node.op == "call_module" else []
        norms = [one for one in modules if isinstance(one, NORMS) and one.track_running_stats]
        if len(norms) < len(networks) or not _unchanged(node.args[0], node, graph):
            continue
        cancels.append(torch.stack([_cancelled(norm) for norm in norms]).max())
        scales, shifts = zip(*(norm_scale_and_shift(norm) for norm in norms), strict=True)
        found[node.name] = torch.cat(scales), torch.cat(shifts)
    ratios = torch.stack(cancels).tolist() if cancels else []  # at once, since an accelerator has to be waited for
    return {name: one for (name, one), ratio in zip(found.items(), ratios, strict=True) if ratio <= MAX_CANCELLATION}


def _cancelled(norm: BatchNorm) -> Tensor:
    """The largest E[x²] over the variance that a norm divides by, as its statistics have it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance = norm.running_var.double() + norm.eps
    return (norm.running_mean.double().square() / variance).max() + 1


def _unchanged(node: fx.Node, reader: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether a call reads a value first, and as it was made: nothing before may have changed it in place.

    Whatever reads it, or what was made of it, may hand on the same memory.
    """
    if not reader.args or reader.args[0] is not node or reader.kwargs:
        return False
    same, nodes = {node}, list(graph.graph.nodes)
    for between in nodes[nodes.index(node) + 1 : nodes.index(reader)]:
        if between.args and between.args[0] in same:
            if _in_place(between, graph):
                return False
            same.add(between)
    return True


def _in_place(node: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether a call may change what it reads first."""
    if node.op == "call_module":
        return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    iterated = node.target in vars(operator).values() and name.startswith("i") and hasattr(operator, name[1:])
    return name.endswith("_") or iterated or bool(node.kwargs.get("inplace")) or any(it is True for it in node.args[1:])
