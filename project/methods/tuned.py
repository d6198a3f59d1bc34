"""One tuner for all methods: settings are tried on part of the calibration pictures, and judged on the rest."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from itertools import product
from math import floor, inf, isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from project.allocation import Budget
from project.errors import ConfigurationError, MergeError, nearest, one_of, share
from project.fit.memory_estimate import picture_bytes
from project.methods.base import Merged, Method, Preparation
from project.methods.problem import Evidence, PictureCounts, Problem, Run
from project.methods.shared.curves import ALL
from project.methods.shared.divergence import divergence, domain_mean
from project.methods.shared.entropy import check_heads, entropies
from project.moments import PICTURES
from project.runtime import MemoryEstimate, World, lengths, waiting
from project.student import Student, batches_of_all, renormalise
from project.symmetry import Spec

Criterion = Literal["entropy", "divergence", "accuracy"]
ABOVE = ("accuracy",)
"""Criteria that are the better the higher."""


class Tuned(Method):
    """Another method in every setting of a grid; of the students, the one that does best on pictures held out.

    Students are made with the other calibration pictures, on which their batch norms are re-estimated too, in a copy,
    before they are judged. Calibration pictures are training pictures: no test picture is looked at. What a method
    takes from statistics, such as the sums of a closed form, is of all calibration pictures, held out or not.

    The criterion is a mean over the domains of the means over their pictures held out:

    - ``entropy`` of the classes that the domain's own head predicts: the lower the better; reads no label.
    - ``divergence`` (Kullback-Leibler) of the student's class probabilities from those of the source that owns the
      domain: the lower the better; reads no label.
    - ``accuracy``: share of the pictures whose class the domain's own head tells: the higher the better; reads their
      labels.

    The first of several equals is taken; a score that is not finite counts as the worst. Every budget is tuned by
    itself.

    Args:
        method: The method.
        grid: Argument of the method -> values to try, every value with every one of the others.
        criterion: What students are judged by.
        held_out: Share of each domain's calibration pictures that is held out, spread evenly over their order. Where
            few are shown again and again, views of one picture come on both sides, which favours settings that fit them
            closely; ``calibration_views`` 1 keeps them apart.
        label: Name in tables and files; default: that of the method with ``-tuned`` behind.
    """

    def __init__(
        self,
        method: Method,
        grid: dict[str, list[Any]],
        criterion: Criterion = "entropy",
        held_out: float = 0.25,
        label: str | None = None,
    ) -> None:
        super().__init__(label)
        one_of(Criterion, criterion=criterion)
        share(whole=False, held_out=held_out)
        if not isinstance(method, Method):
            raise ConfigurationError(f"method is {method!r}; allowed: a method, such as project.methods.TIES().")
        if not method.single:
            raise ConfigurationError(
                f"method is {type(method).__name__}, which makes several students; allowed: methods that make one for "
                f"each budget."
            )
        check_grid(method, grid)
        self.method, self.grid, self.held_out = method, grid, held_out
        self.criterion: Criterion = criterion
        self.needs = frozenset({PICTURES}).union(*(candidate.needs for candidate in self.candidates))
        self.follows = frozenset().union(*(candidate.follows for candidate in self.candidates))
        self.labelled = criterion == "accuracy" or any(candidate.labelled for candidate in self.candidates)

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return self.label or f"{self.method.name}-tuned"

    @property
    def options(self) -> dict[str, object]:
        """Its arguments, those of the method among them, as plain values."""
        return {**self.method.options, **super().options, "method": type(self.method).__name__, "grid": self.grid}

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values, the last argument changing first."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]

    @cached_property
    def candidates(self) -> list[Method]:
        """The method in every setting.

        Raises:
            ConfigurationError: If the method does not take one of them.
        """
        return [_candidate(self.method, setting) for setting in self.settings]

    def needed(self, spec: Spec, budgets: Sequence[Budget]) -> frozenset[str]:
        """What any of the settings needs for such students, and the pictures that judge them."""
        return frozenset({PICTURES}).union(*(candidate.needed(spec, budgets) for candidate in self.candidates))

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Refuse too few pictures to hold any out, pictures that cannot be judged, and what the method refuses.

        It takes what the setting takes that takes most, with the best student so far, the one that is judged, and the
        pictures, of which there are copies of both sides beside themselves.
        """
        self._check_pictures(problem, pictures.domains)
        prepared = [candidate.prepare(problem, pictures, budgets, planned) for candidate in self.candidates]
        message = f"{self.name} judges {len(self.candidates)} settings by {self.criterion} on pictures held out"
        if self.needed(problem.spec, budgets) - {PICTURES}:
            message += ", of which the statistics are too"
        times = sum(max(1.0, problem.times(budget)) for budget in budgets) + 1
        kept = int(4 * times * sum(parameter.numel() for parameter in problem.sources[0].parameters()))
        copies = 2 * picture_bytes(problem.spec, sum(pictures.local.values()))
        most = Preparation(
            MemoryEstimate.most(*(preparation.memory for preparation in prepared)),
            "; ".join(filter(None, (message, prepared[0].message))),
            sum(preparation.kept for preparation in prepared),
        )
        return most.adding(kept + copies, kept)

    def _check_pictures(self, problem: Problem, counts: Mapping[str, int]) -> None:
        for domain, count in counts.items():
            if not 1 <= (held := floor(count * self.held_out)) < count:
                raise ConfigurationError(
                    f"held_out of method {self.name} is {self.held_out}, which holds out {held} of the {count} "
                    f"calibration pictures of {domain}; there must be one at least on both sides."
                )
        unowned = [domain for domain in counts if domain not in problem.labels.domains]
        if self.criterion == "accuracy" and unowned:
            raise ConfigurationError(
                f"criterion of method {self.name} is 'accuracy', but calibration pictures are of {unowned[0]!r}, "
                f"whose classes are not the sources'; use 'divergence'."
            )
        if self.criterion == "entropy":
            check_heads(self.name, problem, counts)

    @torch.no_grad()
    def students(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """Make for every budget the best student.

        Raises:
            MergeError: If the scores of a budget are all not finite.
        """
        if self.criterion == "accuracy" and set(evidence.pictures) - set(evidence.picture_labels):
            raise MergeError("criterion is 'accuracy', which needs the labels of the calibration pictures; keep them.")
        kept, held = divided(evidence, self.held_out, run)
        scores: dict[Budget, list[float]] = {}
        best: dict[Budget, tuple[int, Merged]] = {}
        for number, candidate in enumerate(self.candidates):
            below = None if run.progress is None else run.progress.below(f"setting-{number}")
            for merged in candidate.merge(problem, kept, replace(run, progress=below), budgets):
                known = scores.setdefault(merged.budget, [])
                known.append(self.score(merged, problem, kept, held, run))
                if self.best(known) == number:
                    best[merged.budget] = number, merged
        for budget, (number, merged) in best.items():
            if not isfinite(scores[budget][number]):
                raise MergeError(
                    f"{self.criterion} on the pictures held out is not finite in any setting that {self.name} tried; "
                    f"take other values into its grid."
                )
            finite = [score if isfinite(score) else None for score in scores[budget]]
            tuned = {
                "criterion": self.criterion,
                "setting": self.settings[number],
                "scores": [{**setting, "score": score} for setting, score in zip(self.settings, finite, strict=True)],
            }
            measured = {index: score for index, score in enumerate(finite) if score is not None}
            curve = {f"held-out {self.criterion}": {ALL: measured}}
            yield replace(
                merged,
                method=self.name,
                curves={**merged.curves, **curve},
                learned={**merged.learned, "tuned": tuned},
            )

    def best(self, scores: Sequence[float]) -> int:
        """Choose the best of some scores, the first of equals; what is not finite is worse than all that is."""
        sign = -1 if self.criterion in ABOVE else 1
        return min(range(len(scores)), key=lambda number: sign * scores[number] if isfinite(scores[number]) else inf)

    def score(self, merged: Merged, problem: Problem, kept: Evidence, held: Evidence, run: Run) -> float:
        """Judge a student by the criterion.

        Args:
            merged: The student.
            problem: The sources.
            kept: Pictures on which its batch norms are re-estimated, where they are not settled.
            held: Pictures on which it is judged.
            run: The processes that share the pictures, and the room there is.
        """
        student, world = merged.student, run.world
        if not merged.settled:
            student = deepcopy(student)
            renormalise(student, lambda: batches_of_all(kept.pictures), world, run.room)
        if self.criterion == "divergence":
            return divergence(student, problem, held.pictures, world)
        judge = _entropy if self.criterion == "entropy" else _hits
        return _mean(student, held, world, judge)


def check_grid(method: Method, grid: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a grid of nothing, or of what is no argument of the method.

    Raises:
        ConfigurationError: With the argument and what is allowed.
    """
    allowed = [name for name in method.arguments if name != "label"]
    kind = type(method).__name__
    if not isinstance(grid, Mapping):
        raise ConfigurationError(f"grid is {grid!r}; allowed: lists of values for arguments of {kind}, by name.")
    if not grid:
        raise ConfigurationError(f"grid is empty; name arguments of {kind}: {', '.join(allowed)}.")
    for name, values in grid.items():
        if name not in allowed:
            raise ConfigurationError(
                f"grid names {name!r}{nearest(str(name), allowed)}; arguments of {kind}: {', '.join(allowed)}."
            )
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigurationError(f"grid gives {values!r} for {name!r}; allowed: a list of values, one at least.")


def divided(evidence: Evidence, share: float, run: Run) -> tuple[Evidence, Evidence]:
    """Divide calibration pictures into those that methods may use, and those that are held out.

    Args:
        evidence: With pictures; both parts have its statistics.
        share: Of the pictures of each domain that is held out.
        run: The processes that share the pictures, and where copies may wait.

    Raises:
        MergeError: If a process were left without pictures of a domain to use, or all without any held out.
    """
    held = {domain: _held(batches, share, run.world) for domain, batches in evidence.pictures.items()}
    for domain, rows in held.items():
        counts = torch.tensor([int(all(bool(row.all()) for row in rows)), sum(int(row.sum()) for row in rows)])
        run.world.reduce(counts)
        if bool(counts[0]) or not bool(counts[1]):
            raise MergeError(
                f"held_out is {share}, which leaves some process no picture of {domain!r} to merge with, or all of "
                f"them none to judge by; use more pictures, another share, or fewer processes."
            )
    used = {domain: [~row for row in rows] for domain, rows in held.items()}
    return _part(evidence, used, run.scratch), _part(evidence, held, run.scratch)


def _held(batches: Sequence[Tensor], share: float, world: World) -> list[Tensor]:
    """Choose the rows of every batch that are held out, boolean, each shape (batch,).

    A picture is held out where the share of those up to it has reached the next whole number. Processes start at
    different fractions, so that together they hold out as many as one would (Hermite's identity).
    """
    sizes = lengths(batches)
    reached = (torch.arange(sum(sizes) + 1, dtype=torch.float64) * share + world.rank / world.size).floor()
    return list(torch.split(reached.diff() > 0, sizes))


def _part(evidence: Evidence, rows: Mapping[str, Sequence[Tensor]], scratch: Path | None) -> Evidence:
    """Keep these rows of the batches alone."""

    def chosen(table: Mapping[str, Sequence[Tensor]], domain: str) -> Iterator[Tensor]:
        for batch, row in zip(table[domain], rows[domain], strict=True):
            if bool(row.any()):
                yield batch[row.to(batch.device)]

    labels = evidence.picture_labels
    return Evidence(
        evidence.statistics,
        {domain: waiting(chosen(evidence.pictures, domain), scratch) for domain in rows},
        {domain: list(chosen(labels, domain)) for domain in rows if domain in labels},
    )


def _candidate(method: Method, setting: Mapping[str, Any]) -> Method:
    try:
        return method.changed(**setting)
    except (ConfigurationError, TypeError) as error:
        why = str(error).rstrip(".")
        raise ConfigurationError(f"grid holds {dict(setting)}, which {method.name} does not take: {why}.") from error


def _mean(student: Student, held: Evidence, world: World, judge: Callable[[Tensor, Tensor | None], Tensor]) -> float:
    """Average over the domains the means over their pictures held out of what is said of each."""
    totals = {domain: torch.zeros(2, dtype=torch.float64) for domain in held.pictures}
    for domain, batches in held.pictures.items():
        columns, labels = student.labels.columns(domain), held.picture_labels.get(domain)
        for number, pictures in enumerate(batches):
            values = judge(student.answer(pictures, domain)[:, columns], None if labels is None else labels[number])
            totals[domain] += torch.tensor([float(values.double().sum()), len(pictures)], dtype=torch.float64)
    return domain_mean(list(totals.values()), world)


def _entropy(logits: Tensor, labels: Tensor | None) -> Tensor:
    return entropies(logits)


def _hits(logits: Tensor, labels: Tensor | None) -> Tensor:
    assert labels is not None  # which tuning by accuracy begins with
    hits = (logits.argmax(1) == labels.to(logits.device)).double()
    return hits.where(logits.isfinite().all(1), torch.nan)  # argmax would take NaN for the largest
