"""Good inputs, of which every case spoils a copy: two small networks, their pictures, and what merges leave behind."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from helpers import resnet
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import project
from fuzzing.options import SIZE, command_of, config
from project.cli import main
from project.methods import EMR, SMILE, Average, Permutation, PLeaS
from project.models import Architecture, Description, LabelSpace, Preprocessing

DOMAINS, CLASSES = ("art", "toy"), ("cat", "dog", "owl")
PICTURES = 6
"""Of each class in each domain; one of them is a test picture."""


def make_weights(folder: Path) -> None:
    """Networks that say nothing, ``art.pth`` and ``toy.pth``, and such that do, ``.safetensors`` and ``.ckpt``."""
    for seed, domain in enumerate(DOMAINS):
        state = resnet("resnet8", seed, len(CLASSES)).state_dict()
        torch.save(state, folder / f"{domain}.pth")
        save_described(state, folder / f"{domain}.safetensors", domain)
        network = {f"network.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": network, **described(domain)}, folder / f"{domain}.ckpt")


def described(domain: str) -> dict[str, Any]:
    """What the file of a domain's network says."""
    labels = LabelSpace({domain: CLASSES})
    return Description(Architecture("resnet8", len(CLASSES)), labels, Preprocessing(SIZE)).to_entries()


def save_described(state: Mapping[str, Tensor], path: Path, domain: str) -> None:
    """Write a safetensors file with what it says."""
    save_with(state, {name: json.dumps(value) for name, value in described(domain).items()}, path)


def save_with(state: Mapping[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)


def make_pictures(folder: Path) -> None:
    """``pictures/<domain>/<class>/<number>.png``, and as many others below ``more``."""
    random = np.random.default_rng(0)
    for root in ("pictures", "more"):
        for domain in DOMAINS:
            for name in CLASSES:
                place = folder / root / domain / name
                place.mkdir(parents=True)
                for number in range(PICTURES):
                    values = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                    Image.fromarray(values).save(place / f"{number}.png")


def make_statistics(folder: Path) -> None:
    """``statistics.safetensors`` of the pictures, and those of two shards, ``shard-0`` and ``shard-1``."""
    sources = [folder / f"{domain}.pth" for domain in DOMAINS]
    for name, root, method in (
        ("statistics", "pictures", "pleas"),
        ("shard-0", "pictures", "permutation"),
        ("shard-1", "more", "permutation"),
    ):
        path = folder / f"{name}.safetensors"
        project.merges(
            sources, folder / root, methods=[method], image_size=SIZE, calibration=8, batch_size=8, statistics=path,
            progress=False,
        )  # fmt: skip


def make_students(folder: Path) -> None:
    """A student of every kind in ``students``: plain, wider, with masks, with experts, with a head for each domain."""
    sources = [folder / f"{domain}.pth" for domain in DOMAINS]
    shared = {"image_size": SIZE, "calibration": 8, "batch_size": 8, "progress": False}
    made = project.merges(
        sources, folder / "pictures", [1.0, 1.5], [PLeaS(), EMR(), SMILE(rank=2)], base=sources[0], **shared
    )
    students = {
        "plain": made["pleas-1.00"],
        "wider": made["pleas-1.50"],
        "masked": made["emr-1.00"],
        "experts": made["smile-1.00"],
    }
    two = project.merges(
        sources, folder / "pictures", methods=[Average(), Permutation()], label_space="different", **shared
    )
    students["heads"] = two["permutation-1.00"]
    for name, student in students.items():
        project.save_student(student, folder / "students" / f"{name}.safetensors")
    project.save_student(students["plain"], folder / "students" / "plain.ckpt")


def make_checkpoint(folder: Path) -> None:
    """A checkpoint of a fit that may go on, ``fit.ckpt``."""
    content = config(Random(0), "fit")
    content["run"] = str(folder / "fit")
    content["data"]["init_args"]["sets"]["init_args"]["root"] = str(folder / "pictures")
    (folder / "fit.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    main(command_of("fit", str(folder / "fit.yaml")))
    (checkpoint,) = (folder / "fit" / "checkpoints").iterdir()
    checkpoint.rename(folder / "fit.ckpt")


PARTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "weights": (make_weights, (), tuple(f"{d}.{s}" for d in DOMAINS for s in ("pth", "safetensors", "ckpt"))),
    "pictures": (make_pictures, (), ("pictures", "more")),
    "statistics": (
        make_statistics, ("weights", "pictures"),
        ("statistics.safetensors", "shard-0.safetensors", "shard-1.safetensors"),
    ),
    "students": (make_students, ("weights", "pictures"), ("students",)),
    "checkpoint": (make_checkpoint, ("pictures",), ("fit.ckpt",)),
}  # fmt: skip
"""Part -> what makes it, from which others, and its files."""


def make(folder: Path, part: str) -> None:
    """Make a part of the world, and those that it is made from, where it is not there yet."""
    maker, others, files = PARTS[part]
    for other in others:
        make(folder, other)
    if not all((folder / file).exists() for file in files):
        maker(folder)


def copy(world: Path, folder: Path, part: str) -> None:
    """Give a case its own copy of a part."""
    for file in PARTS[part][2]:
        if (world / file).is_dir():
            shutil.copytree(world / file, folder / file)
        else:
            shutil.copyfile(world / file, folder / file)
