"""pleas-lightning: several fine-tuned vision networks become one, of a size you choose.

Five lines of it, without a command and without Lightning::

    student = project.merge(["photo.pth", "sketch.pth"], {"photo": photos, "sketch": sketches}, budget=1.2)
    students = project.merges(sources, pictures, budgets=[1, 1.5], methods=["pleas", "average"])
    report = project.check(network)
    project.save_student(student, "merged.safetensors")
    student = project.load_student("merged.safetensors")
"""

from project.api import check, merge, merges
from project.report.check import CheckReport
from project.student import Student, load_student, save_student

__all__ = ["CheckReport", "Student", "check", "load_student", "merge", "merges", "save_student"]
