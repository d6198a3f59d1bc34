"""``memory`` is held by a whole merge in a process of its own, whatever it has to wait on disk for it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from anonymous import STATUS
from helpers import make_problem, pictures, random_network, resnet, run
from live import peak_bytes

from project.allocation import Budget
from project.cli import main
from project.errors import ConfigurationError
from project.merging.memory_plan import Planner, student_bytes
from project.merging.passes import GatheringPass
from project.merging.settings import Place, Settings
from project.methods import Average, Permutation, PictureCounts, PLeaS
from project.runtime import MemoryEstimate
from project.runtime.memory import read_bytes

pytestmark = pytest.mark.usefixtures("shown_once")

needs_linux = pytest.mark.skipif(
    not STATUS.exists() or "RssAnon" not in STATUS.read_text(), reason="Linux alone tells mapped files apart"
)
OTHER_PROCESSES = True  # see tests/conftest.py
FIT = {"class_path": "project.methods.PLeaS"}
METHODS: dict[str, list[dict[str, Any]]] = {
    "sequential": [FIT],
    "joint": [{**FIT, "init_args": {"fit": "joint"}}],
    "permutation": [{"class_path": "project.methods.Permutation"}],
}


@pytest.mark.parametrize("seed", range(6))
def test_running_a_student_takes_what_was_told(seed: int) -> None:
    problem = make_problem([random_network(seed, weights) for weights in range(2)])
    settings = Settings([Permutation()], [Budget(1.0), Budget(1.6)])
    counts = PictureCounts(dict.fromkeys(problem.labels.domains, 24), 12)
    planner = Planner.of(problem, settings, counts, MemoryEstimate(), Place())
    assert planner.running > 0
    batch = pictures(24, 5)  # of both domains, as re-estimation mixes them
    stored = 0
    for merged in settings.methods[0].merge(problem, problem.evidence, problem.run, settings.budgets):
        stored += sum(tensor.nbytes for tensor in merged.student.state_dict().values())
        run(merged.student, batch)
        assert peak_bytes(lambda student=merged.student: run(student, batch)) <= planner.running
    assert 0.5 * stored <= planner.students <= 1.5 * stored


def test_a_plan_counts_students_and_what_runs_beside_them() -> None:
    problem = make_problem([random_network(1, weights) for weights in range(3)], batches=[])
    budgets = [Budget(1.0), Budget(2.0)]
    one = sum(tensor.nbytes for tensor in problem.sources[0].state_dict().values())
    settings = Settings([PLeaS("weights"), Average()], budgets)
    assert student_bytes(problem, settings) == 2 * 3 * one
    counts = PictureCounts({"art": 8, "birds": 8, "cars": 5}, 4)
    fit = MemoryEstimate(10**9, 10**8)
    planner = Planner.of(problem, settings, counts, fit, Place())
    assert planner.estimate == fit.adding(6 * one)
    small = Planner.of(problem, settings, counts, MemoryEstimate(), Place())
    assert small.estimate == MemoryEstimate(small.running, small.running).adding(6 * one)
    scored = Planner.of(problem, settings, counts, MemoryEstimate(), Place(scored=120))
    assert scored.running == 10 * small.running, "of 120 pictures, where re-estimation has 3 times 4"
    narrow = Planner.of(problem, Settings([Average()], budgets[:1]), counts, MemoryEstimate(), Place())
    assert 3 * narrow.running == small.running
    with pytest.raises(ConfigurationError, match="making and running students takes about"):
        small.within(small.estimate.least - 1).plan({})


def arguments(folder: Path, memory: str, methods: list[dict[str, Any]]) -> list[str]:
    sets = {"root": str(folder / "data"), "size": 32, "train_per_class": 2, "test_per_class": 1}
    return [
        "merge", "--run", str(folder / "run"), "--overwrite", "true", "--trainer.accelerator", "cpu",
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
        "--trainer.logger", "false", "--model", "project.modules.MergeModule", "--model.budgets", "[1.0, 1.5]",
        "--model.sources", json.dumps([str(folder / f"{seed}.pth") for seed in range(2)]),
        "--model.methods", json.dumps(methods), "--model.memory", memory,
        "--data", "project.data.DomainDataModule",
        "--data.sets", json.dumps({"class_path": "project.data.Shapes", "init_args": sets}),
        "--data.domains", "[clipart, sketch]", "--data.image_size", "32", "--data.validation_fraction", "0",
        "--data.batch_size", "8",
    ]  # fmt: skip


def least(folder: Path, methods: list[dict[str, Any]], patch: pytest.MonkeyPatch) -> int:
    """The least memory with which a merge begins, to a hundredth: each refusal tells what one phase takes."""
    patch.setattr(GatheringPass, "start", began)
    limit = 10**6
    while True:
        try:
            main(arguments(folder, f"{limit} B", methods))
        except ConfigurationError as error:
            told = re.search(r"takes about (\S+ \S+) even", str(error))
            if told is None:
                raise
            limit = int(1.01 * read_bytes(told[1]))
        except InterruptedError:
            return limit


def began(*_: object) -> None:
    raise InterruptedError


@needs_linux
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:layer .* may have")
@pytest.mark.parametrize("method", METHODS)
def test_a_merge_holds_its_memory(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least with which it begins is not exceeded by more than a fifth, by all that it does."""
    for seed in range(2):
        torch.save(resnet("resnet20", seed, 12, 2).state_dict(), tmp_path / f"{seed}.pth")
    limit = least(tmp_path, METHODS[method], monkeypatch)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "anonymous.py"),
         *arguments(tmp_path, f"{limit} B", METHODS[method])],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "wait on disk" in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["phases"]) >= {"gather", "test"}
    assert found["taken"] <= 1.2 * limit, (limit, found)
