"""Full disks: refused before the work where the room is known to lack, told in one sentence where a write fails."""

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import drafts, failing, free
from helpers import pictures, random_network, resnet, same_state
from test_adding import shards

import project
from project import __main__ as command
from project.cli import main
from project.errors import StorageError
from project.merging.passes import GatheringPass
from project.merging.settings import Settings
from project.methods import PLeaS
from project.moments import Collector, read_statistics

OTHER_PROCESSES = True  # see tests/conftest.py
METHODS = [{"class_path": f"project.methods.{name}"} for name in ("Permutation", "PLeaS")]
STUDENTS = ["permutation-1.00", "permutation-1.50", "pleas-1.00", "pleas-1.50"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random sources and their pictures."""
    folder = tmp_path_factory.mktemp("space")
    for seed in range(2):
        torch.save(resnet("resnet20", seed, 12).state_dict(), folder / f"{seed}.pth")
    return folder


def arguments(folder: Path, run: Path, *extra: str) -> list[str]:
    sets = {"root": str(folder / "data"), "size": 16, "train_per_class": 1, "test_per_class": 1}
    return [
        "merge", "--run", str(run), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
        "--trainer.enable_model_summary", "false", "--trainer.logger", "false",
        "--model", "project.modules.MergeModule", "--model.budgets", "[1.0, 1.5]",
        "--model.sources", json.dumps([str(folder / f"{seed}.pth") for seed in range(2)]),
        "--model.methods", json.dumps(METHODS),
        "--data", "project.data.DomainDataModule",
        "--data.sets", json.dumps({"class_path": "project.data.Shapes", "init_args": sets}),
        "--data.domains", "[clipart, sketch]", "--data.image_size", "16", "--data.validation_fraction", "0",
        "--data.calibration_batch_size", "4", "--data.calibration_views", "1", *extra,
    ]  # fmt: skip


def interrupted(*_: object) -> None:
    raise InterruptedError


def students(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    paths = sorted((run / "students").glob("*.safetensors"))
    return {path.stem: project.load_student(path).network.state_dict() for path in paths}


def written(patch: pytest.MonkeyPatch) -> dict[str, int]:
    """Collects path -> bytes of all that goes through the one door."""
    found: dict[str, int] = {}
    plain = Path.replace

    def replace(self: Path, target: Any) -> Path:
        found[str(target)] = self.stat().st_size
        return plain(self, target)

    patch.setattr(Path, "replace", replace)
    return found


@pytest.fixture(scope="module")
def merged(workplace: Path) -> tuple[Path, dict[str, int]]:
    """A run that nothing disturbed, with statistics in a file, and what it wrote."""
    run = workplace / "reference"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pleas"])
        found = written(patch)
        main(arguments(workplace, run, "--model.statistics", str(workplace / "statistics.st")))
    assert list(students(run)) == STUDENTS
    return run, found


def test_a_merge_tells_what_it_needs_before_it_begins(
    workplace: Path, merged: tuple[Path, dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what it writes in the end, to a tenth, or somewhat more."""
    given = arguments(workplace, tmp_path / "run", "--model.statistics", str(tmp_path / "new" / "s.st"))
    asked: dict[Path, int] = {}
    with monkeypatch.context() as patch:
        patch.setattr("project.merging.engine.check_space", asked.update)
        patch.setattr(GatheringPass, "start", interrupted)
        with pytest.raises(InterruptedError):
            main(given)
    shutil.rmtree(tmp_path / "run")
    sums: dict[str, int] = {}
    for path, count in merged[1].items():
        kind = next((name for name in ("progress", "students", "statistics.st") if f"/{name}" in path), "others")
        sums[kind] = sums.get(kind, 0) + count
    for path, count in asked.items():
        name = {"s.st": "statistics.st", "students": "students"}.get(path.name, "progress")
        # Students do not fill their budgets, and fits of layers that are their sources' own are not kept.
        assert 0.9 * sums[name] <= count <= 1.25 * sums[name], (name, sums[name], count)
    free(monkeypatch, default=sum(asked.values()) - 1)
    progress, statistics = r"(?=.*run/progress/merge-\w+ needs about)", r"(?=.*s\.st needs about)"
    with pytest.raises(StorageError, match=rf"{progress}{statistics}.* MB are free on that"):
        main(given)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "new").exists()


