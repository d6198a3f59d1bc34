"""Accuracy over size for every way to spend a budget, on real pictures and on Shapes.

    python benchmarks/allocation.py --real FOLDER --out benchmarks/results/allocation.json
    python benchmarks/allocation.py --strangers FOLDER --names dense channels --lead surest mean

FOLDER is as for ``merge_quality.py``; with ``--strangers``, as for ``audit.py``: networks of one task, whose pictures
have one domain. Each run aligns and gathers once and fits PLeaS at every budget and way to spend it, through ``pleas
merge``; the test lists are read once, at the end.
"""

import argparse
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from merge_quality import CONFIGS, machine, merged, real_arguments, unpacked

from project.runtime import atomic_text


def main() -> None:
    """Run what the arguments ask for and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder of the real pair")
    parser.add_argument("--strangers", type=Path, help="folder of the strangers' networks")
    parser.add_argument("--names", nargs="+", default=["dense", "channels"], help="which of them")
    parser.add_argument("--lead", nargs="+", default=["surest"], help="which source leads on a domain of several")
    parser.add_argument("--shapes", action="store_true", help="merge the sources of 'make demo' too")
    parser.add_argument("--budgets", nargs="+", default=["1.0", "1.1", "1.2", "1.3", "1.5", "1.8"])
    parser.add_argument("--separate", nargs="+", default=["gain", "front", "back", "uniform"])
    parser.add_argument("--fit", choices=("sequential", "joint"), default="sequential")
    parser.add_argument("--pictures", type=int, default=512, help="calibration pictures of each domain")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of calibration pictures")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/allocation.json"))
    arguments = parser.parse_args()
    common = [
        "--data.init_args.calibration", str(arguments.pictures),
        "--model.init_args.budgets", json.dumps([_plain(budget) for budget in arguments.budgets]),
        "--model.init_args.methods",
        json.dumps([method(one, arguments.fit, lead) for one in arguments.separate for lead in arguments.lead]),
    ]  # fmt: skip
    found: dict[str, Any] = {"machine": machine(), "arguments": {k: str(v) for k, v in vars(arguments).items()}}
    for name in ("real", "strangers", "out"):  # of this machine alone
        del found["arguments"][name]
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.real:
            data = unpacked(arguments.real, Path(scratch))
            run = real_arguments(arguments.real, data, arguments.seed)
            found["real"] = merged(Path(scratch) / "real", *run, *common)
        if arguments.strangers:
            run = strangers_arguments(arguments.strangers, arguments.names, Path(scratch), arguments.seed)
            found["strangers"] = merged(Path(scratch) / "strangers", *run, *common)
        if arguments.shapes:
            run = ["--config", str(CONFIGS / "demo" / "merge.yaml"), "--data.init_args.seed", str(arguments.seed)]
            found["shapes"] = merged(Path(scratch) / "shapes", *run, *common)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(json.dumps(found, indent=2), arguments.out)
    print(f"wrote {arguments.out}")


def strangers_arguments(folder: Path, names: list[str], scratch: Path, seed: int) -> list[str]:
    """What ``pleas merge`` is told of networks of one task; a quarter of their pictures tests them."""
    with tarfile.open(folder / "cifar10_small.tar") as archive:
        archive.extractall(scratch / "pictures", filter="data")
    sets = {
        "class_path": "project.data.ImageFolders",
        "init_args": {"root": str(scratch / "pictures"), "test_fraction": 0.25},
    }
    sources = [{"path": str(folder / f"cifar10_{name}.pth.tar"), "name": name} for name in names]
    return [
        "--model", "project.modules.MergeModule", "--model.init_args.sources", json.dumps(sources),
        "--data", "project.data.DomainDataModule", "--data.init_args.sets", json.dumps(sets),
        "--data.init_args.image_size", "32", "--data.init_args.mean", "[0.5, 0.5, 0.5]",
        "--data.init_args.std", "[0.5, 0.5, 0.5]", "--data.init_args.batch_size", "128",
        "--data.init_args.seed", str(seed), "--trainer.accelerator", "cpu", "--trainer.logger", "false",
    ]  # fmt: skip


def method(separate: str, fit: str, lead: str) -> dict[str, Any]:
    """PLeaS that spends its budget in one way, as a config names it."""
    label = f"pleas-{separate}" if lead == "surest" else f"pleas-{separate}-{lead}"
    options = {"label": label, "separate": separate, "fit": fit, "lead": lead}
    return {"class_path": "project.methods.PLeaS", "init_args": options}


def _plain(budget: str) -> float | str:
    """A number where it is one, else the text."""
    try:
        return float(budget)
    except ValueError:
        return budget


if __name__ == "__main__":
    main()
