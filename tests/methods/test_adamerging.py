"""AdaMerging: the entropy against SciPy, its gradient against finite differences, and where coefficients rest."""

import copy
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from descent import AdaMergingByDescent
from helpers import (
    DOMAINS,
    Case,
    close,
    make_problem,
    moved,
    only,
    pictures,
    prepare_case,
    random_network,
    same_state,
    space_of,
)
from meeting import dealt, together
from scipy.stats import entropy
from torch import Tensor

from project.errors import ConfigurationError, MergeError
from project.methods import AdaMerging, Merged, TaskArithmetic
from project.methods.shared.arithmetic import write
from project.methods.shared.blend import Blend
from project.methods.shared.entropy import Draws, Norms, Objective, entropies
from project.methods.ties import elected, trimmed
from project.runtime import World
from project.runtime.spill import Waiting, lengths, waiting
from project.student import Student

FEW = [(domain, pictures(8, i)) for i, domain in enumerate(DOMAINS[:3])]
NORMS: tuple[Norms, ...] = ("mixed", "domain", "running")


def problem(structure: int = 1, count: int = 2, mode: str = "shared") -> Case:
    base = random_network(structure, 50)
    return make_problem([moved(base, s) for s in range(count)], mode, needs=(), batches=FEW[:count], base=base)


def parts(method: AdaMerging, it: Case) -> tuple[Student, Blend, Objective]:
    """What is learned and what falls, in float64."""
    space = space_of(it, "none")
    student = it.start(space.maps)
    blend = method.blend(space, student)
    return student.double(), blend.double(), Objective(student, list(it.pictures), method.norms)


def batch(it: Case) -> dict[str, Tensor]:
    return {domain: torch.cat(list(batches)).double() for domain, batches in it.pictures.items()}


def learned(merged: Merged) -> Tensor:
    """λ, shape (tensors, sources), or (sources,)."""
    found = merged.learned["coefficients"].values()
    return torch.stack([torch.tensor(list(one.values()) if isinstance(one, dict) else one) for one in found], -1)


def test_entropies_are_scipys() -> None:
    logits = 5 * torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert np.allclose(entropies(logits), entropy(logits.softmax(1).numpy(), axis=1))
    assert entropies(torch.zeros(1, 8)).item() == pytest.approx(np.log(8))
    assert entropies(torch.tensor([[1000.0, 0.0]])).item() == 0


@pytest.mark.parametrize("mode", ["shared", "different"])
@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("structure", [0, 1, 2])
def test_the_objective_is_what_the_network_itself_predicts(structure: int, norms: Norms, mode: str) -> None:
    """Batch norms as torch has them in training and in eval mode, each domain by the columns of its own head."""
    it = problem(structure, 3, mode)
    student, blend, objective = parts(AdaMerging(norms=norms), it)
    shown, before = batch(it), copy.deepcopy(student.state_dict())
    found = objective.sums(blend.tensors(), shown)
    assert same_state(student.state_dict(), before), "statistics and parameters stay"
    assert not any(module.training for module in student.modules())
    network = copy.deepcopy(student)
    write(network, blend.tensors())
    network.network.train(norms != "running")
    with torch.no_grad():
        together = network(torch.cat(list(shown.values()))).split([len(one) for one in shown.values()])
        apart = [network(one) for one in shown.values()]
    for (domain, logits), sums in zip(
        zip(shown, apart if norms == "domain" else together, strict=True), found, strict=True
    ):
        mine = logits[:, it.labels.columns(domain)].softmax(1)
        assert mine.shape[1] == 5
        assert float(sums.detach()) == pytest.approx(float(entropy(mine.numpy(), axis=1).sum()), rel=1e-9)


