"""Deriving the permutation groups of a network from its traced graph by union-find."""

import contextlib
import copy
import io
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from project.errors import TraceError
from project.symmetry.spec import Axis, Group, Layer, Norm, Spec

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid,
    nn.Tanh, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
POOLING_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
# Functions whose tensor arguments all carry the same units, which their result carries too.
UNITWISE_CALLS: frozenset[Callable[..., Any] | str] = frozenset(
    (
        operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, operator.isub, torch.add, torch.mul,
        torch.sub, torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu,
        F.hardswish, F.sigmoid, F.tanh, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d,
        F.adaptive_max_pool2d, "add", "add_", "mul", "mul_", "relu", "relu_", "contiguous", "clone",
    )
)  # fmt: skip
FLATTENS: frozenset[Callable[..., Any] | str] = frozenset((torch.flatten, "flatten"))
MEANS: frozenset[Callable[..., Any] | str] = frozenset((torch.mean, "mean"))


def graph_of(network: nn.Module) -> fx.GraphModule:
    """Trace a network into a graph of its leaf modules; in eval mode, sharing its parameters.

    Raises:
        TraceError: Where ``torch.fx`` cannot trace the network; the message holds its reason.
    """
    try:
        graph = fx.symbolic_trace(network)
    except Exception as error:
        raise TraceError(f"{type(network).__name__} cannot be traced by torch.fx: {error}") from error
    return graph.eval()


def trace(network: nn.Module, picture: tuple[int, int, int]) -> Spec:
    """Derive the spec of a network.

    Args:
        network: In eval mode, taking one batch of pictures and returning logits; left unchanged.
        picture: Shape (channels, height, width) of the pictures; layer positions are counted at this size.

    Returns:
        The groups, layers and norms in execution order.

    Raises:
        TraceError: Where a layer's type is unknown, a layer runs twice, or the picture is too small.
    """
    if network.training:
        raise TraceError(f"network {type(network).__name__} is in training mode; tracing needs eval mode.")
    graph = graph_of(copy.deepcopy(network).to("meta"))  # shapes alone: no arithmetic, whatever the picture's size
    example = torch.zeros(2, *picture, dtype=next(graph.parameters()).dtype, device="meta")
    try:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # where ShapeProp prints its traceback
            ShapeProp(graph).propagate(example)
    except Exception as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise TraceError(f"{type(network).__name__} does not run on pictures of shape {picture}: {cause}") from error
    return _Tracer(graph, picture).spec()


