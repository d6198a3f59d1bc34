"""Launchers, and processes that somebody else has started: torchrun's own, and SLURM's as far as it can be played."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import resnet
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

import project
from project.callbacks import check_strategy
from project.cli import main
from project.errors import ConfigurationError
from project.modules import FineTuneModule, MergeModule, ScoringModule
from project.runtime import saving

ROOT = Path(__file__).resolve().parent.parent
CLUSTER, TINY = ROOT / "configs" / "cluster", ROOT / "configs" / "tiny"
LAUNCHERS = sorted(CLUSTER.glob("*.sbatch"))

SAY = """#!/bin/bash
printf '%s\\0' "$@" > said
"""
# Tasks of a job as srun starts them, with what SLURM tells each of them; every node is this machine.
START = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=$((SLURM_NNODES * SLURM_NTASKS_PER_NODE)) SLURM_JOB_NAME=pleas SLURM_JOB_ID=77
pids=()
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % SLURM_NTASKS_PER_NODE)) \
        SLURM_NODEID=$((rank / SLURM_NTASKS_PER_NODE)) "$@" > "task-$rank" 2>&1 &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""
PLEAS = f"""#!/bin/bash
exec {sys.executable} -m project "$@"
"""


@pytest.fixture
def site(inside: Path) -> Path:
    """A checkout in which launchers can run."""
    (inside / "configs").symlink_to(ROOT / "configs")
    (inside / "project").symlink_to(ROOT / "project")
    (inside / ".venv" / "bin").mkdir(parents=True)
    program(inside / ".venv" / "bin" / "pleas", PLEAS)
    return inside


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def launch(name: str, srun: str, *arguments: str, **slurm: str) -> None:
    """Run a launcher as sbatch would, in the current folder."""
    program(Path("bin/srun"), srun)
    environment = {
        **os.environ, "PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
        "SLURM_CPUS_PER_TASK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", **slurm,
    }  # fmt: skip
    command = ["bash", str(CLUSTER / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    told = "".join(path.read_text()[-1500:] for path in Path().glob("task-*"))
    assert done.returncode == 0, done.stderr[-1500:] + told


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("restarts", ["0", "1"])
def test_a_launcher_starts_a_command_that_parses(
    path: Path, restarts: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, check=False).stderr == b""
    kind = path.stem.split("_")[0]
    config = "configs/pacs/merge.yaml" if kind == "merge" else "configs/domainnet/fit_clipart.yaml"
    launch(path.name, SAY, config, "--run", "runs/with space", SLURM_RESTART_COUNT=restarts)
    said = (site / "said").read_text().split("\0")[:-1]
    arguments = said[said.index(".venv/bin/pleas") + 1 :]
    assert arguments[0] == kind
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--print_config"])
    assert done.value.code in (None, 0)
    told = capsys.readouterr().out
    options = dict(line.removeprefix("#SBATCH --").split("=") for line in path.read_text().splitlines()
                   if line.startswith("#SBATCH --") and "=" in line)  # fmt: skip
    assert f"num_nodes: {options['nodes']}\n" in told
    assert f"devices: {options['ntasks-per-node']}\n" in told, "as many tasks as the trainer expects"
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert "run: runs/with space" in told
    assert ("filename: last" in told) == (kind == "fit")
    assert ("--ckpt_path" in arguments) == (kind == "fit" and restarts == "1")


def test_launchers_and_documents_speak_of_each_other() -> None:
    assert len(LAUNCHERS) == 4
    text = (ROOT / "docs" / "cluster.md").read_text()
    assert all(path.name in text for path in CLUSTER.iterdir())
    assert "docs/cluster.md" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "strategy", [FSDPStrategy(), ModelParallelStrategy(), DeepSpeedStrategy.__new__(DeepSpeedStrategy)]
)
def test_strategies_that_split_networks_are_refused(strategy: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"strategy is {type(strategy).__name__}.*allowed: 'auto' and 'ddp'"):
        check_strategy(SimpleNamespace(strategy=strategy, precision="32-true"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strategy", "word"),
    [
        ("ddp_spawn", "'spawn'"),
        ("ddp_fork", "'fork'"),
        ("fsdp", "strategy is 'fsdp', but a merge needs every layer whole"),
        ("deepspeed_stage_2", "strategy is 'deepspeed_stage_2'"),
    ],
)
def test_a_merge_refuses_strategies_before_any_work(inside: Path, strategy: str, word: str) -> None:
    """No source is there yet: that would be the next to be told."""
    given = ["--trainer.strategy", strategy, "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    with pytest.raises(ConfigurationError, match=word) as caught:
        main(["merge", "--config", str(TINY / "merge.yaml"), *given])
    assert "\n" not in str(caught.value)
    assert not list(inside.iterdir())


def test_ddp_and_a_single_device_are_allowed() -> None:
    for options in ({"strategy": "ddp", "devices": 2}, {"devices": 1}):
        check_strategy(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options))  # type: ignore[arg-type]


def test_processes_that_the_trainer_does_not_know_of_are_refused(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"trainer: .*devices=1.*does not match the world size \(2\)"):
        main(["merge", "--config", str(TINY / "merge.yaml")])
    assert not list(inside.iterdir())


@pytest.mark.parametrize("monitored", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_fit_that_is_cut_short_has_kept_its_last_epoch(
    monitored: bool, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside a callback of the run that monitors nothing and keeps its last epoch itself."""

    def cut(module: FineTuneModule) -> None:
        epochs.append(module.current_epoch)
        if epochs == [0, 1, 2]:
            raise RuntimeError("cut")

    epochs: list[int] = []
    text = (TINY / "fit_clipart.yaml").read_text()
    plain = text.replace("{filename: best, monitor: val/accuracy, mode: max}", "{filename: last}")
    assert plain != text
    Path("fit.yaml").write_text(text if monitored else plain)
    monkeypatch.setattr(FineTuneModule, "on_train_epoch_start", cut)
    command = ["fit", "--config", "fit.yaml", "--config", str(CLUSTER / "resume.yaml"), "--trainer.max_epochs", "4"]
    with pytest.raises(RuntimeError, match="cut"):
        main([*command, "--trainer.enable_progress_bar", "false"])
    kept = Path("runs/tiny/clipart/checkpoints")
    files = {"best.ckpt", "last.ckpt"} if monitored else {"last.ckpt", "last-v1.ckpt"}
    assert {path.name for path in kept.iterdir()} == files
    assert torch.load(kept / "last.ckpt", weights_only=True)["epoch"] == 1
    main([*command, "--trainer.enable_progress_bar", "false", "--ckpt_path", "last"])
    assert epochs == [0, 1, 2, 2, 3]
    assert {path.name for path in kept.iterdir()} == files, "none beside those of before"


