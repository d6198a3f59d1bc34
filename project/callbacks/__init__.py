"""Callbacks: merging in the validation loop, writing predictions."""

from project.callbacks.merge import MergeCallback
from project.callbacks.predictions import PredictionTable

__all__ = ["MergeCallback", "PredictionTable"]
