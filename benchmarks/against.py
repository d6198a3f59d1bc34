"""What a merge costs today beside what it cost at another commit: processor time, memory, seconds of each phase.

    python benchmarks/against.py d473015 --out benchmarks/results/against.json
    python benchmarks/against.py HEAD~1 --budgets 1.5 --separate gain

Both sides are driven by ``python -m project merge --config FILE``, each in a checkout of its own, with one interpreter,
one thread and the same random sources and pictures, by turns, so that what else the machine does hits both. Processor
time is that of the merge's process less that of one that only imports the command; memory is the process's peak less
the other's. Every figure is the median over the rounds; ratios are of these. With ``--logits``, students of both sides
are compared on random pictures: the largest norm of a difference, relative to the logits' own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from merge_quality import machine
from safetensors.torch import load_file
from unchanged import checkout, run_in, tree_of
from unchanged_merges import CLASSES, DOMAINS, TRAINER

from project.models import Architecture
from project.runtime import atomic_text

IMPORTS = "import project.cli, project.trainer, project.modules, project.data"


def main() -> None:
    """Run both sides by turns, print the ratios and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="what today's files are held against")
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=1024, help="over both domains")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0])
    parser.add_argument("--separate", help="how budgets are spent, by both; default: as each does by itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--logits", action="store_true", help="compare the students, too")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="against-") as name:
        scratch = Path(name)
        config = prepared(arguments, scratch)
        with checkout(tree_of(arguments.commit)) as before, checkout(tree_of(".")) as today:
            sides = {"before": before, "today": today}
            rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for number in range(arguments.rounds):
                for side in list(sides)[:: -1 if number % 2 else 1]:
                    folder = sides[side]
                    rounds[side].append(measured(folder, scratch / f"{side}-{number}", config))
                    print(f"round {number + 1} of {arguments.rounds}, {side}: {rounds[side][-1]}", flush=True)
            found = {
                "machine": machine(),
                "options": {name: value for name, value in vars(arguments).items() if name != "out"},
                "rounds": rounds,
                "medians": {side: medians(rows) for side, rows in rounds.items()},
            }
            if arguments.logits:
                found["logits"] = differences(arguments, sides, scratch)
    found["ratios"] = ratios(found["medians"])
    print(json.dumps({key: found[key] for key in ("medians", "ratios", "logits") if key in found}, indent=2))
    if arguments.out:
        atomic_text(json.dumps(found, indent=2), arguments.out)


def prepared(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Draw two sources into a folder, and say how they are merged: as the commands of both sides read it."""
    for seed, domain in enumerate(DOMAINS):
        torch.manual_seed(seed)
        torch.save(Architecture(arguments.architecture, CLASSES).build().state_dict(), scratch / f"{domain}.pth")
    spending = {} if arguments.separate is None else {"separate": arguments.separate}
    each = arguments.pictures // len(DOMAINS)
    shapes = {"size": arguments.image_size, "train_per_class": -(-each // CLASSES), "test_per_class": 1}
    return {
        "trainer": TRAINER,
        "model": {
            "class_path": "project.modules.MergeModule",
            "init_args": {
                "sources": [{"path": str(scratch / f"{domain}.pth"), "domains": [domain]} for domain in DOMAINS],
                "budgets": arguments.budgets,
                "methods": [{"class_path": "project.methods.PLeaS", "init_args": spending}],
            },
        },
        "data": {
            "class_path": "project.data.DomainDataModule",
            "init_args": {
                "sets": {
                    "class_path": "project.data.Shapes",
                    "init_args": {"root": str(scratch / "data"), "domains": list(DOMAINS), **shapes},
                },
                "image_size": arguments.image_size, "calibration": each, "calibration_views": 1,
                "calibration_batch_size": 64,
                "validation_fraction": 0,
            },
        },
    }  # fmt: skip


def measured(folder: Path, run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """One merge by the files of a folder, in a process of its own."""
    file = run.with_suffix(".yaml")
    file.write_text(json.dumps({**config, "run": str(run)}))
    idle, merge = spent(folder, "-c", IMPORTS), spent(folder, "-m", "project", "merge", "--config", str(file))
    phases = json.loads((run / "results.json").read_text())["phases"]
    return {
        "processor seconds": round(merge["seconds"] - idle["seconds"], 1),
        "peak MiB": round(merge["peak"] - idle["peak"]),
        **{f"{phase['phase']}, seconds": phase["seconds"] for phase in phases},
    }


def spent(folder: Path, *arguments: str) -> dict[str, float]:
    """Processor seconds and peak memory in MiB of the interpreter on the files of a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(folder)}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            sys.exit(output.read().decode(errors="replace")[-5000:])
    return {"seconds": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss / 1024}


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every figure that all rounds have."""
    known = [key for key in rounds[0] if all(key in row for row in rounds)]
    return {key: round(median(row[key] for row in rounds), 2) for key in known}


def ratios(sides: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Today's figures over those before, where both have them."""
    before, today = sides["before"], sides["today"]
    return {key: round(today[key] / before[key], 3) for key in before if before[key] and key in today}


def differences(arguments: argparse.Namespace, sides: Mapping[str, Path], scratch: Path) -> dict[str, float]:
    """Student -> norm of the difference of both sides' logits over that of the logits."""
    child, logits = str(Path(__file__).with_name("unchanged_tensors.py")), {}
    for side, folder in sides.items():
        into = scratch / f"{side}-logits"
        into.mkdir()
        files = [file for file in (scratch / f"{side}-0" / "students").iterdir() if file.suffix != ".json"]
        run_in(folder, child, str(folder), str(arguments.image_size), str(into), *map(str, files))
        logits[side] = {file.stem: load_file(file)["logits"].double() for file in into.iterdir()}
    before, today = logits["before"], logits["today"]
    return {name: float((today[name] - before[name]).norm() / before[name].norm()) for name in before if name in today}


if __name__ == "__main__":
    main()
