"""What ``torch.export`` and ONNX make of students says the same, at any batch size."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import PICTURE, Case, close, make_problem, merge_case, pictures, random_network, run
from kinds import SIDE, kind

from project.methods import EMR, SMILE, Average, Merged, Permutation, WEMoE
from project.student import Student

SMALL = (3, SIDE, SIDE)


def strangers(mode: str = "shared") -> Case:
    networks = [random_network(2, weights, 5 + weights * (mode == "different")) for weights in range(2)]
    return make_problem(networks, mode, needs=("units", "inputs"), base="mean")


def grouped() -> Case:
    return make_problem([kind("grouped", seed) for seed in range(2)], shape=SMALL, batches=[])


def three(name: str = "") -> Case:
    networks = [kind(name, seed) if name else random_network(2, seed) for seed in range(3)]
    return make_problem(networks, shape=SMALL if name else PICTURE, base="mean", batches=[])


STUDENTS: dict[str, tuple[Callable[[], Case], Callable[[Case], list[Merged]]]] = {
    "one size": (strangers, lambda it: list(merge_case(Average(), it, [1.0]))),
    "larger": (strangers, lambda it: list(merge_case(Permutation(), it, [1.5]))),
    "larger, different classes": (
        lambda: strangers("different"),
        lambda it: list(merge_case(Permutation(), it, [1.5])),
    ),
    "grouped": (grouped, lambda it: list(merge_case(Permutation("weights"), it, [1.5]))),
    "emr": (strangers, lambda it: list(merge_case(EMR(), it, [1.0]))),
    "smile": (three, lambda it: list(merge_case(SMILE(rank=2), it, [1.0]))),
    "smile, layer norms": (lambda: three("convnext"), lambda it: list(merge_case(SMILE(rank=2), it, [1.0]))),
    "wemoe": (strangers, lambda it: list(merge_case(WEMoE(steps=1, batch=2), it, [1.0]))),
    "wemoe, all blocks": (strangers, lambda it: list(merge_case(WEMoE(steps=1, batch=2, blocks=1.0), it, [1.0]))),
}


FEW = ("larger, different classes", "wemoe, all blocks")
SIZES = ({0: torch.export.Dim("batch")},)


def made(name: str) -> Student:
    problem, method = STUDENTS[name]
    (merged,) = method(problem())
    return merged.student.eval()


@pytest.mark.parametrize("name", [one if one in FEW else pytest.param(one, marks=pytest.mark.slow) for one in STUDENTS])
def test_exported_students_answer_alike(name: str, tmp_path: Path) -> None:
    student = made(name)
    exported = torch.export.export(student, (pictures(2, 0, student.spec.picture),), dynamic_shapes=SIZES)
    torch.export.save(exported, tmp_path / "student.pt2")
    found = torch.export.load(tmp_path / "student.pt2").module()
    for count in (1, 5):
        batch = pictures(count, 9, student.spec.picture)
        assert close(run(found, batch), run(student, batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_onnx_files_answer_alike(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    student, file = made(name), str(tmp_path / "student.onnx")
    torch.onnx.export(
        student, (pictures(2, 0, student.spec.picture),), file, dynamo=True, dynamic_shapes=SIZES, verbose=False
    )
    session = runtime.InferenceSession(file)
    for count in (1, 5):
        batch = pictures(count, 9, student.spec.picture)
        (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        assert close(torch.from_numpy(found), run(student, batch), 1e-4)
