"""What hooks into Lightning's loops."""

from project.callbacks.checkpoints import write_atomically
from project.callbacks.continuation import Continuation
from project.callbacks.ending import ended_by
from project.callbacks.merge import MergeCallback
from project.callbacks.naming import NamedProgressBar, named, progress_bar
from project.callbacks.predictions import PredictionTable
from project.callbacks.saved_config import AtomicConfig
from project.callbacks.space import check_checkpoint_space
from project.callbacks.strategy import check_strategy, check_strategy_name

__all__ = [
    "AtomicConfig", "Continuation", "MergeCallback", "NamedProgressBar", "PredictionTable",
    "check_checkpoint_space", "check_strategy", "check_strategy_name", "ended_by", "named", "progress_bar",
    "write_atomically",
]  # fmt: skip