@pytest.mark.parametrize("coefficients", ["task", "layer"])
@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("mode", ["shared", "different"])
def test_the_gradient_is_that_of_finite_differences(mode: str, norms: Norms, coefficients: str) -> None:
    it = problem(2, 2, mode)
    method = AdaMerging(coefficients, norms=norms)  # type: ignore[arg-type]
    _, blend, objective = parts(method, it)
    shown = batch(it)

    def total(rows: Tensor) -> float:
        with torch.no_grad():
            sums = objective.sums(blend.tensors(rows), shown)
        return float((sums / torch.tensor([len(one) for one in shown.values()])).sum())

    told = method.differentiate(blend, objective, shown, 0, 1)
    gradient, rows = blend.coefficients.grad, blend.coefficients.detach()
    assert gradient is not None
    assert gradient.shape == (len(blend.base) if coefficients == "layer" else 1, 2)
    assert sum(told.values()) == pytest.approx(total(rows))
    for place in itertools.islice(np.ndindex(*rows.shape), 0, None, 3):
        step = torch.zeros_like(rows)
        step[place] = 1e-7  # short, as no rectifier is to switch on the way; sums in float64 leave the slope 1e-8 or so
        slope = (total(rows + step) - total(rows - step)) / 2e-7
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("mode", ["shared", "different"])
def test_no_steps_is_task_arithmetic(mode: str) -> None:
    it = problem(1, 3, mode)
    expected = only(TaskArithmetic(0.3), it).student.state_dict()
    for coefficients in ("task", "layer"):
        found = only(AdaMerging(coefficients, steps=0), it).student.state_dict()  # type: ignore[arg-type]
        assert all(torch.allclose(found[name], one, atol=1e-6) for name, one in expected.items())


def test_sources_that_agree_count_alike() -> None:
    base, count = random_network(1, 50), 3
    source = moved(base, 1)
    it = make_problem([copy.deepcopy(source) for _ in range(count)], needs=(), batches=FEW, base=base)
    merged = only(AdaMerging("task", steps=30, rate=0.01), it)
    found = learned(merged)
    assert torch.allclose(found, found[:1].expand(count), atol=1e-5)
    assert abs(float(found[0]) - 0.3) > 0.01, "they have moved"
    for name, _ in base.named_parameters():
        one = merged.student.network.get_parameter(name)
        along = base.get_parameter(name) + found.sum() * (source.get_parameter(name) - base.get_parameter(name))
        assert torch.allclose(one, along, atol=1e-5)
    same = make_problem([base, copy.deepcopy(base)], needs=(), batches=FEW[:2], base=base)
    still = only(AdaMerging(steps=5, rate=0.1), same)
    assert close(still.student(FEW[0][1]), base(FEW[0][1]), 1e-5), "nothing to move along"
    assert torch.equal(learned(still), torch.full_like(learned(still), 0.3))


@pytest.mark.parametrize("plus", [False, True])
def test_task_vectors_that_do_not_meet_are_each_scaled_by_their_own(plus: bool) -> None:
    """Nothing is elected away where they do not meet, so that trimming alone tells AdaMerging++ apart."""
    base, random = random_network(1, 50), np.random.default_rng(0)
    sources = [copy.deepcopy(base), copy.deepcopy(base)]
    for name, one in base.named_parameters():
        owner, values = random.integers(0, 2, one.shape), 0.2 * random.normal(size=one.shape)
        for index, source in enumerate(sources):
            source.get_parameter(name).data += torch.from_numpy(np.where(owner == index, values, 0)).float()
    it = make_problem(sources, needs=(), batches=FEW[:2], base=base)
    merged = only(AdaMerging(plus=plus, keep=1.0, steps=20, rate=0.02), it)
    rows = learned(merged)
    assert float((rows[:, 0] - rows[:, 1]).abs().max()) > 0.01
    for row, (name, one) in zip(rows, base.named_parameters(), strict=True):
        gaps = [source.get_parameter(name) - one for source in sources]
        expected = one + sum(scale * gap for scale, gap in zip(row, gaps, strict=True))
        assert torch.allclose(merged.student.network.get_parameter(name), expected, atol=1e-6)


