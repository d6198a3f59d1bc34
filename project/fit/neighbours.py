"""What reads a layer's output in a student's graph, and what that lets a fit aim at."""

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from project.symmetry import NORMS

RECTIFIERS = (F.relu, torch.relu, "relu", "relu_")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class LayerContext:
    """What reads a layer's output.

    Args:
        norm: The batch norm that alone reads it, if one does.
        addend: What the result is added to, if the student has already computed that.
        relu: Whether only rectifiers read the result.
    """

    norm: str | None = None
    addend: str | None = None
    relu: bool = False


def context_of(graph: fx.GraphModule, node: fx.Node, known: set[str]) -> LayerContext:
    """Look at what reads a layer's output.

    Args:
        graph: The student's.
        node: The layer's call in it.
        known: Names of the values that the student has computed before the layer.
    """
    tables = _tables(graph)  # as large as one picture's value
    norm, last, reader = None, node, _only_reader(node)
    if reader is not None and is_norm(graph, reader):
        norm, last, reader = str(reader.target), reader, _only_reader(reader)
    if reader is None:
        return LayerContext(norm)
    if is_rectifier(graph, reader):
        return LayerContext(norm, None, True)
    addends = [value for value in reader.all_input_nodes if value is not last]
    if reader.target in SUMS and not reader.kwargs and len(addends) == 1 and addends[0].name in known - tables:
        return LayerContext(norm, addends[0].name, all(is_rectifier(graph, user) for user in reader.users))
    return LayerContext(norm)


def _tables(graph: fx.GraphModule) -> set[str]:
    """Names of the values that hang on no picture."""
    carried: set[fx.Node] = set()
    for value in graph.graph.nodes:
        if value.op == "placeholder" or not carried.isdisjoint(value.all_input_nodes):
            carried.add(value)
    return {value.name for value in graph.graph.nodes if value not in carried}


def is_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a value is that of a batch norm which can take on any scale and shift.

    Args:
        graph: The student's.
        node: A call in it.
    """
    if node.op != "call_module":
        return False
    norm = graph.get_submodule(str(node.target))
    return isinstance(norm, NORMS) and norm.affine and norm.track_running_stats


def is_rectifier(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a value is that of a ReLU.

    Args:
        graph: The student's.
        node: A call in it.
    """
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), nn.ReLU)
    return node.target in RECTIFIERS


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The one value that reads another, or None where there are several."""
    return next(iter(node.users)) if len(node.users) == 1 else None
