"""On an accelerator: the numbers of a CPU to rounding, the memory that was planned, and the command from end to end."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import DOMAINS, close, make_problem, pictures, resnet, same_state, unfolded
from lightning.pytorch import Trainer
from test_devices import MERGES, command
from torch import nn

from project.callbacks import MergeCallback
from project.cli import main
from project.data import DomainDataModule, Shapes
from project.merging import SourceFile
from project.methods import Average, Fisher, MaTS, PLeaS, RegMean
from project.modules import MergeModule
from project.moments import layer_moment
from project.student import load_source, load_student

pytestmark = pytest.mark.gpu
TINY = Path(__file__).resolve().parent.parent / "configs" / "tiny"
LAYERS = {
    "3 × 3": nn.Conv2d(64, 8, 3, padding=1),
    "strided": nn.Conv2d(64, 8, 3, stride=2, padding=1),
    "1 × 1": nn.Conv2d(64, 8, 1),
}


@pytest.fixture
def device() -> torch.device:
    """The first accelerator."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        pytest.skip("no accelerator here")
    return torch.device(found.type, 0)


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_float32_products_summed_in_float64(name: str, device: torch.device) -> None:
    """TF32 would be off by 1e-3: it has ten bits."""
    layer, values = LAYERS[name], pictures(32, 0, (64, 14, 14)) + 1
    samples = layer(values)[:, 0].numel()
    columns = torch.cat([unfolded(values.double(), layer), torch.ones(1, samples).double()])
    exact = columns @ columns.mT
    found = layer_moment(layer, 64, (14, 14), constant=True, device=device)
    found.read([values.to(device)])
    assert found.sum().device.type == device.type
    assert found.sum().dtype == torch.float64
    assert close(found.sum().cpu(), exact, 1e-5)


@pytest.mark.parametrize("mode", ["shared", "different"])
def test_methods_make_the_students_of_a_cpu(mode: str, device: torch.device) -> None:
    # Random sources are sure of one class, which leaves the head's divergence undetermined: hence squares.
    methods = [
        PLeaS("weights", logits="squares"),
        PLeaS("weights", fit="joint"),
        RegMean(),
        MaTS(estimate="gram", iterations=5),
    ]
    needs = frozenset().union(*(method.needs for method in methods)) - {"pictures"}
    sources = [resnet("resnet20", seed) for seed in (0, 1)]
    batches = [(domain, pictures(64, seed, (3, 32, 32))) for seed, domain in enumerate(DOMAINS[:2])]
    here = make_problem(sources, mode, shape=(3, 32, 32), batches=batches, needs=needs)
    there = make_problem(
        [copy.deepcopy(source).to(device) for source in sources],
        mode,
        shape=(3, 32, 32),
        batches=[(domain, batch.to(device)) for domain, batch in batches],
        needs=needs,
    )
    batch = pictures(16, 9, (3, 32, 32))
    for method in methods:
        for mine, theirs in zip(method.merge(here, [1.0, 1.5]), method.merge(there, [1.0, 1.5]), strict=True):
            assert {one.device.type for one in theirs.student.state_dict().values()} == {device.type}
            with torch.no_grad():
                expected, found = mine.student(batch), theirs.student(batch.to(device)).cpu()
            assert close(found, expected, 1e-2), method.name
    for source, moved in zip(sources, there.sources, strict=True):
        assert same_state(source.state_dict(), moved.cpu().state_dict()), "sources stay bit-identical"


