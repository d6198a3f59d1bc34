"""The merged network: unit maps within a budget, start point, fit, batch norm, file."""

from project.student.artefact import build_student, is_student, load_student, save_student
from project.student.budget import executed_macs, nominal_macs, source_macs, stagewise
from project.student.build import Student, blank_network, start_student
from project.student.fit import View, fit_layer, joint_matrix, start_matrix, targets, view
from project.student.layers import BlockLayer
from project.student.normalise import batch_norms, reestimate, reestimation, running_variances
from project.student.sequential import SequentialFit
from project.student.solver import LayerFit, damping
from project.student.source import Source, common_spec, load_source, unmergeable

__all__ = [
    "BlockLayer", "LayerFit", "SequentialFit", "Source", "Student", "View", "batch_norms", "blank_network",
    "build_student", "common_spec", "damping", "executed_macs", "fit_layer", "is_student", "joint_matrix",
    "load_source", "load_student", "nominal_macs", "reestimate", "reestimation", "running_variances", "save_student",
    "source_macs", "stagewise", "start_matrix", "start_student", "targets",
    "unmergeable", "view",
]  # fmt: skip
