"""Fits to some of the pictures, and of their positions, against fits to all of them."""

from dataclasses import replace
from pathlib import Path
from threading import Lock

import pytest
import torch
from helpers import DOMAINS, Case, close, make_problem, merge_case, pictures, randomised, resnet, same_state
from meeting import dealt, together
from torch import Tensor, fx, nn

from project.alignment import UnitMap
from project.allocation import Budget
from project.errors import ConfigurationError
from project.fit import Measurements, SequentialFit, sequential
from project.fit.activations import Batch
from project.fit.layer_task import LayerTask
from project.fit.positions import AllPositions, SampledPositions
from project.fit.solve_layer import solve_layer
from project.fit.subsample import choose_subsample, misfit
from project.merging import students
from project.methods import Merged, PLeaS
from project.runtime import World
from project.student import Student

BATCHES = 16


@pytest.fixture(scope="module")
def problem() -> Case:
    batches = [(domain, pictures(8, 100 + i)) for domain in DOMAINS[:2] for i in range(BATCHES)]
    return make_problem([resnet("resnet20", seed) for seed in (0, 1)], batches=batches, needs=("units", "inputs"))


def compared(problem: Case, excess: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """layer -> the share of the batches it was fitted to, and its misfit on all of them over that of a fit to all."""
    found = {}

    def watched(task: LayerTask, ridge: float, allowed: float) -> LayerTask:
        part = choose_subsample(task, ridge, allowed)
        matrices = [solve_layer(chosen, ridge).matrix for chosen in (task, part)]
        whole, some = (misfit(task.layer, task.outputs, task.inputs, m, task.normal_equations) for m in matrices)
        found[task.layer.name] = len(part.activations.batches) / len(task.activations.batches), some / whole
        return part

    with monkeypatch.context() as patch:
        patch.setattr(sequential, "choose_subsample", watched)
        (merged,) = merge_case(PLeaS(excess=excess, rounds=0, logits="squares"), problem, [1.0])
    for name, (share, _) in found.items():
        assert merged.layers[name]["pictures"] == pytest.approx(share)
    return found


def test_the_excess_is_kept_with_fewer_pictures(problem: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate from few batches: within three times what was allowed for each layer, and below it on average."""
    spent = {}
    for excess in (0.005, 0.2):
        found = compared(problem, excess, monkeypatch)
        shares, ratios = (torch.tensor(column) for column in zip(*found.values(), strict=True))
        assert float(ratios.max()) < 1 + 3 * excess
        assert float(ratios.mean()) < 1 + excess
        assert float(ratios.min()) > 1 - 1e-3, "nothing fits all pictures better than a fit to them, but for the ridge"
        spent[excess] = float(shares.mean())
    assert spent[0.2] < spent[0.005]
    assert float(shares.min()) <= 1 / 4, "layers with samples to spare look at few of them"


@pytest.mark.slow
def test_what_is_left_out_is_told(problem: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(students, "tell", told.append)
    methods = [PLeaS(excess=excess, rounds=0, logits="squares", label=f"x{excess}") for excess in (None, 0.2)]
    (_, whole), (_, part) = students.fitted(methods, problem, problem.evidence, problem.run, [Budget(1.0)])
    shares = [one["pictures"] * one["positions"] for one in part.layers.values()]
    assert told[0].endswith(f"in {whole.seconds:.1f} s")
    assert told[1].endswith(f", its layers to {sum(shares) / len(shares):.0%} of their samples on average")


def test_all_pictures_where_there_are_too_few_to_tell(problem: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(problem, pictures={name: some[:3] for name, some in problem.pictures.items()})
    with pytest.warns(UserWarning, match=r"excess is 0\.5, but pleas-1\.00 is fitted to all samples"):
        assert {share for share, _ in compared(few, 0.5, monkeypatch).values()} == {1.0}


@pytest.mark.parametrize(("excess", "fit"), [(0.0, "sequential"), (1.0, "sequential"), (0.1, "joint")])
def test_impossible_excess(excess: float, fit: str) -> None:
    with pytest.raises(ConfigurationError, match=f"excess is {excess}"):
        PLeaS(excess=excess, fit=fit)  # type: ignore[arg-type]


class Small(nn.Module):
    """Two convolutions on large maps, a residual sum, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner, self.other = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        randomised(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.other(self.inner(x))).relu().mean((2, 3)))


def smooth(count: int, seed: int) -> Tensor:
    """Pictures whose neighbouring positions are nearly alike."""
    return nn.functional.interpolate(pictures(count, seed, (3, 3, 3)), size=(24, 24), mode="bicubic")


@pytest.fixture(scope="module")
def large() -> Case:
    batches = [(domain, smooth(8, 200 + 31 * i + len(domain))) for domain in DOMAINS[:2] for i in range(BATCHES)]
    sources = [Small(seed) for seed in (0, 1)]
    return make_problem(sources, batches=batches, needs=("units", "inputs"), shape=(3, 24, 24))


def test_neighbouring_positions_are_left_out(large: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("project.fit.subsample.GATHER_COST", 0)  # it pays for wider layers only
    found = compared(large, 0.02, monkeypatch)
    (merged,) = merge_case(PLeaS(excess=0.02, rounds=0, logits="squares"), large, [1.0])
    for layer in ("stem", "inner"):
        assert merged.layers[layer]["positions"] <= 1 / 4
        assert found[layer][1] < 1.06
    assert merged.layers["head"]["positions"] == merged.layers["head"]["pictures"] == 1.0


@pytest.mark.parametrize("budget", [1.0, 1.4])
def test_positions_one_by_one_are_all_of_them(large: Case, budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """SampledPositions one by one, in any order, all positions ask for the same as whole maps do."""

    class Listed(AllPositions):
        """All positions, drawn."""

        def __init__(self, node: fx.Node, reader: nn.Module) -> None:
            super().__init__(node, reader)
            self.layer, self.drawn = reader, dict[int, SampledPositions]()
            self.reader = SampledPositions(node, reader, [], 1, 1, None).reader

        def at(self, batch: Batch) -> SampledPositions:
            if batch.number not in self.drawn:
                self.drawn[batch.number] = SampledPositions(self.node, self.layer, [batch], 1, 1, None)
            return self.drawn[batch.number]

        def inputs(self, batch: Batch) -> Tensor:
            return self.at(batch).inputs(batch)

        def outputs(self, batch: Batch, values: Tensor) -> Tensor:
            return self.at(batch).outputs(batch, values)

    (whole,) = merge_case(PLeaS("weights", logits="squares"), large, [budget])
    monkeypatch.setattr(sequential, "AllPositions", Listed)
    (one_by_one,) = merge_case(PLeaS("weights", logits="squares"), large, [budget])
    batch = smooth(4, 1)
    with torch.no_grad():
        assert close(one_by_one.student(batch), whole.student(batch), 1e-4)
    for name, fit in whole.layers.items():
        assert one_by_one.layers[name]["residual_after"] == pytest.approx(fit["residual_after"], rel=1e-4)


class Added(nn.Module):
    """A convolution on maps to which something with fewer positions, computed before, is added."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stem, self.context, self.mix = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(5), nn.Linear(5, 3)
        randomised(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        context = self.context(x.mean((2, 3), keepdim=True))
        return self.head((context + self.norm(self.mix(x))).relu().mean((2, 3)))


def some(problem: Case) -> Merged:
    """Fitted to some of the pictures and of their positions."""
    (merged,) = merge_case(PLeaS("weights", excess=0.2, rounds=1, logits="squares"), problem, [1.0])
    return merged


def test_positions_of_a_sum_with_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("project.fit.subsample.GATHER_COST", 0)
    batches = [(domain, smooth(8, 7 * i + len(domain))) for domain in DOMAINS[:2] for i in range(BATCHES)]
    problem = make_problem(
        [Added(seed) for seed in (0, 1)], batches=batches, needs=("units", "inputs"), shape=(3, 24, 24)
    )
    assert some(problem).layers["mix"]["positions"] < 1 / 2


@pytest.mark.parametrize("size", [2, 3])
def test_processes_look_at_their_own_pictures_and_make_one_student(
    large: Case, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("project.fit.subsample.GATHER_COST", 0)
    tracing = Lock()  # torch.fx changes all modules while it traces

    def walked(world: World) -> tuple[Student, dict[str, Measurements]]:
        it = dealt(large, world)
        with tracing:
            maps = {group.name: UnitMap.identity(group.size, 2) for group in it.spec.free}
            student = it.start({**it.fixed, **maps})
            walk = SequentialFit(
                student,
                it.sources,
                it.owners,
                it.pictures,
                ridge=0.1,
                rounds=1,
                divergence=False,
                excess=0.2,
                world=world,
            )
        world.reduce(torch.zeros(1))  # all have traced theirs
        return student, walk.run()

    found = together(size, walked)
    for student, fits in found:
        assert same_state(student.state_dict(), found[0][0].state_dict())
        assert [one.positions for one in fits.values()] == [one.positions for one in found[0][1].values()]
    assert found[0][1]["inner"].positions < 1 / 2
    (alone, _), batch = walked(World()), smooth(16, 1)
    with torch.no_grad():  # other positions are drawn: another estimate of the same fit
        expected = alone(batch)
        assert float((found[0][0](batch) - expected).std() / expected.std()) < 0.1


def test_drawn_positions_wait_on_disk(large: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("project.fit.subsample.GATHER_COST", 0)
    held, waiting = some(large), some(replace(large, scratch=tmp_path))
    assert held.layers["inner"]["positions"] < 1 / 2
    assert same_state(held.student.state_dict(), waiting.student.state_dict())
