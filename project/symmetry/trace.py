"""Deriving the permutation groups of a network from its traced graph.

Every value of the graph is followed by labels that say which unit each of its entries belongs to. Layers write new
units; whatever only moves entries (reshape, permute, concatenation, chunks, shuffles) is done to the labels as it is
done to the values; whatever combines values entry by entry makes their units the same; and a layer that runs at many
positions makes the units of all positions the same. Which axes belong to which group follows from the labels.
"""

import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import Permute

from project.errors import TraceError
from project.symmetry.collect import Records, collect
from project.symmetry.graph import code_of, shaped_graph
from project.symmetry.layers import LAYERS
from project.symmetry.spec import Spec
from project.symmetry.units import Value

Target = Callable[..., Any] | str
BATCH = 2  # pictures traced: with one, a batch could be mistaken for an axis that broadcasts
ENTRYWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid,
    nn.Tanh, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d, StochasticDepth,
)  # fmt: skip
POOLING_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
# Functions that work entry by entry, broadcasting: their tensor arguments carry the same units, as does the result.
ENTRYWISE_CALLS: frozenset[Target] = frozenset(
    (
        operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, operator.isub, operator.truediv,
        operator.neg, torch.add, torch.mul, torch.sub, torch.div, torch.relu, torch.sigmoid, torch.tanh, torch.clamp,
        F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.sigmoid, F.tanh,
        F.dropout, "add", "add_", "mul", "mul_", "sub", "div", "relu", "relu_", "sigmoid", "tanh", "clamp",
        "contiguous", "clone",
    )
)  # fmt: skip
POOLING_CALLS: frozenset[Target] = frozenset((F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d))
# Functions that only move entries.
MOVING_CALLS: frozenset[Target] = frozenset(
    (
        torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk,
        torch.split, torch.cat, torch.concat, torch.flip, torch.roll, operator.getitem, "flatten", "reshape", "view",
        "permute", "transpose", "squeeze", "unsqueeze", "unflatten", "chunk", "split", "expand", "flip", "roll",
    )
)  # fmt: skip
SHAPING_CALLS: frozenset[Target] = frozenset((torch.reshape, "reshape", "view", "unflatten", "expand"))
MEANS: frozenset[Target] = frozenset((torch.mean, "mean"))


def trace(network: nn.Module, picture: tuple[int, int, int]) -> Spec:
    """Derive the spec of a network.

    Args:
        network: In eval mode, taking one batch of pictures and returning logits; left unchanged.
        picture: Shape (channels, height, width) of the pictures; layer positions are counted at this size.

    Returns:
        The groups, layers and norms in execution order.

    Raises:
        TraceError: Where a layer's type is unknown, a layer runs twice, or the picture is too small; the message
            names the layer and the line of code that runs it.
    """
    if network.training:
        raise TraceError(f"network {type(network).__name__} is in training mode; tracing needs eval mode.")
    # Labels are counted, wherever the caller makes tensors; a device that is asked for slows every call down.
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        return collect(_Walk(shaped_graph(network, picture, BATCH), picture).records())


