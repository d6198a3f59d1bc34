"""On an accelerator all stays on it and comes out as at home; one that is not there stands in for it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from elsewhere import Away, elsewhere, trained_elsewhere
from helpers import DOMAINS, Case, close, make_problem, merge_case, pictures, randomised
from torch import Tensor, nn

from project.alignment import UnitMap
from project.cli import main
from project.fit import Distillation
from project.fit.head import HeadView, fit_head
from project.methods import (
    EMR,
    PCB,
    SMILE,
    TIES,
    AdaMerging,
    Average,
    Concrete,
    Fisher,
    Interpolation,
    MaTS,
    Method,
    Permutation,
    PLeaS,
    RegMean,
    RegMeanPP,
    TaskArithmetic,
    Tuned,
    WEMoE,
    ZipIt,
)
from project.moments import PICTURES, Collector, Lockstep, Moment, Statistics
from project.student import load_student

METHODS: dict[str, Callable[[], Method]] = {
    "average": Average,
    "permutation": Permutation,
    "permutation by weights": lambda: Permutation("weights"),
    "pleas": lambda: PLeaS(logits="squares"),
    "pleas, gain": lambda: PLeaS(separate="gain", logits="squares"),
    "pleas joint, back": lambda: PLeaS(fit="joint", separate="back"),
    "task arithmetic": TaskArithmetic,
    "ties, aligned": lambda: TIES(align="activations"),
    "pcb": PCB,
    "emr": EMR,
    "fisher": lambda: Fisher(classes="exact"),
    "regmean, aligned": lambda: RegMean(align="activations"),
    "regmean++": RegMeanPP,
    "ties, aligned by both": lambda: TIES(align="both"),
    "zipit": ZipIt,
    "interpolation, aligned": lambda: Interpolation(steps=2, align="weights"),
    "adamerging": lambda: AdaMerging(steps=2, batch=4),
    "concrete": lambda: Concrete("learned", steps=2, batch=4),
    "tuned": lambda: Tuned(TIES(), {"scale": [0.5, 1.0]}, "divergence"),
    "smile": lambda: SMILE(rank=2, gate_rank=1),
    "wemoe": lambda: WEMoE(steps=2, batch=4, hidden=3),
    "mats, average": lambda: MaTS(estimate="average", start="zero"),
    "mats, diagonal": lambda: MaTS(estimate="diagonal", classes="exact", iterations=3),
    "mats, gram": lambda: MaTS(estimate="gram", iterations=3),
    "mats, kfac": lambda: MaTS(iterations=3, classes="exact", precondition=True, watch=2),
}


HEADS = ("permutation", "pleas", "pleas joint, back", "emr", "zipit", "smile", "adamerging", "tuned")
"""Methods of which each has another way with heads of different label spaces; others share it."""
BATCHES = [(domain, pictures(12, seed)) for seed, domain in enumerate(DOMAINS[:2])]


class Small(nn.Module):
    """A convolution, a residual sum, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv, self.inner = nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5)
        self.back, self.outer = nn.Conv2d(5, 6, 1), nn.BatchNorm2d(6)
        self.down, self.fc = nn.Conv2d(6, 6, 1, stride=2), nn.Linear(6, 4)
        randomised(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        out = self.outer(self.back(self.inner(self.conv(x)).relu())) + self.down(x)
        return self.fc(out.relu().mean((2, 3)))


def gathered(problem: Case, method: Method) -> Case:
    """With the statistics that a method needs, of the problem's own pictures."""
    needs = sorted(method.needs - {PICTURES})
    collector = Collector(problem.spec, Lockstep(problem.sources), needs, tuple(problem.pictures), problem.owners)
    for domain, batches in problem.pictures.items():
        for batch in batches:
            collector.gather(domain, batch)
    return replace(problem, statistics=collector.statistics)


def taken(problem: Case, device: torch.device) -> Case:
    """With its sources and pictures on a device."""
    return replace(
        problem,
        sources=tuple(source.to(device) for source in problem.sources),
        pictures={domain: [one.to(device) for one in batches] for domain, batches in problem.pictures.items()},
    )


def away(tensors: Iterable[Tensor]) -> bool:
    found = list(tensors)
    return bool(found) and all(isinstance(one, Away) for one in found)


def test_it_refuses_to_mix_devices() -> None:
    home = torch.arange(3.0)
    with elsewhere() as device:
        there = home.to(device)
        assert isinstance(there, Away)
        assert there.device == device
        assert torch.equal((there + there).cpu(), home + home)
        with pytest.raises(RuntimeError, match="two devices"):
            there + home
        with pytest.raises(RuntimeError, match="two devices"):
            home[there.long()]
        assert there[home.long()].device == device
        layer = nn.Linear(3, 2).to(device)
        layer(there).sum().backward()
        assert away([layer.weight, layer.weight.grad])


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(
            pytest.param(name, "shared", marks=pytest.mark.slow) if name in HEADS else (name, "shared")
            for name in METHODS
        ),
        *(
            (name, "different") if name in HEADS else pytest.param(name, "different", marks=pytest.mark.slow)
            for name in METHODS
        ),
    ],
)
def test_methods_stay_on_the_device_of_their_sources(name: str, mode: str) -> None:
    method = METHODS[name]()
    problem = replace(
        make_problem([Small(seed) for seed in (0, 1)], mode, batches=BATCHES), base="mean", statistics=Statistics()
    )
    here = list(merge_case(method, gathered(problem, method), [1.0, 1.4]))
    batch = pictures(4, 9)
    with torch.no_grad():
        expected = [one.student(batch) for one in here]
    with elsewhere() as device:
        moved = gathered(taken(problem, device), method)
        for moment in moved.statistics.moments():
            assert away(moment.totals)
            assert not isinstance(moment, Moment) or away([moment.sum()])
        there = list(merge_case(METHODS[name](), moved, [1.0, 1.4]))
        assert [one.name for one in there] == [one.name for one in here]
        for one, wanted in zip(there, expected, strict=True):
            assert away(one.student.state_dict().values())
            with torch.no_grad():
                found = one.student(batch.to(device))
            assert isinstance(found, Away)
            assert close(found.cpu(), wanted, 1e-3)


