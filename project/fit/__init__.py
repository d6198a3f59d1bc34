"""Least squares: the layers of a student fitted to what the sources do, in closed form."""

from project.fit.activations import Activations
from project.fit.distil import Distillation, DistillationLoss
from project.fit.factor import Factor
from project.fit.folding import take_statistics
from project.fit.gain import separation_gains, why_no_gains
from project.fit.inversion import restyled, strangeness
from project.fit.joint import View, fit_layer
from project.fit.layer_fit import KeptFits, LayerFit, Measurements
from project.fit.normal_equations import damping
from project.fit.row_blocks import effort
from project.fit.sequential import SequentialFit
from project.fit.stages import in_stages, stages, unfitted

__all__ = [
    "Activations", "Distillation", "DistillationLoss", "Factor", "KeptFits", "LayerFit", "Measurements",
    "SequentialFit", "View", "damping", "effort", "fit_layer", "in_stages", "restyled", "separation_gains", "stages",
    "strangeness", "take_statistics", "unfitted", "why_no_gains",
]  # fmt: skip