class _Walk:
    """Walks the graph once, keeping the labels of every value."""

    def __init__(self, graph: fx.GraphModule, picture: tuple[int, int, int]) -> None:
        self.graph = graph
        self.picture = picture
        self.found = Records(picture, BATCH)
        self.seen: set[str] = set()

    def records(self) -> Records:
        """Walk, and hand over what was found on the way."""
        for node in self.graph.graph.nodes:
            shape = node.meta.get("shape")
            if isinstance(shape, torch.Size) and 0 in shape:
                raise TraceError(f"{node.name!r} makes values of shape {tuple(shape)}, which are none{code_of(node)}.")
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "get_attr":
                self._parameter(node)
            elif node.op == "call_module":
                self._module(node)
            elif node.op in ("call_function", "call_method"):
                self._call(node)
            else:
                self._output(node)
        return self.found

    def _placeholder(self, node: fx.Node) -> None:
        if self.found.values:
            raise TraceError(f"network takes a second input {node.name!r}; one batch of pictures is allowed.")
        channels = self.found.units.new(self.picture[0], "input")
        self.found.source = channels
        self.found.values[node] = Value(channels[None, :, None, None])

    def _parameter(self, node: fx.Node) -> None:
        name, shape = str(node.target), node.meta.get("shape")
        if shape is None:
            return
        if name not in dict(self.graph.named_parameters()):
            raise TraceError(f"value {name!r} is a buffer of the network used outside a known layer{_read_at(node)}.")
        if name in self.seen:
            raise TraceError(f"parameter {name!r} is used more than once{_read_at(node)}; shared ones are unknown.")
        self.seen.add(name)
        labels = self.found.units.new(shape.numel(), None).view(shape)
        self.found.parameters[name] = labels
        self.found.values[node] = Value(labels, free=True)

    def _output(self, node: fx.Node) -> None:
        result = node.args[0]
        value = self.found.values.get(result) if isinstance(result, fx.Node) else None
        if value is None or len(self.found.shape(cast(fx.Node, result))) != 2:
            raise TraceError("network returns something else than one (batch, classes) tensor of logits.")
        self.found.logits = self.found.along(cast(fx.Node, result), value, 1, "the output")

    def _module(self, node: fx.Node) -> None:
        name, module = str(node.target), self.graph.get_submodule(str(node.target))
        value = self._input(node)
        if next(module.parameters(), None) is not None:
            if name in self.seen:
                raise TraceError(
                    f"layer {name!r} runs more than once in a forward pass{code_of(node)}; shared layers are unknown."
                )
            self.seen.add(name)
        handler = next((act for kind, act in LAYERS.items() if isinstance(module, kind)), None)
        if handler is not None:
            handler(self.found, node, name, module, value)
        elif isinstance(module, nn.Flatten | Permute):
            self._moved(node, module, node.args, node.kwargs)
        elif isinstance(module, POOLING_MODULES):
            self._pooled(node, value)
        elif isinstance(module, ENTRYWISE_MODULES):
            self.found.values[node] = value
        else:
            raise TraceError(
                f"layer {name!r} is a {type(module).__name__}, whose units are unknown here{code_of(node)}."
            )

    def _call(self, node: fx.Node) -> None:
        if "value" in node.meta:
            return  # a shape, or something computed from shapes
        operands = [argument for argument in node.all_input_nodes if argument in self.found.values]
        if node.target is operator.getitem and node.args[0] in self.found.pieces:
            piece = self.found.pieces[cast(fx.Node, node.args[0])][cast(int, node.args[1])]
            if piece is not None:
                self.found.values[node] = piece
                return
        if node.target in MOVING_CALLS and operands:
            self._moved(node, _function(node), node.args, node.kwargs)
        elif node.target in MEANS and operands:
            self._mean(node, operands[0])
        elif node.target in POOLING_CALLS and operands:
            self._pooled(node, self.found.values[operands[0]])
        elif node.target in ENTRYWISE_CALLS and operands:
            self._combined(node, operands)
        else:
            target = getattr(node.target, "__name__", node.target)
            raise TraceError(f"{node.name} calls {target!r}, whose effect on units is unknown here{code_of(node)}.")

    def _moved(self, node: fx.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Do to the labels what is done to the values."""
        operands = [one for one in node.all_input_nodes if "value" not in one.meta]
        if any(one not in self.found.values for one in operands):
            raise TraceError(f"{node.name} reads a value without units{code_of(node)}.")

        def labels(one: fx.Node) -> Any:
            known = self.found.values.get(one)
            return one.meta["value"] if known is None else known.labels.expand(self.found.shape(one))

        result = function(*fx.map_arg(args, labels), **fx.map_arg(kwargs, labels))
        free = all(self.found.values[one].free for one in operands)
        self._note_rigid(node, result)
        if isinstance(result, Tensor):
            self.found.values[node] = self.found.units.value(result, free=free)
        else:
            self.found.pieces[node] = [self.found.units.value(part, free=free) for part in result]

    def _note_rigid(self, node: fx.Node, result: Any) -> None:
        """Units that are counted off where values are moved: their number is written in the code."""
        before = [self.found.values[one].labels for one in node.all_input_nodes if one in self.found.values]
        pieces = [result] if isinstance(result, Tensor) else result
        cut = any(not torch.isin(atoms.flatten(), piece.flatten()).all() for atoms in before for piece in pieces)
        literals = [size for size in _numbers(node.args[1:]) if size > 1] if node.target in SHAPING_CALLS else []
        lengths = {
            size
            for piece in pieces
            for dim, size in enumerate(piece.shape)
            if bool((piece != piece.narrow(dim, 0, 1)).any())
        }
        if cut or lengths & set(literals):
            self.found.rigid += [(atoms.flatten(), f"{node.name} counts its units{code_of(node)}") for atoms in before]

    def _mean(self, node: fx.Node, operand: fx.Node) -> None:
        value = self.found.value(operand)
        rank = value.labels.dim()
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        listed = given if isinstance(given, list | tuple) else [] if given is None else [given]
        dims = [cast(int, dim) % rank for dim in listed]
        if not dims or any(dim in value.varying for dim in dims):
            raise TraceError(
                f"{node.name} averages over axes {given}, which mixes units{code_of(node)}; "
                f"only averages over positions keep them apart."
            )
        kept = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        shape = [1 if dim in dims else size for dim, size in enumerate(value.labels.shape) if kept or dim not in dims]
        self.found.values[node] = Value(value.labels.reshape(shape), value.free)

    def _pooled(self, node: fx.Node, value: Value) -> None:
        channels = self.found.along(node.all_input_nodes[0], value, 1, node.name)
        self.found.values[node] = Value(channels[None, :, None, None])

    def _combined(self, node: fx.Node, operands: list[fx.Node]) -> None:
        """Make the units of values that meet entry by entry the same; one that broadcasts over units has none."""
        result, at = self.found.value(operands[0]), operands[0]
        for other in operands[1:]:
            mine, theirs = self.found.value(other), result
            first, second = (self._aligned(one, node) for one in ((mine, other), (theirs, at)))
            (labels, shape), (others, sizes) = first, second
            carried = self._spread(labels, sizes), self._spread(others, shape)
            if carried[0] or carried[1]:  # one of them is the same for all units of the other
                spreads, kept = (mine, result) if carried[1] else (result, mine)
                if spreads.varying and not spreads.free:
                    raise TraceError(
                        f"{node.name} joins values whose units stand on different axes{code_of(node)}; unknown here."
                    )
                result, at = (result, at) if kept is result else (mine, other)
                continue
            axes = [{dim for dim, size in enumerate(part.shape) if size > 1} for part in (labels, others)]
            if all(axes) and not axes[0] & axes[1] and not (mine.free or result.free):
                raise TraceError(
                    f"{node.name} joins values whose units stand on different axes{code_of(node)}; unknown here."
                )
            self.found.units.unite(labels, others)
            united = labels if mine.varying and not mine.free else others
            result = self.found.units.value(united, free=mine.free and result.free)
            at = node
        self.found.values[node] = result

    def _aligned(self, one: tuple[Value, fx.Node], node: fx.Node) -> tuple[Tensor, torch.Size]:
        """Labels and shape of a value, with leading axes as broadcasting adds them."""
        value, source = one
        rank, shape = len(self.found.shape(node)), self.found.shape(source)
        missing = (1,) * (rank - len(shape))
        return value.labels.reshape(missing + tuple(value.labels.shape)), torch.Size(missing + tuple(shape))

    @staticmethod
    def _spread(labels: Tensor, other: torch.Size) -> bool:
        """Whether a value of another shape broadcasts over axes on which these labels change."""
        return any(mine > 1 and theirs == 1 for mine, theirs in zip(labels.shape, other, strict=True))

    def _input(self, node: fx.Node) -> Value:
        argument = node.args[0] if node.args else None
        if not isinstance(argument, fx.Node) or argument not in self.found.values:
            raise TraceError(f"{node.name} reads something else than one value of the graph{code_of(node)}.")
        return self.found.value(argument)


def _numbers(arguments: Any) -> list[int]:
    """Whole numbers among a call's arguments, in lists too."""
    if isinstance(arguments, list | tuple):
        return [number for one in arguments for number in _numbers(one)]
    return [arguments] if isinstance(arguments, int) else []


def _read_at(node: fx.Node) -> str:
    """The line of code that first reads a tensor of the network."""
    return code_of(next(iter(node.users), node))


def _function(node: fx.Node) -> Callable[..., Any]:
    """What a call does, as a function of all its arguments."""
    if node.op == "call_function":
        return cast(Callable[..., Any], node.target)
    name = "reshape" if node.target == "view" else str(node.target)  # labels lie in memory in other ways than values
    return lambda first, *args, **kwargs: getattr(first, name)(*args, **kwargs)
