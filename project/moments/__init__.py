"""Second moments of what the sources read and write, gathered in one pass."""

from project.moments.blocks import GroupedMoment
from project.moments.correlations import gram_costs, pays
from project.moments.crosses import cross_moment
from project.moments.derived import BatchNorm, norm_scale_and_shift
from project.moments.fingerprint import Fingerprint, PictureSum, network_hash, tensor_sums
from project.moments.fisher import DIAGONAL, FACTORS, Classes, SquareMoment, fisher_need, needs_gradients
from project.moments.layer import InputMoment, LayerMoment, layer_moment
from project.moments.lockstep import ForwardPass, Lockstep
from project.moments.moment import Moment, Pull, SecondMoment, Sums
from project.moments.patches import exact_products, flat, joint_columns, unit_columns
from project.moments.positions import Positions, drawn_count
from project.moments.statistics import (
    INPUTS,
    LAYERS,
    PICTURES,
    UNITS,
    Collector,
    Statistics,
    check_finite,
    entry_name,
    own_domains,
)
from project.moments.store import StoredStatistics, add_statistics, lock_of, read_statistics, save_statistics

__all__ = [
    "DIAGONAL", "FACTORS", "INPUTS", "LAYERS", "PICTURES", "UNITS", "BatchNorm", "Classes", "Collector",
    "Fingerprint", "ForwardPass", "GroupedMoment", "InputMoment", "LayerMoment", "Lockstep", "Moment", "PictureSum",
    "Positions", "Pull", "SecondMoment", "SquareMoment", "Statistics", "StoredStatistics", "Sums", "add_statistics",
    "check_finite", "cross_moment", "drawn_count", "entry_name", "exact_products", "fisher_need", "flat",
    "gram_costs", "joint_columns", "layer_moment", "lock_of", "needs_gradients", "network_hash",
    "norm_scale_and_shift", "own_domains", "pays", "read_statistics", "save_statistics", "tensor_sums",
    "unit_columns",
]  # fmt: skip
