"""LightningModules: fine-tuning a source, merging sources, refining a student, scoring any network."""

from project.modules.evaluation import EvaluationModule
from project.modules.fine_tune import FineTuneModule
from project.modules.merge import MergeModule
from project.modules.refine import RefineModule
from project.modules.sources import SourceFile

__all__ = ["EvaluationModule", "FineTuneModule", "MergeModule", "RefineModule", "SourceFile"]
