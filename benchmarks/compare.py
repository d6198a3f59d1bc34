"""Many methods, with and without alignment, in one merge: one table and one figure.

    python benchmarks/compare.py --config configs/compare/shapes.yaml --out benchmarks/results/compare_shapes
    python benchmarks/compare.py --config configs/compare/real.yaml --real FOLDER --out benchmarks/results/compare_real

The first wants the sources of ``configs/compare/fit_{base,clipart,sketch}.yaml``; FOLDER is as for
``merge_quality.py``. All methods share one gathering of statistics, and the test lists are read once, at the end.
``--drawn FILE`` draws table and figure of a JSON file anew.
"""

import argparse
import inspect
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from matplotlib.figure import Figure
from merge_quality import machine, merged, real_arguments, unpacked

from project.runtime import atomic_text

ALIGNMENTS = {"none": "tab:gray", "weights": "tab:blue", "activations": "tab:orange", "both": "tab:green"}


@dataclass(frozen=True)
class Entry:
    """A student of the comparison.

    Args:
        method: Its name, without what tells alignments apart.
        alignment: How units were matched: one of ``ALIGNMENTS``.
        row: Its row of the merge's table.
    """

    method: str
    alignment: str
    row: Mapping[str, Any]

    @property
    def budget(self) -> str:
        """What it was asked to meet, as the student's name has it."""
        return str(self.row["network"]).rpartition("-")[2]

    @property
    def title(self) -> str:
        """Method and size."""
        return f"{self.method}, {self.row['executed']:.2f}×"


def main() -> None:
    """Run what the arguments ask for; write a JSON file, a table and a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="of pleas merge")
    parser.add_argument("--real", type=Path, help="folder of the real pair, where the config is for one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of calibration pictures")
    parser.add_argument("--drawn", type=Path, help="JSON file of an earlier run, in place of a run")
    parser.add_argument("--out", type=Path, required=True, help="name of the files, without their endings")
    arguments = parser.parse_args()
    if (arguments.config is None) == (arguments.drawn is None):
        parser.error("give --config or --drawn")
    found = json.loads(arguments.drawn.read_text()) if arguments.drawn else compared(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(json.dumps(found, indent=2), arguments.out.with_suffix(".json"))
    entries, domains = students(found["table"], found["config"]), list(found["calibration"])
    text = f"{side_by_side(entries)}\n{table(found['table'], domains)}"
    atomic_text(text, arguments.out.with_suffix(".md"))
    figure(found["table"], entries, domains).savefig(arguments.out.with_suffix(".png"), dpi=150)
    print(f"wrote {arguments.out}.json, .md and .png")


def compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """What one merge of all methods found."""
    with tempfile.TemporaryDirectory() as scratch:
        more = ["--data.init_args.seed", str(arguments.seed)]
        if arguments.real:
            data = unpacked(arguments.real, Path(scratch))
            given = real_arguments(arguments.real, data, arguments.seed)
            more = given[given.index("--data.init_args.root") :]  # its config is another one
        found = {"machine": machine(), "config": arguments.config.read_text().splitlines()}
        return found | merged(Path(scratch) / "run", "--config", str(arguments.config), *more)


def students(rows: list[dict[str, Any]], config: list[str]) -> list[Entry]:
    """The students, the best first, with what the config says of their alignment."""
    known = {}
    for given in yaml.safe_load("\n".join(config))["model"]["init_args"]["methods"]:
        owner = resolve_name(given["class_path"])
        made = owner(**_built(given.get("init_args", {})))
        options = {name: one.default for name, one in inspect.signature(owner).parameters.items()} | made.options
        align = next((options[name] for name in ("align", "matching", "space") if name in options), "none")
        align = align if isinstance(align, str) else align["by"]
        known[made.name] = made.name.removesuffix(f"-{align}"), align
    return [Entry(*known[row["network"].rpartition("-")[0]], row) for row in _ranked(rows)]


def _built(given: Any) -> Any:
    """Settings as Python has them; methods within methods are made."""
    if isinstance(given, dict) and "class_path" in given:
        return resolve_name(given["class_path"])(**_built(given.get("init_args", {})))
    return {key: _built(value) for key, value in given.items()} if isinstance(given, dict) else given


def _lines(entries: list[Entry]) -> dict[str, dict[str, float]]:
    """Method and size -> alignment -> mean accuracy; the best first, which tells the size."""
    titles: dict[tuple[str, str], str] = {}
    found: dict[str, dict[str, float]] = {}
    for entry in entries:
        title = titles.setdefault((entry.method, entry.budget), entry.title)
        found.setdefault(title, {})[entry.alignment] = float(entry.row["mean"])
    return found


def side_by_side(entries: list[Entry]) -> str:
    """Markdown: mean accuracy of every method and size behind every alignment, the best first."""
    lines = [f"| mean top-1 | {' | '.join(ALIGNMENTS)} |", "|---|" + "---:|" * len(ALIGNMENTS)]
    for title, means in _lines(entries).items():
        cells = [f"{means[name]:.1f}" if name in means else "–" for name in ALIGNMENTS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table(rows: list[dict[str, Any]], domains: list[str]) -> str:
    """Markdown: what was given, then the students, the best first."""
    lines = [
        f"| network | size | MB | {' | '.join(domains)} | mean | seconds |",
        "|---|---:|---:|" + "---:|" * (len(domains) + 2),
    ]
    for row in [row for row in rows if row["kind"] != "student"] + _ranked(rows):
        accuracies = " | ".join(f"{row[domain]:.1f}" for domain in domains)
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.0f}"
        size = f"{row['executed']:.2f} | {row['MB']:.0f}"
        lines.append(f"| {row['network']} | {size} | {accuracies} | {row['mean']:.1f} | {seconds} |")
    return "\n".join(lines) + "\n"


def figure(rows: list[dict[str, Any]], entries: list[Entry], domains: list[str]) -> Figure:
    """Accuracy of every method, a point for each alignment; lines show sources on their best domains, and ensemble."""
    lines = list(_lines(entries).items())[::-1]
    drawn = Figure(figsize=(7, 0.24 * len(lines) + 1.6), layout="constrained")
    axes = drawn.subplots()
    for name, colour in ALIGNMENTS.items():
        places = [place for place, (_, means) in enumerate(lines) if name in means]
        means = [lines[place][1][name] for place in places]
        axes.scatter(means, places, color=colour, s=28, alpha=0.85, label=f"align: {name}", zorder=3)
    axes.set_yticks(range(len(lines)), [title for title, _ in lines])
    axes.set_ylim(-1, len(lines))
    axes.grid(alpha=0.3)
    best = [max(row[domain] for domain in domains) for row in rows if row["kind"] == "source"]
    axes.axvline(sum(best) / len(best), color="black", linewidth=1, label="sources, each on its best domain")
    for row in (row for row in rows if row["kind"] == "reference"):
        axes.axvline(row["mean"], color="black", linewidth=1, linestyle=":", label=row["network"])
    axes.set_xlabel("top-1 accuracy, mean of the domains (%)")
    drawn.legend(loc="outside upper center", ncols=3, fontsize="small")
    return drawn


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The students, the best first."""
    return sorted((row for row in rows if row["kind"] == "student"), key=lambda row: -float(row["mean"]))


if __name__ == "__main__":
    main()
