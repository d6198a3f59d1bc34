"""Second moments of what the sources read and write, gathered in one pass."""

from project.moments.lockstep import Lockstep
from project.moments.moment import Moment
from project.moments.patches import joint_columns, unit_columns
from project.moments.statistics import LAYERS, UNITS, Collector, Statistics

__all__ = ["LAYERS", "UNITS", "Collector", "Lockstep", "Moment", "Statistics", "joint_columns", "unit_columns"]
