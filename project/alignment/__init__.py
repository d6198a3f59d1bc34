"""Which units of the sources belong together: similarity, assignment, unit map, and how rows come apart."""

from project.alignment.align import Alignment, align_by_activations, align_by_both, align_by_weights, unaligned
from project.alignment.assignment import assign, match_units, total_similarity
from project.alignment.objective import similarity_bytes
from project.alignment.partition import Splitting, nested_partitions
from project.alignment.similarity import Similarity, activation_similarity
from project.alignment.unit_map import UnitMap, overlap
from project.alignment.zip_alignment import Zipping, zip_sources

__all__ = [
    "Alignment", "Similarity", "Splitting", "UnitMap", "Zipping", "activation_similarity", "align_by_activations",
    "align_by_both", "align_by_weights", "assign", "match_units", "nested_partitions", "overlap", "similarity_bytes",
    "total_similarity", "unaligned", "zip_sources",
]  # fmt: skip
