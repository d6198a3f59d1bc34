"""Networks as torch.fx graphs of leaf modules, and the line of code behind each value."""

import copy
import inspect
import linecache
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import Permute

from project.errors import TraceError
from project.models import Heads
from project.symmetry.lift import lift
from project.symmetry.sized import BATCH, SizedTracing, takes_pictures_alone

LEAVES: tuple[type[nn.Module], ...] = (Heads, LayerNorm2d, StochasticDepth, Permute)
PICTURE, CONSTANT = "_traced_picture", "_tensor_constant"
LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class LeafTracer(fx.Tracer):
    """torch.fx's tracer that also keeps some modules outside torch.nn whole, and reads pictures alone.

    Args:
        leaves: Types to keep whole, beside torch.nn's.
        lines: Whether every value remembers the line of code that made it.
    """

    def __init__(self, *leaves: type[nn.Module], lines: bool = False) -> None:
        super().__init__()
        self.leaves = (*LEAVES, *leaves)
        self.lines = lines

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A value of the graph; torch's own stack traces, whole and as text, take as long as all the rest."""
        node = super().create_node(*args, **kwargs)
        frame = sys._getframe(1) if self.lines else None
        while frame is not None and frame.f_code.co_filename.startswith(LIBRARIES):
            frame = frame.f_back
        if frame is not None:
            node.meta["line"] = frame.f_code.co_filename, frame.f_lineno
        return node

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The pictures; what else the network takes keeps its default, where it has one."""
        if not is_module or not takes_pictures_alone(root_fn):
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        name = list(inspect.signature(root_fn).parameters)[1]
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one value of the graph."""
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


class SizedLeafTracer(SizedTracing, LeafTracer):
    """The same, with the sizes of all values known."""


def graph_of(network: nn.Module, *leaves: type[nn.Module], lines: bool = False) -> fx.GraphModule:
    """Trace a network into a graph of its leaf modules, which it shares.

    Where the code of the network hangs on the sizes of values, they are those of the pictures that it was traced with
    by :func:`shaped_graph` before.

    Args:
        network: The network.
        leaves: Types of modules to keep whole, beside torch.nn's and torchvision's layers.
        lines: Whether :func:`code_of` is to know the values.

    Raises:
        TraceError: Where ``torch.fx`` cannot trace the network; the message holds its reason and the line of code.
    """
    _drop_constants(network)
    tracer = LeafTracer(*leaves, lines=lines)
    try:
        with forgotten(network):
            graph = tracer.trace(network)
    except Exception as error:
        picture = network.__dict__.get(PICTURE)
        if picture is None:
            raise _untraceable(network, error) from error
        _drop_constants(network)
        graph = _sized_graph(network, picture, *leaves, lines=lines)
    layers = lift(network, graph)
    result = _Uncompiled(network, graph)
    _drop_constants(network)
    for name, layer in layers.items():
        owner, _, leaf = name.rpartition(".")
        result.get_submodule(owner)._modules[leaf] = layer
    return result


def _drop_constants(network: nn.Module) -> None:
    """Take from a network the tensors that its code has made while it was traced; graphs hold them by these names."""
    for name in [name for name in network.__dict__ if name.startswith(CONSTANT)]:
        del network.__dict__[name]


@contextmanager
def forgotten(network: nn.Module) -> Iterator[None]:
    """Let modules forget, and remember nothing, while open: some keep tables that they compute of their parameters."""
    kept = [(held, dict(held)) for module in network.modules() for held in remembered(module).values()]
    for held, _ in kept:
        held.clear()
    try:
        yield
    finally:
        for held, before in kept:
            held.clear()
            held.update(before)


def remembered(module: nn.Module) -> dict[str, dict[Any, Any]]:
    """The dictionaries in which a module keeps tensors between forward passes, or could: name -> dictionary."""
    return {
        name: held
        for name, held in module.__dict__.items()
        if type(held) is dict
        and not name.startswith("_")
        and all(isinstance(one, torch.Tensor | fx.Proxy) for one in held.values())
    }


def note_picture(network: nn.Module, picture: tuple[int, int, int]) -> None:
    """Let a network be traced with pictures of that shape (channels, height, width) where it hangs on sizes."""
    network.__dict__[PICTURE] = tuple(picture)


