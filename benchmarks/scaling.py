"""How the cost of a merge grows with pictures, depth, width, sources and budgets; random weights, random pictures.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

One setting at a time leaves that of a base run: ResNet-20 of twice its width, 32 pixels, 256 pictures, two sources, one
budget. A figure lies beside the table. Several pictures of one shape are one batch, so that batches stay alike.
"""

import argparse
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from merge_cost import CLOCKS, Bench
from merge_quality import machine

from project.allocation import Budget
from project.methods import Evidence, PLeaS, Run
from project.moments import LAYERS, UNITS
from project.runtime import atomic_text

BASE: dict[str, Any] = {"pictures": 256, "depth": 20, "width": 2, "sources": 2, "budgets": 1}
AXES: dict[str, list[int]] = {
    "pictures": [128, 256, 512, 1024],
    "depth": [20, 32, 56],
    "width": [1, 2, 4],
    "sources": [2, 3, 4],
    "budgets": [1, 2, 4],
}
PHASES = ("gathering", "joint fit", "sequential fit")


def main() -> None:
    """Measure every setting and write one JSON file and one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, on a machine in use")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "clock": arguments.clock, "base": BASE, "table": []}
    base = None
    for axis in arguments.only:
        for value in AXES[axis]:
            setting = {**BASE, axis: value}
            if setting == BASE and base is not None:
                seconds = base
            else:
                seconds = measured(setting, arguments.clock)
                base = seconds if setting == BASE else base
            found["table"].append({"axis": axis, "value": value, **seconds})
            print(axis, value, *(f"{phase} {taken:.3g} s" for phase, taken in seconds.items()), flush=True)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            atomic_text(json.dumps(found, indent=2), arguments.out)
    figure(found["table"], arguments.only).savefig(arguments.out.with_suffix(".png"), dpi=120)
    print(f"wrote {arguments.out} and {arguments.out.with_suffix('.png')}")


def measured(setting: dict[str, int], clock: str) -> dict[str, float]:
    """Seconds of each phase of one merge, the best of two."""
    bench = Bench(
        Namespace(
            architecture=f"resnet{setting['depth']}",
            width=setting["width"],
            image_size=32,
            pictures=setting["pictures"],
            batch=64,
            sources=setting["sources"],
            device="cpu",
            clock=clock,
            rounds=1,
        )
    )
    budgets = [Budget(1 + (setting["sources"] - 1) * step / 5) for step in range(setting["budgets"])]
    seconds = dict.fromkeys(PHASES, float("inf"))
    for _ in range(2):
        start = bench.now()
        statistics = bench.gather([LAYERS, UNITS])
        seconds["gathering"] = min(seconds["gathering"], bench.now() - start)
        evidence = Evidence(statistics, bench.pictures)
        for phase, method in (("joint fit", PLeaS(fit="joint")), ("sequential fit", PLeaS())):
            start = bench.now()
            list(method.merge(bench.problem, evidence, Run(), budgets))
            seconds[phase] = min(seconds[phase], bench.now() - start)
    return seconds


def figure(table: list[dict[str, Any]], axes: list[str]) -> Figure:
    """One panel for each axis: seconds of every phase, and a line of slope one through the first point."""
    drawn = Figure(figsize=(3 * len(axes), 3), layout="constrained")
    for panel, axis in zip(drawn.subplots(1, len(axes), squeeze=False, sharey=True)[0], axes, strict=True):
        rows = [row for row in table if row["axis"] == axis]
        values = [row["value"] for row in rows]
        for phase in PHASES:
            panel.plot(values, [row[phase] for row in rows], marker="o", label=phase)
        panel.plot(
            values, [rows[0][PHASES[0]] * value / values[0] for value in values], ":", color="gray", label="linear"
        )
        panel.set(xscale="log", yscale="log", xlabel=axis, xticks=values, xticklabels=values)
        panel.minorticks_off()
    seconds = [step * 10**power for power in range(-2, 5) for step in (1, 2, 5)]
    low, high = drawn.axes[0].get_ylim()
    drawn.axes[0].set_yticks([one for one in seconds if low <= one <= high])
    drawn.axes[0].yaxis.set_major_formatter("{x:g}")
    drawn.axes[0].set_ylabel("seconds")
    drawn.axes[0].legend(fontsize="small")
    return drawn


if __name__ == "__main__":
    main()
