"""The merged network: unit maps within a budget, start point, fit, batch norm, file."""

from project.student.batch_norm import batch_norms, own_statistics, reestimate, reestimation, running_variances
from project.student.build import Student, blank_network, start_student
from project.student.distil import Distillation, DistillationLoss
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
from project.student.fit import View, fit_layer, joint_matrix, start_matrix, targets
from project.student.gain import separation_gains
from project.student.inversion import restyled, strangeness
from project.student.joins import with_joins
from project.student.kept_fits import KeptFits
from project.student.layers import BlockLayer
from project.student.lineage import original_owners, original_sources
from project.student.masked import MaskedStudent, packed
from project.student.mixture import Block, Learnt, MixtureStudent, Projected
from project.student.row_blocks import effort
from project.student.sequential import SequentialFit
from project.student.solver import Factor, LayerFit, damping
from project.student.source import Source, common_spec, load_source
from project.student.stages import in_stages, stages

__all__ = [
    "BlendedLayer", "Block", "BlockLayer", "Distillation", "DistillationLoss", "Factor", "KeptFits", "LayerFit",
    "Learnt", "LearntRouter", "LowRankLayer", "MaskedStudent", "MixtureStudent", "Projected", "ProjectionRouter",
    "RoutedNorm", "SequentialFit", "Source", "Student", "View", "batch_norms", "blank_network", "build_student",
    "common_spec", "damping", "effort", "fit_layer", "in_stages", "is_student", "joint_matrix", "kind_entries",
    "load_source", "load_student", "of_its_kind", "original_owners", "original_sources", "own_statistics", "packed",
    "reestimate", "reestimation", "restyled", "running_variances", "save_student", "separation_gains", "stages",
    "start_matrix", "start_student", "strangeness", "student_entries", "targets", "with_joins",
]  # fmt: skip
