"""Student files: one checkpoint that rebuilds the student without its sources."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from project.alignment import UnitMap
from project.errors import CheckpointError, PleasError
from project.models import Architecture, Weights, read_weights, written_out
from project.models.description import Description
from project.models.strict import load_strictly
from project.runtime.saving import atomic_save
from project.student.build import Student, blank_network
from project.student.masked import MaskedStudent
from project.student.mixture import MixtureStudent
from project.symmetry import Spec, trace

FORMAT = "pleas-student"
VERSION = 1
KINDS: dict[str, type[MaskedStudent] | type[MixtureStudent]] = {"masked": MaskedStudent, "mixture": MixtureStudent}


def save_student(student: Student, path: str | Path) -> None:
    """Write a student to a file, atomically; ``torch.load(weights_only=True)`` reads it.

    Args:
        student: Of a named architecture.
        path: The file.

    Raises:
        CheckpointError: If the student's architecture has no name to rebuild it by.
    """
    try:
        entries = student_entries(student)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    tensors = {name: tensor.detach().cpu() for name, tensor in student.network.state_dict().items()}
    atomic_save({**entries, "state_dict": tensors}, path)


def student_entries(student: Student) -> dict[str, Any]:
    """What a file must hold beside the network's tensors to be a student: plain values and the unit maps.

    Raises:
        CheckpointError: If the student's architecture has no name to rebuild it by.
    """
    if student.architecture is None or student.preprocessing is None:
        raise CheckpointError("a student is rebuilt by its architecture and preprocessing, which this one lacks.")
    entries = {
        "format": FORMAT,
        "version": VERSION,
        **Description(student.architecture, student.labels, student.preprocessing).to_entries(),
        "unit_maps": {name: units.members for name, units in student.group_maps.items()},
        "picture": list(student.spec.picture),
        "lineage": student.lineage,
    }
    if student.zipped:
        entries["zipped"] = True
    entries |= kind_entries(student)
    if student.gate is not None:
        entries["gate"] = {name: tensor.detach().cpu() for name, tensor in student.gate.state_dict().items()}
    return entries


def kind_entries(student: Student) -> dict[str, Any]:
    """What a student that is more than a plain network must hold beside its network's tensors, under its kind."""
    return {name: student.entries for name, kind in KINDS.items() if isinstance(student, kind)}


def of_its_kind(student: Student, entries: Mapping[str, Any]) -> Student:
    """A plain student as the kind that some entries tell of, if any; its network's tensors must be loaded afterwards.

    Args:
        student: Of the same unit maps.
        entries: With what :func:`kind_entries` gave.
    """
    for name, kind in KINDS.items():
        if name in entries:
            return kind.of(student, entries[name])
    return student


def is_student(weights: Weights) -> bool:
    """Whether what was read from a file is a student."""
    return weights.entries.get("format") == FORMAT


def load_student(path: str | Path) -> Student:
    """Rebuild a student from its file alone.

    Args:
        path: A file written by :func:`save_student`.

    Returns:
        The student in eval mode: call it on a batch of pictures for logits; ``labels`` names its columns.

    Raises:
        CheckpointError: If the file is missing, damaged or no student.
    """
    return build_student(read_weights(path))


def build_student(weights: Weights) -> Student:
    """Rebuild a student from what was read of its file; see :func:`load_student`."""
    content, path = weights.entries, weights.path
    if not is_student(weights):
        raise CheckpointError(f"{path} holds weights, but no student; students are written by 'pleas merge'.")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} is a student of version {content.get('version')}; this release reads {VERSION}.")
    architecture, labels = weights.architecture, weights.label_space
    if architecture is None or labels is None or weights.preprocessing is None:
        raise CheckpointError(f"{path} is a student without architecture, classes or preprocessing.")
    try:
        maps = {name: UnitMap.sorted(members) for name, members in content["unit_maps"].items()}
        lineage = content["lineage"]
        network, spec = _blank(architecture, maps, tuple(content["picture"]))
    except (PleasError, KeyError) as error:
        raise CheckpointError(
            f"{path} is a student with an entry that is missing or does not fit its architecture: {error}"
        ) from error
    student = Student(network, spec, maps, labels, architecture, weights.preprocessing, lineage).eval()
    student.zipped = "zipped" in content
    if "masked" in content:
        _check_masks(student, content["masked"], str(path))
    try:
        student = of_its_kind(student, content)
    except PleasError as error:
        raise CheckpointError(f"{path} is a student that cannot be put together: {error}") from error
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: order, memory
        raise CheckpointError(f"{path} is a student with layers that are not its architecture's: {error!r}.") from error
    load_strictly(student.network, weights.state_dict, str(path))
    if "gate" in content:
        _load_gate(student, content["gate"], str(path))
    return student


def _check_masks(student: Student, masked: dict[str, Any], path: str) -> None:
    """Refuse what a file holds of the networks of all sources, where it does not fit the student."""
    count, state = student.maps[student.spec.input.name].sources, student.network.state_dict()
    try:
        size = sum(state[name].numel() for name in masked["names"])
        expected = {"vector": (size,), "masks": (count, -(-size // 8)), "scales": (count,)}
        fits = {name: tuple(masked[name].shape) for name in expected} == expected
        fits &= all(values.shape == (count, *state[name].shape) for name, values in masked["kept"].items())
        fits &= all(0 <= owner < count for owner in masked["owners"].values())
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is a student with masks of which something is missing: {error!r}.") from error
    if not fits:
        raise CheckpointError(f"{path} is a student with masks that do not fit its {count} sources.")


def _load_gate(student: Student, gate: dict[str, Tensor], path: str) -> None:
    """Give a student its gate, if it is one for its heads and what they read."""
    count = len(student.labels.heads)
    expected = {"weight": (count, student.features), "bias": (count,)}
    if {name: tuple(tensor.shape) for name, tensor in gate.items()} != expected:
        raise CheckpointError(f"{path} is a student with a gate that does not fit its {count} heads.")
    student.set_gate(**gate)


def _blank(
    architecture: Architecture, maps: dict[str, UnitMap], picture: tuple[int, int, int]
) -> tuple[nn.Module, Spec]:
    with torch.device("meta"):
        plain = written_out(architecture.build().eval())
        spec = trace(plain, picture)
        network = blank_network(plain, spec, maps)
    return network.to_empty(device="cpu"), spec
