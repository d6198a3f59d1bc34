"""Which axes move together: spec, tracing with torch.fx, permuting, the equivalence check."""

from project.symmetry.permute import check_equivalence, largest_difference, permute_axis, permute_state
from project.symmetry.spec import Axis, Group, Layer, Norm, Spec
from project.symmetry.trace import NORMS, graph_of, trace

__all__ = [
    "NORMS", "Axis", "Group", "Layer", "Norm", "Spec", "check_equivalence", "graph_of", "largest_difference",
    "permute_axis", "permute_state", "trace",
]  # fmt: skip
