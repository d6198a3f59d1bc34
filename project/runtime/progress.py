"""What a merge has finished so far, in files below its run's folder, so that it can be killed at any moment.

A merge that is started again with the same arguments goes on from the last file: files appear whole or not at all, and
lie in folders named by a hash of all that they depend on. What is recalled is what was kept, bit for bit, and the rest
is computed as it would have been. Every process keeps its own files, and what not all of them have counts for none.
"""

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from project.runtime.processes import Reduce
from project.runtime.saving import atomic_save

FOLDER = "progress"


@dataclass(frozen=True)
class Progress:
    """A folder of finished work.

    Args:
        folder: The folder; made when something is kept.
        reduce: Sums a tensor over all processes in place.
        device: Where tensors to be summed must live.
    """

    folder: Path
    reduce: Reduce = lambda tensor: tensor
    device: torch.device | str = "cpu"

    def below(self, name: str, depends: Mapping[str, Any] | None = None) -> "Progress":
        """The part of it for one piece of work.

        Args:
            name: What it is.
            depends: Plain values that the work depends on beside what the folder is for already.
        """
        text = json.dumps(depends or {}, sort_keys=True, default=_plain)
        mark = f"-{hashlib.sha256(text.encode()).hexdigest()[:16]}" if depends else ""
        return replace(self, folder=self.folder / f"{name}{mark}")

    def path(self, name: str) -> Path:
        """Where a file of that name lies."""
        return self.folder / f"{name}.pt"

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        """Write plain values and tensors to a file."""
        atomic_save(dict(content), self.path(name))

    def recall(self, name: str) -> dict[str, Any] | None:
        """What was kept under a name, tensors on the CPU; None where not every process has it."""
        try:
            found: dict[str, Any] | None = torch.load(self.path(name), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            found = None
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            warnings.warn(f"{self.path(name)} cannot be read and is made again: {error}", stacklevel=2)
            found = None
        return found if self.everywhere(found is not None) else None

    def forget(self, name: str) -> None:
        """Take a file away."""
        self.path(name).unlink(missing_ok=True)

    def everywhere(self, holds: bool) -> bool:
        """Whether something holds in every process; all must ask."""
        missing = torch.tensor(int(not holds), device=self.device)
        self.reduce(missing)
        return int(missing) == 0

    def alike(self, text: str) -> bool:
        """Whether every process has the same; all must ask."""
        mark = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        sums = torch.tensor([1, mark, mark**2 >> 16], device=self.device)
        self.reduce(sums)
        count, total, squares = sums.tolist()
        return self.everywhere(total == count * mark and squares == count * (mark**2 >> 16))


def _plain(value: Any) -> Any:
    """What JSON does not know, the same in every process."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return {"class": type(value).__name__, **vars(value)} if hasattr(value, "__dict__") else repr(value)
