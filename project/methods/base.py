"""What a merging method is given and what it gives back."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, Self

from project.allocation import Budget
from project.errors import ConfigurationError
from project.methods.problem import Evidence, PictureCounts, Problem, Run
from project.runtime import MemoryEstimate
from project.student import Student
from project.symmetry import Spec


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
        domain_residuals: domain -> layer -> what the fit leaves of its targets there, see
            :func:`~project.fit.layer_fit.misfit`; empty where that was not measured by domain.
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
    domain_residuals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique name within a run: method and budget."""
        return f"{self.method}-{self.budget.name}"


@dataclass(frozen=True)
class Preparation:
    """What a method says before calibration.

    Args:
        memory: About what it takes beside the statistics.
        message: What it is going to do, in words, for those who wait; None where there is nothing to tell.
        kept: About how many bytes of unfinished students it keeps in files.
    """

    memory: MemoryEstimate = field(default_factory=MemoryEstimate)
    message: str | None = None
    kept: int = 0

    def adding(self, whole: int, least: int) -> "Preparation":
        """Add memory to the estimate.

        Args:
            whole: Bytes more with everything in memory.
            least: Bytes more with all that waits on disk.
        """
        return replace(self, memory=MemoryEstimate(self.memory.whole + whole, self.memory.least + least))


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
        if label is not None and not (isinstance(label, str) and re.fullmatch(r"[\w.-]+", label)):
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
        settings = {
            n: asdict(value) for n, value in given.items() if is_dataclass(value) and not isinstance(value, type)
        }
        return settings | {name: value for name, value in given.items() if isinstance(value, str | int | float | bool)}

    @property
    def candidates(self) -> "list[Method]":
        """The methods of which one makes its students; most methods make them themselves."""
        return [self]

    def changed(self, **arguments: Any) -> Self:
        """Make the same method with other arguments.

        Raises:
            ConfigurationError: If a value is not allowed.
        """
        return type(self)(**{**self.arguments, **arguments})

    def needed(self, spec: Spec, budgets: Sequence[Budget]) -> frozenset[str]:
        """Those of its needs without which it cannot make students of these sizes from sources of a spec."""
        return self.needs

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, "Method"]
    ) -> Preparation:
        """Refuse, before calibration, what cannot work, and say what is going to be done and what it takes.

        Args:
            problem: The sources.
            pictures: How many calibration pictures there will be.
            budgets: Sizes of the students.
            planned: Name -> method, of those that will have made a student of one source's size before this one.

        Raises:
            ConfigurationError: If the method cannot work so.
        """
        return Preparation()

    def merge(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """Make a student for every budget, which depends on no other budget.

        Args:
            problem: The sources, which are left bit-identical.
            evidence: What calibration has left behind.
            run: How and where it runs.
            budgets: Sizes of the students; a method of one size makes that one only.

        Raises:
            MergeError: If calibration has not left behind what the method needs.
        """
        evidence.check(self.name, self.needed(problem.spec, budgets))
        return self.students(problem, evidence, run, budgets)

    @abstractmethod
    def students(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """Make the students of :meth:`merge`, once all that the method needs is there; yield each as it is done."""