def test_a_merge_takes_no_more_memory_than_planned(tmp_path: Path, device: torch.device) -> None:
    files = []
    for seed, domain in enumerate(("clipart", "sketch")):
        files.append(SourceFile(tmp_path / f"{domain}.pth"))
        torch.save(resnet("resnet18", seed, 12).state_dict(), tmp_path / f"{domain}.pth")
    sets = Shapes(tmp_path / "data", size=64, train_per_class=4, test_per_class=1, domains=["clipart", "sketch"])
    sets.prepare()
    data = DomainDataModule(sets, image_size=64, batch_size=16, validation_fraction=0)
    module, callback = (
        MergeModule(files, [Average(), PLeaS(), PLeaS(fit="joint", label="joint"), Fisher()]),
        MergeCallback(),
    )
    module.prepare(data, tmp_path, device)
    trainer = Trainer(
        callbacks=[callback], accelerator="gpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, inference_mode=False,
    )  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    plan = module.planner.plan(module.gathering.missing)  # type: ignore[union-attr]
    while not callback.finished:
        trainer.validate(module, dataloaders=data.calibration_dataloader(), verbose=False)
    networks = sum(p.numel() * 4 for one in (*module.loaded, *module.merged) for p in _network(one).parameters())
    planned = plan.statistics + max(plan.batch, plan.estimate.whole) + networks
    assert torch.cuda.max_memory_allocated() - held <= 1.25 * planned


def _network(one: object) -> nn.Module:
    return one.network if hasattr(one, "network") else one.student  # type: ignore[attr-defined, no-any-return]


def test_the_command_runs_from_end_to_end(inside: Path, device: torch.device) -> None:
    for subcommand, config in (("fit", "fit_clipart"), ("fit", "fit_sketch"), ("merge", "merge_all")):
        arguments = ["--trainer.accelerator", "gpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
        main([subcommand, "--config", str(TINY / f"{config}.yaml"), *arguments])
    folder = inside / "runs" / "tiny" / "merge_all"
    rows = json.loads((folder / "results.json").read_text())["table"]
    made = [row["network"] for row in rows if row["kind"] == "student"]
    assert len(made) > 20
    for name in made:
        student = load_student(folder / "students" / f"{name}.safetensors")
        assert torch.isfinite(student.probabilities(pictures(2, 0, (3, 16, 16)), "sketch")).all(), name


@pytest.mark.parametrize("name", MERGES)
def test_merges_are_those_of_a_cpu(name: str, inside: Path, device: torch.device) -> None:
    """Spilled to disk, on some samples, with probes, from a file of statistics; to what rounding leaves of answers."""
    for config in ("fit_clipart", "fit_sketch"):
        command("fit", config)
    config, batch = name.split(",")[0], pictures(16, 0, (3, 16, 16))
    command("merge", config, *MERGES[name], "--run", "runs/here")
    gpu = ["--trainer.accelerator", "gpu", "--trainer.devices", "1"]
    (inside / "statistics.safetensors").unlink(missing_ok=True)
    command("merge", config, *MERGES[name], "--run", "runs/there", *gpu)
    for here in sorted((inside / "runs" / "here" / "students").iterdir()):
        there, expected = load_student(inside / "runs" / "there" / "students" / here.name), load_student(here)
        for domain in expected.labels.domains:
            found = (there.probabilities(batch, domain) - expected.probabilities(batch, domain)).abs().mean()
            assert found < 0.02, here.name


@pytest.mark.ddp
def test_two_accelerators_make_the_student_of_one(inside: Path, device: torch.device) -> None:
    if torch.accelerator.device_count() < 2:
        pytest.skip("one accelerator here")
    for config in ("fit_clipart", "fit_sketch"):
        main(
            ["fit", "--config", str(TINY / f"{config}.yaml"), "--trainer.accelerator", "gpu", "--trainer.devices", "1"]
        )
    found = []
    for count in ("1", "2"):
        command = [
            sys.executable,
            "-m",
            "project",
            "merge",
            "--config",
            str(TINY / "merge.yaml"),
            "--run",
            f"runs/{count}",
        ]
        command += ["--trainer.accelerator", "gpu", "--trainer.devices", count, "--trainer.strategy", "ddp"]
        environment = {**os.environ, "PYTHONPATH": str(TINY.parent.parent)}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240)
        source = load_source(inside / "runs" / count / "students" / "pleas-1.50.safetensors")
        with torch.no_grad():
            found.append(source.network(pictures(16, 0, (3, 16, 16))))
    assert close(found[1], found[0], 1e-2)