def in_memory(folder: Path, **options: Any) -> dict[str, project.Student]:
    """A merge by the library, which keeps unfinished work in a folder."""
    sources, methods = [random_network(3, weights) for weights in range(2)], [PLeaS(), PLeaS(fit="joint", label="j")]
    seen = {domain: pictures(20, index) for index, domain in enumerate(("art", "birds"))}
    return project.merges(
        sources, seen, [1.0, 1.4], methods, folder=folder, statistics=folder.parent / "kept.st", progress=False,
        batch_size=8, **options,
    )  # fmt: skip


def states(made: dict[str, project.Student]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: student.state_dict() for name, student in made.items()}


@pytest.mark.parametrize("every", [100, pytest.param(1, marks=pytest.mark.slow)])
def test_whatever_fails_to_be_written_the_same_call_goes_on(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        found = written(patch)
        reference = states(in_memory(tmp_path / "reference"))
    names = [str(Path(path).relative_to(tmp_path)).removeprefix("reference") for path in found]
    assert any(name.endswith("kept.st") for name in names)
    assert len(names) > 20
    for number, name in enumerate(names[::every]):
        folder = tmp_path / f"{number}" / "run"
        with failing(rf"{number}/.*{name}$", errno.ENOSPC) as failed, pytest.raises(StorageError, match="cannot be"):
            in_memory(folder)
        assert len(failed) == 1, "nothing is written after that"
        assert not drafts(tmp_path)
        made = states(in_memory(folder))
        assert all(same_state(made[name], reference[name]) for name in reference), name
        assert read_statistics(folder.parent / "kept.st").pictures == {"art": 20, "birds": 20}


def test_statistics_that_their_file_has_no_room_for_are_not_gathered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with failing(r"kept\.st$", errno.EDQUOT), pytest.raises(StorageError, match=r"kept\.st cannot be written"):
        in_memory(folder)
    calls: list[Any] = []
    monkeypatch.setattr(Collector, "gather", lambda *given: calls.append(given))
    made = in_memory(folder)
    assert not calls
    assert read_statistics(tmp_path / "kept.st").pictures == {"art": 20, "birds": 20}
    monkeypatch.undo()
    other = states(in_memory(tmp_path / "other" / "run"))
    assert all(same_state(student.state_dict(), other[name]) for name, student in made.items())


@pytest.mark.slow
def test_copies_of_an_unfinished_pass_are_left_out_where_they_have_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project.api, "Settings", partial(Settings, keep_every=0))
    with failing(r"gathering\.pt$", errno.ENOSPC) as failed, pytest.warns(UserWarning, match="without a copy from"):
        made = states(in_memory(tmp_path / "run"))
    assert len(failed) == 3, "one a batch"
    other = states(in_memory(tmp_path / "other" / "run"))
    assert all(same_state(made[name], other[name]) for name in other)


