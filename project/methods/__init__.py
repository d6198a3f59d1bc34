"""Merging methods, one file each."""

from project.methods.average import Average
from project.methods.base import Merged, Method, Problem
from project.methods.ensemble import Ensemble
from project.methods.permutation import Permutation
from project.methods.pleas import PLeaS

__all__ = ["Average", "Ensemble", "Merged", "Method", "PLeaS", "Permutation", "Problem"]
