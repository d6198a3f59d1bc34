"""Many methods, with and without alignment, in one merge: one table and one figure.

    python benchmarks/compare.py --config configs/compare/shapes.yaml --out benchmarks/results/compare_shapes
    python benchmarks/compare.py --config configs/compare/real.yaml --real FOLDER --out benchmarks/results/compare_real

The first wants the sources of ``configs/compare/fit_{base,clipart,sketch}.yaml``; FOLDER is as for
``merge_quality.py``. All methods share one gathering of statistics, and the test lists are read once, at the end.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from merge_quality import machine, merged, real_arguments, unpacked

from project.models import atomic_text


def main() -> None:
    """Run what the arguments ask for; write a JSON file, a table and a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="of pleas merge")
    parser.add_argument("--real", type=Path, help="folder of the real pair, where the config is for one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of calibration pictures")
    parser.add_argument("--out", type=Path, required=True, help="name of the files, without their endings")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        more = ["--data.init_args.seed", str(arguments.seed)]
        if arguments.real:
            data = unpacked(arguments.real, Path(scratch))
            given = real_arguments(arguments.real, data, arguments.seed)
            more = given[given.index("--data.init_args.root") :]  # its config is another one
        found = {"machine": machine(), "config": arguments.config.read_text().splitlines()}
        found |= merged(Path(scratch) / "run", "--config", str(arguments.config), *more)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(json.dumps(found, indent=2), arguments.out.with_suffix(".json"))
    atomic_text(table(found["table"], list(found["calibration"])), arguments.out.with_suffix(".md"))
    figure(found["table"], list(found["calibration"])).savefig(arguments.out.with_suffix(".png"), dpi=150)
    print(f"wrote {arguments.out}.json, .md and .png")


def table(rows: list[dict[str, Any]], domains: list[str]) -> str:
    """Markdown: what was given, then the students, the best first."""
    lines = [
        f"| network | size | MB | {' | '.join(domains)} | mean | seconds |",
        "|---|---:|---:|" + "---:|" * (len(domains) + 2),
    ]
    for row in [row for row in rows if row["kind"] != "student"] + _ranked(rows)[::-1]:
        accuracies = " | ".join(f"{row[domain]:.1f}" for domain in domains)
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.0f}"
        size = f"{row['executed']:.2f} | {row['MB']:.0f}"
        lines.append(f"| {row['network']} | {size} | {accuracies} | {row['mean']:.1f} | {seconds} |")
    return "\n".join(lines) + "\n"


def figure(rows: list[dict[str, Any]], domains: list[str]) -> Figure:
    """Accuracy of every student, the best on top; lines show the sources on their best domains, and the ensemble."""
    made = _ranked(rows)
    drawn = Figure(figsize=(7, 0.24 * len(made) + 1.2), layout="constrained")
    axes = drawn.subplots()
    axes.barh([f"{row['network']}  ({row['executed']:.2f}×)" for row in made], [row["mean"] for row in made])
    best = [max(row[domain] for domain in domains) for row in rows if row["kind"] == "source"]
    axes.axvline(sum(best) / len(best), color="black", linewidth=1, label="sources, each on its best domain")
    for row in (row for row in rows if row["kind"] == "reference"):
        axes.axvline(row["mean"], color="black", linewidth=1, linestyle=":", label=row["network"])
    axes.set_xlabel("top-1 accuracy, mean of the domains (%)")
    axes.legend(loc="lower right")
    return drawn


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The students, the best last."""
    return sorted((row for row in rows if row["kind"] == "student"), key=lambda row: row["mean"])


if __name__ == "__main__":
    main()