@pytest.mark.parametrize(
    "pattern",
    ["students/pleas-1.00",
     *(pytest.param(f"{one}$", marks=pytest.mark.slow)
       for one in ("config.yaml", "accuracy.png", "results.json", "finished.pt", "0002-.*.pt"))],
)  # fmt: skip
def test_a_command_whose_disk_fails_goes_on_as_it_was_given(
    pattern: str, workplace: Path, merged: tuple[Path, dict[str, int]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["pleas", *arguments(workplace, run)])
    with failing(pattern, errno.ENOSPC) as failed:
        assert command.console() == 2
    assert len(failed) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"pleas: error: {failed[0]} cannot be written: as the test wants it."
    assert not drafts(tmp_path)
    if pattern.startswith("students"):  # those before it stay
        assert list(students(run)) == STUDENTS[:2]
    assert command.console() == 0
    mine, theirs = students(run), students(merged[0])
    assert all(same_state(mine[name], theirs[name]) for name in STUDENTS)
    assert not (run / "progress").exists()


def test_a_sum_of_shards_needs_room_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, out = shards(tmp_path), tmp_path / "new" / "sum.safetensors"
    needed = Path(paths[0]).stat().st_size  # of the same moments
    free(monkeypatch, default=needed // 2)
    with pytest.raises(StorageError, match=rf"^{out} needs about .* kB are free on that disk"):
        main(["add-statistics", *paths, "--out", str(out)])
    assert not out.parent.exists()
    free(monkeypatch, default=needed)
    with failing("sum", errno.EIO), pytest.raises(StorageError, match=rf"^{out} cannot be written"):
        main(["add-statistics", *paths, "--out", str(out)])
    assert not drafts(tmp_path)
    main(["add-statistics", *paths, "--out", str(out)])
    assert out.stat().st_size <= 1.1 * needed


def fit(folder: Path, run: Path, *extra: str) -> list[str]:
    sets = {"root": str(folder / "fit data"), "size": 16, "train_per_class": 2, "test_per_class": 1}
    return [
        "fit", "--run", str(run), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
        "--trainer.enable_model_summary", "false", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1",
        "--model", "project.modules.FineTuneModule", "--model.architecture", "resnet20",
        "--data", "project.data.DomainDataModule", "--data.batch_size", "12",
        "--data.sets", json.dumps({"class_path": "project.data.Shapes", "init_args": sets}),
        "--data.domains", "[clipart]", "--data.image_size", "16", "--data.validation_fraction", "0.5", *extra,
    ]  # fmt: skip


def test_a_fit_needs_room_for_its_checkpoints(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = fit(workplace, run)
    asked: dict[Path, int] = {}
    with monkeypatch.context() as patch:
        patch.setattr("project.callbacks.space.check_space", asked.update)
        main(given)
    (checkpoint,) = (run / "checkpoints").iterdir()
    size = checkpoint.stat().st_size
    assert asked[run / "checkpoints"] == pytest.approx(2 * size, rel=0.1), "one, and the one that replaces it"
    shutil.rmtree(run)
    with monkeypatch.context() as patch:
        free(patch, default=size)
        patch.setattr("sys.argv", ["pleas", *given])
        assert command.console() == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"pleas: error: {run}/checkpoints needs about ")
    assert not run.exists()
    with failing(r"\.ckpt$", errno.ENOSPC), pytest.raises(StorageError, match=r"checkpoints/.*\.ckpt cannot be"):
        main(given)
    assert not drafts(tmp_path)


@pytest.mark.parametrize("subcommand", ["predict", "test"])
def test_answers_that_cannot_be_written_are_told_of(
    subcommand: str, workplace: Path, merged: tuple[Path, dict[str, int]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sets = {"root": str(workplace / "data"), "size": 16, "train_per_class": 1, "test_per_class": 1}
    files = json.dumps([str(merged[0] / "students" / f"{STUDENTS[0]}.safetensors")])
    given = [
        subcommand, "--run", str(tmp_path / "run"), "--trainer.accelerator", "cpu", "--trainer.logger", "false",
        "--trainer.enable_progress_bar", "false", "--model", "project.modules.EvaluationModule",
        "--model.networks", files, "--data", "project.data.DomainDataModule",
        "--data.sets", json.dumps({"class_path": "project.data.Shapes", "init_args": sets}),
        "--data.domains", "[clipart, sketch]", "--data.image_size", "16", "--data.batch_size", "3",
    ]  # fmt: skip
    with failing(r"\.csv$", errno.ENOSPC), pytest.raises(StorageError, match=r"\.csv cannot be written: as the test"):
        main(given)
    assert not drafts(tmp_path)
    if subcommand == "test":
        return
    main(given)
    size = (tmp_path / "run" / "predictions.csv").stat().st_size
    free(monkeypatch, default=size - 100)  # enough for the configuration
    with pytest.raises(StorageError, match=r"predictions\.csv needs about .* kB are free"):
        main([*given, "--overwrite", "true"])
    assert not (tmp_path / "run" / "predictions.csv").exists()


def alone(*command: str, setup: str = "") -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, after some lines of shell."""
    return subprocess.run(
        ["sh", "-c", f'{setup}\nexec "$@"', "sh", sys.executable, "-m", "project", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without a device that is always full")
@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_answer_that_cannot_be_printed_is_told_of(
    apart: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, and in one that ends with it, when Python flushes what is left."""
    asked = ("check", "--model", "resnet18", "--image-size", "32")
    if apart:
        done = alone(*asked, setup="exec > /dev/full")
        status, told = done.returncode, done.stderr
    else:
        with suppress(OSError), Path("/dev/full").open("w") as device:
            monkeypatch.setattr("sys.stdout", device)
            monkeypatch.setattr("sys.argv", ["pleas", *asked])
            status = command.console()
        told = capsys.readouterr().err
    assert status == 2
    assert told == f"pleas: error: a log or answer cannot be written: {os.strerror(errno.ENOSPC)}.\n"


@pytest.mark.slow
def test_a_system_that_cuts_files_short(workplace: Path, merged: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    """Students of one source's size are kept, larger ones are not; then the limit is lifted."""
    run = tmp_path / "run"
    given = arguments(workplace, run, "--model.statistics", str(workplace / "statistics.st"))
    small, large = (
        next(count for path, count in merged[1].items() if path.endswith(f"permutation-{name}.pt"))
        for name in ("1.00", "1.50")
    )
    for limit in (f"ulimit -f {(small + large) // 2 // 512}", ""):
        done = alone(*given, setup=limit)
        assert done.returncode == (2 if limit else 0), done.stderr[-2000:]
        assert "Traceback" not in done.stderr
        assert not drafts(tmp_path)
        if limit:
            assert done.stderr.splitlines()[-1].endswith(
                f"permutation-1.50.pt cannot be written: {os.strerror(errno.EFBIG)}."
            )
    assert "permutation-1.00 was fitted before this run was interrupted" in done.stderr
    mine, theirs = students(run), students(merged[0])
    assert all(same_state(mine[name], theirs[name]) for name in STUDENTS)


SPILL = """
import sys, pathlib, torch
from project.errors import StorageError
from project.runtime.spill import Spilled
try:
    Spilled(torch.ones(10**6), pathlib.Path(sys.argv[1]))
except StorageError as error:
    print("SPILL", error)
"""

FULL = """
set -u
disk=$1; shift
mount -t tmpfs -o size=1m none "$disk" || { echo NONE; exit; }
"$@"; echo "SMALL $? $(find "$disk" | wc -l)"
"$SPYTHON" -c "$SPILL" "$disk/waiting"
mount -o remount,size=100m "$disk"
(until ls "$disk"/run/progress/*/0/pleas-*/pleas-1.00/0003-*.pt; do sleep 0.01; done; cat /dev/zero > "$disk/ballast") \
    > "$disk.log" 2>&1 &
"$@"; echo "FULL $? $(find "$disk" -name '.*.tmp' | wc -l) $(find "$disk" -name 'permutation-1.50.pt' | wc -l)"
wait
rm "$disk/ballast"
"$@" > "$disk.log" 2>&1; echo "AGAIN $? $(grep -c 'before this run was interrupted' "$disk.log")"
cp -r "$disk/run" "$disk.run"
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="a system without namespaces, in which anybody may mount")
def test_a_disk_that_is_really_full(workplace: Path, merged: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    """A file system in memory: too small from the beginning, then filled by somebody else in the middle of a fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL, "sh", str(disk), sys.executable, "-m", "project",
         *arguments(workplace, disk / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SPYTHON": sys.executable, "SPILL": SPILL},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False,
    )  # fmt: skip
    if "NONE" in done.stdout or "SMALL" not in done.stdout:
        pytest.skip(f"nothing can be mounted: {done.stdout.splitlines()[-1:]}")
    assert "Traceback" not in done.stdout, done.stdout[-3000:]
    assert "SMALL 2 1" in done.stdout, "refused, and nothing lies there"
    assert f"SPILL {disk}/waiting cannot be written: {os.strerror(errno.ENOSPC)}." in done.stdout
    assert "FULL 2 0 1" in done.stdout, "no draft, and what was finished"
    assert f"cannot be written: {os.strerror(errno.ENOSPC)}." in done.stdout.partition("SMALL")[2]
    assert "AGAIN 0 2" in done.stdout, "with both students that there were"
    mine, theirs = students(Path(f"{disk}.run")), students(merged[0])
    assert all(same_state(mine[name], theirs[name]) for name in STUDENTS)
