"""Second moments of what the sources read and write, gathered in one pass."""

from project.moments.lockstep import Lockstep, Run
from project.moments.moment import Moment
from project.moments.patches import cross_moment, flat, joint_columns, unit_columns
from project.moments.statistics import INPUTS, LAYERS, PICTURES, UNITS, Collector, Statistics, own_domains

__all__ = [
    "INPUTS",
    "LAYERS",
    "PICTURES",
    "UNITS",
    "Collector",
    "Lockstep",
    "Moment",
    "Run",
    "Statistics",
    "cross_moment",
    "flat",
    "joint_columns",
    "own_domains",
    "unit_columns",
]
