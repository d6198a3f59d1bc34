"""Where a student can go, and that what is written answers as the student does."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from project.errors import ConfigurationError, one_of
from project.exports import folder, programs, weights
from project.exports.card import card_place, measured, write_card
from project.exports.common import Exported, blocked_by_kind, several_heads
from project.runtime.saving import check_target, check_writable
from project.student import Student, load_student

Target = Literal["timm", "onnx", "torch-export", "safetensors"]
SUFFIXES = {"timm": "-timm", "onnx": ".onnx", "torch-export": ".pt2", "safetensors": "-weights.safetensors"}
WRITERS: dict[str, Callable[[Student, Path], Exported]] = {
    "timm": folder.write,
    "onnx": programs.write_onnx,
    "torch-export": programs.write_program,
    "safetensors": weights.write,
}


def export(
    student: Student | str | Path,
    path: str | Path,
    to: Target,
    licence: str | None = None,
    file: str | Path | None = None,
) -> Exported:
    """Write a student for other tools, whole or not at all, once what is written gives the student's logits.

    A model card comes along, with the metadata that the Hugging Face Hub reads: ``README.md`` in a folder, else beside
    the file. Accuracies are in it where the student's file still lies in the folder of its merge.

    Args:
        student: The student, or its file; it stays as it is.
        path: What is written: a folder for ``timm``, else a file. It must not be there yet.
        to: ``timm``: a folder that ``timm.create_model("local-dir:…", pretrained=True)`` and transformers'
            ``AutoModelForImageClassification`` load, of students of one source's size with one head; ``onnx`` and
            ``torch-export``: programs of any student, every head an output of its name, for any number of pictures;
            ``safetensors``: weights under the names of the student's architecture, of students of one source's size.
        licence: Of the weights, for the card, as the Hub names licences (``apache-2.0``); default: none is stated.
        file: Of a student in memory: where its merge has written it, so that the card tells what was measured there.

    Returns:
        What was written, and how far its logits are from the student's.

    Raises:
        ConfigurationError: If the student cannot go there, the path is taken, or what is needed is not installed.
        MergeError: If what was written gave other logits; it is not there then.
        StorageError: If the disk has no room.
    """
    path = Path(path)
    one_of(Target, to=to)
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9.-]+", licence):
        raise ConfigurationError(f"licence is {licence!r}; allowed: a licence as the Hub names it, such as apache-2.0.")
    place = card_place(path, folder=to == "timm")
    if path.exists():
        raise ConfigurationError(f"out is {path}, which is there already; name another place, or remove it.")
    if place.exists():
        raise ConfigurationError(
            f"out is {path}, whose card {place} is there already; name another place, or remove it."
        )
    if to == "timm":
        check_writable(path, f"out is {path}")
    else:
        check_target(path, f"out is {path}")
    if not isinstance(student, Student):
        file, student = student, load_student(student)
    scores = [] if file is None else measured(student, Path(file))
    if student.training or next(student.parameters()).device.type != "cpu":
        student = copy.deepcopy(student).cpu().eval()
    if reason := obstacle(student, to):
        others = ", ".join(target for target in get_args(Target) if not obstacle(student, target))
        raise ConfigurationError(f"to is {to!r}, but the student {reason}; it can go to: {others}.")
    exported = replace(WRITERS[to](student, path), card=place)
    write_card(student, path, place, to, scores=scores, licence=licence)
    return exported


def obstacle(student: Student, to: Target) -> str | None:
    """Why a student cannot go to a target, as a sentence goes on behind ``the student``; None where it can."""
    if to == "onnx":
        return programs.too_large(student)
    if to == "torch-export":
        return None
    if reason := blocked_by_kind(student):
        return reason
    if to == "timm":
        return several_heads(student) or folder.without_twin(student)
    return None


def place_of(student: Path, to: Target) -> Path:
    """Where a student's file goes by default: beside it.

    Args:
        student: The student's file.
        to: The target.
    """
    return student.with_name(f"{student.name.removesuffix(student.suffix)}{SUFFIXES[to]}")
