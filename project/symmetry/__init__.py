"""Which axes move together: spec, tracing with torch.fx, permuting, the equivalence check."""

from project.symmetry.graph import graph_of, note_picture, remembered, shaped_graph
from project.symmetry.layers import NORMS
from project.symmetry.lift import is_plain
from project.symmetry.permute import (
    check_blocks,
    check_equivalence,
    group_differences,
    move_units,
    permute_axis,
    permute_state,
    permute_tensors,
    random_orders,
)
from project.symmetry.sites import Site, sites
from project.symmetry.spec import Axis, Group, Join, Layer, Norm, Parameter, Spec
from project.symmetry.trace import trace

__all__ = [
    "NORMS", "Axis", "Group", "Join", "Layer", "Norm", "Parameter", "Site", "Spec", "check_blocks",
    "check_equivalence", "graph_of", "group_differences", "is_plain", "move_units", "note_picture", "permute_axis",
    "permute_state", "permute_tensors", "random_orders", "remembered", "shaped_graph", "sites", "trace",
]  # fmt: skip