class _Tracer:
    """Walks the graph once, uniting the unit axes of values, layers and norms."""

    def __init__(self, graph: fx.GraphModule, picture: tuple[int, int, int]) -> None:
        self.graph = graph
        self.picture = picture
        self.parent: list[int] = []
        self.sizes: list[int] = []
        self.first: list[str] = []  # name of the first writer of each class
        self.axes: list[tuple[int, Axis]] = []
        self.carried: dict[fx.Node, tuple[int, int]] = {}  # value -> (class, taps a unit owns on axis 1)
        self.layers: list[tuple[str, str, int, int, int, int, bool]] = []
        self.norms: list[tuple[str, int]] = []
        self.seen: set[str] = set()

    def spec(self) -> Spec:
        """Walk, then collect the classes into groups."""
        source = output = -1
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                if source >= 0:
                    raise TraceError(f"network takes a second input {node.name!r}; one batch of pictures is allowed.")
                source = self._new(self.picture[0], "input")
                self.carried[node] = (source, 1)
            elif node.op == "call_module":
                self._module(node)
            elif node.op in ("call_function", "call_method"):
                self._call(node)
            elif node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node) or _rank(result) != 2:
                    raise TraceError("network returns something else than one (batch, classes) tensor of logits.")
                output = self.carried[result][0]
            else:
                raise TraceError(f"value {node.target!r} is a tensor of the network used outside a known layer.")
        if self._find(source) == self._find(output):
            raise TraceError("the logits are tied to the picture's channels; a layer must stand between them.")
        return self._collect(self._find(source), self._find(output))

    def _collect(self, source: int, output: int) -> Spec:
        roots = dict.fromkeys(self._find(index) for index in range(len(self.parent)))
        names = {root: self.first[root] for root in roots}
        groups = {}
        for root, name in names.items():
            fixed = {source: "input", output: "output"}.get(root)
            groups[name] = Group(
                name=name,
                size=self.sizes[root],
                axes=tuple(axis for index, axis in self.axes if self._find(index) == root),
                nodes=tuple(
                    n.name for n, (index, taps) in self.carried.items() if self._find(index) == root and taps == 1
                ),
                fixed=fixed,  # type: ignore[arg-type]
            )
        layers = tuple(
            Layer(name, node, names[self._find(i)], names[self._find(o)], taps, positions, bias)
            for name, node, i, o, taps, positions, bias in self.layers
        )
        norms = tuple(Norm(name, names[self._find(index)]) for name, index in self.norms)
        return Spec(groups, layers, norms, self.picture)

    def _new(self, size: int, name: str) -> int:
        self.parent.append(len(self.parent))
        self.sizes.append(size)
        self.first.append(name)
        return len(self.parent) - 1

    def _find(self, index: int) -> int:
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]
            index = self.parent[index]
        return index

    def _unite(self, a: int, b: int, where: str) -> None:
        a, b = self._find(a), self._find(b)
        if self.sizes[a] != self.sizes[b]:
            raise TraceError(
                f"{where} joins {self.sizes[a]} units with {self.sizes[b]}; broadcasting units is unknown."
            )
        self.parent[max(a, b)] = min(a, b)

    def _module(self, node: fx.Node) -> None:
        name, module = str(node.target), self.graph.get_submodule(str(node.target))
        index, taps = self._input(node)
        if next(module.parameters(), None) is not None:
            if name in self.seen:
                raise TraceError(f"layer {name!r} runs more than once in a forward pass; shared layers are unknown.")
            self.seen.add(name)
        if isinstance(module, nn.Conv2d | nn.Linear):
            self._layer(node, name, module, index, taps)
        elif isinstance(module, NORMS) and taps == 1:
            tensors = ("weight", "bias", "running_mean", "running_var")
            self.axes += [(index, Axis(f"{name}.{t}", 0)) for t in tensors if getattr(module, t) is not None]
            self.norms.append((name, index))
            self.carried[node] = (index, 1)
        elif isinstance(module, nn.Flatten) and module.start_dim == 1:
            self._flatten(node)
        elif isinstance(module, ELEMENTWISE_MODULES + POOLING_MODULES):
            self.carried[node] = (index, taps)
        else:
            raise TraceError(f"layer {name!r} is a {type(module).__name__}, whose units are unknown here.")

    def _layer(self, node: fx.Node, name: str, module: nn.Conv2d | nn.Linear, index: int, taps: int) -> None:
        if isinstance(module, nn.Conv2d):
            if module.groups != 1:
                raise TraceError(f"layer {name!r} is a convolution of {module.groups} groups; only 1 is known here.")
            if module.padding_mode != "zeros":
                raise TraceError(f"layer {name!r} pads with {module.padding_mode!r}; only 'zeros' is known here.")
            taps = module.kernel_size[0] * module.kernel_size[1]
        elif _rank(node) != 2:
            raise TraceError(f"layer {name!r} is a linear layer on more than (batch, features); flatten comes first.")
        written = self._new(module.weight.shape[0], name)
        self.axes.append((index, Axis(f"{name}.weight", 1, 1 if isinstance(module, nn.Conv2d) else taps)))
        self.axes.append((written, Axis(f"{name}.weight", 0)))
        if module.bias is not None:
            self.axes.append((written, Axis(f"{name}.bias", 0)))
        positions = _shape(node)[2:].numel() if _rank(node) > 2 else 1
        self.layers.append((name, node.name, index, written, taps, positions, module.bias is not None))
        self.carried[node] = (written, 1)

    def _call(self, node: fx.Node) -> None:
        operands = [argument for argument in node.all_input_nodes if argument in self.carried]
        if node.target in FLATTENS:
            start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
            if start != 1:
                raise TraceError(f"{node.name} flattens from axis {start}; only 1 keeps the units apart.")
            self._flatten(node)
        elif node.target in MEANS:
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            if set(dims if isinstance(dims, list | tuple) else [dims]) not in ({2, 3}, {-1, -2}):
                raise TraceError(f"{node.name} averages over axes {dims}; only the two picture axes keep the units.")
            self.carried[node] = self.carried[operands[0]]
        elif node.target in UNITWISE_CALLS and operands:
            index, taps = self.carried[operands[0]]
            for other in operands[1:]:
                if self.carried[other][1] != taps:
                    raise TraceError(f"{node.name} joins values flattened in different ways.")
                self._unite(index, self.carried[other][0], node.name)
            self.carried[node] = (index, taps)
        else:
            target = getattr(node.target, "__name__", node.target)
            raise TraceError(f"{node.name} calls {target!r}, whose effect on units is unknown here.")

    def _flatten(self, node: fx.Node) -> None:
        index, taps = self._input(node)
        self.carried[node] = (index, taps * _shape(node.all_input_nodes[0])[2:].numel())

    def _input(self, node: fx.Node) -> tuple[int, int]:
        argument = node.args[0] if node.args else None
        if not isinstance(argument, fx.Node) or argument not in self.carried:
            raise TraceError(f"{node.name} reads something else than one value of the graph.")
        return self.carried[argument]


def _shape(node: fx.Node) -> torch.Size:
    meta = node.meta["tensor_meta"]
    return cast(torch.Size, meta.shape)


def _rank(node: fx.Node) -> int:
    return len(_shape(node))
