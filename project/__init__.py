"""pleas-lightning: several fine-tuned vision networks become one, of a size you choose.

Five lines of it, without a command and without Lightning::

    student = project.merge(["photo.pth", "sketch.pth"], {"photo": photos, "sketch": sketches}, budget=1.2)
    students = project.merges(sources, pictures, budgets=[1, 1.5], methods=["pleas", "average"])
    project.average(["photo.pth", "sketch.pth"], "mean.pth", "my_pictures")
    report = project.check(network)
    project.save_student(student, "merged.safetensors")
    student = project.load_student("merged.safetensors")

and a sixth for other tools: ``project.export(student, "merged.onnx", to="onnx")``.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from project.api import check, merge, merges
    from project.averages import average
    from project.exports import Exported, export
    from project.report.check import CheckReport
    from project.student import Student, load_student, save_student

__all__ = [
    "CheckReport", "Exported", "Student", "average", "check", "export", "load_student", "merge", "merges",
    "save_student",
]  # fmt: skip

_PLACES = {
    "project.api": ("check", "merge", "merges"),
    "project.averages": ("average",),
    "project.exports": ("Exported", "export"),
    "project.report.check": ("CheckReport",),
    "project.student": ("Student", "load_student", "save_student"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch takes seconds, in which the command could not be interrupted in peace."""
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(place), name)
    if not name.startswith("_") and find_spec(f"project.{name}") is not None:
        return import_module(f"project.{name}")
    raise AttributeError(f"module 'project' has no attribute {name!r}", name=name, obj=import_module("project"))


def __dir__() -> list[str]:
    """What the package offers, imported or not."""
    return sorted({*globals(), *__all__})
