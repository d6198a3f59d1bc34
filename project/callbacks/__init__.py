"""What hooks into Lightning's loops."""

from project.callbacks.checkpoints import LAST, check_checkpoint, check_last, restoring, write_atomically
from project.callbacks.continuation import Continuation
from project.callbacks.ending import ended_by
from project.callbacks.merge import MergeCallback
from project.callbacks.naming import NamedProgressBar, named, progress_bar
from project.callbacks.predictions import PredictionTable
from project.callbacks.saved_config import AtomicConfig, unmarked
from project.callbacks.space import check_checkpoint_space
from project.callbacks.strategy import check_strategy, check_strategy_name

__all__ = [
    "LAST", "AtomicConfig", "Continuation", "MergeCallback", "NamedProgressBar", "PredictionTable", "check_checkpoint",
    "check_checkpoint_space", "check_last", "check_strategy", "check_strategy_name", "ended_by", "named",
    "progress_bar", "restoring", "unmarked",
    "write_atomically",
]  # fmt: skip
