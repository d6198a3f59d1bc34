"""Passes over the calibration pictures that leave statistics behind: as many as the memory asks for, or none at all.

What a file or an interrupted run holds already is not gathered again.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import Tensor

from project.errors import ConfigurationError, MergeError, StorageError
from project.moments import (
    PICTURES,
    Collector,
    Fingerprint,
    Lockstep,
    Statistics,
    StoredStatistics,
    check_finite,
    lock_of,
    read_statistics,
    save_statistics,
)
from project.runtime import ALONE, Progress, Reduce, World, only_writer, tell, warn
from project.runtime.saving import tensor_bytes
from project.runtime.space import check_space
from project.symmetry import Spec

MAX_CHECKPOINT_TIME_SHARE = 0.05  # of a pass's time that may go into keeping what it has gathered
UNFINISHED = "gathering"
FAILED = "could not keep its statistics"

Division = Callable[[Mapping[str, int]], Sequence[Collection[str]]]


class Gathering:
    """What is to be gathered, what is there already, and the pass that is under way.

    A file that lacks some of the moments is completed: one pass gathers the others, and the file then holds all.

    Args:
        spec: Groups and layers of the sources.
        sources: The sources in lockstep.
        needs: Kinds of moments that are needed.
        domains: Names of the calibration domains.
        owners: domain -> index of its source.
        columns: domain -> columns of its owner's logits that are its head, see Collector.
        fingerprint: What the statistics depend on; None where they are kept nowhere.
        file: Where they are read from if it exists, and written to.
        every: Seconds, at least, between two copies of an unfinished pass; 0 for one after every batch.

    Raises:
        ConfigurationError: If the file holds statistics of something else.
        CheckpointError: If it cannot be read.
    """

    def __init__(
        self,
        spec: Spec,
        sources: Lockstep,
        needs: Collection[str],
        domains: Sequence[str],
        owners: Mapping[str, int],
        columns: Mapping[str, slice] | None = None,
        fingerprint: Fingerprint | None = None,
        file: Path | None = None,
        every: float = 60.0,
    ) -> None:
        self.spec, self.sources, self.needs = spec, sources, set(needs) - {PICTURES}
        self.domains, self.owners, self.columns = domains, owners, columns
        self.fingerprint, self.file, self.every = fingerprint, file, every
        self.progress: Progress | None = None  # where unfinished work is kept
        self.collector: Collector | None = None
        self.statistics: Statistics | None = None
        self.shelved = False  # whether moments wait on disk once they are gathered
        self._bytes: dict[str, int] = {}
        self._stored_bytes: dict[str, int] = {}
        if self.needs:
            self.statistics = self._collector(None, "meta").statistics
            self._bytes = {name: moment.bytes for name, moment in self.statistics.named().items()}
            self._stored_bytes = {name: moment.total_bytes for name, moment in self.statistics.named().items()}
        elif file is not None:
            raise ConfigurationError(f"statistics is {file}, but no method gathers any; leave it out.")
        self.shares: list[Collection[str]] | None = None
        self._alone, self._claimed = ExitStack(), False  # the lock of the file while it is going to be written
        self._found = _mark(file)
        self.stored = self._matching()

    @property
    def missing(self) -> dict[str, int]:
        """Bytes of the moments that the file does not hold, by name."""
        known = self.stored.moments if self.stored else {}
        return {name: count for name, count in self._bytes.items() if name not in known}

    def file_bytes(self, names: Iterable[str]) -> int:
        """Bytes that a file of some moments takes."""
        return sum(self._stored_bytes[name] for name in names)

    @property
    def held(self) -> int:
        """Bytes of the moments that are held in memory, once they are gathered."""
        return 0 if self.shelved else sum(self._bytes.values())

    @property
    def seen(self) -> int:
        """How many pictures the pass under way has seen; 0 where none is."""
        return sum(self.collector.held.pictures.values()) if self.collector is not None else 0

    def keep_in(self, progress: Progress | None, shelve: bool) -> None:
        """Settle where unfinished work is kept, before the first pass.

        Args:
            progress: Where; None for nowhere.
            shelve: Whether moments wait on disk once they are gathered.
        """
        self.progress, self.shelved = progress, shelve

    def drop(self) -> None:
        """Forget a pass that did not come to its end."""
        self.collector = None
        self._release()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to gather."""
        return self.shares is not None and not self.shares

    def claim(self) -> None:
        """Keep others from writing the file that this process is going to write, until it has or the pass is dropped.

        Raises:
            ConfigurationError: If another run is about to write it, or has, since it was looked at.
        """
        if self.file is None or not self.missing or self._claimed:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        refusal = f"statistics is {self.file}, which another run is gathering; wait until it has, or name another file."
        self._alone.enter_context(only_writer(lock_of(self.file), refusal))
        self._claimed = True
        if _mark(self.file) != self._found:
            self._release()
            raise ConfigurationError(f"statistics is {self.file}, which another run has just written; start again.")

    def begin(self, divide: Division, device: torch.device) -> None:
        """Take up the next pass.

        Args:
            divide: Tells which moments each pass gathers, from the bytes of those that are missing.
            device: Where moments are gathered.
        """
        if self.statistics is None:
            self.shares = []
            return
        unfinished = None
        if self.shares is None:
            unfinished = self._recall(divide, device)
        if not self.shares:
            if self.file is not None and self.missing:  # an interrupted run had gathered all, but not written it
                self._write_file(self._world.rank == 0)
            return
        self.collector = self._collector(self.shares[0], device)
        self.batches, self.saved, self.cost = 0, time.perf_counter(), 0.0
        if unfinished is not None:
            self._restore(self.collector, unfinished, device)

    def gather(self, number: int, batch: Mapping[str, tuple[Tensor, Tensor | None]]) -> None:
        """Run the sources on the pictures of one batch, unless an interrupted run has done so.

        Args:
            number: Of the batch.
            batch: domain -> pictures and, where there are any, their labels.
        """
        if self.collector is None or number < self.batches:
            return
        for domain, (pictures, labels) in batch.items():
            self.collector.gather(domain, pictures, labels)
        self.batches = number + 1
        now = time.perf_counter()
        if self.progress is not None and (
            self.every == 0 or now - self.saved >= max(self.every, self.cost / MAX_CHECKPOINT_TIME_SHARE)
        ):
            self._keep(self.collector, self.progress)
            self.saved = time.perf_counter()
            self.cost = self.saved - now

    def end(self, reduce: Reduce, main: bool) -> None:
        """Finish a pass: sum over processes, and keep what was gathered.

        Args:
            reduce: Sums a tensor over all processes in place.
            main: Whether this process writes the file.

        Raises:
            StorageError: If there is no room for what is kept, or the disk fails.
            MergeError: If that happened in another process.
        """
        with ExitStack() as failing:
            failing.callback(self._release)
            self._end(reduce, main)
            if self.shares:  # the file is still to be written
                failing.pop_all()

    def _release(self) -> None:
        self._alone.close()
        self._claimed = False

    def _end(self, reduce: Reduce, main: bool) -> None:
        if self.collector is None:
            return
        assert self.statistics is not None
        assert self.shares is not None
        collector, self.collector = self.collector, None
        gathered = collector.statistics
        gathered.reduce(reduce)
        check_finite(gathered)
        if self.fingerprint is not None:
            for domain, expected in self.fingerprint.pictures.items():
                if gathered.pictures[domain] != expected.count:
                    raise ConfigurationError(
                        f"calibration saw {gathered.pictures[domain]} of the {expected.count} pictures of {domain} "
                        f"(limit_val_batches?); set data.calibration to as many as it may see."
                    )
        self.shares.pop(0)
        last_for_file = self.file is not None and not self.shares
        kept = None
        if self.progress is not None and self.fingerprint is not None and (self.shelved or not last_for_file):
            path = self._passes()[1]
            with self._world.together(FAILED):
                save_statistics(gathered, self.fingerprint, path)
            kept = read_statistics(path)
        if self.shelved and kept is not None:
            kept.fill(self.statistics, next(iter(gathered.moments())).device)
        else:
            table = self.statistics.named()
            for name, moment in gathered.named().items():
                table[name].load(moment.totals, moment.count, device=moment.device)
        self.statistics.pictures = dict(gathered.pictures)
        if last_for_file:
            try:
                self._write_file(main)
            except (StorageError, MergeError):
                if kept is None and self.progress is not None:
                    self._rescue(gathered)
                raise
        if self.progress is not None:
            self.progress.forget(UNFINISHED)

    @property
    def _world(self) -> World:
        """The processes that keep what they have gathered."""
        return self.progress.world if self.progress is not None else ALONE

    def _write_file(self, main: bool) -> None:
        """Write the file, or complete it; all processes must, though one alone does."""
        assert self.statistics is not None
        assert self.file is not None
        assert self.fingerprint is not None
        with self._world.together(FAILED):
            if not main:
                return
            fingerprint, others = self.fingerprint, []
            if self.stored is not None:
                fingerprint, others = fingerprint.beside(self.stored.fingerprint), [self.stored]
            save_statistics(self.statistics, fingerprint, self.file, *others)
        tell(f"statistics of {len(self.statistics.named())} moments were written to {self.file}")

    def _rescue(self, gathered: Statistics) -> None:
        """Keep what the user's file has no room for where unfinished work is kept, perhaps on another disk."""
        assert self.fingerprint is not None
        path = self._passes()[1]
        with suppress(StorageError):
            save_statistics(gathered, self.fingerprint, path)

    def _matching(self) -> StoredStatistics | None:
        """The file, if there is one that matches."""
        if self.file is None or not self.file.exists():
            return None
        stored = read_statistics(self.file)
        assert self.fingerprint is not None
        if differing := self.fingerprint.differences(stored.fingerprint):
            raise ConfigurationError(
                f"statistics is {self.file}, which was gathered from {'; '.join(differing)}; name another file, to be "
                f"written, or remove this one."
            )
        stored.check()
        return stored

    def _recall(self, divide: Division, device: torch.device) -> dict[str, object] | None:
        """Fill in what is there already, divide the rest into passes; returns an unfinished pass."""
        assert self.statistics is not None
        files = [self.stored] if self.stored else []
        if self.progress is not None:
            everyone, nobody = self.progress.everywhere(bool(files)), self.progress.everywhere(not files)
            if not everyone and not nobody:
                raise ConfigurationError(f"statistics is {self.file}, which only some processes see; share its folder.")
        if self.progress is not None:
            for path in self._passes()[0]:
                stored = read_statistics(path)
                if self.fingerprint is None or self.fingerprint.differences(stored.fingerprint):
                    raise ConfigurationError(f"{path} is of another merge; remove it.")
                files.append(stored)
        for stored in files:
            stored.fill(self.statistics, device)
            self.statistics.pictures = dict(stored.pictures)
        known = {name for stored in files for name in stored.moments}
        left = {name: count for name, count in self._bytes.items() if name not in known}
        if known:
            origin = ", ".join(str(stored.path) for stored in files)
            remainder = (
                f"{len(left)} of {len(self._bytes)} are missing and gathered now" if left else "none is gathered again"
            )
            tell(f"moments come from {origin}: {remainder}")
        unfinished = self.progress.recall(UNFINISHED) if self.progress is not None and left else None
        named = sorted(unfinished["moments"]) if unfinished is not None else []
        alike = self.progress is not None and self.progress.alike(json.dumps(named))  # all must ask
        if unfinished is not None and alike and unfinished["moments"].keys() <= left.keys():
            share = list(unfinished["moments"])
            rest = {name: count for name, count in left.items() if name not in unfinished["moments"]}
            self.shares = [share, *(divide(rest) if rest else ())]
            return unfinished
        self.shares = list(divide(left)) if left else []
        return None

    def _passes(self) -> tuple[list[Path], Path]:
        """Files of the passes that every process has finished, and where the next one goes."""
        assert self.progress is not None
        done: list[Path] = []
        while True:
            path = self.progress.folder / f"statistics-{len(done)}.safetensors"
            if not self.progress.everywhere(path.exists()):
                return done, path
            done.append(path)

    def _keep(self, collector: Collector, progress: Progress) -> None:
        """Copy an unfinished pass as it is, samples that wait and all, so that it goes on bit for bit."""
        assert self.shares is not None
        moments = {}
        for name, moment in collector.held.named().items():
            totals, pending = moment.unflushed
            moments[name] = {"totals": totals, "pending": pending, "count": moment.count}
        pictures = dict(collector.held.pictures)
        content = {"moments": moments, "pictures": pictures, "batches": self.batches}
        try:
            check_space(
                {progress.folder: tensor_bytes(content) + self.file_bytes(self.shares[0])}
            )  # which the end will need
            progress.keep(UNFINISHED, content)
        except StorageError as error:  # nothing is lost but the chance to go on from here
            warn(f"gathering goes on without a copy from which an interrupted run could: {error}")

    def _restore(self, collector: Collector, unfinished: Mapping[str, object], device: torch.device) -> None:
        """Go on where an interrupted pass stopped."""
        named = collector.held.named()
        for name, kept in unfinished["moments"].items():  # type: ignore[attr-defined]
            totals, pending = ([one.to(device) for one in kept[part]] for part in ("totals", "pending"))
            named[name].load(totals, kept["count"], pending)
        collector.held.pictures = dict(unfinished["pictures"])  # type: ignore[call-overload]
        self.batches = int(unfinished["batches"])  # type: ignore[call-overload]
        seen = sum(collector.held.pictures.values())
        tell(f"gathering goes on after the {seen} pictures that an interrupted run has seen")

    def _collector(self, only: Collection[str] | None, device: torch.device | str) -> Collector:
        return Collector(self.spec, self.sources, self.needs, self.domains, self.owners, self.columns, only, device)


def _mark(file: Path | None) -> tuple[int, ...] | None:
    """What tells whether a file is still the same; None where there is none."""
    try:
        found = file.stat() if file is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)
