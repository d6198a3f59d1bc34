"""What a merge is asked: what is merged, what calibration has left behind of it, and where the merge runs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from project.alignment import UnitMap
from project.allocation import Budget, nominal_macs, source_macs, source_size
from project.errors import MergeError
from project.models import Architecture, LabelSpace, Preprocessing
from project.moments import PICTURES, Statistics
from project.runtime import ALONE, Progress, World
from project.student import Student, start_student
from project.symmetry import Spec


@dataclass(frozen=True, eq=False)
class Problem:
    """Sources to merge, and what is known of them before any picture is seen.

    Args:
        sources: Plain networks in eval mode, all of one spec.
        owners: domain -> index of the source that was trained on it.
        spec: The sources' spec.
        labels: What the student's logits mean; in different mode its domains stand in the order of the sources.
        architecture: The sources' architecture.
        preprocessing: What pictures go through.
        base: The network that the sources were fine-tuned from, θ₀; ``mean`` for the mean of the sources, once they are
            aligned; None where nobody said.
        names: What each source is called; empty where nobody said.
        sharers: domain of several sources -> their indices.
    """

    sources: tuple[nn.Module, ...]
    owners: Mapping[str, int]
    spec: Spec
    labels: LabelSpace
    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    base: nn.Module | Literal["mean"] | None = None
    names: tuple[str, ...] = ()
    sharers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def source_names(self) -> list[str]:
        """What each source is called where something is told of it: its name, else its domains, else its number."""
        if self.names:
            return list(self.names)
        owned = [[domain for domain, owner in self.owners.items() if owner == i] for i in range(len(self.sources))]
        return ["+".join(domains) or f"source {index}" for index, domains in enumerate(owned)]

    @property
    def fixed(self) -> dict[str, UnitMap]:
        """Unit maps of the picture and of the logits: one head, or one for each source."""
        count = len(self.sources)
        maps = {g.name: UnitMap.identity(g.size, count) for g in self.spec.groups.values() if g.fixed}
        if self.labels.mode == "different":
            heads = [0] * count
            for domain, source in self.owners.items():
                heads[source] += len(self.labels.classes[domain])
            maps[self.spec.output.name] = UnitMap.apart(tuple(heads))
        return maps

    @property
    def columns(self) -> dict[str, slice]:
        """For each domain, the columns of its owner's logits that are its head; empty where all share one head."""
        if self.labels.mode == "shared":
            return {}
        columns, ends = {}, [0] * len(self.sources)
        for domain, source in self.owners.items():
            start, ends[source] = ends[source], ends[source] + len(self.labels.classes[domain])
            columns[domain] = slice(start, ends[source])
        return columns

    def macs(self, maps: Mapping[str, UnitMap]) -> int:
        """Count the nominal multiply-accumulates of a student with these unit maps."""
        return nominal_macs(self.spec, maps)

    @property
    def unit(self) -> float:
        """Multiply-accumulates of one source."""
        return source_macs(self.spec, self.fixed)

    def times(self, budget: Budget) -> float:
        """Express a budget as a multiple of one source's size, in the budget's own unit."""
        heads = self.fixed[self.spec.output.name]
        return budget.limit(lambda unit: source_size(self.spec, heads, unit)) / source_size(
            self.spec, heads, budget.unit
        )

    def start(self, maps: Mapping[str, UnitMap]) -> Student:
        """Build the student of these unit maps, before any fit."""
        return start_student(self.sources, self.spec, maps, self.labels, self.architecture, self.preprocessing)


@dataclass(frozen=True)
class PictureCounts:
    """How many calibration pictures there will be, before any is seen.

    Args:
        domains: domain -> number of its pictures.
        batch: Most pictures in a batch.
        processes: Processes among which each domain's pictures are dealt out.
    """

    domains: Mapping[str, int]
    batch: int = 1
    processes: int = 1

    @property
    def local(self) -> dict[str, int]:
        """Domain -> most of its pictures that one process has."""
        return {domain: ceil(count / self.processes) for domain, count in self.domains.items()}

    @property
    def largest(self) -> int:
        """Most pictures of a domain that one process has in a batch."""
        return min(self.batch, max(self.local.values(), default=0))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What calibration has left behind: empty where it has not run, or where no method needs anything.

    Args:
        statistics: Moments of what the sources do on the calibration pictures, summed over all processes.
        pictures: domain -> this process' batches of calibration pictures, each (batch, channels, height, width), for
            methods that look at them again.
        picture_labels: domain -> the labels of these batches, indices among the domain's classes, each (batch,).
    """

    statistics: Statistics = field(default_factory=Statistics)
    pictures: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    picture_labels: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    def check(self, method: str, needs: Collection[str]) -> None:
        """Refuse to begin without what a method needs.

        Args:
            method: Name of the method, for the message.
            needs: What it needs, see :class:`~project.methods.Method`.

        Raises:
            MergeError: With what is missing.
        """
        gathered = {kind for kind, table in self.statistics.tables.items() if table}
        lacking = [f"statistics of {kind}" for kind in sorted(set(needs) - {PICTURES} - gathered)]
        if PICTURES in needs and not self.pictures:
            lacking.append("the calibration pictures")
        if lacking:
            raise MergeError(
                f"method {method} needs {' and '.join(lacking)}, which calibration has not left behind; gather them "
                f"first."
            )


@dataclass(frozen=True, eq=False)
class Run:
    """How and where methods are run; by default in this process alone, and nothing is kept.

    Args:
        world: The processes among which the pictures are dealt out; statistics are summed over them already.
        progress: Where a method may keep what it has finished; None for nowhere.
        scratch: Folder for what a fit does not need at the moment; None to hold it in memory.
        made: method -> the student of one source's size that it made earlier in the same run.
        room: Bytes that a method may take beside what it has told to take.
    """

    world: World = ALONE
    progress: Progress | None = None
    scratch: Path | None = None
    made: Mapping[str, Student] = field(default_factory=dict)
    room: float = inf
