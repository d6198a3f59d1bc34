"""The table of a merge, put together from what it has found."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from project.allocation import executed_macs, separated, stored_bytes
from project.merging.engine import Engine
from project.methods import Merged, Problem
from project.report.connectivity import connectivity
from project.report.results import COSINE, TOP_1, Results, Row
from project.student import Student, batch_norms

Accuracies = Mapping[str, Mapping[str, float]]
"""Network -> domain -> accuracy in percent."""


def collect(
    engine: Engine,
    skipped: Sequence[str],
    before: Accuracies,
    after: Accuracies,
    others: Accuracies,
    tallies: Mapping[str, Any],
) -> Results:
    """Put the table of a merge together.

    Args:
        engine: The merge, finished.
        skipped: Unreadable pictures that were left out.
        before: Of the students whose batch norm was re-estimated, their accuracies before.
        after: Accuracies of sources, ensemble and students.
        others: Network -> name of another figure -> the figure.
        tallies: What lies behind the accuracies: test pictures and right answers by class, and by confidence.
    """
    problem, students = engine.problem, engine.merged
    unit, picture, count = problem.unit, problem.spec.picture, len(problem.sources)
    rows = []
    for source in engine.sources:
        executed = executed_macs(source.network, picture) / unit
        held, size = _held([source.network])
        rows.append(Row(source.name, "source", None, executed, executed, held, size, after[source.name]))
    held, size = _held(problem.sources)
    rows.append(Row("ensemble", "reference", None, float(count), float(count), held, size, after["ensemble"]))
    rows += [_student_row(merged, problem, before.get(merged.name, {}), after[merged.name]) for merged in students]
    rows = [replace(row, others=others.get(row.name, {})) for row in rows]
    points = [(merged.learned["path"], after[merged.name]) for merged in students if "path" in merged.learned]
    details = {
        "domains": list(problem.labels.domains),
        **({"tests": dict(tallies)} if tallies else {}),
        "layer_order": [layer.name for layer in problem.spec.layers],
        "layers": {merged.name: merged.layers for merged in students if merged.layers},
        "domain_residuals": {merged.name: merged.domain_residuals for merged in students if merged.domain_residuals},
        "separated": {merged.name: separated(merged.student.group_maps) for merged in students},
        "matches": {merged.name: merged.matches for merged in students if merged.matches},
        "curves": {merged.name: merged.curves for merged in students if merged.curves},
        **({"connectivity": connectivity(points)} if points else {}),
        "variances": engine.variances,
        "equivalence": engine.equivalence,
        "lineage": {merged.name: merged.student.lineage for merged in students},
        "calibration": engine.data.calibration_pictures(),
        "skipped_pictures": list(skipped),
        "macs_of_one_source": unit,
    }
    measure = COSINE if engine.headless else TOP_1
    return Results(rows, list(problem.labels.domains), engine.clock.rows(), details, measure)


def _student_row(merged: Merged, problem: Problem, before: Mapping[str, float], after: Mapping[str, float]) -> Row:
    student = merged.student
    norms = merged.norms if merged.settled else "re-estimated" if before else _kept_norms(student)
    residuals = [fit["residual_after"] for fit in merged.layers.values() if "residual_after" in fit]
    return Row(
        merged.name,
        "point" if "path" in merged.learned else "student",
        merged.budget.plain,
        student.macs / problem.unit,
        executed_macs(student, problem.spec.picture) / problem.unit,
        student.held,
        student.bytes,
        dict(after),
        dict(before),
        sum(residuals) / len(residuals) if residuals else None,
        norms=norms,
        seconds=merged.seconds,
    )


def _kept_norms(student: Student) -> str:
    """Tell where the statistics of batch norms come from that were neither fitted nor re-estimated."""
    merged = batch_norms(student.network, student.exact_norms) or not batch_norms(student.network)
    return "sources' mean" if merged else "sources' own"


def _held(networks: Sequence[nn.Module]) -> tuple[int, int]:
    """Count parameters, and bytes of parameters and buffers."""
    parameters = sum(parameter.numel() for network in networks for parameter in network.parameters())
    return parameters, sum(stored_bytes(network.state_dict()) for network in networks)
