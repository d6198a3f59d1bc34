"""What a merge has finished so far, in files below its run's folder, so that it can be killed at any moment.

A merge that is started again with the same arguments goes on from the last file: files appear whole or not at all, and
lie in folders named by a hash of all that they depend on. What is recalled is what was kept, bit for bit, and the rest
is computed as it would have been. Every process keeps its own files, and what not all of them have counts for none.
"""

import hashlib
import json
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from project.errors import StorageError
from project.runtime.messages import first_process
from project.runtime.processes import ALONE, World, lost
from project.runtime.saving import atomic_save, atomic_text
from project.runtime.space import writing

FOLDER = "progress"
FAILED = "failed.txt"


@contextmanager
def taken_up_again(folder: Path | None) -> Iterator[None]:
    """While open, keep unfinished work below a folder; once all is done, nothing of it stays.

    What fails by itself, and is not interrupted from without, leaves a note that says why.

    Args:
        folder: The run's folder; None for nowhere.

    Raises:
        StorageError: If there can be no such folder.
    """
    if folder is None:
        yield
        return
    unfinished = folder / FOLDER
    with writing(unfinished):
        unfinished.mkdir(parents=True, exist_ok=True)
    if first_process():
        (unfinished / FAILED).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if first_process() and not lost(error):
            with suppress(OSError, StorageError):  # such as a full disk, of which the error tells
                atomic_text(" ".join((str(error) or type(error).__name__).split()), unfinished / FAILED)
        raise
    shutil.rmtree(unfinished, ignore_errors=True)  # by every process, should each have a disk of its own


def unfinished_work(folder: Path, what: str = "merge") -> str | None:
    """Name what a run's folder holds that did not come to its end.

    Args:
        folder: The run's folder.
        what: What to call it.

    Returns:
        Such as ``an interrupted merge``, or ``a merge that failed (…)``; None where there is none.
    """
    unfinished = folder / FOLDER
    if not unfinished.is_dir():
        return None
    try:
        reason = (unfinished / FAILED).read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"an interrupted {what}"
    return f"a {what} that failed ({reason.rstrip('.')})"


@dataclass(frozen=True)
class Progress:
    """Folder in which this process keeps finished work.

    Args:
        folder: The folder; made when something is kept.
        world: The processes that go on together.
        device: Where whoever recalls tensors shall move them.
    """

    folder: Path
    world: World = ALONE
    device: torch.device | str = "cpu"

    def below(self, name: str, depends: Mapping[str, Any] | None = None) -> "Progress":
        """Narrow it to the subfolder of one piece of work.

        Args:
            name: What it is.
            depends: Plain values that the work depends on beside what the folder is for already.
        """
        text = json.dumps(depends or {}, sort_keys=True, default=_plain)
        suffix = f"-{hashlib.sha256(text.encode()).hexdigest()[:16]}" if depends else ""
        return replace(self, folder=self.folder / f"{name}{suffix}")

    def path(self, name: str) -> Path:
        """Locate the file of a name, whether it is there or not."""
        return self.folder / f"{name}.pt"

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        """Write plain values and tensors to a file.

        Raises:
            StorageError: If there is no room for it, or the disk fails.
        """
        atomic_save(dict(content), self.path(name))

    def keep_together(self, name: str, content: Mapping[str, Any]) -> None:
        """Write plain values and tensors to a file where all processes do the same, so that all fail if one does.

        Raises:
            StorageError: If there is no room for it, or the disk fails.
            MergeError: If that happened in another process.
        """
        with self.world.together("could not keep what it has finished"):
            self.keep(name, content)

    def recall(self, name: str) -> dict[str, Any] | None:
        """Load what was kept under a name, tensors on the CPU; None where not every process has it."""
        try:
            content: dict[str, Any] | None = torch.load(self.path(name), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            content = None
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            warnings.warn(f"{self.path(name)} cannot be read and is made again: {error}", stacklevel=2)
            content = None
        return content if self.everywhere(content is not None) else None

    def forget(self, name: str) -> None:
        """Delete the file of a name, if there is one."""
        self.path(name).unlink(missing_ok=True)

    @property
    def others(self) -> bool:
        """Whether anything was kept of other work beside this one's."""
        beside = (other for other in self.folder.parent.glob("*") if other.is_dir() and other != self.folder)
        return any(one.is_file() for other in beside for one in other.rglob("*"))

    def everywhere(self, holds: bool) -> bool:
        """Find out whether something holds in every process; all must ask."""
        failing = torch.tensor(int(not holds))
        self.world.reduce(failing)
        return int(failing) == 0

    def alike(self, text: str) -> bool:
        """Find out whether a text is the same in every process; all must ask."""
        digest = torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
        first = digest.clone()
        self.world.broadcast(first, 0)
        return self.everywhere(torch.equal(digest, first))


def _plain(value: Any) -> Any:
    """Turn a value that JSON does not know into plain ones, the same in every process."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return {"class": type(value).__name__, **vars(value)} if hasattr(value, "__dict__") else repr(value)
