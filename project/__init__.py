"""pleas-lightning: several fine-tuned vision networks become one, of a size you choose.

Numerics (``project.symmetry`` to ``project.methods``) import torch and scipy alone; Lightning starts at
``project.data`` and ``project.modules``.
"""

from project.student import Student, load_student, save_student

__all__ = ["Student", "load_student", "save_student"]
