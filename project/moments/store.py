"""Statistics in files: what calibration leaves behind, with what it depends on, additive over shards."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from project.errors import CheckpointError, ConfigurationError, MergeError, present
from project.moments.fingerprint import Fingerprint, PictureSum
from project.moments.statistics import UNITS, Statistics, domain_of
from project.runtime.json_text import json_value
from project.runtime.lock import only_writer
from project.runtime.opening import open_file
from project.runtime.saving import atomic_path, check_target
from project.runtime.space import check_space

FORMAT = "pleas-statistics"
VERSION = "1"
FLOAT64_BYTES = 8
LARGEST = 1e90
"""Of any sum: the square of float32's largest number, 1e77, more often than pictures have positions."""


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
        parts: Pictures of each of the shards that were added up in it, by domain; of itself alone, where none were.
    """

    path: Path
    fingerprint: Fingerprint
    pictures: Mapping[str, int]
    moments: Mapping[str, StoredMoment]
    parts: Sequence[Mapping[str, PictureSum]]

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

    def check(self) -> None:
        """Read all sums once, and refuse those that no pictures can have.

        Raises:
            CheckpointError: If one holds values that are not finite, or is of other samples than the file says.
        """
        for name, moment in self.moments.items():
            self._checked(name, moment, self.totals(name))

    def checked_totals(self, name: str) -> list[Tensor]:
        """What :meth:`totals` gives, looked at as :meth:`check` does."""
        totals = self.totals(name)
        self._checked(name, self.moments[name], totals)
        return totals

    def _checked(self, name: str, moment: StoredMoment, totals: Sequence[Tensor]) -> None:
        for total in totals:
            if total.numel() and not all(map(math.isfinite, map(float, torch.aminmax(total)))):
                raise CheckpointError(f"{self.path} holds values in {name} that are not finite.")
            if total.numel() and (largest := max(abs(float(end)) for end in torch.aminmax(total))) > LARGEST:
                raise CheckpointError(
                    f"{self.path} is damaged: {name} holds {largest:.1e}, and no sum of squares of float32 is so large."
                )
        if name.startswith(f"{UNITS}/") and (ones := float(totals[0][-1, -1])) != moment.count:  # each sample's last
            raise CheckpointError(
                f"{self.path} is damaged: {name} is of {ones:g} samples, but is said to be of {moment.count}."
            )

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

    Raises:
        StorageError: If there is no room for it, or the disk fails.
    """
    totals = {name: moment.totals for name, moment in statistics.named().items()}
    counts = {name: moment.count for name, moment in statistics.named().items()}
    for other in others:
        for name in other.moments.keys() - totals.keys():
            totals[name], counts[name] = other.totals(name), other.moments[name].count
    parts = others[0].parts if others else [fingerprint.pictures]
    _write(path, fingerprint, statistics.pictures, totals, counts, parts)


