"""Where the layers and norms of a network stand: in which block, and whether they see the pictures one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from project.symmetry.graph import shaped_graph
from project.symmetry.spec import Spec

TRACED_PICTURES = 97  # of the traced batch: no other axis is taken for the pictures' by chance


@dataclass(frozen=True)
class Site:
    """A layer or norm in the order of execution.

    Args:
        name: Name of the module.
        block: Number of its block. Blocks lie between values through which all else must pass: a residual block, the
            attention or the perceptron of a transformer's layer, a dense block; a plain layer is a block of its own.
        apart: Whether each entry on the first axis of what it reads and writes is one picture.
    """

    name: str
    block: int
    apart: bool


def sites(network: nn.Module, spec: Spec) -> list[Site]:
    """The layers and norms of a network, in execution order.

    Args:
        network: In eval mode; left unchanged.
        spec: Its spec.
    """
    with torch.device("cpu"):
        graph = shaped_graph(network, spec.picture, TRACED_PICTURES)
    nodes = _carriers(graph)
    order = {node: index for index, node in enumerate(nodes)}
    names = {layer.name for layer in spec.layers} | {norm.name for norm in spec.norms}
    found, block, reach = [], 0, -1
    for index, node in enumerate(nodes):
        if node.op == "call_module" and str(node.target) in names:
            found.append(Site(str(node.target), block, _apart([node, *node.all_input_nodes])))
        if reach <= index:  # nothing from before is read after it
            block += 1
        reach = max(reach, *(order[reader] for reader in node.users if reader in order), index)
    return found


def _carriers(graph: fx.GraphModule) -> list[fx.Node]:
    """The values that are computed from the pictures, without what is known of their shapes alone."""
    found: dict[fx.Node, None] = {}
    for node in graph.graph.nodes:
        read = node.op == "placeholder" or any(one in found for one in node.all_input_nodes)
        if read and ("shape" in node.meta or "shapes" in node.meta):
            found[node] = None
    return list(found)


def _apart(nodes: Sequence[fx.Node]) -> bool:
    return all(len(shape := node.meta.get("shape", ())) > 1 and shape[0] == TRACED_PICTURES for node in nodes)
