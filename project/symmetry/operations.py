"""What functions do to the labels of values, beyond moving entries and combining them one by one.

| operation | what becomes of units |
|---|---|
| sum, mean, norm over axes | of positions: they stay; of all units: none are left; of some: see :func:`reduced` |
| softmax, normalisation over an axis | of positions: they stay; of some units among others: their order is kept |
| padding | of positions: they stay; of units: what is padded are units of nobody else |
| resampling, blurring | they stay |
| product of matrices | summed over units: one unit of both; else heads, whose units stay together |
| convolution along the units | they stay, and so does their order |

An operation takes what has been found so far and its node, and notes the labels of its value.
"""

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from project.errors import TraceError
from project.symmetry.collect import Records
from project.symmetry.graph import code_of
from project.symmetry.units import Value

Target = Callable[..., Any] | str
Operation = Callable[[Records, fx.Node], None]


def first(node: fx.Node) -> fx.Node:
    """What an operation reads first."""
    return cast(fx.Node, node.args[0] if node.args else node.kwargs["input"])


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _axes(found: Records, node: fx.Node, place: int) -> list[int]:
    """The axes that a call names, counted from the first; all of them where it names none."""
    rank, given = len(found.shape(first(node))), argument(node, place, "dim")
    listed = given if isinstance(given, list | tuple) else range(rank) if given is None else [given]
    return [cast(int, dim) % rank for dim in listed]


def reduced(found: Records, node: fx.Node, place: int = 1) -> None:
    """A sum or mean over some axes.

    Where it runs over units of different layers that stand side by side, it is the sum of their values, entry by
    entry. Where it runs over some of the units of one layer, which of them are added up hangs on their order, and that
    is kept.
    """
    value, axes = found.value(first(node)), _axes(found, node, place)
    labels, over = value.labels, [dim for dim in axes if value.labels.shape[dim] > 1]
    left = [dim for dim in value.varying if dim not in axes]
    if over and not left:
        found.whole.append(labels.flatten())
        labels = found.units.new(1, None).view((1,) * labels.dim())
    elif over:
        rows = labels.movedim(over, list(range(len(over)))).flatten(0, len(over) - 1)
        if len({found.writer(int(row.flatten()[0])) for row in rows}) == len(rows):
            found.units.unite(rows[:1], rows)
            labels = found.units.find(labels)
            for dim in over:
                labels = labels.narrow(dim, 0, 1)
        else:
            _keep(found, node, labels, "adds up some of its units")
            shape = [1 if dim in over else size for dim, size in enumerate(labels.shape)]
            labels = found.units.new(int(torch.tensor(shape).prod()), node.name).view(shape)
            _keep(found, node, labels, "counts them off")
    keep = argument(node, place + 1, "keepdim", False)
    shape = [1 if dim in axes else size for dim, size in enumerate(labels.shape) if keep or dim not in axes]
    found.values[node] = Value(labels.reshape(shape), value.free)


def normed(found: Records, node: fx.Node) -> None:
    """A norm over some axes, the order of the norm being named first."""
    reduced(found, node, 2)


def _keep(found: Records, node: fx.Node, labels: Tensor, why: str) -> None:
    found.ordered.append((labels.flatten(), f"{node.name} {why}{code_of(node)}"))


def spread(found: Records, node: fx.Node, default: int | None = None) -> None:
    """What an axis is divided by, a sum or norm over it, hangs on all entries there: softmax, ``F.normalize``."""
    given = argument(node, 1 if node.target is not F.normalize else 2, "dim", default)
    value = found.value(first(node))
    dim = cast(int, given) % len(found.shape(node))
    if dim in value.varying:
        if len(value.varying) == 1:
            raise TraceError(
                f"{node.name} calls {_name(node)!r}, whose effect on units is unknown here{code_of(node)}."
            )
        _keep(found, node, value.labels, "divides by a sum over some of them")
    found.values[node] = value


def normalised(found: Records, node: fx.Node) -> None:
    """LayerNorm without a scale and a shift: statistics over all units."""
    value, rank = found.value(first(node)), len(found.shape(node))
    if len(argument(node, 1, "normalized_shape")) != 1 or argument(node, 2, "weight") is not None:
        raise TraceError(f"{node.name} calls 'layer_norm' on more than the axis of the units{code_of(node)}.")
    found.whole.append(found.along(first(node), value, rank - 1, node.name))
    found.values[node] = found.value(first(node))


