"""Accuracy at one source's size over the pictures that a merge may calibrate with, on real pictures and on Shapes.

    python benchmarks/data_modes.py --real FOLDER --shapes --out benchmarks/results/data_modes.json

FOLDER as for ``merge_quality.py``. Public pictures are Shapes of the domains that no source was trained on, drawn at
the size of the pair. The file is written after every merge, so that an interrupted run keeps what it has.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from merge_quality import machine, real, shapes, unpacked

from project.runtime import atomic_text

MODES = ("all", "512", "64", "16", "4", "public", "none")
WITHOUT = (("Average", {}), ("Permutation", {"matching": "weights"}))
WITH = (*WITHOUT, ("Permutation", {"label": "permutation-activations"}), ("PLeaS", {}))


def main() -> None:
    """Run what the arguments ask for, a merge at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder of the real pair")
    parser.add_argument("--shapes", action="store_true", help="merge the sources of 'make demo' too")
    parser.add_argument("--modes", nargs="+", default=MODES, help="all, a number of pictures a domain, public, none")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the calibration pictures")
    parser.add_argument("--views", nargs="+", default=["auto"], help="how often each picture is shown: numbers, auto")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="these methods alone, by label or name")
    parser.add_argument("--sources", type=Path, default=Path("runs/demo/sources"), help="folder of the demo's sources")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data_modes.json"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pairs: dict[str, tuple[Callable[..., dict[str, Any]], Path, int]] = {}
        if arguments.real:
            data = unpacked(arguments.real, scratch)
            pairs["real"] = (partial(real, arguments.real, data, scratch, 0), scratch / "public", 64)
        if arguments.shapes:
            pairs["shapes"] = (
                partial(shapes, ["clipart", "sketch"], arguments.sources, [1.0], scratch),
                Path("runs/demo/data"),
                40,
            )
        for pair, (merge, public, size) in pairs.items():
            for mode in arguments.modes:
                for seed, views in product(range(arguments.seeds), arguments.views):
                    told = options(mode, public, size, arguments.only)
                    told += ["--data.init_args.seed", str(seed), "--data.init_args.calibration_views", views]
                    row = {"seed": seed, "views": views, **merge(*told)}
                    found.setdefault(pair, {}).setdefault(mode, []).append(row)
                    atomic_text(json.dumps(found, indent=2), arguments.out)
    print(f"wrote {arguments.out}")


def options(mode: str, public: Path, size: int, only: Collection[str] | None = None) -> list[str]:
    """What the command is told in one mode."""
    methods = [
        {"class_path": f"project.methods.{name}", "init_args": settings}
        for name, settings in (WITHOUT if mode == "none" else WITH)
        if only is None or settings.get("label", name) in only
    ]
    drawn = {"root": str(public), "size": size, "domains": ["painting", "photo"]}
    return [
        "--model.init_args.budgets", "[1.0]",
        "--model.init_args.methods", json.dumps(methods),
        "--data.init_args.calibration", mode,
        "--data.init_args.public", json.dumps({"class_path": "project.data.Shapes", "init_args": drawn}),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
