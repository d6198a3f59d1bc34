"""Which units of the sources belong together: similarity, assignment, unit map."""

from project.alignment.align import Alignment, align_by_activations, align_by_weights, assign, unaligned
from project.alignment.similarity import Similarity, activation_similarity
from project.alignment.unit_map import UnitMap, overlap, row_order

__all__ = [
    "Alignment", "Similarity", "UnitMap", "activation_similarity", "align_by_activations", "align_by_weights", "assign",
    "overlap", "row_order", "unaligned",
]  # fmt: skip
