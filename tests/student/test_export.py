"""Students leave the house: what ``torch.export`` makes of them, which runs without this project, says the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import PICTURE, close, make_problem, pictures, random_network, run
from kinds import SIDE, kind

from project.methods import EMR, SMILE, Average, Merged, Permutation, Problem, WEMoE


def strangers(mode: str = "shared") -> Problem:
    networks = [random_network(2, weights, 5 + weights * (mode == "different")) for weights in range(2)]
    return make_problem(networks, mode, needs=("units",), base="mean")


def grouped() -> Problem:
    return make_problem([kind("grouped", seed) for seed in range(2)], shape=(3, SIDE, SIDE), batches=[])


def three() -> Problem:
    return make_problem([random_network(2, weights) for weights in range(3)], base="mean", batches=[])


STUDENTS: dict[str, tuple[Callable[[], Problem], Callable[[Problem], list[Merged]]]] = {
    "one size": (strangers, lambda it: list(Average().merge(it, [1.0]))),
    "larger": (strangers, lambda it: list(Permutation().merge(it, [1.5]))),
    "larger, different classes": (lambda: strangers("different"), lambda it: list(Permutation().merge(it, [1.5]))),
    "grouped": (grouped, lambda it: list(Permutation("weights").merge(it, [1.5]))),
    "emr": (strangers, lambda it: list(EMR().merge(it, [1.0]))),
    "smile": (three, lambda it: list(SMILE(rank=2).merge(it, [1.0]))),
    "wemoe": (strangers, lambda it: list(WEMoE(steps=1, batch=2).merge(it, [1.0]))),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_exported_students_answer_alike_at_any_batch_size(name: str, tmp_path: Path) -> None:
    problem, method = STUDENTS[name]
    (merged,) = method(problem())
    student = merged.student.eval()
    shape = (3, SIDE, SIDE) if name == "grouped" else PICTURE
    sizes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(student, (pictures(2, 0, shape),), dynamic_shapes=sizes)
    torch.export.save(exported, tmp_path / "student.pt2")
    found = torch.export.load(tmp_path / "student.pt2").module()
    for count in (1, 5):
        batch = pictures(count, 9, shape)
        assert close(run(found, batch), run(student, batch))
