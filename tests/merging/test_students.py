"""Students that cannot be used, or that a fit has made worse, do not leave without a word."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PICTURE, random_network

import project
from project.allocation import Budget
from project.errors import CheckpointError, MergeError
from project.merging.students import refuse_infinite, watch_residuals
from project.methods import Average, Merged
from project.methods.base import Method
from project.student import Student, save_student


def sources() -> list[torch.nn.Module]:
    return [random_network(0, seed) for seed in range(2)]


def images() -> dict[str, torch.Tensor]:
    return {name: torch.randn(4, *PICTURE, generator=torch.Generator().manual_seed(3)) for name in ("art", "birds")}


def student() -> Student:
    return project.merge(sources(), images(), method="average")


class Broken(Average):
    """Leaves something that is no number in one layer."""

    def students(self, *given: Any) -> Iterator[Merged]:
        for merged in super().students(*given):
            *_, last = (parameter for parameter in merged.student.network.parameters() if parameter.ndim > 1)
            with torch.no_grad():
                last.view(-1)[0] = torch.nan
            yield merged


class Worse(Average):
    """Says of two layers that its fit has led away from their targets."""

    def students(self, *given: Any) -> Iterator[Merged]:
        fits = {"first": (0.2, 0.2), "second": (0.1, 0.15), "third": (0.5, torch.nan), "fourth": (1e-13, 3e-13)}
        layers = {n: {"residual_before": before, "residual_after": after} for n, (before, after) in fits.items()}
        for merged in super().students(*given):
            yield replace(merged, layers=layers)


@pytest.mark.parametrize("pictures", [True, False])
def test_a_merge_whose_student_is_not_finite_is_an_error_that_names_the_layer(pictures: bool) -> None:
    method: Method = Broken(label="broken")
    with pytest.raises(
        MergeError, match=r"broken-1.00 is no student, as its '.*weight' holds values that are not finite"
    ):
        project.merge(sources(), images() if pictures else None, method=method)


def test_no_such_student_is_written(tmp_path: Path) -> None:
    found = student()
    refuse_infinite(Merged("m", Budget(1.0), found))
    buffer = next(name for name, value in found.network.named_buffers() if value.is_floating_point())
    found.network.get_buffer(buffer)[0] = torch.inf
    with pytest.raises(MergeError, match=f"'{buffer}' holds values that are not finite"):
        refuse_infinite(Merged("m", Budget(1.0), found))
    for name in ("s.safetensors", "s.ckpt"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be written: the student's '{buffer}' holds values"):
            save_student(found, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_layers_further_from_their_targets_than_at_the_start_are_named() -> None:
    with pytest.warns(UserWarning, match=r"worse-1.00: layer 'third' is further .*\(residual nan, 0.5 .*so is 1 other"):
        project.merge(sources(), images(), method=Worse(label="worse"))
    better = {"one": {"residual_before": 0.2, "residual_after": 0.1}, "not fitted": {"condition": 3.0}}
    watch_residuals(Merged("m", Budget(1.0), student(), layers=better))
