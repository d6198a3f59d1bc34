"""A merge in TensorBoard: layer by layer, class by class, settings side by side, and the table with its figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from project.allocation import separated
from project.errors import printable
from project.methods import Merged
from project.moments import Statistics
from project.report.connectivity import connectivity_figure
from project.report.figures import accuracy_figure, layer_figure, separate_figure
from project.report.matrices import confusion_figure, correlation_figure, correlations
from project.report.results import Results
from project.symmetry import Spec

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

RESIDUAL = "relative residual of the fit"


def write_results(writer: "SummaryWriter", results: Results) -> None:
    """Write the table, its figures, and accuracies of students as scalars over size in per cent of one source."""
    writer.add_text("table", results.markdown(), 0)
    if lineage := results.details.get("lineage"):
        writer.add_text("settings", settings_table(lineage), 0)
    tests: Mapping[str, Any] = results.details.get("tests", {})
    for name in (row.name for row in results.rows if row.kind == "student" and tests.get("confusions")):
        writer.add_figure(f"confusions/{name}", confusion_figure(tests, name), 0)
    writer.add_figure("accuracy over size", accuracy_figure(results.rows, results.measure), 0)
    if paths := results.details.get("connectivity"):
        writer.add_figure("connectivity", connectivity_figure(paths), 0)
    for row in results.rows:
        if row.kind == "student":
            method = row.name.rsplit("-", 1)[0]
            for domain, accuracy in {**row.accuracy, "mean": row.mean, **row.others}.items():
                writer.add_scalar(f"accuracy/{method}/{domain}", accuracy, round(100 * row.executed))


def settings_table(lineage: Mapping[str, Mapping[str, Any]]) -> str:
    """Tabulate what students were made with, side by side, a column each; settings that all share stand last.

    Args:
        lineage: Student -> its method, class, budget and options.
    """
    columns = {
        name: {"method": one["method"], "class": one["class"], "budget": one["budget"], **one["options"]}
        for name, one in lineage.items()
    }
    settings = list(dict.fromkeys(setting for column in columns.values() for setting in column))
    rows = {setting: [_told(column.get(setting)) for column in columns.values()] for setting in settings}
    alike = [setting for setting in settings if len(set(rows[setting])) == 1]
    order = [setting for setting in settings if setting not in alike] + alike
    lines = ["| setting | " + " | ".join(map(_told, columns)) + " |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*lines, *["| " + " | ".join([_told(setting), *rows[setting]]) + " |" for setting in order]])


def _told(value: object) -> str:
    """A value as a cell of Markdown shows it."""
    return "–" if value is None else printable(str(value)).replace("|", "\\|")


def write_correlations(
    writer: "SummaryWriter", statistics: Statistics, spec: Spec, merged: Sequence[Merged], sources: Sequence[str]
) -> None:
    """Write how the units of the first two sources go together before and after alignment, for every alignment.

    Args:
        writer: Where to.
        statistics: What calibration has left; without moments of units there is nothing to write.
        spec: Groups of the sources.
        merged: The students; of those of one method, the first is drawn.
        sources: Names of the sources.
    """
    drawn: list[Mapping[str, float]] = []
    for result in merged:
        if not result.matches or result.matches in drawn or result.student.zipped:
            continue
        drawn.append(result.matches)
        found = correlations(statistics, spec, result.student.group_maps)
        if found:
            writer.add_figure(f"correlations/{result.name}", correlation_figure(found, sources), 0)


def write_fits(writer: "SummaryWriter", merged: Sequence[Merged], layers: Sequence[str]) -> None:
    """Write what was measured of every fitted layer, over depth and steps; how units match; which are kept separate.

    Args:
        writer: Where to.
        merged: The students.
        layers: Names of all layers in execution order; a layer's place among them is its step.
    """
    for result in merged:
        for name, fit in result.layers.items():
            for quantity, value in fit.items():
                writer.add_scalar(f"{quantity}/{result.name}", value, layers.index(name))
        for domain, residuals in result.domain_residuals.items():
            for name, value in residuals.items():
                writer.add_scalar(f"residual by domain/{result.name}/{domain}", value, layers.index(name))
        if result.domain_residuals:
            lines = _along(result.domain_residuals, layers)
            writer.add_figure(f"residual by domain/{result.name}", layer_figure(lines, layers, RESIDUAL), 0)
        for step, value in enumerate(result.matches.values()):
            writer.add_scalar(f"match/{result.name}", value, step)
        for quantity, curves in result.curves.items():
            for layer, values in curves.items():
                for step, value in values.items():
                    writer.add_scalar(f"{quantity}/{result.name}/{layer}", value, step)
    fitted = {
        result.name: {name: fit["residual_after"] for name, fit in result.layers.items() if "residual_after" in fit}
        for result in merged
    }
    fitted = {name: residuals for name, residuals in fitted.items() if residuals}
    if fitted:
        writer.add_figure("residual by layer", layer_figure(_along(fitted, layers), layers, RESIDUAL), 0)
    shares = {result.name: separated(result.student.group_maps) for result in merged}
    mixed = {name: share for name, share in shares.items() if 0 < sum(share.values()) < len(share)}
    for name, share in mixed.items():
        for step, value in enumerate(share.values()):
            writer.add_scalar(f"separate/{name}", value, step)
    if mixed:
        writer.add_figure("separate by group", separate_figure(mixed), 0)
    matched = {result.method: list(result.matches.values()) for result in merged if result.matches}
    if matched:
        groups = list(next(result.matches for result in merged if result.matches))
        writer.add_figure("match by group", layer_figure(matched, groups, "mean similarity of matched units"), 0)


def _along(values: Mapping[str, Mapping[str, float]], layers: Sequence[str]) -> dict[str, list[float]]:
    """Values of all layers in order; one without leaves a gap, as a layer that needed no fit."""
    return {name: [found.get(layer, float("nan")) for layer in layers] for name, found in values.items()}


def write_variances(writer: "SummaryWriter", variances: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Write the variances of every batch norm of every student before and after re-estimation, and their ratios.

    Args:
        writer: Where to.
        variances: ``before`` and ``after`` -> student -> norm -> mean running variance of its units.
    """
    before, after = variances.get("before", {}), variances.get("after", {})
    for student, norms in after.items():
        for step, (norm, value) in enumerate(norms.items()):
            writer.add_scalar(f"variance before/{student}", before[student][norm], step)
            writer.add_scalar(f"variance after/{student}", value, step)
    ratios = {s: [v / max(before[s][n], 1e-12) for n, v in norms.items()] for s, norms in after.items()}
    if ratios:
        names = max((list(norms) for norms in after.values()), key=len)
        ratios = {
            s: [dict(zip(after[s], series, strict=True)).get(n, float("nan")) for n in names]
            for s, series in ratios.items()
        }
        writer.add_figure("variance kept by norm", layer_figure(ratios, names, "variance, new over old"), 0)
