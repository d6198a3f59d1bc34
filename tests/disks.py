"""Disks of which a test says how much is free on them, and writes that fail."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from project.runtime import space

TOTAL = 10**15


def free(patch: pytest.MonkeyPatch, *, default: int, **disks: int) -> None:
    """Let a disk have so many bytes free, and folders of some names be disks of their own.

    Args:
        patch: What undoes it.
        default: Free where no folder on the way has one of the names.
        disks: Name of a folder -> bytes.
    """

    def disk(path: Path) -> str:
        return next((part for part in reversed(path.absolute().parts) if part in disks), "")

    amounts: Mapping[str, int] = {"": default, **disks}
    patch.setattr(space, "_disk", disk)
    patch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(total=TOTAL, used=0, free=amounts[disk(Path(path))])
    )


@contextmanager
def failing(pattern: str, number: int) -> Iterator[list[str]]:
    """While open, files whose path matches a pattern do not take their name: the system says an error number.

    Args:
        pattern: Regular expression.
        number: Of :mod:`errno`.

    Yields:
        The paths that failed.
    """
    failed: list[str] = []
    plain = Path.replace

    def replace(self: Path, target: Any) -> Path:
        if re.search(pattern, str(target)):
            failed.append(str(target))
            raise OSError(number, "as the test wants it", str(self))
        return plain(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        yield failed


def drafts(folder: Path) -> list[Path]:
    """Files that have not taken their names."""
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