def test_plus_trims_and_elects() -> None:
    """By hand: halves (0, −2, 3, 0) and (5, 0, −4, 0) stay, the sums have signs +, −, −, and where it is 0, most: −."""
    stacked = torch.tensor([[1.0, -2.0, 3.0, 0.5], [5.0, 3.0, -4.0, 1.0]], dtype=torch.float64)
    assert elected(trimmed(stacked, 0.5)).tolist() == [[0.0, -2.0, 0.0, 0.0], [5.0, 0.0, -4.0, 0.0]]
    it = problem()
    _, blend, _ = parts(AdaMerging(plus=True, keep=0.3), it)
    _, whole, _ = parts(AdaMerging(), it)
    before = np.stack([np.concatenate([v[s].flatten() for v in whole.vectors.values()]) for s in range(2)])
    after = np.stack([np.concatenate([v[s].flatten() for v in blend.vectors.values()]) for s in range(2)])
    kept = np.abs(before) >= np.sort(np.abs(before))[:, [-round(0.3 * before.shape[1])]]
    signs = np.sign((before * kept).sum(0))
    assert np.array_equal(after, np.where(kept & (np.sign(before) == signs), before, 0))


@pytest.mark.parametrize("norms", [pytest.param("running", marks=pytest.mark.slow), "mixed"])
def test_task_wise_coefficients_find_a_minimum(norms: Norms) -> None:
    """On all pictures at once, against every point of a grid over the square, or around where they have come to rest.

    Under running statistics there is one minimum here; under a batch's own there are others elsewhere.
    """
    it = problem(1, 2)
    method = AdaMerging("task", norms=norms, batch=99, steps=150, rate=0.03)
    merged = only(method, it)
    _, blend, objective = parts(method, it)
    shown = batch(it)

    def mean(point: tuple[float, float]) -> float:
        with torch.no_grad():
            sums = objective.sums(blend.tensors(torch.tensor([point], dtype=torch.float64)), shown)
        return float(sums.sum()) / 16

    rest = tuple(learned(merged).tolist())
    square = list(itertools.product(np.linspace(0, 1, 9), repeat=2))
    near = [tuple(np.clip(np.add(rest, step), 0, 1)) for step in itertools.product((-0.05, 0, 0.05), repeat=2)]
    values = [mean(point) for point in square]
    lowest = min(values) if norms == "running" else min(map(mean, near))
    assert mean(rest) <= lowest + 0.01 * (max(values) - min(values))
    assert mean(rest) < mean((0.3, 0.3)) - 0.1 * (max(values) - min(values))
    assert merged.curves["entropy"]["all layers"][0] == pytest.approx(mean((0.3, 0.3)), rel=1e-4)


def test_coefficients_keep_within_their_bounds_where_these_are_asked_for() -> None:
    it = problem()
    inside = learned(only(AdaMerging(steps=8, rate=0.5), it))
    assert float(inside.min()) == 0
    assert float(inside.max()) == 1
    outside = learned(only(AdaMerging(steps=8, rate=0.5, clamp=False), it))
    assert float(outside.min()) < 0


def test_what_was_learned_is_told() -> None:
    it = problem(1, 2)
    merged = only(AdaMerging(steps=10), it)
    layers = {layer.name for layer in it.spec.layers}
    assert set(merged.layers) == layers
    names = [name for name, _ in it.sources[0].named_parameters()]
    assert {domain: list(rows) for domain, rows in merged.learned["coefficients"].items()} == {
        domain: names for domain in DOMAINS[:2]
    }
    for layer in layers:
        for domain in DOMAINS[:2]:
            mine = merged.learned["coefficients"][domain][f"{layer}.weight"]
            assert merged.layers[layer][f"coefficient {domain}"] == mine
    assert list(merged.curves["entropy"]) == ["all layers", *DOMAINS[:2]]
    assert list(merged.curves["entropy"]["all layers"]) == list(range(10))
    assert list(merged.curves["coefficient"]["all layers"]) == list(range(11))
    for index, domain in enumerate(DOMAINS[:2]):
        assert merged.curves["coefficient"][domain][0] == pytest.approx(0.3)
        assert merged.curves["coefficient"][domain][10] == pytest.approx(float(learned(merged)[:, index].mean()))
    task = only(AdaMerging("task", steps=2), it)
    assert task.layers == {}
    assert set(task.learned["coefficients"]) == set(DOMAINS[:2])


