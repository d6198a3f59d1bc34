"""Merging methods, one file each."""

from project.methods.adamerging import AdaMerging
from project.methods.average import Average
from project.methods.base import Merged, Method, Preparation
from project.methods.concrete import Concrete
from project.methods.emr import EMR
from project.methods.fisher import Fisher
from project.methods.interpolation import Interpolation
from project.methods.mats import MaTS
from project.methods.pcb import PCB
from project.methods.permutation import Permutation
from project.methods.pleas import PLeaS
from project.methods.problem import Evidence, PictureCounts, Problem, Run
from project.methods.regmean import RegMean
from project.methods.regmean_pp import RegMeanPP
from project.methods.smile import SMILE
from project.methods.task_arithmetic import TaskArithmetic
from project.methods.ties import TIES
from project.methods.tuned import Tuned
from project.methods.wemoe import WEMoE
from project.methods.zipit import ZipIt
from project.student.ensemble import Ensemble

__all__ = [
    "EMR", "PCB", "SMILE", "TIES", "AdaMerging", "Average", "Concrete", "Ensemble", "Evidence", "Fisher",
    "Interpolation", "MaTS", "Merged", "Method", "PLeaS", "Permutation", "PictureCounts", "Preparation", "Problem",
    "RegMean", "RegMeanPP", "Run", "TaskArithmetic", "Tuned", "WEMoE", "ZipIt",
]  # fmt: skip
