"""Accuracy of every method and budget, and what each phase costs, on real pictures and on Shapes.

    python benchmarks/merge_quality.py --real FOLDER --shapes --out benchmarks/results/merge_quality.json

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
from project.models import atomic_text

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main() -> None:
    """Run what the arguments ask for and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder of the real pair")
    parser.add_argument("--shapes", action="store_true", help="merge the sources of 'make demo' too")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the real pair's calibration pictures")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/merge_quality.json"))
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.real:
            data = unpacked(arguments.real, Path(scratch))
            found["real"] = [real(arguments.real, data, Path(scratch), seed) for seed in range(arguments.seeds)]
        if arguments.shapes:
            found["shapes"] = shapes(Path(scratch))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(json.dumps(found, indent=2), arguments.out)
    print(f"wrote {arguments.out}")


def real(folder: Path, data: Path, scratch: Path, seed: int) -> dict[str, Any]:
    """The real pair, with the calibration pictures of one draw."""
    return merged(scratch / f"real-{seed}", *real_arguments(folder, data, seed))


def real_arguments(folder: Path, data: Path, seed: int) -> list[str]:
    """Arguments of a merge of the real pair, with the calibration pictures of one draw."""
    domains = sorted(path.stem for path in folder.glob("*.safetensors"))
    sources = [{"path": str(folder / f"{domain}.safetensors"), "domains": [domain]} for domain in domains]
    return [
        "--config", str(CONFIGS / "pacs" / "merge.yaml"),
        "--data.init_args.root", str(data),
        "--data.init_args.seed", str(seed),
        "--model.init_args.sources", json.dumps(sources),
    ]  # fmt: skip


def shapes(scratch: Path) -> dict[str, Any]:
    """The sources of the demo."""
    return merged(scratch / "shapes", "--config", str(CONFIGS / "demo" / "merge.yaml"))


def merged(run: Path, *arguments: str) -> dict[str, Any]:
    """Results of one merge, without what is per layer."""
    pleas(["merge", *arguments, "--run", str(run)])
    results = json.loads((run / "results.json").read_text())
    return {key: results[key] for key in ("table", "phases", "equivalence", "separated")}


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