def test_sources_are_left_alone_and_the_same_comes_twice() -> None:
    it = problem()
    before = [copy.deepcopy(one.state_dict()) for one in it.sources]
    for method in (AdaMerging(steps=5, batch=3), AdaMerging("task", plus=True, norms="domain", steps=5, batch=3)):
        with torch.no_grad():  # as a merge runs it
            first = only(method, it)
        second = only(method, it)
        assert same_state(first.student.state_dict(), second.student.state_dict())
        assert first.curves == second.curves
        assert all(same_state(one.state_dict(), state) for one, state in zip(it.sources, before, strict=True))
        for name, buffer in it.start(space_of(it, "none").maps).network.named_buffers():
            assert torch.equal(first.student.network.get_buffer(name), buffer), "buffers take no part"
    other = only(AdaMerging(steps=5, batch=3, seed=1), it)
    assert not torch.equal(learned(other), learned(only(AdaMerging(steps=5, batch=3), it)))


@pytest.mark.parametrize(("batch", "size"), [(4, 1), (5, 2), (1, 3), (7, 3), (8, 3), (99, 2)])
def test_processes_draw_what_one_draws_and_share_it_evenly(batch: int, size: int) -> None:
    """Of pictures that are dealt out in turn, each told by a number, over several epochs."""
    whole, parts = torch.arange(20.0), (3, 2, 5, 1, 9)
    alone = Draws({"art": list(whole.split(7))}, max(batch, size), 3)

    def work(world: World) -> list[Tensor]:
        mine = whole[world.rank :: size]
        shown = [one for one in mine.split(parts[world.rank]) if len(one)]
        draws = Draws({"art": shown}, batch, 3, world)
        return [next(draws)["art"] for _ in range(9)]

    for step, shares in enumerate(zip(*together(size, work), strict=True)):
        expected = next(alone)["art"]
        assert len(expected) == min(20, max(batch, size))
        for rank, share in enumerate(shares):
            assert torch.equal(share, expected[rank::size]), step