def _sized_graph(network: nn.Module, picture: tuple[int, int, int], *leaves: type[nn.Module], lines: bool) -> fx.Graph:
    without = copy.deepcopy(network, _on_meta(network))
    tracer = SizedLeafTracer(*leaves, lines=lines)
    tracer.example = torch.zeros(BATCH, *picture, dtype=next(without.parameters()).dtype, device="meta")
    try:
        with forgotten(without):
            graph = tracer.trace(without)
    except Exception as error:
        raise _untraceable(network, error) from error
    device = next(network.parameters()).device
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith(CONSTANT):
            node.meta["constant"] = getattr(without, str(node.target))
            network.__dict__[str(node.target)] = node.meta["constant"].to(device)
    return graph


def _untraceable(network: nn.Module, error: Exception) -> TraceError:
    places = ((frame.filename, frame.lineno or 0) for frame in reversed(_frames(error)))
    return TraceError(
        f"{type(network).__name__} cannot be traced by torch.fx: {_first_line(error)}{_first_own(places)}."
    )


class _Uncompiled(fx.GraphModule):
    """A graph module that compiles its graph when it is called first: most graphs are walked, value by value."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.__dict__["building"] = True
        super().__init__(root, graph)
        self.__dict__["building"] = False

    def recompile(self) -> Any:
        """Nothing while the module is built, else as torch.fx does it."""
        return None if self.__dict__.get("building") else super().recompile()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compile, which puts another method in this one's place, and call that."""
        self.recompile()
        return type(self).forward(self, *args, **kwargs)


def shaped_graph(network: nn.Module, picture: tuple[int, int, int], batch: int) -> fx.GraphModule:
    """The graph of a network on the meta device, the shape of every value (or the value, if it is no tensor) noted.

    Args:
        network: Left unchanged.
        picture: Shape (channels, height, width).
        batch: Number of pictures.

    Returns:
        A graph whose nodes hold ``meta["shape"]``, a tuple of them, or ``meta["value"]``.

    Raises:
        TraceError: Where the network cannot be traced or does not run on such pictures.
    """
    note_picture(network, picture)
    graph = graph_of(copy.deepcopy(network, _on_meta(network)), lines=True)
    example = torch.zeros(batch, *picture, dtype=next(graph.parameters()).dtype, device="meta")
    notes = _Notes(graph)
    try:
        with torch.no_grad():
            notes.run(example)
    except Exception as error:
        place = code_of(notes.current) if notes.current is not None else ""
        raise TraceError(
            f"{type(network).__name__} does not run on pictures of shape {picture}: {_first_line(error)}{place}."
        ) from error
    return graph


def _on_meta(network: nn.Module) -> dict[int, Any]:
    """What a deep copy is to hold for a network's tensors: shapes alone, without arithmetic and copies of weights."""
    without: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in network.parameters()
    }
    # Whole numbers are places, which labels are looked up by.
    return without | {id(b): b.to("meta") if b.is_floating_point() or b.is_meta else b.cpu() for b in network.buffers()}


class _Notes(fx.Interpreter):
    current: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shape"] = result.shape
        elif isinstance(result, tuple | list) and any(isinstance(part, torch.Tensor) for part in result):
            n.meta["shapes"] = [part.shape if isinstance(part, torch.Tensor) else None for part in result]
        else:
            n.meta["value"] = result
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As torch.fx does it, but for batch norm in eval mode, which on the meta device goes a long way in Python."""
        module = self.fetch_attr(target)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not module.training and len(args) == 1:
            values: torch.Tensor = args[0]
            module._check_input_dim(values)
            if values.shape[1] == module.num_features:
                return torch.empty_like(values)
        return super().call_module(target, args, kwargs)


def code_of(node: fx.Node) -> str:
    """The user's line of code behind a value, as the end of a sentence; empty where it is not known."""
    return _first_own([node.meta["line"]]) if "line" in node.meta else ""


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Where an error arose and what led to it, what it came from first, outermost calls first."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [*(_frames(before) if before is not None else ()), *traceback.extract_tb(error.__traceback__)]


def _first_own(places: Iterable[tuple[str, int]]) -> str:
    """The first line of code that is not the libraries', as the end of a sentence."""
    for file, line in places:
        if not file.startswith(LIBRARIES):
            return f", at {'/'.join(Path(file).parts[-2:])}, line {line}: {linecache.getline(file, line).strip()}"
    return ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
