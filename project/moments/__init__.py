"""Second moments of what the sources read and write, gathered in one pass."""

from project.moments.layer import LayerMoment, layer_moment
from project.moments.lockstep import Lockstep, Run
from project.moments.moment import Moment, SecondMoment
from project.moments.patches import cross_moment, exact_products, flat, joint_columns, unit_columns
from project.moments.statistics import INPUTS, LAYERS, PICTURES, UNITS, Collector, Statistics, own_domains

__all__ = [
    "INPUTS",
    "LAYERS",
    "PICTURES",
    "UNITS",
    "Collector",
    "LayerMoment",
    "Lockstep",
    "Moment",
    "Run",
    "SecondMoment",
    "Statistics",
    "cross_moment",
    "exact_products",
    "flat",
    "joint_columns",
    "layer_moment",
    "own_domains",
    "unit_columns",
]
