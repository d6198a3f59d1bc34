"""What a merging method is given and what it gives back."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor, nn

from project.alignment import UnitMap
from project.allocation import Budget, nominal_macs, source_macs, source_size
from project.errors import ConfigurationError
from project.models import Architecture, LabelSpace, Preprocessing
from project.moments import Statistics
from project.runtime import ALONE, MemoryEstimate, Progress, World
from project.student import Student, start_student
from project.symmetry import Spec


@dataclass(frozen=True, eq=False)
class Problem:
    """Sources to merge and everything known about them.

    Args:
        sources: Plain networks in eval mode, all of one spec.
        owners: domain -> index of the source that was trained on it.
        spec: The sources' spec.
        labels: What the student's logits mean; in different mode its domains stand in the order of the sources.
        architecture: The sources' architecture.
        preprocessing: What pictures go through.
        statistics: What calibration left behind; None before it, or where no method needs any.
        pictures: domain -> batches of calibration pictures, for methods that look at them again.
        picture_labels: domain -> the labels of these batches, indices among the domain's classes, each (batch,); None
            where no method reads any.
        base: The network that the sources were fine-tuned from, θ₀; ``mean`` for the mean of the sources, once they are
            aligned; None where nobody said.
        made: method -> the student of one source's size that it made earlier in the same run.
        planned: Name -> method, of those that will have made one before the method that is asked.
        world: The processes among which the pictures are dealt out; statistics are summed over them already.
        progress: Where a method may keep what it has finished; None for nowhere.
        names: What each source is called; empty where nobody said.
        scratch: Folder for what a fit does not need at the moment; None to hold it in memory.
    """

    sources: tuple[nn.Module, ...]
    owners: Mapping[str, int]
    spec: Spec
    labels: LabelSpace
    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    statistics: Statistics | None = None
    pictures: Mapping[str, Sequence[Tensor]] | None = None
    picture_labels: Mapping[str, Sequence[Tensor]] | None = None
    base: nn.Module | Literal["mean"] | None = None
    made: Mapping[str, Student] = field(default_factory=dict)
    planned: Mapping[str, "Method"] = field(default_factory=dict)
    world: World = ALONE
    progress: Progress | None = None
    names: tuple[str, ...] = ()
    scratch: Path | None = None

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
        found, ends = {}, [0] * len(self.sources)
        for domain, source in self.owners.items():
            start, ends[source] = ends[source], ends[source] + len(self.labels.classes[domain])
            found[domain] = slice(start, ends[source])
        return found

    def macs(self, maps: Mapping[str, UnitMap]) -> int:
        """Nominal multiply-accumulates of a student with these unit maps."""
        return nominal_macs(self.spec, maps)

    @property
    def unit(self) -> float:
        """Multiply-accumulates of one source."""
        return source_macs(self.spec, self.fixed)

    def times(self, budget: Budget | float | str) -> float:
        """A budget as a multiple of one source's size, in the budget's own unit."""
        budget, heads = Budget.of(budget), self.fixed[self.spec.output.name]
        return budget.limit(lambda unit: source_size(self.spec, heads, unit)) / source_size(
            self.spec, heads, budget.unit
        )

    def start(self, maps: Mapping[str, UnitMap]) -> Student:
        """The student of these unit maps before any fit."""
        return start_student(self.sources, self.spec, maps, self.labels, self.architecture, self.preprocessing)


@dataclass(frozen=True, eq=False)
class Merged:
    """A student and how it came about.

    Args:
        method: Name of the method.
        budget: Budget it was asked to meet.
        student: The student.
        layers: layer -> measurements of its fit.
        matches: group -> mean similarity of its matched units.
        settled: Whether its batch norms already hold the statistics of its own activations.
        norms: How its batch norms came by them, in words for the table.
        seconds: What it took to make; what several students take together counts for the first.
        curves: quantity -> layer, domain or source, or ``all layers`` -> step -> what an iterative fit measured then.
        learned: What the method has found beside the student's tensors, plain values for the student's file.
    """

    method: str
    budget: Budget
    student: Student
    layers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    matches: Mapping[str, float] = field(default_factory=dict)
    settled: bool = False
    norms: str = "fitted"
    seconds: float = 0.0
    curves: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)
    learned: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique name within a run: method and budget."""
        return f"{self.method}-{self.budget.name}"


class Method(ABC):
    """A way to turn sources, and what calibration says of them, into students."""

    needs: frozenset[str] = frozenset()
    """What calibration must leave behind: moments of ``layers``, ``inputs``, ``units``, gradients; the ``pictures``."""

    labelled = False
    """Whether it reads the labels of the calibration pictures."""

    single = True
    """Whether it makes one student for each budget; else as many as it likes, whatever the budgets."""

    follows: frozenset[str] = frozenset()
    """Names of methods whose students it takes up, as far as they are listed before it."""

    def __init__(self, label: str | None = None) -> None:
        """Take a name other than the class's, so that one run can compare settings of one method.

        Args:
            label: Name in tables and files: letters, digits, dots, dashes, underscores.

        Raises:
            ConfigurationError: If a file could not be named so.
        """
        if label is not None and not re.fullmatch(r"[\w.-]+", label):
            raise ConfigurationError(f"label is {label!r}; allowed: letters, digits, dots, dashes and underscores.")
        self.label = label

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return self.label or type(self).__name__.lower()

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was made with, by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def options(self) -> dict[str, object]:
        """Its arguments that are plain values, as a file tells them."""
        given = self.arguments
        settings = {n: asdict(one) for n, one in given.items() if is_dataclass(one) and not isinstance(one, type)}
        return settings | {name: value for name, value in given.items() if isinstance(value, str | int | float | bool)}

    @property
    def candidates(self) -> "list[Method]":
        """The methods of which one makes its students; most methods make them themselves."""
        return [self]

    def changed(self, **arguments: Any) -> Self:
        """The same method with other arguments.

        Raises:
            ConfigurationError: If a value is not allowed.
        """
        return type(self)(**{**self.arguments, **arguments})

    def check(  # noqa: B027, most methods have nothing to refuse
        self, problem: Problem, pictures: Mapping[str, int], budgets: Sequence[Budget | float | str]
    ) -> None:
        """Refuse, before calibration, what cannot work.

        Args:
            problem: Without statistics.
            pictures: Domain -> number of calibration pictures to come.
            budgets: Sizes of the students, see Budget.
        """

    def plan(self, problem: Problem) -> str | None:
        """What it is going to do, in words, for those who wait; None where there is nothing to tell.

        Args:
            problem: Without statistics.
        """
        return None

    def memory_estimate(
        self, problem: Problem, pictures: Mapping[str, int], budgets: Sequence[Budget | float | str], batch: int
    ) -> MemoryEstimate:
        """About how much memory it takes beside the statistics; nothing worth telling by default.

        Args:
            problem: Without statistics.
            pictures: Domain -> number of calibration pictures in this process.
            budgets: Sizes of the students, see Budget.
            batch: Pictures in a batch.
        """
        return MemoryEstimate()

    @abstractmethod
    def merge(self, problem: Problem, budgets: Sequence[Budget | float | str]) -> Iterator[Merged]:
        """Make a student for every budget, which depends on no other budget.

        Args:
            problem: With the statistics that the method needs; its sources are left bit-identical.
            budgets: Sizes of the students, see Budget; a method of one size makes that one only.
        """