def test_a_checkpoint_that_is_cut_short_leaves_the_one_before(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever temporary files lie: nothing is copied onto it."""
    write = torch.save

    def cut(content: Any, file: Any) -> None:
        written.append(content["epoch"])
        if len(written) == 3:
            file.write(b"half")
            raise RuntimeError("cut")
        write(content, file)

    written: list[int] = []
    monkeypatch.setattr(saving.torch, "save", cut)
    command = ["fit", "--config", str(TINY / "fit_clipart.yaml"), "--trainer.enable_progress_bar", "false"]
    with pytest.raises(RuntimeError, match="cut"):
        main([*command, "--config", str(CLUSTER / "resume.yaml"), "--trainer.max_epochs", "2"])
    assert written == [0, 0, 1]
    kept = Path("runs/tiny/clipart/checkpoints")
    assert {path.name for path in kept.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert all(torch.load(path, weights_only=True)["epoch"] == 0 for path in kept.iterdir())


@pytest.mark.parametrize(("module", "hook"), [(MergeModule, "validation_step"), (ScoringModule, "test_step")])
def test_a_merge_that_is_told_to_end_waits_for_no_other_process(
    module: type, hook: str, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's handler broadcasts; other processes may be anywhere."""
    told: list[int] = []
    monkeypatch.setattr(_SignalConnector, "_sigterm_notifier_fn", lambda self, *args: told.append(1))
    monkeypatch.setattr(module, hook, lambda self, *args, **kwargs: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(["merge", "--config", str(TINY / "merge.yaml"), *sources()])
    assert ended.value.code == 128 + signal.SIGTERM
    assert not told
    assert signal.getsignal(signal.SIGTERM) is before


def sources() -> list[str]:
    """Options of a tiny merge of two random networks, whose pictures are not drawn yet."""
    for seed, domain in enumerate(("clipart", "sketch")):
        torch.save(resnet("resnet8", seed, 12).state_dict(), f"{domain}.pth")
    methods = [{"class_path": "project.methods.PLeaS", "init_args": {"logits": "squares"}}]
    return [
        "--model.init_args.sources", '["clipart.pth", "sketch.pth"]', "--model.init_args.budgets", "[1.0]",
        "--model.init_args.methods", json.dumps(methods), "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip


def same_student(one: str, two: str) -> None:
    mine, theirs = (project.load_student(f"{run}/students/pleas-1.00.safetensors") for run in (one, two))
    probe = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = mine(probe), theirs(probe)
    assert torch.allclose(a, b, atol=1e-2 * float(a.abs().max()))


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:the sources do better the other way round")
def test_torchrun_and_slurm_draw_the_pictures_once_and_make_one_student(site: Path) -> None:
    """All processes start at once, and none finds the pictures there; under SLURM on two nodes that share a folder."""
    options = [*sources(), "--trainer.accelerator", "cpu"]
    config = str(TINY / "merge.yaml")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29534", "-m"]
    command = [*torchrun, "--", "project", "merge", "--config", config, *options, "--run", "runs/torchrun"]
    command += ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.rmtree("runs/tiny/data")
    nodes = ["--trainer.devices", "1", "--trainer.num_nodes", "2"]
    launch("merge_several_nodes.sbatch", START, config, *options, *nodes, "--run", "runs/slurm",
           SLURM_NNODES="2", SLURM_NTASKS_PER_NODE="1")  # fmt: skip
    assert Path("runs/slurm/results.json").exists()
    main(["merge", "--config", config, *options, "--run", "runs/alone"])
    same_student("runs/alone", "runs/torchrun")
    same_student("runs/alone", "runs/slurm")


@pytest.mark.slow
@pytest.mark.ddp
def test_a_requeued_fit_goes_on_from_its_last_epoch(site: Path) -> None:
    config = str(TINY / "fit_clipart.yaml")
    options = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
    slurm = {"SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    launch("fit_one_node.sbatch", START, config, *options, SLURM_RESTART_COUNT="0", **slurm)
    last = Path("runs/tiny/clipart/checkpoints/last.ckpt")
    first = torch.load(last, weights_only=True)
    again = [*options, "--trainer.max_epochs", "2"]
    launch("fit_one_node.sbatch", START, config, *again, SLURM_RESTART_COUNT="1", **slurm)
    found = {torch.load(path, weights_only=True)["global_step"] for path in last.parent.glob("last*.ckpt")}
    assert max(found) == 2 * first["global_step"] > 0
    assert "Restor" in Path("task-0").read_text(), "it says from where it goes on"
    with pytest.raises(AssertionError, match="holds an earlier run"):
        launch("fit_one_node.sbatch", START, config, *options, SLURM_RESTART_COUNT="0", **slurm)
