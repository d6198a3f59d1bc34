"""LightningModules: fine-tuning a source, merging sources, refining a student, scoring any network, probing trunks."""

from project.modules.evaluation import EvaluationModule
from project.modules.fine_tune import FineTuneModule
from project.modules.merge import MergeModule
from project.modules.probe import ProbeModule
from project.modules.refine import RefineModule
from project.modules.sources import SourceFile

__all__ = ["EvaluationModule", "FineTuneModule", "MergeModule", "ProbeModule", "RefineModule", "SourceFile"]
