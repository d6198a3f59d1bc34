"""What stands around a layer in a student's graph, and what that lets a fit aim at."""

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
    """What follows a layer.

    Args:
        norm: The batch norm that alone reads it, if one does.
        other: What the result is added to, if the student has already computed that.
        rectified: Whether only rectifiers read the result.
    """

    norm: str | None = None
    other: str | None = None
    rectified: bool = False


def surroundings(graph: fx.GraphModule, node: fx.Node, known: set[str]) -> LayerContext:
    """Look at what reads a layer.

    Args:
        graph: The student's.
        node: The layer's call in it.
        known: Names of the values that the student has computed before the layer.
    """
    tables = {one.name for one in graph.graph.nodes if one.op == "get_attr"}  # of the shape of one picture's value
    norm, last, reader = None, node, _only_reader(node)
    if reader is not None and is_norm(graph, reader):
        norm, last, reader = str(reader.target), reader, _only_reader(reader)
    if reader is None:
        return LayerContext(norm)
    if is_rectifier(graph, reader):
        return LayerContext(norm, None, True)
    others = [value for value in reader.all_input_nodes if value is not last]
    if reader.target in SUMS and not reader.kwargs and len(others) == 1 and others[0].name in known - tables:
        return LayerContext(norm, others[0].name, all(is_rectifier(graph, one) for one in reader.users))
    return LayerContext(norm)


def is_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value is that of a batch norm which can take on any scale and shift."""
    if node.op != "call_module":
        return False
    norm = graph.get_submodule(str(node.target))
    return isinstance(norm, NORMS) and norm.affine and norm.track_running_stats


def is_rectifier(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value is that of a ReLU."""
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), nn.ReLU)
    return node.target in RECTIFIERS


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The one value that reads another, or None where there are several."""
    return next(iter(node.users)) if len(node.users) == 1 else None
