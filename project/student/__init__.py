"""The merged network: unit maps within a budget, start point, fit, batch norm, file."""

from project.student.batch_norm import batch_norms, batches_of_all, mixed, own_statistics, running_variances
from project.student.build import Student, blank_network, check_finite, start_student
from project.student.experts import BlendedLayer, LearntRouter, LowRankLayer, ProjectionRouter, RoutedNorm
from project.student.file import (
    build_student,
    is_student,
    kind_entries,
    load_student,
    of_its_kind,
    save_student,
    student_entries,
)
from project.student.joins import with_joins
from project.student.layers import BlockLayer
from project.student.lineage import original_owners, original_sources
from project.student.masked import MaskedStudent, packed
from project.student.mixture import Block, Learnt, MixtureStudent, Projected
from project.student.reestimation import Reestimation, reestimate, renormalise
from project.student.source import Source, common_spec, load_source, read_source, source_of
from project.student.start import joint_matrix, start_matrix, targets

__all__ = [
    "BlendedLayer", "Block", "BlockLayer", "Learnt", "LearntRouter", "LowRankLayer", "MaskedStudent",
    "MixtureStudent", "Projected", "ProjectionRouter", "Reestimation", "RoutedNorm", "Source", "Student",
    "batch_norms", "batches_of_all", "blank_network", "build_student", "check_finite", "common_spec", "is_student",
    "joint_matrix", "kind_entries", "load_source", "load_student", "mixed", "of_its_kind", "original_owners",
    "original_sources", "own_statistics", "packed", "read_source", "reestimate", "renormalise", "running_variances",
    "save_student", "source_of", "start_matrix", "start_student", "student_entries", "targets", "with_joins",
]  # fmt: skip