def padded(found: Records, node: fx.Node) -> None:
    """Padding; zeros beside units, as in the shortcuts of CIFAR's ResNets, are units that nothing has written."""
    pads: list[Any] = [one.meta.get("value") if isinstance(one, fx.Node) else one for one in argument(node, 1, "pad")]
    value, rank = found.value(first(node)), len(found.shape(node))
    if not all(isinstance(size, int) for size in pads):
        raise TraceError(f"{node.name} pads by sizes that are not numbers{code_of(node)}.")
    labels = value.labels
    for place in range(len(pads) // 2):
        dim = rank - 1 - place
        before, after = pads[2 * place : 2 * place + 2]
        if not before and not after:
            continue
        if labels.shape[dim] == 1:
            if found.shape(first(node))[dim] == 1 and dim == 1:
                raise TraceError(f"{node.name} pads the axis of the units{code_of(node)}.")
            continue
        if argument(node, 2, "mode", "constant") != "constant" or min(before, after) < 0:
            raise TraceError(f"{node.name} pads units with others, or cuts them off{code_of(node)}.")
        parts = [labels]
        for size, where in ((before, 0), (after, 1)):
            shape = [size if one == dim else count for one, count in enumerate(labels.shape)]
            made = found.units.new(int(torch.tensor(shape).prod()), node.name).view(shape)
            parts.insert(len(parts) * where, made)
        labels = torch.cat(parts, dim)
        found.rigid.append((labels.flatten(), f"{node.name} counts its units{code_of(node)}"))
    found.values[node] = found.units.value(labels, free=value.free)


def resampled(found: Records, node: fx.Node) -> None:
    """Pooling, resampling, blurring: of each unit's map for itself."""
    value = found.value(first(node))
    channels = found.along(first(node), value, 1, node.name)
    found.values[node] = Value(channels.view(1, -1, *(1,) * (len(found.shape(node)) - 2)))


def blurred(found: Records, node: fx.Node) -> None:
    """A convolution with a fixed filter, the same for every unit."""
    weight = argument(node, 1, "weight")
    _, filters = found.constants.get(weight, ("", None))
    units = found.shape(first(node))[1]
    alike = filters is not None and filters.device.type != "meta" and bool((filters == filters[:1]).all())
    if not alike or argument(node, 6, "groups", 1) != units or len(cast(Tensor, filters)) != units:
        raise TraceError(f"{node.name} calls 'conv2d', whose effect on units is unknown here{code_of(node)}.")
    resampled(found, node)


def along_units(found: Records, node: fx.Node, name: str, module: Any, value: Value) -> None:
    """A convolution that runs along the units, as in efficient channel attention: neighbours mean something."""
    if value.labels.dim() != 3 or value.varying != (2,) or module.in_channels != 1 or module.out_channels != 1:
        raise TraceError(f"layer {name!r} is a Conv1d, whose units are unknown here{code_of(node)}.")
    for tensor, parameter in module.named_parameters():
        found.parameters[f"{name}.{tensor}"] = found.units.new(parameter.numel(), None).view(parameter.shape)
    found.ordered.append((value.labels.flatten(), f"layer {name!r} runs along its units{code_of(node)}"))
    found.values[node] = value


def multiplied(found: Records, node: fx.Node) -> None:
    """A product of matrices, as in attention, on the last two axes of both; the axes before them hold heads."""
    rank = len(found.shape(node))
    sides = [cast(fx.Node, one) for one in node.args[:2]]
    labels = [_ranked(found, one, rank) for one in sides]
    left, right = labels
    summed = [left.shape[-1] > 1, right.shape[-2] > 1]
    kept = [left.shape[-2] > 1, right.shape[-1] > 1]
    if all(summed) and not any(kept):
        found.units.unite(left[..., 0, :], right[..., 0])
        rows = found.units.find(left[..., 0, :])
        found.values[node] = Value(_heads(found, node, rows)[..., None, None])
        found.products.append((rows.flatten(), _pairs(found, node)))
        return
    if any(summed) or all(kept):
        raise TraceError(
            f"{node.name} calls {_name(node)!r} on values whose units stand on different axes{code_of(node)}; "
            f"unknown here."
        )
    mixed, other = (right, left) if kept[1] else (left, right)
    rows = mixed[..., 0, :] if kept[1] else mixed[..., 0]
    over = other[..., 0, 0]
    heads = rows.numel() // rows.shape[-1]
    if over.numel() > 1 or heads == 1:
        _together(found, node, heads, rows, over)
    found.products.append((rows.flatten(), _mixed(found, node, sides[0] if kept[1] else sides[1])))
    found.values[node] = found.units.value(mixed)


def _mixed(found: Records, node: fx.Node, matrix: fx.Node) -> int:
    """Products that each unit takes which a matrix of positions puts together: its entries, the heads apart."""
    shape, matrix_shape = found.shape(node), found.shape(matrix)
    heads = shape[-3] if len(shape) > 3 else 1
    return shape[:-2].numel() * matrix_shape[-2] * matrix_shape[-1] // max(1, heads) // found.batch


def _pairs(found: Records, node: fx.Node) -> int:
    """Products that each unit summed over takes."""
    shape = found.shape(node)
    heads = max(1, shape[-3] if len(shape) > 3 else 1)
    return shape.numel() // heads // found.batch


def attended(found: Records, node: fx.Node) -> None:
    """``F.scaled_dot_product_attention``: queries and keys share units, heads stay together."""
    queries, keys, values = (found.value(cast(fx.Node, one)).labels for one in node.args[:3])
    if any(one.shape[-2] > 1 for one in (queries, keys, values)):
        raise TraceError(f"{node.name} attends by values whose units stand on different axes{code_of(node)}.")
    found.units.unite(queries[..., 0, :], keys[..., 0, :])
    read, written = found.units.find(queries[..., 0, :]), values[..., 0, :]
    count = written.numel() // written.shape[-1]
    mask = argument(node, 3, "attn_mask")
    heads = read.new_empty(0)
    if isinstance(mask, fx.Node) and mask in found.values:
        heads = _heads(found, node, read)
        known = found.value(mask).labels
        if heads.numel() > 1 or any(size > 1 for size in known.shape):
            found.units.unite(known, heads[..., None, None])
    _together(found, node, count, read, written, *([heads] if heads.numel() > 1 else []))
    shape, others = found.shape(node), found.shape(cast(fx.Node, node.args[1]))
    pairs = shape.numel() // shape[-1] // max(1, count) * others[-2] // found.batch
    found.products += [(read.flatten(), pairs), (written.flatten(), pairs)]
    found.values[node] = found.units.value(values)


def _heads(found: Records, node: fx.Node, rows: Tensor) -> Tensor:
    """A unit for each head of some units (…, units of a head), which moves with them."""
    count = rows.numel() // rows.shape[-1]
    heads = found.units.new(count, node.name).view(rows.shape[:-1])
    _together(found, node, count, rows, heads)
    return heads


def _together(found: Records, node: fx.Node, heads: int, *members: Tensor) -> None:
    if heads == 1:  # nothing within a head can be told apart from the outside
        found.whole += [one.flatten() for one in members]
    found.tie(node.name, node, *(one.reshape(heads, -1) for one in members))


def _ranked(found: Records, node: fx.Node, rank: int) -> Tensor:
    if node not in found.values:
        raise TraceError(f"{node.name} is a matrix without units in a product{code_of(node)}; unknown here.")
    labels = found.value(node).labels
    return labels.reshape((1,) * (rank - labels.dim()) + tuple(labels.shape))


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


OPERATIONS: dict[Target, Operation] = {
    **dict.fromkeys((torch.mean, torch.sum, "mean", "sum"), reduced),
    **dict.fromkeys((torch.norm, "norm"), normed),
    **dict.fromkeys((torch.softmax, F.softmax, "softmax", F.normalize), spread),
    **dict.fromkeys((torch.matmul, torch.bmm, operator.matmul, "matmul", "bmm", "__matmul__"), multiplied),
    F.interpolate: resampled,
    F.layer_norm: normalised,
    F.pad: padded,
    F.conv2d: blurred,
    F.scaled_dot_product_attention: attended,
}