class Counting(list[Tensor]):
    """Batches that count how often each is read."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        super().__init__(batches)
        self.reads: Counter[int] = Counter()

    def __getitem__(self, index: Any) -> Any:
        self.reads[index] += 1
        return super().__getitem__(index)


def test_a_step_reads_each_batch_of_pictures_once() -> None:
    shown = Counting([torch.arange(5.0), torch.arange(5.0, 12.0), torch.arange(12.0, 13.0)])
    plain = torch.cat(list(shown))
    generator = torch.Generator().manual_seed(3)
    order = torch.cat([plain[torch.randperm(13, generator=generator)] for _ in range(8)])
    draws = Draws({"art": shown}, 9, 3)
    for step in range(8):
        shown.reads.clear()
        assert torch.equal(next(draws)["art"], order[9 * step : 9 * step + 9]), "in the order that was drawn"
        assert set(shown.reads.values()) == {1}


def test_pictures_that_wait_on_disk_are_not_read_to_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [torch.arange(5.0), torch.arange(5.0, 7.0)]
    shown = waiting(parts, tmp_path)
    plain, spilled = Draws({"art": parts}, 4, 0), Draws({"art": shown}, 4, 0)
    assert all(torch.equal(next(plain)["art"], next(spilled)["art"]) for _ in range(5))
    monkeypatch.setattr(Waiting, "__getitem__", lambda *_: pytest.fail("it is read"))
    assert len(Draws({"art": shown}, 4, 0).places["art"]) == 7
    assert lengths(shown) == [5, 2]


@pytest.mark.parametrize("batch", [3, 4, 99])
def test_every_picture_comes_once_before_any_comes_again(batch: int) -> None:
    shown = {domain: [torch.arange(5.0), torch.arange(5.0, 7.0)] for domain in DOMAINS[:2]}
    draws = Draws(shown, batch, 0)
    share = min(7, batch)
    drawn = [next(draws) for _ in range(14)]
    for domain in shown:
        assert all(len(one[domain]) == share for one in drawn)
        numbers = torch.cat([one[domain] for one in drawn]).tolist()
        for start in range(0, len(numbers) - 6, 7):
            assert sorted(numbers[start : start + 7]) == list(range(7))
    assert drawn[0][DOMAINS[0]].tolist() != drawn[0][DOMAINS[1]].tolist()


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("share", [7, 80])
def test_processes_learn_what_one_learns(norms: Norms, share: int) -> None:
    """Some pictures a step, or all of them; in shares that are not even."""
    shown = [(domain, pictures(12, i)) for i, domain in enumerate(DOMAINS[:2])]
    base = random_network(1, 50)
    it = make_problem([moved(base, s) for s in range(2)], needs=(), batches=shown, base=base)

    def run(world: World) -> Tensor:
        return learned(only(AdaMergingByDescent(norms=norms, batch=share, steps=6, rate=0.05), dealt(it, world)))

    alone, found = run(World()), together(3, run)
    assert all(torch.equal(one, found[0]) for one in found)
    # Gradients are summed in another order: by rounding, and by a unit here and there that is 0 but for rounding.
    assert torch.allclose(found[0], alone, atol=1e-2 * float((alone - 0.3).abs().max()))
    assert float((alone - 0.3).abs().max()) > 0.01


@pytest.mark.parametrize("norms", NORMS)
def test_a_gradient_is_the_same_however_many_processes_share_the_batch(norms: Norms) -> None:
    """In float64, of a batch whose shares are not even, to what rounding leaves."""
    it = problem(2, 2)
    _, blend, objective = parts(AdaMerging(norms=norms), it)
    expected, entropies_ = objective.gradient(blend.tensors(), batch(it), blend.coefficients)
    copies = [parts(AdaMerging(norms=norms), it) for _ in range(3)]

    def work(world: World) -> tuple[Tensor, dict[str, float]]:
        _, mine, here = copies[world.rank]
        here.world = world
        share = {domain: shown[world.rank :: 3] for domain, shown in batch(it).items()}
        with torch.enable_grad():
            return here.gradient(mine.tensors(), share, mine.coefficients)

    for gradient, told in together(3, work):
        assert torch.allclose(gradient, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
        assert told == pytest.approx(entropies_, rel=1e-12)


def test_a_lone_picture_goes_by_running_statistics() -> None:
    base = random_network(2, 50)
    one = [(domain, pictures(1, i)) for i, domain in enumerate(DOMAINS[:2])]
    it = make_problem([moved(base, s) for s in range(2)], needs=(), batches=one, base=base)
    assert torch.isfinite(learned(only(AdaMerging(norms="domain", steps=2), it))).all()


def test_what_cannot_be_learned_is_refused() -> None:
    base = random_network(1, 50)
    it = problem(1, 2, "different")
    with pytest.raises(ConfigurationError, match="method adamerging needs base"):
        prepare_case(AdaMerging(), replace(it, base=None), {}, [1.0])
    with pytest.raises(ConfigurationError, match="calibration pictures are of 'public', which has none"):
        prepare_case(AdaMerging(), it, {"public": 9}, [1.0])
    prepare_case(AdaMerging(), problem(), {"public": 9}, [1.0])
    with pytest.raises(MergeError, match="no longer finite; take a smaller rate"):
        only(AdaMerging(steps=3, rate=1e30, clamp=False), make_problem(
            [moved(base, s) for s in range(2)], needs=(), batches=FEW[:2], base=base))  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"coefficients": "all"}, "coefficients is 'all'; allowed: 'task', 'layer'"),
        ({"keep": 0.0}, "keep is 0.0"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"scale": 1.5}, "scale is 1.5, where clamp is true; allowed: 0 to 1"),
        ({"steps": -1}, "steps is -1; allowed: whole numbers from 0"),
        ({"batch": 0}, "batch is 0; allowed: whole numbers from 1"),
        ({"seed": -1}, "seed is -1"),
        ({"rate": 0.0}, "rate is 0.0; allowed: above 0"),
        ({"norms": "all"}, "norms is 'all'; allowed: 'mixed', 'domain', 'running'"),
    ],
)
def test_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        AdaMerging(**arguments)  # type: ignore[arg-type]
