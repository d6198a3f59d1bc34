"""Merges that are killed, that find statistics in a file, and that have little memory: all make the same students."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import resnet, same_state

import project
from project.cli import main
from project.errors import ConfigurationError
from project.moments import Collector, read_statistics
from project.student import SequentialFit

METHODS = [
    {"class_path": "project.methods.PLeaS"},
    {"class_path": "project.methods.PLeaS", "init_args": {"fit": "joint", "label": "joint"}},
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random sources and a merge of them that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    for seed in range(2):
        torch.save(resnet("resnet20", seed, 12).state_dict(), folder / f"{seed}.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pleas"])
        main(arguments(folder, "reference"))
    return folder


def arguments(folder: Path, run: str, *extra: str, methods: list[dict[str, Any]] = METHODS) -> list[str]:
    sets = {"root": str(folder / "data"), "size": 16, "train_per_class": 3, "test_per_class": 1}
    return [
        "merge", "--run", str(folder / run), "--trainer.accelerator", "cpu",
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
        "--model", "project.modules.MergeModule", "--model.budgets", "[1.0, 1.5]",
        "--model.sources", json.dumps([str(folder / f"{seed}.pth") for seed in range(2)]),
        "--model.methods", json.dumps(methods),
        "--data", "project.data.DomainDataModule",
        "--data.sets", json.dumps({"class_path": "project.data.Shapes", "init_args": sets}),
        "--data.domains", "[clipart, sketch]", "--data.image_size", "16", "--data.validation_fraction", "0",
        "--data.calibration_batch_size", "6", *extra,
    ]  # fmt: skip


def students(folder: Path, run: str) -> dict[str, dict[str, torch.Tensor]]:
    paths = sorted((folder / run / "students").glob("*.ckpt"))
    return {path.stem: project.load_student(path).network.state_dict() for path in paths}


def same_students(folder: Path, run: str) -> bool:
    mine, theirs = students(folder, run), students(folder, "reference")
    assert list(theirs) == ["joint-1.00", "joint-1.50", "pleas-1.00", "pleas-1.50"]
    return list(mine) == list(theirs) and all(same_state(mine[name], theirs[name]) for name in mine)


def table(folder: Path, run: str) -> list[dict[str, Any]]:
    rows = json.loads((folder / run / "results.json").read_text())["table"]
    return [{**row, "seconds": None} for row in rows]


def counted(patch: pytest.MonkeyPatch, owner: type, name: str) -> list[int]:
    """Count the calls of a method."""
    calls, plain = [0], getattr(owner, name)

    def counting(self: Any, *args: Any) -> Any:
        calls[0] += 1
        return plain(self, *args)

    patch.setattr(owner, name, counting)
    return calls


def killed(command: list[str], folder: Path, sign: str) -> None:
    """Run a command in a process of its own, and kill it as soon as a file shows below a folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "project", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(folder.glob(sign)):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            assert process.stderr is not None
            raise AssertionError(f"no {sign} in {folder}: {process.stderr.read()[-2000:]}")
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("sign", "gathers", "solves"),
    [
        ("**/gathering.pt", range(1, 12), range(40, 41)),
        ("**/pleas-1.00/0007.pt", range(1), range(25, 34)),
        ("pleas*/pleas-1.00.pt", range(1), range(15, 21)),
    ],
)
def test_a_killed_merge_goes_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, sign: str, gathers: range, solves: range
) -> None:
    """Twelve batches are gathered and 40 layers solved by a merge that nothing interrupts."""
    run = f"killed {sign.replace('/', ' ').replace('*', '')}"
    command = arguments(workplace, run, "--model.keep_every", "0")
    killed(command, workplace / run, sign if sign.startswith("**") else f"progress/*/*/{sign}")
    assert not (workplace / run / "results.json").exists()
    gathered = counted(monkeypatch, Collector, "gather")
    solved = counted(monkeypatch, SequentialFit, "_solved")
    main(command)
    assert same_students(workplace, run)
    assert table(workplace, run) == table(workplace, "reference")
    print(gathered, solved)
    assert not (workplace / run / "progress").exists()
    with pytest.raises(ConfigurationError, match="overwrite"):
        main(command)
