"""The students of all methods, those of an interrupted run recalled instead of made again."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from project.alignment import UnitMap
from project.allocation import Budget
from project.errors import MergeError
from project.methods import Evidence, Merged, Method, Problem, Run
from project.runtime import Progress, tell, warn
from project.student import Student, check_finite, kind_entries, of_its_kind

RISE, ROUNDING = 1.001, 1e-6  # of a residual, relative to the power of the targets, that says nothing
RECALLED = ("layers", "domain_residuals", "matches", "settled", "norms", "seconds", "curves", "learned")


def fitted(
    methods: Sequence[Method], problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]
) -> Iterator[tuple[Method, Merged]]:
    """Let every method make its students, and keep each where the run has progress to keep.

    Each is given the students that those before it have made, or had made before an interruption.

    Args:
        methods: The methods.
        problem: The sources.
        evidence: All that the methods need.
        run: How and where they run.
        budgets: Sizes of the students.
    """
    students: dict[str, Student] = {}
    depends: dict[str, dict[str, Any]] = {}
    for method in methods:
        given = replace(run, made=dict(students))
        followed = {name: depends[name] for name in sorted(method.follows) if name in depends}
        depends[method.name] = {**vars(method), "followed": followed}
        made = _students(method, problem, evidence, given, budgets)
        if run.progress is not None:
            asked = {**depends[method.name], "budgets": [budget.plain for budget in budgets]}
            made = _kept(
                method, problem, evidence, replace(given, progress=run.progress.below(method.name, asked)), budgets
            )
        for merged in made:
            refuse_infinite(merged)
            watch_residuals(merged)
            if merged.budget == Budget(1.0) and merged.student.plain:
                students[method.name] = merged.student
            yield method, merged


def refuse_infinite(merged: Merged) -> None:
    """Refuse a student that holds values which are not finite.

    Raises:
        MergeError: With the layer.
    """
    try:
        check_finite(merged.student)
    except MergeError as error:
        raise MergeError(
            f"{merged.name} is no student, as its {str(error).rstrip('.')}; leave the method out, or give it other "
            f"settings. What was finished before it stays in the run's folder, for a run that goes on."
        ) from error


def watch_residuals(merged: Merged) -> None:
    """Warn where a layer is further from what it was fitted to than where its fit began; the layer is named."""
    worse = [
        (name, fit["residual_before"], fit["residual_after"])
        for name, fit in merged.layers.items()
        if "residual_after" in fit and not fit["residual_after"] <= RISE * fit["residual_before"] + ROUNDING
    ]
    if worse:
        name, before, after = max(worse, key=lambda one: math.inf if math.isnan(one[2]) else one[2] - one[1])
        others = f", and so {'is 1 other' if len(worse) == 2 else f'are {len(worse) - 1} others'}" if worse[1:] else ""
        warn(
            f"{merged.name}: layer {name!r} is further from what it was fitted to than where its fit began (residual "
            f"{after:.3g}, {before:.3g} at the start){others}; it may do worse than the method's start point."
        )


def _students(
    method: Method, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]
) -> Iterator[Merged]:
    began = perf_counter()
    for made in method.merge(problem, evidence, run, budgets):
        merged = replace(made, seconds=perf_counter() - began)
        message = f"fitted {merged.name} in {merged.seconds:.1f} s"
        if (tuned := merged.learned.get("tuned")) is not None:
            settings = ", ".join(f"{name} {value}" for name, value in tuned["setting"].items())
            message += f", {settings} being best by {tuned['criterion']}"
        shares = [one["pictures"] * one["positions"] for one in merged.layers.values() if "positions" in one]
        if any(share < 1 for share in shares):
            message += f", its layers to {sum(shares) / len(shares):.0%} of their samples on average"
        tell(message)
        yield merged
        began = perf_counter()


def _kept(
    method: Method, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]
) -> Iterator[Merged]:
    """The students of one method, in the order of the budgets; its progress is that of the run."""
    assert run.progress is not None
    progress = run.progress
    finished = progress.recall("finished")
    names = [f"{method.name}-{budget.name}" for budget in budgets]
    recalled = {name: _recalled(name, problem, progress) for name in (finished["names"] if finished else names)}
    students = {name: merged for name, merged in recalled.items() if merged is not None}
    for name in students:
        tell(f"{name} was fitted before this run was interrupted")
    left = [budget for budget, name in zip(budgets, names, strict=True) if name not in students]
    if left and not (finished and len(students) == len(recalled)):
        for merged in _students(method, problem, evidence, run, left):
            if merged.name not in students:
                _keep(merged, progress)
                students[merged.name] = merged
    progress.keep_together("finished", {"names": list(students)})
    order = {budget: index for index, budget in enumerate(budgets)}
    yield from sorted(students.values(), key=lambda merged: order.get(merged.budget, 0))


def _keep(merged: Merged, progress: Progress) -> None:
    content = {
        "budget": merged.budget.plain,
        "maps": {name: units.members.cpu() for name, units in merged.student.group_maps.items()},
        "state_dict": {name: tensor.detach().cpu() for name, tensor in merged.student.network.state_dict().items()},
        "layers": {name: dict(fit) for name, fit in merged.layers.items()},
        "domain_residuals": {domain: dict(found) for domain, found in merged.domain_residuals.items()},
        "matches": dict(merged.matches),
        "settled": merged.settled,
        "norms": merged.norms,
        "seconds": merged.seconds,
        "curves": {name: {layer: dict(one) for layer, one in of.items()} for name, of in merged.curves.items()},
        "learned": dict(merged.learned),
        "zipped": merged.student.zipped,
        "kind": kind_entries(merged.student),
    }
    progress.keep_together(merged.name, content)


def _recalled(name: str, problem: Problem, progress: Progress) -> Merged | None:
    kept = progress.recall(name)
    if kept is None:
        return None
    student = problem.start({group: UnitMap.sorted(members) for group, members in kept["maps"].items()})
    student = of_its_kind(student, kept["kind"])
    student.network.load_state_dict(kept["state_dict"])
    student.zipped = kept["zipped"]
    budget = Budget.of(kept["budget"])
    method = name.removesuffix(f"-{budget.name}")
    return Merged(method, budget, student, **{name: kept[name] for name in RECALLED})