class Blocks(nn.Module):
    """A convolution on large maps, a depthwise one, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.deep, self.inner, self.fc = nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Linear(6, 4)
        randomised(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.inner(self.deep(self.norm(self.stem(x)).relu())).relu().mean((2, 3)))


@pytest.mark.parametrize("logits", ["squares", pytest.param("divergence", marks=pytest.mark.slow)])
def test_grouped_layers_and_drawn_positions_stay_on_their_device(
    logits: Literal["squares", "divergence"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("project.fit.subsample.GATHER_COST", 0)
    method = PLeaS("weights", excess=0.3, rounds=1, logits=logits)
    batches = [(domain, pictures(8, 10 * i + j)) for i, domain in enumerate(DOMAINS[:2]) for j in range(4)]
    problem = make_problem([Blocks(seed) for seed in (0, 1)], batches=batches, needs=())
    (here,) = merge_case(method, problem, [1.0])
    assert here.layers["stem"]["positions"] < 1 / 2
    assert here.layers["deep"]["residual_after"] < here.layers["deep"]["residual_before"]
    batch = pictures(4, 9)
    with torch.no_grad():
        expected = here.student(batch)
    with elsewhere() as device:
        (there,) = merge_case(method, taken(problem, device), [1.0])
        assert away(there.student.state_dict().values())
        with torch.no_grad():
            assert close(there.student(batch.to(device)).cpu(), expected, 1e-3)


@pytest.mark.parametrize("constant", [True, False])
def test_the_fit_of_a_head_stays_on_its_device(constant: bool) -> None:
    start = pictures(1, 0, (1, 4, 7))[0, 0].double()
    features, logits = pictures(1, 1, (1, 30, 7))[0, 0], pictures(1, 2, (1, 30, 4))[0, 0]
    found = fit_head(start, [HeadView(features, logits)], damping=0.1, constant=constant, steps=20)
    with elsewhere() as device:
        views = [HeadView(features.to(device), logits.to(device))]
        there = fit_head(start.to(device), views, damping=0.1, constant=constant, steps=20)
        assert away([there])
        assert close(there.cpu(), found)


def test_distillation_stays_on_the_device_of_the_student() -> None:
    problem = make_problem([Small(seed) for seed in (0, 1)], batches=BATCHES)
    batch = {domain: pictures(4, seed) for seed, domain in enumerate(problem.owners)}
    student = problem.start(problem.fixed | {g.name: UnitMap.identity(g.size, 2) for g in problem.spec.free})
    with torch.no_grad():
        expected = Distillation(student, problem.sources, problem.owners)(batch)
    with elsewhere() as device:
        student.to(device)
        sources = [source.to(device) for source in problem.sources]
        found = Distillation(student, sources, problem.owners)({name: one.to(device) for name, one in batch.items()})
        found.total.backward()
        assert away([found.total, *(p.grad for p in student.parameters() if p.grad is not None)])
        assert close(found.total.detach().cpu(), expected.total)


TINY = Path(__file__).resolve().parent.parent / "configs" / "tiny"
SAMPLED = '[{"class_path": "project.methods.PLeaS", "init_args": {"excess": 0.1, "separate": "gain"}}]'
MERGES = {
    "merge": ["--probe", "true", "--model.memory", "26 MB", "--model.budgets", "[1.0, 1.5]"],
    "merge, sampled": [
        "--model.methods",
        SAMPLED,
        "--model.budgets",
        "[1.0]",
        "--data.init_args.calibration_batch_size",
        "4",
    ],
    "merge_different": ["--model.statistics", "statistics.safetensors"],
    "merge_mixture": [],
}


def command(subcommand: str, config: str, *options: str) -> None:
    quiet = ["--trainer.enable_progress_bar", "false", "--overwrite", "true"]
    main([subcommand, "--config", str(TINY / f"{config}.yaml"), *quiet, *options])


@pytest.mark.slow
@pytest.mark.parametrize("name", MERGES)
def test_merges_by_the_command_stay_on_the_device_of_the_trainer(name: str, inside: Path) -> None:
    for config in ("fit_clipart", "fit_sketch"):
        command("fit", config)
    config, batch = name.split(",")[0], pictures(4, 0, (3, 16, 16))
    command("merge", config, *MERGES[name], "--run", "runs/here")
    with trained_elsewhere():
        command("merge", config, *MERGES[name], "--run", "runs/there")
    students = sorted((inside / "runs" / "here" / "students").iterdir())
    assert students
    for here in students:
        there = load_student(inside / "runs" / "there" / "students" / here.name)
        expected = load_student(here)
        for domain in expected.labels.domains:
            assert close(there.probabilities(batch, domain), expected.probabilities(batch, domain), 1e-2), here.name


@pytest.mark.slow
def test_the_other_commands_stay_on_the_device_of_the_trainer(inside: Path) -> None:
    with trained_elsewhere():
        for subcommand, config in (("fit", "fit_clipart"), ("fit", "fit_sketch"), ("fit", "fit_coefficients")):
            command(subcommand, config)
    command("merge", "merge")
    with trained_elsewhere():
        for subcommand, config in (
            ("fit", "fit_refine"),
            ("test", "test"),
            ("validate", "validate"),
            ("predict", "predict"),
        ):
            command(subcommand, config, "--run", f"runs/there/{config}")
    refined = load_student(inside / "runs" / "there" / "fit_refine" / "students" / "pleas-1.50-refined.safetensors")
    assert torch.isfinite(refined(pictures(2, 0, (3, 16, 16)))).all()
