"""Second moments of what the sources read and write, gathered in one pass."""

from project.moments.fisher import DIAGONAL, FACTORS, Classes, FisherMoment, fisher_need
from project.moments.layer import LayerMoment, layer_moment
from project.moments.lockstep import Lockstep, Run
from project.moments.moment import Moment, SecondMoment
from project.moments.patches import cross_moment, flat, joint_columns, unit_columns
from project.moments.statistics import INPUTS, LAYERS, PICTURES, UNITS, Collector, Statistics, own_domains

__all__ = [
    "DIAGONAL",
    "FACTORS",
    "INPUTS",
    "LAYERS",
    "PICTURES",
    "UNITS",
    "Classes",
    "Collector",
    "FisherMoment",
    "LayerMoment",
    "Lockstep",
    "Moment",
    "Run",
    "SecondMoment",
    "Statistics",
    "cross_moment",
    "fisher_need",
    "flat",
    "joint_columns",
    "layer_moment",
    "own_domains",
    "unit_columns",
]
