"""Plain weights: safetensors under the names of a student's architecture."""

import copy
from pathlib import Path
from typing import cast

from safetensors.torch import load_file, save_file
from torch import Tensor

from project.exports.common import Exported, compared, described, heads_of, notes_of, sized, state_of
from project.runtime.saving import atomic_path, tensor_bytes
from project.student import Student
from project.student.file import original_architecture


def write(student: Student, path: Path) -> Exported:
    """Write weights that the student's architecture loads strictly; classes and preprocessing stand in the metadata.

    Raises:
        PleasError: See :func:`~project.exports.export.export`.
    """
    state = state_of(student)
    architecture = original_architecture(student)
    with atomic_path(path, tensor_bytes(state)) as draft:
        save_file(state, draft, metadata={"format": "pt", **described(student)})
        network = copy.deepcopy(student.dense()) if architecture.custom else sized(architecture, student).build()
        network.load_state_dict(load_file(draft))
        network.eval()
        difference = compared(student, lambda pictures: cast(Tensor, network(pictures)), str(path))
        written = draft.stat().st_size
    return Exported(path, written, difference, heads_of(student), notes_of(student))
