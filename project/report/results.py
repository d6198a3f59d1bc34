"""Every number of a merge in one table: as rows, as text, as JSON and CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from project.errors import printable
from project.runtime import atomic_text

TOP_1 = "top-1 accuracy (%)"
COSINE = "mean cosine between its pooled values and those of the domain's own source (%)"


@dataclass(frozen=True)
class Row:
    """Row of the table: one network.

    Args:
        name: Its name.
        kind: ``source``, ``reference``, ``student``, or ``point`` of a path between sources.
        budget: What was asked for, as the user wrote it; None for sources and references without one.
        nominal: Multiply-accumulates by its unit maps, gates and experts, over one source's.
        executed: Multiply-accumulates counted while it ran, over one source's.
        parameters: Number of parameters.
        size: Bytes of parameters and buffers.
        accuracy: domain -> top-1 in percent; domains it has no head for are left out.
        before: The same before batch norm was re-estimated; empty where that was not measured.
        residual: Mean over layers of the fit's relative residual; None where nothing was fitted.
        others: Further figures in percent, under their names.
        norms: How a student's batch norms came by their statistics: ``fitted`` with the layers, ``re-estimated``,
            ``sources' own`` for each, or left at the ``sources' mean``; None for others.
        seconds: What a student took to make, gathering and re-estimation left out; a fit of several budgets at once
            counts for the first of them. None for others.
    """

    name: str
    kind: str
    budget: float | str | None
    nominal: float
    executed: float
    parameters: int
    size: int
    accuracy: Mapping[str, float]
    before: Mapping[str, float] = field(default_factory=dict)
    residual: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    norms: str | None = None
    seconds: float | None = None

    @property
    def mean(self) -> float:
        """Mean accuracy over the domains it knows."""
        return sum(self.accuracy.values()) / len(self.accuracy)

    def cells(self, domains: Sequence[str], others: Sequence[str] = ()) -> dict[str, str | float | int | None]:
        """Lay the row out as flat values under column names, figures rounded as they are printed.

        Args:
            domains: Domains with a column of their accuracy.
            others: Further figures with a column.
        """
        cells: dict[str, str | float | int | None] = {
            "network": self.name,
            "kind": self.kind,
            "budget": self.budget,
            "nominal": round(self.nominal, 3),
            "executed": round(self.executed, 3),
            "parameters": self.parameters,
            "MB": round(self.size / 1e6, 3),
        }
        for domain in domains:
            cells[domain] = round(self.accuracy[domain], 1) if domain in self.accuracy else None
        cells["mean"] = round(self.mean, 1)
        for name in others:
            cells[name] = round(self.others[name], 1) if name in self.others else None
        cells["batch norm"] = self.norms
        cells["seconds"] = None if self.seconds is None else round(self.seconds, 1)
        cells["before BN"] = round(sum(self.before.values()) / len(self.before), 1) if self.before else None
        cells["residual"] = None if self.residual is None else round(self.residual, 3)
        return cells


@dataclass(frozen=True)
class Results:
    """Results of a merge: the table, phases and details.

    Args:
        rows: One a network.
        domains: The domains, in order.
        phases: Seconds and peak memory of each phase.
        details: Further plain values: layers, matches, variances, lineage.
        measure: What the columns of domains hold.
    """

    rows: Sequence[Row]
    domains: Sequence[str]
    phases: Sequence[Mapping[str, Any]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    measure: str = TOP_1

    def cells(self) -> list[dict[str, str | float | int | None]]:
        """Lay out the cells of the table, one mapping a row."""
        others = list(dict.fromkeys(name for row in self.rows for name in row.others))
        return [row.cells(self.domains, others) for row in self.rows]

    def text(self) -> str:
        """Format the table for a terminal, and the barrier of every path between sources."""
        paths: Mapping[str, Any] = self.details.get("connectivity", {})
        barriers = [f"{name}: barrier {path['barrier']['mean']:.1f} points" for name, path in paths.items()]
        said = [] if self.measure == TOP_1 else [f"(under each domain: the {self.measure})"]
        return "\n".join([text_table(self.cells()), *said, *([""] if barriers else []), *barriers])

    def markdown(self) -> str:
        """Format the table for TensorBoard and documents."""
        cells = self.cells()
        lines = ["| " + " | ".join(cells[0]) + " |", "|" + "---|" * len(cells[0])]
        lines += ["| " + " | ".join(_shown(value) for value in row.values()) + " |" for row in cells]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Write ``results.json`` and ``results.csv``, each whole or not at all."""
        content = {"measure": self.measure, "table": self.cells(), "phases": list(self.phases), **self.details}
        atomic_text(json.dumps(content, indent=2), folder / "results.json")
        write_csv(self.cells(), folder / "results.csv")


Cells = Mapping[str, str | float | int | None]


def write_csv(rows: Sequence[Cells], path: Path) -> None:
    """Write rows of cells as CSV, whole or not at all; the first row names the columns."""
    atomic_text(csv_text(rows), path)


def csv_text(rows: Sequence[Cells]) -> str:
    """Format rows of cells as CSV; the first row names the columns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def text_table(rows: Sequence[Cells]) -> str:
    """Format rows of cells as aligned text; the first row names the columns."""
    cells = [{name: _shown(value) for name, value in row.items()} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) for name in cells[0]}
    lines = ["  ".join(_aligned(name, name, width) for name, width in widths.items())]
    lines.append("  ".join("-" * width for width in widths.values()))
    lines += ["  ".join(_aligned(row[name], name, width) for name, width in widths.items()) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def _shown(value: str | float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def _aligned(text: str, column: str, width: int) -> str:
    return text.ljust(width) if column in ("network", "kind", "batch norm") else text.rjust(width)