def read_statistics(path: str | Path) -> StoredStatistics:
    """Read the list of contents of a file of statistics.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or of another kind.
    """
    path = Path(path)
    open_file(path, "The file of statistics").close()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            held = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in held.items()}
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} holds no statistics; they are written by 'pleas merge' with 'statistics'.")
        if metadata.get("version") != VERSION:
            raise CheckpointError(f"{path} holds statistics of version {metadata.get('version')}, not {VERSION}.")
        listed = json_value(metadata["moments"])
        moments = {name: StoredMoment(one["count"], tuple(map(tuple, one["shapes"]))) for name, one in listed.items()}
        fingerprint, pictures = Fingerprint.read(json_value(metadata["stamp"])), dict(json_value(metadata["pictures"]))
        parts = json_value(metadata.get("parts", "[]"))
        shards = [{domain: PictureSum.read(one) for domain, one in part.items()} for part in parts]
    except (OSError, SafetensorError, struct.error, LookupError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no file of statistics: {error}.") from error
    stored = StoredStatistics(path, fingerprint, pictures, moments, shards or [dict(fingerprint.pictures)])
    _check_contents(stored, found)
    return stored


def _check_contents(stored: StoredStatistics, found: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuse a list of contents that is not of what is there, or of numbers that cannot be.

    Args:
        stored: The list.
        found: Tensor in the file -> its type and shape.

    Raises:
        CheckpointError: With the moment or domain.
    """
    path = stored.path
    for domain, count in stored.pictures.items():
        expected = stored.fingerprint.pictures.get(domain, PictureSum()).count
        if type(count) is not int or count < 0 or count != expected:
            raise CheckpointError(
                f"{path} is damaged: it is said to be of {count} and of {expected} pictures of {domain}."
            )
    for name, moment in stored.moments.items():
        domain, count = domain_of(name), moment.count
        pictures = stored.pictures.get(domain, 0)
        # A picture has as many samples as every other: one, or one at each position.
        whole = type(count) is int and count >= 0 and bool(count) == bool(pictures)
        if not whole or (pictures and count % pictures):
            raise CheckpointError(f"{path} is damaged: {name} is said to be of {count} samples of {pictures} pictures.")
        for index, shape in enumerate(moment.shapes):
            held = found.get(_tensor(name, index))
            if held is None:
                raise CheckpointError(f"{path} is damaged: it lacks {_tensor(name, index)}.")
            if held != ("F64", shape):
                raise CheckpointError(
                    f"{path} is damaged: {name} is said to be {shape} in float64, and is {held[1]} in {held[0]}."
                )


def add_statistics(paths: Sequence[str | Path], out: str | Path) -> StoredStatistics:
    """Add files of statistics that were gathered on different pictures by the same sources: shards of one set.

    Args:
        paths: The files, each once; no picture may be in two of them.
        out: File for the sum, which is what one pass over all their pictures would have left, to rounding.

    Raises:
        ConfigurationError: If they do not belong together.
        CheckpointError: If one cannot be read, or holds what no pictures can leave.
        StorageError: If there is no room for the sum, or the disk fails.
    """
    present(*paths, what="The file of statistics")
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
    seen: dict[tuple[str, PictureSum], Path] = {}
    for file in files:
        for domain, shown in ((domain, shown) for part in file.parts for domain, shown in part.items() if shown.count):
            other = seen.setdefault((domain, shown), file.path)
            if other != file.path:
                raise ConfigurationError(
                    f"{file.path} and {other} cannot be added: both are of the same {shown.count} pictures of "
                    f"{domain}, which count once."
                )
    shapes = {name: moment.shapes for file in files for name, moment in file.moments.items()}
    check_space({Path(out): sum(FLOAT64_BYTES * math.prod(shape) for found in shapes.values() for shape in found)})
    pictures: dict[str, int] = {}
    totals: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    for file in files:
        for domain, count in file.pictures.items():
            pictures[domain] = pictures.get(domain, 0) + count
        for name, moment in file.moments.items():
            counts[name] = counts.get(name, 0) + moment.count
            if name not in totals:
                totals[name] = file.checked_totals(name)
                continue
            if [tuple(total.shape) for total in totals[name]] != list(moment.shapes):
                raise ConfigurationError(f"{file.path} and {first.path} cannot be added: {name} has other shapes.")
            totals[name] = [mine + theirs for mine, theirs in zip(totals[name], file.checked_totals(name), strict=True)]
    fingerprint = reduce(lambda one, other: one + other, (file.fingerprint for file in files))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(lock_of(out), f"out is {out}, which another run is gathering; name another file."):
        _write(out, fingerprint, pictures, totals, counts, [part for file in files for part in file.parts])
    return read_statistics(out)


def lock_of(path: Path) -> Path:
    """The lock of whoever is going to write a file of statistics."""
    return path.with_name(f".{path.name}.lock")


def _write(
    path: str | Path,
    fingerprint: Fingerprint,
    pictures: Mapping[str, int],
    totals: Mapping[str, Sequence[Tensor]],
    counts: Mapping[str, int],
    parts: Sequence[Mapping[str, PictureSum]],
) -> None:
    listed: dict[str, Any] = {
        name: {"count": counts[name], "shapes": [list(one.shape) for one in found]} for name, found in totals.items()
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "stamp": json.dumps(fingerprint.plain),
        "pictures": json.dumps(dict(pictures)),
        "parts": json.dumps([{domain: asdict(shown) for domain, shown in part.items()} for part in parts]),
        "moments": json.dumps(listed),
    }
    tensors = {
        _tensor(name, index): total.cpu().contiguous()
        for name, found in totals.items()
        for index, total in enumerate(found)
    }
    with atomic_path(path, sum(tensor.nbytes for tensor in tensors.values())) as draft:
        draft.touch()
        mode = draft.stat().st_mode
        save_file(tensors, draft, metadata)
        draft.chmod(mode)  # the writer makes files that nobody else may read


def _tensor(name: str, index: int) -> str:
    return f"{name}:{index}"
