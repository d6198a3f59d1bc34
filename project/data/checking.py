"""Finding unreadable pictures before a long run does."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias

from torch import distributed

from project.data.domain import Sample
from project.data.opening import defect
from project.errors import DataError, one_of, whole
from project.runtime import warn

OnError = Literal["raise", "skip"]
Defects: TypeAlias = dict[Path, str | None]
MOST_WORKERS = 1024  # that load pictures: each is a process, and more of them no machine serves
FILES_NAMED = 5
"""How many unreadable files a message names; the others are counted."""


def check_loading(batch_size: int, num_workers: int) -> None:
    """Refuse to load pictures in a way that no loader can.

    Args:
        batch_size: Pictures in a batch.
        num_workers: Processes that load pictures.

    Raises:
        ConfigurationError: With the argument, its value and what is allowed.
    """
    whole(1, batch_size=batch_size)
    whole(0, MOST_WORKERS, num_workers=num_workers)


class PictureCheck:
    """Decodes every picture once and remembers what it found.

    Args:
        on_error: What to do about a picture that cannot be read: ``raise``, or ``skip`` it with one warning a list.
        threads: How many pictures are decoded at a time.
    """

    def __init__(self, on_error: OnError = "raise", threads: int = 4) -> None:
        one_of(OnError, on_error=on_error)
        self.on_error = on_error
        self.threads = threads
        self._found: Defects = {}

    @property
    def unreadable(self) -> list[str]:
        """Paths of the pictures that could not be decoded so far, sorted."""
        return sorted(str(path) for path, reason in self._found.items() if reason)

    def readable(self, samples: list[Sample]) -> list[Sample]:
        """The samples whose pictures can be decoded, the same in every process; all of them must ask.

        Raises:
            DataError: In mode ``raise``, where there is one that cannot.
        """
        new = [path for path, _ in samples if path not in self._found]
        if new:
            self._found |= self._examine(new)
        bad = [f"{path} ({self._found[path]})" for path, _ in samples if self._found[path]]
        if not bad:
            return samples
        more = f" and {len(bad) - FILES_NAMED} more" if len(bad) > FILES_NAMED else ""
        message = f"{len(bad)} of {len(samples)} pictures cannot be read: {', '.join(bad[:FILES_NAMED])}{more}"
        if self.on_error == "raise":
            raise DataError(f"{message}; mend them, or set on_error to 'skip'.")
        warn(f"{message}; they are left out.")
        return [sample for sample in samples if not self._found[sample[0]]]

    def _examine(self, paths: list[Path]) -> Defects:
        """Decode pictures, each process its share, and tell the others."""
        spread = distributed.is_available() and distributed.is_initialized()
        mine = paths[distributed.get_rank() :: distributed.get_world_size()] if spread else paths
        with ThreadPoolExecutor(self.threads) as pool:
            found: Defects = dict(zip(mine, pool.map(defect, mine), strict=True))
        if not spread:
            return found
        shares: list[Defects] = [{} for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(shares, found)
        return {path: reason for share in shares for path, reason in share.items()}
