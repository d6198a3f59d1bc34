"""Finding unreadable pictures before a long run does."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias

from torch import distributed

from project.data.domain import Sample, some, told_share
from project.data.opening import Finding, examine
from project.errors import DataError, one_of, whole
from project.models.preprocessing import Preprocessing
from project.runtime import tell, warn

OnError = Literal["raise", "skip"]
Findings: TypeAlias = dict[Path, Finding]
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
        on_error: What to do about a picture that cannot be read: ``raise``, or ``skip`` it with a warning.
        threads: How many pictures are decoded at a time.
    """

    def __init__(self, on_error: OnError = "raise", threads: int = 4) -> None:
        one_of(OnError, on_error=on_error)
        self.on_error = on_error
        self.threads = threads
        self._found: Findings = {}
        self._told: set[Path] = set()

    @property
    def unreadable(self) -> list[str]:
        """Paths of the pictures that could not be decoded so far, sorted."""
        return sorted(str(path) for path, found in self._found.items() if found.defect)

    def readable(self, samples: list[Sample]) -> list[Sample]:
        """The samples whose pictures can be decoded, the same in every process; all of them must ask.

        Raises:
            DataError: In mode ``raise``, where there is one that cannot.
        """
        new = [path for path, _ in samples if path not in self._found]
        if new:
            self._found |= self._examine(new)
        absent = [path for path, _ in samples if self._found[path].absent]
        bad = [
            f"{path} ({self._found[path].defect})"
            for path, _ in samples
            if self._found[path].defect and not self._found[path].absent
        ]
        if not bad and not absent:
            return samples
        messages = [told_share(len(absent), len(samples), "pictures", absent)] if absent else []
        if bad:
            messages.append(f"{len(bad)} of {len(samples)} pictures cannot be read: {some(bad, FILES_NAMED)}")
        message = "; ".join(messages)
        if self.on_error == "raise":
            raise DataError(f"{message}; mend them, or set on_error to 'skip'.")
        named = {path for path, _ in samples if self._found[path].defect}
        if not named <= self._told:
            self._told |= named
            warn(f"{message}; they are left out.")
        return [sample for sample in samples if not self._found[sample[0]].defect]

    def account(self, samples: list[Sample], preprocessing: Preprocessing, where: str) -> None:
        """Say of pictures that have been examined what their pixels do not tell, and what is done about it.

        Args:
            samples: The pictures.
            preprocessing: What they go through.
            where: Whose they are.
        """
        found = [self._found[path] for path, _ in samples if path in self._found]
        kinds = ("turned", "deep", "transparent")
        turned, deep, transparent = (sum(getattr(one, kind) for one in found) for kind in kinds)
        if turned:
            how = "stand as that says" if preprocessing.orientation == "applied" else "lie as their pixels do"
            tell(f"{where}: the camera of {turned} of {len(found)} pictures noted another way up; they {how}")
        if deep:
            tell(f"{where}: {deep} of {len(found)} pictures have more than 8 bits a value, and are scaled to 8")
        if transparent and preprocessing.ground is None:
            warn(
                f"{where}: {transparent} of {len(found)} pictures are transparent in parts, which show the colours "
                f"that were saved below; ground: white lays them on white."
            )

    def _examine(self, paths: list[Path]) -> Findings:
        """Decode pictures, each process its share, and tell the others."""
        spread = distributed.is_available() and distributed.is_initialized()
        mine = paths[distributed.get_rank() :: distributed.get_world_size()] if spread else paths
        with ThreadPoolExecutor(self.threads) as pool:
            found: Findings = dict(zip(mine, pool.map(examine, mine), strict=True))
        if not spread:
            return found
        shares: list[Findings] = [{} for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(shares, found)
        return {path: one for share in shares for path, one in share.items()}
