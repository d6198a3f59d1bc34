"""Sources whose heads are others than one layer with biases: their students load again, from their files alone."""

from pathlib import Path

import pytest
import torch
from helpers import randomised

import project
from project.models import Architecture

HEADS = {"hidden layer": {"hidden": 7}, "no biases": {"head_bias": False}, "both": {"hidden": 7, "head_bias": False}}


@pytest.mark.parametrize("head", HEADS)
def test_students_of_other_heads_load_again(head: str, tmp_path: Path) -> None:
    architecture = Architecture("resnet8", 5, **HEADS[head])
    files = [tmp_path / "photo.pth", tmp_path / "sketch.pth"]
    for seed, file in enumerate(files):
        state = randomised(architecture.build(), seed).state_dict()
        torch.save({"net": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, file)
    pictures = {domain: torch.randn(8, 3, 16, 16) for domain in ("photo", "sketch")}
    student = project.merge(files, pictures, budget=1.1, method="permutation")
    assert student.architecture == architecture
    project.save_student(student, tmp_path / "student.safetensors")
    again = project.load_student(tmp_path / "student.safetensors")
    assert again.architecture == architecture
    assert torch.equal(again(pictures["photo"]), student(pictures["photo"]))
