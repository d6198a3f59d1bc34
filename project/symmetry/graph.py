"""Networks as torch.fx graphs of leaf modules, and the line of code behind each value."""

import copy
import linecache
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import Permute

from project.errors import TraceError
from project.models import Heads

LEAVES: tuple[type[nn.Module], ...] = (Heads, LayerNorm2d, StochasticDepth, Permute)
LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class LeafTracer(fx.Tracer):
    """torch.fx's tracer that also keeps some modules outside torch.nn whole.

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

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one value of the graph."""
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def graph_of(network: nn.Module, *leaves: type[nn.Module], lines: bool = False) -> fx.GraphModule:
    """Trace a network into a graph of its leaf modules, which it shares.

    Args:
        network: The network.
        leaves: Types of modules to keep whole, beside torch.nn's and torchvision's layers.
        lines: Whether :func:`code_of` is to know the values.

    Raises:
        TraceError: Where ``torch.fx`` cannot trace the network; the message holds its reason and the line of code.
    """
    tracer = LeafTracer(*leaves, lines=lines)
    try:
        graph = tracer.trace(network)
    except Exception as error:
        places = ((frame.filename, frame.lineno or 0) for frame in reversed(_frames(error)))
        raise TraceError(
            f"{type(network).__name__} cannot be traced by torch.fx: {_first_line(error)}{_first_own(places)}."
        ) from error
    return _Uncompiled(network, graph)


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
    # Shapes alone: no arithmetic and no copies of weights, whatever the picture's size.
    without = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in network.parameters()}
    without |= {id(b): b.to("meta") for b in network.buffers()}  # type: ignore[misc]
    graph = graph_of(copy.deepcopy(network, without), lines=True)
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
