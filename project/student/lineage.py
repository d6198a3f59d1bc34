"""The sources that a student was made of, found again by what its file says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from project.errors import CheckpointError, ConfigurationError
from project.models import Architecture, Named, Weights, read_weights
from project.student.build import Student
from project.student.file import is_student
from project.student.source import Source, read_source


def original_sources(student: Student, paths: Sequence[Path], architecture: Named | None = None) -> list[Source]:
    """Load the sources of a student, in the order of its unit maps.

    Args:
        student: Its lineage holds the SHA-256 hashes of its sources' files.
        paths: The files, in any order.
        architecture: For sources of your own code: the dotted path that they were merged by, the class or function, or
            a network to copy.

    Raises:
        ConfigurationError: If a file is not a source of this student, one of its sources is missing, or they are of
            your own code, which ``architecture`` does not name.
        CheckpointError: If a file cannot be read, or the student's does not say what it was made of.
    """
    entries = _entries(student)
    files = {weights.sha256: weights for weights in map(read_weights, paths)}
    known = {str(entry["sha256"]): str(entry["name"]) for entry in entries}
    for sha256, weights in files.items():
        if sha256 not in known:
            expected = ", ".join(f"{name} ({wanted[:12]}…)" for wanted, name in known.items())
            raise ConfigurationError(
                f"sources holds {weights.path} (sha256 {sha256[:12]}…), which the student was not made of; it was made "
                f"of {expected}."
            )
    missing = [name for sha256, name in known.items() if sha256 not in files]
    if missing:
        raise ConfigurationError(f"sources lacks the files of {', '.join(missing)}, of which the student was made.")
    return [_source(files[entry["sha256"]], entry, architecture) for entry in entries]


def _source(weights: Weights, entry: dict[str, Any], architecture: Named | None) -> Source:
    try:
        merged_as = Architecture(**entry["architecture"])
    except (TypeError, ConfigurationError) as error:
        raise CheckpointError(f"the student says of {entry['name']} what cannot be: {error}") from error
    if not is_student(weights):
        weights = replace(weights, architecture=merged_as)
    return read_source(weights, entry["name"], architecture if merged_as.custom else None)


def original_owners(student: Student) -> dict[str, int]:
    """Domain -> index of the source that owned it when the student was made.

    Raises:
        CheckpointError: If the student's file does not say.
    """
    return {domain: index for index, entry in enumerate(_entries(student)) for domain in entry["domains"]}


def _entries(student: Student) -> list[dict[str, Any]]:
    entries = student.lineage.get("sources")
    wanted = {"name": str, "sha256": str, "architecture": dict, "domains": list}
    if not isinstance(entries, list) or not entries or not all(_holds(entry, wanted) for entry in entries):
        raise CheckpointError(
            f"the student does not say which sources it was made of (their {', '.join(wanted)}); merge them again."
        )
    return entries


def _holds(entry: object, wanted: Mapping[str, type]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in wanted.items())
