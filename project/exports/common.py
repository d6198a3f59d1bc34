"""What all targets share: what a student is besides its weights, and the comparison of its logits."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from project.errors import CheckpointError, MergeError
from project.models import Architecture
from project.models.strict import differences
from project.models.unfused.attention import fused
from project.runtime.memory import size
from project.student import Student
from project.student.file import original_architecture

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest of them, that other implementations of the same sums make."""
COUNTS = (1, 3)  # pictures in a batch: programs that hold for one number alone do not pass


@dataclass(frozen=True)
class Exported:
    """What was written of a student.

    Args:
        path: The file or folder.
        bytes: Its size.
        difference: Largest difference of its logits from the student's on random pictures, relative to the largest.
        heads: Name of every head -> names of its classes, in the order of its logits.
        notes: What it does not say, in words.
        card: The model card.
    """

    path: Path
    bytes: int
    difference: float
    heads: dict[str, list[str]]
    notes: tuple[str, ...] = ()
    card: Path | None = None

    def __str__(self) -> str:
        """As ``pleas export`` prints it."""
        heads = ", ".join(f"{name} ({len(classes)} classes)" for name, classes in self.heads.items())
        told = f"{self.path}: {size(self.bytes)}, {heads}; logits within {self.difference:.1e} of the student's"
        return "; ".join((told, *self.notes))


def heads_of(student: Student) -> dict[str, list[str]]:
    """Name of every head -> names of its classes; a head of all domains is called ``logits``."""
    classes = student.labels.classes
    if student.labels.mode == "shared":
        return {"logits": list(next(iter(classes.values())))}
    return {domain: list(names) for domain, names in classes.items()}


def described(student: Student) -> dict[str, str]:
    """What a program or file of weights says beside: name -> JSON."""
    said: dict[str, object] = {
        "heads": heads_of(student),
        "domains": list(student.labels.domains),
        "picture": list(student.spec.picture),
        "preprocessing": None,
    }
    if student.preprocessing is not None:
        said["preprocessing"] = {**asdict(student.preprocessing), "resize": student.preprocessing.resized}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in said.items()}


def notes_of(student: Student) -> tuple[str, ...]:
    """What no target holds of a student, in words."""
    notes = []
    if student.preprocessing is None:
        notes.append("what its pictures go through is not known, and not said")
    if student.own_domains:
        notes.append(f"the heads of {', '.join(student.own_domains)} beside the shared one stay behind")
    elif student.gate is not None:
        notes.append("the gate between its heads stays behind")
    return tuple(notes)


def several_heads(student: Student) -> str | None:
    """Why a student is no classifier of one head, in words; None where it is."""
    heads = heads_of(student)
    return f"has {len(heads)} heads, {', '.join(heads)}, and a classifier there has one" if len(heads) > 1 else None


def blocked_by_kind(student: Student) -> str | None:
    """Why a student's weights are not those of one of its sources' networks, in words; None where they are."""
    if not student.plain:
        return "is several networks, put together for every picture or domain"
    grown = [name for name, group in student.spec.groups.items() if student.maps[name].units != group.size]
    if set(grown) - {student.spec.output.name}:
        return f"is larger than one of its sources ({len(grown)} of {len(student.spec.groups)} groups have more units)"
    try:
        found = original_architecture(student)
    except CheckpointError as error:
        return f"has weights without names: {str(error).rstrip('.')}"
    if not found.custom and (others := differences(sized(found, student).tensors(), state_of(student))):
        return f"has other tensors than {found.name} ({others[0]})"
    return None


def sized(architecture: Architecture, student: Student) -> Architecture:
    """An architecture with as many logits as a student has."""
    return Architecture(**{**asdict(architecture), "num_classes": student.labels.width})


def state_of(student: Student) -> dict[str, Tensor]:
    """The tensors of the plain network that a student is, on the CPU, each with memory of its own.

    They have the names that its architecture gives them; of one that the user's code builds, the student's own.
    """
    state = student.dense().state_dict()
    found = original_architecture(student)
    named = state if found.custom else fused(state, sized(found, student).tensors())
    return {name: one.detach().cpu().contiguous().clone() for name, one in named.items()}


@torch.no_grad()
def compared(student: Student, run: Callable[[Tensor], Tensor], what: str) -> float:
    """Hold what was written against the student, on random pictures.

    Args:
        student: In eval mode.
        run: Gives the logits of what was written, (batch, columns of the label space), of pictures.
        what: What messages call it.

    Returns:
        The largest difference of the logits, relative to the largest of the student's.

    Raises:
        MergeError: If it is beyond :data:`TOLERANCE`.
    """
    device = next(student.parameters()).device
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for count in COUNTS:
        pictures = torch.randn(count, *student.spec.picture, generator=generator)
        expected = student(pictures.to(device)).cpu()
        found = run(pictures)
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    if not worst <= TOLERANCE:
        raise MergeError(f"{what} gives other logits than the student: they differ by {worst:.2g} of the largest.")
    return worst
