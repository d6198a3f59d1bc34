"""The sources that a student was made of, found again by what its file says of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from project.errors import CheckpointError, ConfigurationError
from project.models import Architecture
from project.models.files import file_hash
from project.student.build import Student
from project.student.source import Source, load_source


def original_sources(student: Student, paths: Sequence[Path]) -> list[Source]:
    """Load the sources of a student, in the order of its unit maps.

    Args:
        student: Its lineage holds the SHA-256 hashes of its sources' files.
        paths: The files, in any order.

    Raises:
        ConfigurationError: If a file is not a source of this student, or one of its sources is missing.
        CheckpointError: If a file cannot be read, or the student's does not say what it was made of.
    """
    entries = _entries(student)
    found = {file_hash(path): Path(path) for path in paths}
    known = {str(entry["sha256"]): str(entry["name"]) for entry in entries}
    for sha256, path in found.items():
        if sha256 not in known:
            expected = ", ".join(f"{name} ({wanted[:12]}…)" for wanted, name in known.items())
            raise ConfigurationError(
                f"sources holds {path} (sha256 {sha256[:12]}…), which the student was not made of; it was made of "
                f"{expected}."
            )
    missing = [name for sha256, name in known.items() if sha256 not in found]
    if missing:
        raise ConfigurationError(f"sources lacks the files of {', '.join(missing)}, of which the student was made.")
    return [
        load_source(found[entry["sha256"]], entry["name"], Architecture(**entry["architecture"])) for entry in entries
    ]


def original_owners(student: Student) -> dict[str, int]:
    """Domain -> index of the source that owned it when the student was made.

    Raises:
        CheckpointError: If the student's file does not say.
    """
    return {domain: index for index, entry in enumerate(_entries(student)) for domain in entry["domains"]}


def _entries(student: Student) -> list[dict[str, Any]]:
    entries = cast(list[dict[str, Any]], student.lineage.get("sources", []))
    wanted = ("name", "sha256", "architecture", "domains")
    if not entries or any(key not in entry for entry in entries for key in wanted):
        raise CheckpointError(
            f"the student does not say which sources it was made of (their {', '.join(wanted)}); merge them again."
        )
    return entries
