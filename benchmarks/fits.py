"""Accuracy, seconds and memory of every way to fit, on the real pair and on Shapes.

    python benchmarks/fits.py --real FOLDER --held-out --memory --out benchmarks/results/fits_held_out.json
    python benchmarks/fits.py --real FOLDER --seeds 5 --only default --budgets 1 2 --out benchmarks/results/fits.json

All fits of one draw of the calibration pictures share one ``pleas merge``, so that they see the same statistics; with
``--memory``, each also runs by itself, so that the peak of its phases is its own. With ``--held-out``
students are scored on training pictures that took no part in calibration: that is where settings are chosen. Without,
they are scored on the test lists. The file is written anew after every merge, and what it holds is not run again.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from merge_quality import CONFIGS, machine, real_arguments, unpacked

from project.runtime import atomic_text

PICTURES = 512  # calibration pictures a domain; as configs/pacs/merge.yaml has it
FITS: dict[str, dict[str, Any]] = {
    "default": {},
    "logits: squares": {"logits": "squares"},
    "rounds: 0": {"rounds": 0},
    "compensate: false": {"compensate": False},
    "rounds: 0, compensate: false": {"rounds": 0, "compensate": False},
    "norm: before": {"norm": "before"},
    "targets: mean": {"targets": "mean"},
    "targets: mean, norm: before": {"targets": "mean", "norm": "before"},
    "similarity: correlation": {"similarity": "correlation"},
    "matching: weights": {"matching": "weights"},
    "ridge: 0.005": {"ridge": 0.005},
    "ridge: 0.5": {"ridge": 0.5},
    "fit: joint": {"fit": "joint"},
    "fit: joint, targets: mean": {"fit": "joint", "targets": "mean"},
}


def main() -> None:
    """Run what is missing from the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder of the real pair; without it, the sources of 'make demo'")
    parser.add_argument("--held-out", action="store_true", help="score on held-out training pictures")
    parser.add_argument("--memory", action="store_true", help="measure each fit's peak memory too")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the calibration pictures")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0])
    parser.add_argument("--only", nargs="+", choices=list(FITS), default=list(FITS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fits.json"))
    arguments = parser.parse_args()
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"machine": machine()}
    runs = [("seed " + str(seed), seed, arguments.only) for seed in range(arguments.seeds)]
    runs += [(f"memory of {name}", 0, [name]) for name in arguments.only if arguments.memory]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pictures = unpacked(arguments.real, scratch) if arguments.real else None
        for key, seed, fits in runs:
            if key in found:
                continue
            data = pictures
            if data and arguments.held_out:
                data = held_out(data, scratch / f"held-{len(found)}", seed)
            found[key] = merge(fits, arguments, data, scratch / "run", seed)
            atomic_text(json.dumps(found, indent=2), arguments.out)
            print(key, *(f"{row['network']} {row['mean']}" for row in found[key]["table"]), sep="\n  ", flush=True)


def merge(fits: list[str], arguments: argparse.Namespace, data: Path | None, run: Path, seed: int) -> dict[str, Any]:
    """One merge in a process of its own: its table, seconds and peak memory of its phases."""
    methods = [
        {"class_path": "project.methods.PLeaS", "init_args": {"label": label(name), **FITS[name]}} for name in fits
    ]
    shapes = ["--config", str(CONFIGS / "demo" / "merge.yaml"), "--data.init_args.seed", str(seed)]
    command = [
        sys.executable, "-m", "project", "merge",
        *(real_arguments(arguments.real, data, seed) if data else shapes),
        *(["--data.init_args.validation_fraction", "0"] if arguments.held_out else []),
        "--run", str(run), "--overwrite", "true",
        "--model.init_args.methods", json.dumps(methods),
        "--model.init_args.budgets", json.dumps(arguments.budgets),
    ]  # fmt: skip
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    results = json.loads((run / "results.json").read_text())
    return {"table": results["table"], "phases": results["phases"]}


def label(name: str) -> str:
    """A fit's name as a label: letters, digits, dots and dashes."""
    return name.replace(": ", "-").replace(", ", "_")


def held_out(data: Path, folder: Path, seed: int) -> Path:
    """The same domains with their training lists split: PICTURES to calibrate with, up to 1,000 others to score on."""
    folder.mkdir()
    for listing in sorted(data.glob("*_train.txt")):
        domain = listing.name.removesuffix("_train.txt")
        (folder / domain).symlink_to((data / domain).absolute())
        lines = listing.read_text().splitlines()
        random.Random(seed).shuffle(lines)
        (folder / f"{domain}_train.txt").write_text("\n".join(lines[:PICTURES]) + "\n")
        (folder / f"{domain}_test.txt").write_text("\n".join(lines[PICTURES : PICTURES + 1000]) + "\n")
    return folder


if __name__ == "__main__":
    main()
