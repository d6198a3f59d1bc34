"""Statistics in files: what calibration leaves behind, with what it depends on, additive over shards."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from project.errors import CheckpointError, ConfigurationError, MergeError
from project.moments.fingerprint import Fingerprint
from project.moments.statistics import Statistics, domain_of
from project.runtime.saving import atomic_path, check_target

FORMAT = "pleas-statistics"
VERSION = "1"


@dataclass(frozen=True, eq=False)
class StoredMoment:
    """One moment in a file.

    Args:
        count: Samples in it.
        shapes: Of its totals.
    """

    count: int
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class StoredStatistics:
    """A file of statistics, of which only the list of contents has been read.

    Args:
        path: The file.
        fingerprint: What they depend on.
        pictures: domain -> number of pictures seen.
        moments: Moments by the names of :func:`~project.moments.statistics.entry_name`.
    """

    path: Path
    fingerprint: Fingerprint
    pictures: Mapping[str, int]
    moments: Mapping[str, StoredMoment]

    def totals(self, name: str) -> list[Tensor]:
        """What holds a moment's sum, float64, mapped from the file: read when looked at, dropped when memory is short.

        Raises:
            CheckpointError: If the file has gone or is damaged.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                return [file.get_tensor(_tensor(name, index)) for index in range(len(self.moments[name].shapes))]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path} is not there or damaged: {error}.") from error

    def fill(self, statistics: Statistics, device: torch.device | None = None) -> None:
        """Let every moment that the file holds have its sum, mapped from the file.

        Args:
            statistics: Of the same sources, empty.
            device: Where sums are worked on; default: where each moment says.

        Raises:
            CheckpointError: If a moment in the file has other shapes.
        """
        for name, moment in statistics.named().items():
            if name in self.moments:
                try:
                    moment.load(self.totals(name), self.moments[name].count, device=device)
                except MergeError as error:
                    raise CheckpointError(f"{self.path}: {name}: {error}") from error


def save_statistics(
    statistics: Statistics, fingerprint: Fingerprint, path: str | Path, *others: StoredStatistics
) -> None:
    """Write statistics to a safetensors file, atomically.

    Args:
        statistics: What was gathered.
        fingerprint: What it depends on.
        path: The file.
        others: Files of the same fingerprint whose further moments are to be kept along.
    """
    totals = {name: moment.totals for name, moment in statistics.named().items()}
    counts = {name: moment.count for name, moment in statistics.named().items()}
    for other in others:
        for name in other.moments.keys() - totals.keys():
            totals[name], counts[name] = other.totals(name), other.moments[name].count
    _write(path, fingerprint, statistics.pictures, totals, counts)


def read_statistics(path: str | Path) -> StoredStatistics:
    """Read the list of contents of a file of statistics.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"The file of statistics {path} is {'a folder' if path.is_dir() else 'not there'}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            keys = set(file.keys())
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} holds no statistics; they are written by 'pleas merge' with 'statistics'.")
        if metadata.get("version") != VERSION:
            raise CheckpointError(f"{path} holds statistics of version {metadata.get('version')}, not {VERSION}.")
        listed = json.loads(metadata["moments"])
        moments = {name: StoredMoment(one["count"], tuple(map(tuple, one["shapes"]))) for name, one in listed.items()}
        fingerprint, pictures = Fingerprint.read(json.loads(metadata["stamp"])), json.loads(metadata["pictures"])
    except (OSError, SafetensorError, struct.error, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no file of statistics: {error}.") from error
    missing = {_tensor(name, index) for name, one in moments.items() for index in range(len(one.shapes))} - keys
    if missing:
        raise CheckpointError(f"{path} is damaged: it lacks {min(missing)}.")
    return StoredStatistics(path, fingerprint, pictures, moments)


def add_statistics(paths: Sequence[str | Path], out: str | Path) -> StoredStatistics:
    """Add files of statistics that were gathered on different pictures by the same sources: shards of one set.

    Args:
        paths: The files, each once; no picture may be in two of them.
        out: File for the sum, which is what one pass over all their pictures would have left, to rounding.

    Raises:
        ConfigurationError: If they do not belong together.
        CheckpointError: If one cannot be read.
    """
    if len(paths) < 2 or len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigurationError(f"files is {', '.join(map(str, paths))}; allowed: two or more, each once.")
    check_target(out, f"out is {out}")
    files = [read_statistics(path) for path in paths]
    first = files[0]
    names = [name for file in files for name in file.moments]
    for file in files[1:]:
        differing = [
            one for one in first.fingerprint.differences(file.fingerprint) if not one.startswith("other pictures")
        ]
        if differing:
            raise ConfigurationError(
                f"{file.path} and {first.path} cannot be added: the former has {'; '.join(differing)}."
            )
    for file in files:
        lacking = [name for name in names if name not in file.moments and file.pictures.get(domain_of(name))]
        if lacking:
            raise ConfigurationError(
                f"{file.path} lacks {lacking[0]}, which others have, although it has seen {domain_of(lacking[0])}; "
                f"gather the same moments in all files."
            )
    pictures: dict[str, int] = {}
    totals: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    for file in files:
        for domain, count in file.pictures.items():
            pictures[domain] = pictures.get(domain, 0) + count
        for name, moment in file.moments.items():
            counts[name] = counts.get(name, 0) + moment.count
            if name not in totals:
                totals[name] = file.totals(name)
                continue
            if [tuple(total.shape) for total in totals[name]] != list(moment.shapes):
                raise ConfigurationError(f"{file.path} and {first.path} cannot be added: {name} has other shapes.")
            totals[name] = [mine + theirs for mine, theirs in zip(totals[name], file.totals(name), strict=True)]
    fingerprint = reduce(lambda one, other: one + other, (file.fingerprint for file in files))
    _write(out, fingerprint, pictures, totals, counts)
    return read_statistics(out)


def _write(
    path: str | Path,
    fingerprint: Fingerprint,
    pictures: Mapping[str, int],
    totals: Mapping[str, Sequence[Tensor]],
    counts: Mapping[str, int],
) -> None:
    listed: dict[str, Any] = {
        name: {"count": counts[name], "shapes": [list(one.shape) for one in found]} for name, found in totals.items()
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "stamp": json.dumps(fingerprint.plain),
        "pictures": json.dumps(dict(pictures)),
        "moments": json.dumps(listed),
    }
    tensors = {
        _tensor(name, index): total.cpu().contiguous()
        for name, found in totals.items()
        for index, total in enumerate(found)
    }
    with atomic_path(path) as draft:
        draft.touch()
        mode = draft.stat().st_mode
        save_file(tensors, draft, metadata)
        draft.chmod(mode)  # the writer makes files that nobody else may read


def _tensor(name: str, index: int) -> str:
    return f"{name}:{index}"
