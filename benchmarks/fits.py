"""Accuracy, seconds and memory of every way to fit, on the real pair and on Shapes, at one size.

    python benchmarks/fits.py --real FOLDER --held-out --out benchmarks/results/fits_held_out.json
    python benchmarks/fits.py --real FOLDER --seeds 5 --out benchmarks/results/fits.json

Each fit is one ``pleas merge`` in a process of its own, whose peak memory is what the operating system says. With
``--held-out`` students are scored on training pictures that took no part in calibration: that is where settings are
chosen. Without, they are scored on the test lists. The file is written anew after every merge, and what it holds
already is not run again.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from merge_quality import CONFIGS, machine, unpacked

from project.models import atomic_text

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
    parser.add_argument("--seeds", type=int, default=1, help="draws of the calibration pictures")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0])
    parser.add_argument("--only", nargs="+", choices=list(FITS), default=list(FITS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fits.json"))
    arguments = parser.parse_args()
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"machine": machine(), "fits": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(arguments.seeds):
            data = arguments.real and unpacked(arguments.real, Path(scratch))
            if data and arguments.held_out:
                data = held_out(data, Path(scratch) / f"held-{seed}", seed)
            for name in arguments.only:
                key = f"{name} | seed {seed} | budgets {arguments.budgets}"
                if key in found["fits"]:
                    continue
                found["fits"][key] = one(FITS[name], arguments, data, Path(scratch) / "run", seed)
                atomic_text(json.dumps(found, indent=2), arguments.out)
                print(key, json.dumps(found["fits"][key]), flush=True)


def one(options: dict[str, Any], arguments: argparse.Namespace, data: Path | None, run: Path, seed: int) -> Any:
    """One merge in a process of its own: its students' rows, and the peak memory of the process in MiB."""
    method = {"class_path": "project.methods.PLeaS", "init_args": {"label": "pleas", **options}}
    config = CONFIGS / ("pacs" if data else "demo") / "merge.yaml"
    command = [
        sys.executable, "-m", "project", "merge", "--config", str(config), "--run", str(run), "--overwrite", "true",
        "--data.init_args.seed", str(seed), "--model.init_args.methods", json.dumps([method]),
        "--model.init_args.budgets", json.dumps(arguments.budgets),
    ]  # fmt: skip
    if data:
        command += [
            "--data.init_args.root",
            str(data),
            "--model.init_args.sources",
            json.dumps(sources(arguments.real)),
        ]
        command += ["--data.init_args.validation_fraction", "0"] if arguments.held_out else []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    results = json.loads((run / "results.json").read_text())
    shutil.rmtree(run)
    return {
        "students": [row for row in results["table"] if row["kind"] == "student"],
        "phases": results["phases"],
        "peak_mib": usage.ru_maxrss // 1024,
    }


def sources(folder: Path) -> list[dict[str, Any]]:
    """The real pair's sources, each with the domain that its file is named after."""
    return [{"path": str(path), "domains": [path.stem]} for path in sorted(folder.glob("*.safetensors"))]


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
