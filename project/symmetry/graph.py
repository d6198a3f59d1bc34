"""Networks as torch.fx graphs of leaf modules, and the line of code behind each value."""

import copy
import re
import traceback
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
FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)[^\n]*\n\s*(?P<code>[^\n]*)')
LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class LeafTracer(fx.Tracer):
    """torch.fx's tracer that also keeps some modules outside torch.nn whole.

    Args:
        leaves: Types to keep whole, beside torch.nn's.
        lines: Whether every value holds the lines of code that made it, which takes as long as tracing does.
    """

    def __init__(self, *leaves: type[nn.Module], lines: bool = False) -> None:
        super().__init__()
        self.leaves = (*LEAVES, *leaves)
        self.record_stack_traces = lines

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
        trace = "".join(traceback.format_exception(error))
        raise TraceError(
            f"{type(network).__name__} cannot be traced by torch.fx: {_first_line(error)}{_last_frame(trace)}."
        ) from error
    return fx.GraphModule(network, graph)


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
    return _last_frame(node.stack_trace or "")


def _last_frame(trace: str) -> str:
    frames = [frame for frame in FRAME.finditer(trace) if not frame["file"].startswith(LIBRARIES)]
    if not frames:
        return ""
    last = frames[-1]
    return f", at {'/'.join(Path(last['file']).parts[-2:])}, line {last['line']}: {last['code'].strip()}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
