"""What each kind of layer does to units: which it reads, which it writes, which blocks it keeps together."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torchvision.models.convnext import LayerNorm2d

from project.errors import TraceError
from project.models import Heads
from project.symmetry.collect import FoundAxis, FoundLayer, Records
from project.symmetry.graph import code_of
from project.symmetry.units import Value

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def convolution(found: Records, node: fx.Node, name: str, module: Any, value: Value) -> None:
    """A convolution; a grouped one ties the blocks it reads to those it writes, a depthwise one is unit by unit."""
    if module.padding_mode != "zeros":
        raise TraceError(
            f"layer {name!r} pads with {module.padding_mode!r}; only 'zeros' is known here{code_of(node)}."
        )
    read, blocks = found.reads(node, value, 1, name), module.groups
    if blocks == 1 or len(read) // blocks > 1 or module.out_channels > blocks:
        written = found.units.new(module.out_channels, name)
        found.axes.append(FoundAxis(f"{name}.weight", 1, read, within=blocks > 1))
    else:
        written = read
    if blocks > 1 and written is not read:
        found.tie(name, node, read.view(blocks, -1), written.view(blocks, -1))
    _layer(found, node, name, module, read, written, module.kernel_size[0] * module.kernel_size[1], blocks)
    found.values[node] = Value(written[None, :, None, None])


def linear(found: Records, node: fx.Node, name: str, module: Any, value: Value) -> None:
    """A linear layer on the last axis, at every position."""
    rank = len(found.shape(node))
    read = found.reads(node, value, rank - 1, name)
    written = found.units.new(module.out_features, name)
    found.axes.append(FoundAxis(f"{name}.weight", 1, read))
    _layer(found, node, name, module, read, written, None, 1)
    found.values[node] = Value(written.view((1,) * (rank - 1) + (-1,)))


def _layer(
    found: Records,
    node: fx.Node,
    name: str,
    module: Any,
    read: Tensor,
    written: Tensor,
    taps: int | None,
    blocks: int,
) -> None:
    found.axes.append(FoundAxis(f"{name}.weight", 0, written))
    if module.bias is not None:
        found.axes.append(FoundAxis(f"{name}.bias", 0, written))
    positions = found.shape(node).numel() // (found.batch * len(written))
    sides = (1, 1) if taps is None else (*found.shape(node.all_input_nodes[0])[2:],)
    bias = module.bias is not None
    found.layers.append(FoundLayer(name, node, read, written, taps, positions, bias, blocks, sides))


def batch_norm(found: Records, node: fx.Node, name: str, module: Any, value: Value) -> None:
    """Batch norm: unit by unit."""
    read = found.reads(node, value, 1, name)
    if len(found.classes(read)) < len(read):
        raise TraceError(f"layer {name!r} normalises flattened positions one by one{code_of(node)}; unknown here.")
    _norm(found, name, module, read, ("weight", "bias", "running_mean", "running_var"), 2)
    found.values[node] = value


def group_norm(found: Records, node: fx.Node, name: str, module: Any, value: Value) -> None:
    """GroupNorm: statistics over blocks of units; over all of them with one group, of each unit with as many."""
    read = found.reads(node, value, 1, name)
    _norm(found, name, module, read, ("weight", "bias"), joint=module.num_groups < len(read))
    if module.num_groups == 1:
        found.whole.append(read)
    elif module.num_groups < len(read):
        found.tie(name, node, read.view(module.num_groups, -1))
    found.values[node] = value


def layer_norm(found: Records, node: fx.Node, name: str, module: Any, value: Value) -> None:
    """LayerNorm over the units: statistics over all of them, at every position."""
    if len(module.normalized_shape) != 1:
        raise TraceError(
            f"layer {name!r} is a LayerNorm over {len(module.normalized_shape)} axes{code_of(node)}; "
            f"only the axis of the units is known here."
        )
    dim = 1 if isinstance(module, LayerNorm2d) else len(found.shape(node)) - 1
    read = found.reads(node, value, dim, name)
    _norm(found, name, module, read, ("weight", "bias"), joint=True)
    found.whole.append(read)
    found.values[node] = value


def _norm(
    found: Records,
    name: str,
    module: Any,
    read: Tensor,
    tensors: tuple[str, ...],
    entries: int | None = None,
    *,
    joint: bool = False,
) -> None:
    there = [tensor for tensor in tensors if getattr(module, tensor) is not None]
    found.axes += [FoundAxis(f"{name}.{tensor}", 0, read) for tensor in there]
    found.norms.append((name, read, (len(there) if entries is None else entries, joint)))


def attention(found: Records, node: fx.Node, name: str, module: Any, value: Value) -> None:
    """What lies between the layers of attention: heads are blocks; queries and keys share units, values have theirs."""
    inputs = [one for one in node.args if isinstance(one, fx.Node) and one in found.values]
    queries, keys, values = (found.along(one, found.value(one), 2, name) for one in inputs)
    found.units.unite(queries, keys)
    heads = len(values) // module.width
    if heads == 1:  # nothing within a head can be told apart from the outside
        found.whole += [queries, values]
    found.tie(name, node, queries.view(heads, -1), values.view(heads, -1))
    pairs = found.shape(inputs[0]).numel() // found.shape(inputs[0])[2] // found.batch
    pairs *= found.shape(inputs[1]).numel() // found.shape(inputs[1])[2] // found.batch
    found.products += [(queries, pairs), (values, pairs)]
    found.values[node] = Value(values[None, None, :])


Handler = Callable[[Records, fx.Node, str, Any, Value], None]
LAYERS: dict[type[nn.Module] | tuple[type[nn.Module], ...], Handler] = {
    nn.Conv2d: convolution,
    nn.Linear: linear,
    NORMS: batch_norm,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    Heads: attention,
}
