"""Accuracy of every method and budget, and what each phase costs, on real pictures and on Shapes.

    python benchmarks/merge_quality.py --real FOLDER --out benchmarks/results/merge_quality.json
    python benchmarks/merge_quality.py --shapes clipart sketch photo --budgets 1 2 3 --out FILE

FOLDER holds a pair of domains in DomainNet's layout (or ``pacs64.tar`` with them) and a ``<domain>.safetensors`` for
each. Everything goes through ``pleas merge``, so what is measured is the product. Test lists are read once, at the end
of each merge; settings are chosen elsewhere, on held-out training pictures.
"""

import argparse
import json
import os
import platform
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch

from project.cli import main as pleas
from project.runtime import atomic_text

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
HEADS = (
    "--model.init_args.heads", "domains", "--model.init_args.budgets", "[1.0, 2.0]",
    "--model.init_args.methods", '[{"class_path": "project.methods.PLeaS"}]',
)  # fmt: skip


def main() -> None:
    """Run what the arguments ask for and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder of the real pair")
    parser.add_argument("--shapes", nargs="+", metavar="DOMAIN", help="two to four domains of Shapes")
    parser.add_argument(
        "--sources",
        type=Path,
        default=Path("runs/demo/sources"),
        help="folder of the --shapes sources",
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 1.5, 2.0], help="sizes for --shapes")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the real pair's calibration pictures")
    parser.add_argument("--heads", action="store_true", help="of the real pair, PLeaS alone, with heads of domains")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/merge_quality.json"))
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.real:
            data = unpacked(arguments.real, Path(scratch))
            more = HEADS if arguments.heads else ()
            found["real"] = [real(arguments.real, data, Path(scratch), seed, *more) for seed in range(arguments.seeds)]
        if arguments.shapes:
            found["shapes"] = shapes(arguments.shapes, arguments.sources, arguments.budgets, Path(scratch))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(json.dumps(found, indent=2), arguments.out)
    print(f"wrote {arguments.out}")


def real(folder: Path, data: Path, scratch: Path, seed: int, *more: str) -> dict[str, Any]:
    """The real pair, with the calibration pictures of one draw and further arguments."""
    return merged(scratch / "real", *real_arguments(folder, data, seed), *more)


def real_arguments(folder: Path, data: Path, seed: int) -> list[str]:
    """What ``pleas merge`` is told of the real pair."""
    domains = sorted(path.stem for path in folder.glob("*.safetensors"))
    sources = [{"path": str(folder / f"{domain}.safetensors"), "domains": [domain]} for domain in domains]
    return [
        "--config", str(CONFIGS / "pacs" / "merge.yaml"),
        "--data.init_args.root", str(data),
        "--data.init_args.seed", str(seed),
        "--model.init_args.sources", json.dumps(sources),
    ]  # fmt: skip


def shapes(domains: list[str], folder: Path, budgets: list[float], scratch: Path, *more: str) -> dict[str, Any]:
    """One source for each domain of Shapes, fine-tuned by configs/demo/fit_<domain>.yaml."""
    sources = [{"path": str(folder / d / "checkpoints" / "best.ckpt"), "domains": [d]} for d in domains]
    return merged(
        scratch / "shapes",
        "--config", str(CONFIGS / "demo" / "merge.yaml"),
        "--data.init_args.sets.init_args.domains", json.dumps(domains),
        "--model.init_args.sources", json.dumps(sources),
        "--model.init_args.budgets", json.dumps(budgets),
        *more,
    )  # fmt: skip


def merged(run: Path, *arguments: str) -> dict[str, Any]:
    """Results of one merge, without what is per layer."""
    pleas(["merge", *arguments, "--run", str(run), "--overwrite", "true"])
    results = json.loads((run / "results.json").read_text())
    return {key: results[key] for key in ("table", "phases", "calibration", "equivalence", "separated")}


def unpacked(folder: Path, scratch: Path) -> Path:
    """Where the pictures lie; archives are unpacked aside."""
    archives = sorted(folder.glob("*.tar"))
    if not archives:
        return folder
    with tarfile.open(archives[0]) as archive:
        archive.extractall(scratch / "pictures", filter="data")
    return scratch / "pictures"


def machine() -> dict[str, Any]:
    """What ran this."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
