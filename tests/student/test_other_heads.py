"""Sources whose heads are others than one layer with biases: their students load again, from their files alone."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import permuted_copy, randomised
from torch import Tensor

import project
from project.methods import Permutation
from project.models import Architecture, written_out
from project.models.unfused.attention import fused
from project.symmetry import trace

HEADS: dict[str, dict[str, Any]] = {
    "hidden layer": {"hidden": 7},
    "no biases": {"head_bias": False},
    "both": {"hidden": 7, "head_bias": False},
    "fastai": {"hidden": 7, "head_bias": False, "head": "fastai"},
}


def as_fastai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of a learner's model."""
    rows = {"avgpool.norm": "1.2", "avgpool.linear": "1.4", "fc.1": "1.6", "fc.2": "1.8", "conv1": "0.0", "bn1": "0.1"}
    rows |= {f"layer{stage}": f"0.{stage + 3}" for stage in range(1, 4)}
    return {re.sub("|".join(rows), lambda one: rows[one[0]], name, count=1): one for name, one in state.items()}


@pytest.mark.parametrize("head", HEADS)
def test_students_of_other_heads_load_again(head: str, tmp_path: Path) -> None:
    architecture = Architecture("resnet8", 5, **HEADS[head])
    files = [tmp_path / "photo.pth", tmp_path / "sketch.pth"]
    for seed, file in enumerate(files):
        state = randomised(architecture.build(), seed).state_dict()
        if "head" in HEADS[head]:
            state = as_fastai(state)
        torch.save({"net": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, file)
    pictures = {domain: torch.randn(8, 3, 16, 16) for domain in ("photo", "sketch")}
    student = project.merge(files, pictures, budget=1.1, method="permutation")
    assert student.architecture == architecture
    project.save_student(student, tmp_path / "student.safetensors")
    again = project.load_student(tmp_path / "student.safetensors")
    assert again.architecture == architecture
    assert torch.equal(again(pictures["photo"]), student(pictures["photo"]))


@pytest.mark.slow
def test_a_network_and_its_permuted_copy_with_fastais_head(tmp_path: Path) -> None:
    """Units of its hidden layer and of the norms around it move together, in larger students and in averages."""
    made = randomised(Architecture("resnet8", 5, hidden=7, head_bias=False, head="fastai").build(), 0).eval()
    plain, twin = (written_out(copy.deepcopy(made)) for _ in range(2))
    permuted_copy(plain, twin, trace(plain, (3, 16, 16)), 1)
    files = [tmp_path / "photo.pth", tmp_path / "sketch.pth"]
    for file, one in zip(files, (made, twin), strict=True):
        state = fused(one.state_dict(), list(made.state_dict()))
        torch.save(as_fastai(state), file)
    pictures = torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        expected = made(pictures)
    student = project.merge(files, None, 1.5, Permutation(matching="weights"), image_size=16, progress=False)
    torch.testing.assert_close(student(pictures), expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
    project.average(files, tmp_path / "mean.pth", image_size=16, progress=False)
    found = torch.load(tmp_path / "mean.pth", weights_only=True)
    for name, tensor in as_fastai(made.state_dict()).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-4)
