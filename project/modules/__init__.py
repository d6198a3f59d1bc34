"""LightningModules: training alone and in rounds, merging, learning coefficients, refining, scoring, probing."""

from project.modules.coefficients import CoefficientModule
from project.modules.evaluation import EvaluationModule
from project.modules.federated import FederatedModule
from project.modules.fine_tune import FineTuneModule
from project.modules.merge import MergeModule
from project.modules.probe import ProbeModule
from project.modules.refine import RefineModule
from project.modules.scoring import ScoringModule
from project.modules.wash import WashModule
from project.modules.weight_scope import WeightScope

__all__ = [
    "CoefficientModule", "EvaluationModule", "FederatedModule", "FineTuneModule", "MergeModule",
    "ProbeModule", "RefineModule", "ScoringModule", "WashModule", "WeightScope",
]  # fmt: skip
