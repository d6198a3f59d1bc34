"""What hooks into Lightning's loops."""

from project.callbacks.checkpoints import write_atomically
from project.callbacks.ending import ended_by
from project.callbacks.merge import MergeCallback
from project.callbacks.naming import named
from project.callbacks.predictions import PredictionTable
from project.callbacks.strategy import check_strategy, check_strategy_name

__all__ = [
    "MergeCallback", "PredictionTable", "check_strategy", "check_strategy_name", "ended_by", "named",
    "write_atomically",
]  # fmt: skip
