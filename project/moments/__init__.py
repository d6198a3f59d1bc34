"""Second moments of what the sources read and write, gathered in one pass."""

from project.moments.lockstep import Lockstep
from project.moments.moment import Moment
from project.moments.patches import joint_rows, unfold, unit_rows
from project.moments.statistics import LAYERS, UNITS, Collector, Statistics

__all__ = ["LAYERS", "UNITS", "Collector", "Lockstep", "Moment", "Statistics", "joint_rows", "unfold", "unit_rows"]
