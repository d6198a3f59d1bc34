"""LightningModules: fine-tuning a source, merging sources, scoring any network, probing trunks."""

from project.modules.evaluation import EvaluationModule
from project.modules.fine_tune import FineTuneModule
from project.modules.merge import MergeModule
from project.modules.probe import ProbeModule
from project.modules.sources import SourceFile

__all__ = ["EvaluationModule", "FineTuneModule", "MergeModule", "ProbeModule", "SourceFile"]
