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
from project.symmetry.lift import is_plain
from project.symmetry.operations import OPERATIONS, along_units, resampled, spread
from project.symmetry.spec import Spec
from project.symmetry.units import Value

Target = Callable[..., Any] | str
BATCH = 2  # pictures traced: with one, a batch could be mistaken for an axis that broadcasts
ENTRYWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid,
    nn.Tanh, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d, StochasticDepth,
)  # fmt: skip
POOLING_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.AvgPool1d, nn.MaxPool1d,
    nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
# Functions that work entry by entry, broadcasting: their tensor arguments carry the same units, as does the result.
ENTRYWISE_CALLS: frozenset[Target] = frozenset(
    (
        operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, operator.isub, operator.truediv,
        operator.neg, torch.add, torch.mul, torch.sub, torch.div, torch.relu, torch.sigmoid, torch.tanh, torch.clamp,
        F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.sigmoid, F.tanh,
        F.dropout, torch.addcmul, torch.where, torch.pow, operator.pow, torch.square, torch.sqrt, torch.exp, torch.abs,
        "add", "add_", "mul", "mul_", "sub", "sub_", "div", "div_", "relu", "relu_", "sigmoid", "sigmoid_", "tanh",
        "clamp", "contiguous", "clone", "pow", "square", "sqrt", "exp", "abs", "masked_fill", "float", "to", "type_as",
    )
)  # fmt: skip
POOLING_CALLS: frozenset[Target] = frozenset((F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d))
# Functions that only move entries.
MOVING_CALLS: frozenset[Target] = frozenset(
    (
        torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk,
        torch.split, torch.cat, torch.concat, torch.stack, torch.unbind, torch.flip, torch.roll, operator.getitem,
        "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "unflatten", "chunk", "split",
        "expand", "flip", "roll", "unbind", "select", "narrow", "repeat", "movedim", "swapaxes",
    )
)  # fmt: skip
# Methods that bring a value to the shape of another.
SHAPED_AS: dict[Target, str] = {"reshape_as": "reshape", "view_as": "reshape", "expand_as": "expand"}
SHAPING_CALLS: frozenset[Target] = frozenset((torch.reshape, "reshape", "view", "unflatten", "expand"))


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
        return collect(_Walk(network, shaped_graph(network, picture, BATCH), picture).records())


class _Walk:
    """Walks the graph once, keeping the labels of every value."""

    def __init__(self, network: nn.Module, graph: fx.GraphModule, picture: tuple[int, int, int]) -> None:
        self.network = network
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
            real = node.meta.get("constant")
            real = operator.attrgetter(name)(self.graph) if real is None else real
            own = dict(self.network.named_buffers()).get(name)
            self.found.constants[node] = name, own if real.device.type == "meta" else real
            return
        if name in self.seen:
            raise TraceError(f"parameter {name!r} is used more than once{_read_at(node)}; shared ones are unknown.")
        self.seen.add(name)
        labels = self.found.units.new(shape.numel(), None).view(shape)
        self.found.parameters[name] = labels
        self.found.values[node] = Value(labels, free=True)

    def _constant(self, node: fx.Node) -> None:
        """What is computed of constants alone."""
        held = [self.found.constants[one] for one in node.all_input_nodes if one in self.found.constants]
        name = held[0][0] if held else node.name
        if "shapes" in node.meta or any(real is None or real.device.type == "meta" for _, real in held):
            self.found.constants[node] = name, None
            return

        def real(one: fx.Node) -> Any:
            return self.found.constants[one][1] if one in self.found.constants else one.meta["value"]

        result = _function(node)(*fx.map_arg(node.args, real), **fx.map_arg(node.kwargs, real))
        self.found.constants[node] = name, result if isinstance(result, Tensor) else None

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
            if isinstance(module, nn.Conv2d | nn.Linear) and not is_plain(own := self.network.get_submodule(name)):
                kind = type(own).__name__
                done = self.found.layers[-1]
                self.found.rigid += [(atoms, f"layer {name!r} is a {kind}") for atoms in (done.read, done.written)]
        elif isinstance(module, nn.Flatten | Permute):
            self._moved(node, module, node.args, node.kwargs)
        elif isinstance(module, nn.Softmax) and value.varying != (cast(int, module.dim) % len(self.found.shape(node)),):
            spread(self.found, node, module.dim)
        elif isinstance(module, nn.Conv1d):
            along_units(self.found, node, name, module, value)
        elif isinstance(module, POOLING_MODULES):
            resampled(self.found, node)
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
        if not operands and all(one in self.found.constants or "value" in one.meta for one in node.all_input_nodes):
            self._constant(node)
            return
        if node.target is operator.getitem and node.args[0] in self.found.pieces:
            piece = self.found.pieces[cast(fx.Node, node.args[0])][cast(int, node.args[1])]
            if piece is not None:
                self.found.values[node] = piece
                return
        if node.target in MOVING_CALLS and operands:
            self._moved(node, _function(node), node.args, node.kwargs)
        elif node.target in SHAPED_AS and operands:
            reshape = SHAPED_AS[node.target]
            self._moved(node, lambda one, _: getattr(one, reshape)(self.found.shape(node)), node.args, node.kwargs)
        elif node.target in OPERATIONS and operands:
            OPERATIONS[node.target](self.found, node)
        elif node.target in POOLING_CALLS and operands:
            resampled(self.found, node)
        elif node.target in ENTRYWISE_CALLS and operands:
            self._combined(node, operands)
        else:
            target = getattr(node.target, "__name__", node.target)
            raise TraceError(f"{node.name} calls {target!r}, whose effect on units is unknown here{code_of(node)}.")

    def _moved(self, node: fx.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Do to the labels what is done to the values."""
        operands = [one for one in node.all_input_nodes if "value" not in one.meta]
        places = [one for one in operands if one in self.found.constants and node.target is operator.getitem]
        operands = [one for one in operands if one not in places]
        for one in operands:
            real = self.found.constants.get(one, ("", None))[1]
            if real is not None and real.device.type != "meta" and bool((real == real.flatten()[:1]).all()):
                shape = self.found.shape(one)  # the same for all units beside which it comes to stand
                self.found.values[one] = Value(self.found.units.new(shape.numel(), None).view(shape), free=True)
        if any(one not in self.found.values for one in operands):
            raise TraceError(f"{node.name} reads a value without units{code_of(node)}.")

        def labels(one: fx.Node) -> Any:
            if one in places:
                return self.found.constants[one][1]
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
        self._check_constants(node, result)
        self.found.values[node] = result

    def _check_constants(self, node: fx.Node, result: Value) -> None:
        """Refuse a constant that is not the same for all units which it meets: it would have to move with them."""
        for one in node.all_input_nodes:
            if one not in self.found.constants:
                continue
            shape = self.found.shape(one)
            shape = torch.Size((1,) * (result.labels.dim() - len(shape)) + tuple(shape))
            if any(mine > 1 and theirs > 1 for mine, theirs in zip(result.labels.shape, shape, strict=True)):
                name = self.found.constants[one][0]
                raise TraceError(
                    f"value {name!r} is a buffer of the network used outside a known layer{code_of(node)}."
                )

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
