"""What the audit says of sources that are read rightly and wrongly, and what it costs.

    python benchmarks/audit.py --pair FOLDER --strangers FOLDER --out benchmarks/results/audit.json

``--pair``: a folder with two domains in DomainNet's layout, or an archive of them, and a ``<domain>.safetensors`` for
each, fed with ImageNet's mean and deviation. ``--strangers``: a folder with ``cifar10_<name>.pth.tar``, fed with mean
and deviation 0.5, and ``cifar10_small.tar``. Every condition is drawn five times, 64 pictures of each source. For each
source: how often another reading was named, which, and the distances of the present and of the nearest reading.
"""

import argparse
import json
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from merge_quality import machine, unpacked

from project.data import DomainNet, Domains, ImageFolders
from project.merging import judging
from project.merging.audit import findings_of
from project.merging.judging import PICTURES
from project.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from project.runtime import atomic_text
from project.student import Source, load_source

IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
TURNED = {"mean": IMAGENET_MEAN[::-1], "std": IMAGENET_STD[::-1], "channels": "BGR"}
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
BYTES = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}


def main() -> None:
    """Audit everything and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=Path, help="folder of the real pair")
    parser.add_argument("--strangers", type=Path, help="folder of the strangers' networks")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--norms", type=int, default=judging.NORMS, help="how many norms judge a reading")
    parser.add_argument("--only", nargs="*", help="conditions to run; default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/audit.json"))
    arguments = parser.parse_args()
    judging.NORMS = arguments.norms
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.pair:
            found |= pair(arguments, Path(scratch))
        if arguments.strangers:
            found |= strangers(arguments, Path(scratch))
    atomic_text(
        json.dumps(
            {"machine": machine(), "pictures": PICTURES, "norms": arguments.norms, "conditions": found}, indent=2
        ),
        arguments.out,
    )


def pair(arguments: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Conditions of the pair."""
    root = unpacked(arguments.pair, scratch)
    files = sorted(arguments.pair.glob("*.safetensors"))
    sources = [load_source(file) for file in files]
    names = [source.name for source in sources]
    conditions = {
        "right": (names, {}, 64), "swapped": (names[::-1], {}, 64), "BGR": (names, {"channels": "BGR"}, 64),
        "BGR, values as RGB": (names, TURNED, 64), "0..255": (names, BYTES, 64),
        "no normalisation": (names, PLAIN, 64), "0.5": (names, HALF, 64), "half the size": (names, {}, 32),
        "twice the size": (names, {}, 128),
    }  # fmt: skip
    found = {}
    for condition, (domains, prepared, size) in conditions.items():
        if arguments.only and condition not in arguments.only:
            continue

        def data(seed: int, prepared: dict = prepared, size: int = size) -> Domains:
            options = {**IMAGENET, **prepared}
            return Domains(DomainNet(root), domains=names, image_size=size, calibration=PICTURES, seed=seed, **options)

        found[f"pair: {condition}"] = audited(sources, [[domain] for domain in domains], data, arguments)
    return found


def strangers(arguments: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Conditions of the strangers' networks, all of one domain."""
    with tarfile.open(arguments.strangers / "cifar10_small.tar") as archive:
        archive.extractall(scratch / "cifar", filter="data")
    sources = [load_source(file, file.name.split(".")[0]) for file in sorted(arguments.strangers.glob("*.pth.tar"))]
    conditions = {
        "right": HALF, "ImageNet's": IMAGENET, "BGR": {**HALF, "channels": "BGR"}, "0..255": BYTES,
        "no normalisation": PLAIN, "twice the size": HALF,
    }  # fmt: skip
    found = {}
    for condition, prepared in conditions.items():
        if arguments.only and condition not in arguments.only:
            continue
        size = 64 if condition == "twice the size" else 32

        def data(seed: int, prepared: dict = prepared, size: int = size) -> Domains:
            folders = ImageFolders(scratch / "cifar")
            return Domains(folders, image_size=size, calibration=PICTURES, seed=seed, **prepared)

        found[f"strangers: {condition}"] = audited(sources, [["cifar10"]] * len(sources), data, arguments)
    return found


def audited(
    sources: Sequence[Source], domains: list[list[str]], data: Callable[[int], Domains], arguments: argparse.Namespace
) -> dict:
    """What is said of each source over the draws, and processor time over that of one forward of the pictures."""
    rows: dict[str, list[dict]] = {source.name: [] for source in sources}
    costs = []
    for draw in range(arguments.first, arguments.first + arguments.draws):
        drawn = data(draw)
        drawn.read()
        batches = [torch.cat([drawn.sample(one, PICTURES) for one in listed]) for listed in domains]
        forward = min(forwards(sources, batches) for _ in range(2))
        began = time.process_time()
        findings = findings_of(sources, domains, drawn)
        costs.append((time.process_time() - began) / forward)
        for finding in findings:
            nearest = min(finding.rows[1:], key=lambda row: row.distance / row.present)
            better = finding.better
            rows[finding.name].append(
                {
                    "named": better.reading.words if better else None,
                    "present": finding.rows[0].distance,
                    "nearest": nearest.reading.words,
                    "distance": nearest.distance,
                    "ratio": nearest.present / nearest.distance,
                    "unsure": finding.unsure,
                }
            )
    for name, draws in rows.items():
        named = dict(Counter(row["named"] for row in draws))
        present = [row["present"] for row in draws]
        ratios = [row["ratio"] for row in draws]
        nearest = dict(Counter(row["nearest"] for row in draws))
        spans = [
            f"{what} {min(values):.4f} to {max(values):.4f}"
            for what, values in (("present", present), ("ratio", ratios))
        ]
        print(name, named, *spans, nearest, sep="; ", flush=True)
    print("cost", [round(cost, 2) for cost in costs], flush=True)
    return {"sources": rows, "cost": costs}


@torch.no_grad()
def forwards(sources: Sequence[Source], batches: Sequence[torch.Tensor]) -> float:
    """Processor time of one forward of each source on its batch."""
    began = time.process_time()
    for source, batch in zip(sources, batches, strict=True):
        source.network(batch)
    return time.process_time() - began


if __name__ == "__main__":
    main()
