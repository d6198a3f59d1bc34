"""Concrete subspaces: the mask by hand, its gradient, both levels of learning, and what is merged in the end."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from descent import ConcreteByDescent
from helpers import (
    DOMAINS,
    Case,
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
from torch import Tensor, nn

from project.errors import ConfigurationError
from project.methods import Concrete, TaskArithmetic
from project.methods.concrete import halves
from project.methods.shared.blend import MaskedBlend
from project.methods.shared.entropy import Norms, Objective
from project.runtime import World

FEW = [(domain, pictures(8, i)) for i, domain in enumerate(DOMAINS[:3])]


def problem(count: int = 2, mode: str = "shared", batches: list[tuple[str, Tensor]] | None = None) -> Case:
    base = random_network(1, 50)
    sources = [moved(base, s) for s in range(count)]
    return make_problem(sources, mode, needs=(), batches=FEW[:count] if batches is None else batches, base=base)


def parts(method: Concrete, it: Case) -> tuple[MaskedBlend, Objective]:
    """What is learned and what falls, in float64."""
    space = space_of(it, "none")
    student = it.start(space.maps)
    blend = method.blend(space, student).double()
    assert isinstance(blend, MaskedBlend)
    student.double()
    return blend, Objective(student, list(it.pictures), method.norms)


def batch(it: Case) -> dict[str, Tensor]:
    return {domain: torch.cat(list(batches)).double() for domain, batches in it.pictures.items()}


def small(temperature: float = 0.5) -> MaskedBlend:
    """Two tensors, of two and of three entries, and two sources."""
    base = {"one": torch.zeros(2), "two": torch.zeros(3)}
    vectors = {name: torch.stack([torch.ones_like(one), 2 * torch.ones_like(one)]) for name, one in base.items()}
    blend = MaskedBlend(base, vectors, 0.3, layerwise=True, temperature=temperature).double()
    assert isinstance(blend, MaskedBlend)
    return blend


@torch.no_grad()
def test_the_mask_by_hand() -> None:
    blend = small()
    assert all(bool((one == 1).all()) for one in blend.masks().values()), "half open everywhere is open by the mean"
    blend.logits.copy_(torch.tensor([0.0, np.log(3), 0.0, -np.log(2), np.log(2)]))
    # σ(2 x) = e²ˣ / (1 + e²ˣ): ½ and 9/10; ½, 1/5 and 4/5.
    found = blend.masks()
    assert found["one"].tolist() == pytest.approx([0.5 / 0.7, 0.9 / 0.7])
    assert found["two"].tolist() == pytest.approx([1.0, 0.4, 1.6])
    # u = ¾ adds ln 3 to x, u = ¼ takes it off: σ(2 ln 3) = 9/10, σ(0) = ½; σ(−2 ln 3) = 1/10, then σ(± 2 ln 6).
    uniform = torch.tensor([0.75, 0.25, 0.25, 0.25, 0.75], dtype=torch.float64)
    found = blend.masks(uniform)
    assert found["one"].tolist() == pytest.approx([0.9 / 0.7, 0.5 / 0.7])
    low, high = 1 / 37, 36 / 37
    assert found["two"].tolist() == pytest.approx([3 * one / (0.1 + low + high) for one in (0.1, low, high)])
    found = blend.masks(binarise=True)
    assert found["one"].tolist() == [1.0, 1.0]
    assert found["two"].tolist() == [1.5, 0.0, 1.5]
    assert blend.openness()["two"] == pytest.approx((1 / 2 + 1 / 3 + 2 / 3) / 3)
    blend.coefficients.copy_(torch.tensor([[0.5, 0.25], [1.0, 0.0]]))
    tensors = blend.tensors(masks=blend.masks())
    assert tensors["one"].tolist() == pytest.approx([0.5 / 0.7, 0.9 / 0.7]), "½ · 1 + ¼ · 2 = 1"
    assert tensors["two"].tolist() == pytest.approx([1.0, 0.4, 1.6])
    blend.logits[:2] = -1.0
    assert blend.masks(binarise=True)["one"].tolist() == [0.0, 0.0], "closed as a whole, it stays at the base"


@torch.no_grad()
def test_chance_is_the_same_in_every_process_and_new_at_every_step() -> None:
    blend = small()
    assert torch.equal(blend.uniform(3, 5), small().uniform(3, 5))
    assert not torch.equal(blend.uniform(3, 5), blend.uniform(3, 6))
    assert not torch.equal(blend.uniform(3, 5), blend.uniform(4, 5))
    edges = blend.masks(torch.tensor([0.0, 1.0, 0.0, 0.5, 1.0], dtype=torch.float64))
    assert all(bool(one.isfinite().all()) for one in edges.values())
    cold = small(temperature=1e-2).masks(torch.full((5,), 0.6, dtype=torch.float64))
    assert all(torch.allclose(one, torch.ones_like(one)) for one in cold.values())


@pytest.mark.parametrize("mode", ["shared", "different"])
@pytest.mark.parametrize("options", [{}, {"coefficients": "learned"}, {"binarise": True}])
def test_no_steps_is_task_arithmetic(options: dict[str, object], mode: str) -> None:
    it = problem(3, mode)
    expected = only(TaskArithmetic(0.3), it).student.state_dict()
    found = only(Concrete(steps=0, **options), it).student.state_dict()  # type: ignore[arg-type]
    assert all(torch.allclose(found[name], one, atol=1e-6) for name, one in expected.items())


@pytest.mark.parametrize("norms", ["mixed", "domain", "running"])
def test_the_gradient_of_the_mask_is_that_of_finite_differences(norms: Norms) -> None:
    it = problem()
    method = Concrete(norms=norms, seed=4)
    blend, objective = parts(method, it)
    shown = batch(it)
    with torch.no_grad():
        blend.logits.normal_(generator=torch.Generator().manual_seed(0))

    def total() -> float:
        with torch.no_grad():
            sums = objective.sums(blend.tensors(masks=blend.masks(blend.uniform(4, 7))), shown)
        return float(sums.sum()) / 8

    told = method.differentiate(blend, objective, shown, 7, 20)
    gradient = blend.logits.grad
    assert gradient is not None
    assert blend.coefficients.grad is None
    assert sum(told.values()) == pytest.approx(total())
    for place in gradient.abs().topk(10).indices.tolist():
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                blend.logits[place] += sign * 1e-6  # short, as no rectifier is to switch on the way
                values.append(total())
                blend.logits[place] -= sign * 1e-6
        assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-2, abs=1e-7)


def test_both_levels_of_the_first_half() -> None:
    """λ takes one step from its start on half of the pictures, and the mask's gradient is taken there on the others."""
    it = problem()
    method = Concrete("learned", inner_rate=2.0, seed=1)
    blend, objective = parts(method, it)
    shown = batch(it)
    first, second = halves(shown)
    start = blend.coefficients.detach().clone().requires_grad_()
    uniform = blend.uniform(1, 3)
    inner = objective.sums(blend.tensors(start, blend.masks(uniform)), first).sum() / 4
    (slope,) = torch.autograd.grad(inner, [start])
    outer = objective.sums(blend.tensors((start - 2 * slope).detach(), blend.masks(uniform)), second).sum() / 4
    (expected,) = torch.autograd.grad(outer, [blend.logits])
    told = method.differentiate(blend, objective, shown, 3, 10)
    assert blend.logits.grad is not None
    assert torch.allclose(blend.logits.grad, expected, rtol=1e-9)
    assert blend.coefficients.grad is None
    assert torch.equal(blend.coefficients, start), "each step begins where λ starts"
    assert sum(told.values()) == pytest.approx(float(outer.detach()))
    method.differentiate(blend, objective, shown, 5, 10)
    assert blend.logits.grad is None
    still = objective.sums(blend.tensors(masks=blend.masks()), shown).sum() / 8
    assert blend.coefficients.grad is not None
    assert torch.allclose(blend.coefficients.grad, torch.autograd.grad(still, [blend.coefficients])[0], rtol=1e-9)


def test_halves_of_a_batch() -> None:
    first, second = halves({"a": torch.arange(4), "b": torch.arange(5), "c": torch.arange(1)})
    assert {domain: one.tolist() for domain, one in first.items()} == {"a": [0, 1], "b": [0, 1, 2], "c": [0]}
    assert {domain: one.tolist() for domain, one in second.items()} == {"a": [2, 3], "b": [2, 3, 4], "c": [0]}


@pytest.mark.parametrize("binarise", [False, True])
def test_the_student_is_task_arithmetic_behind_the_mask(binarise: bool) -> None:
    """The mask is one for all sources: what it makes of their sum shows it, wherever their sum is not 0."""
    it = problem()
    merged = only(Concrete(steps=12, rate=0.5, binarise=binarise), it)
    plain = only(TaskArithmetic(0.3), it)
    assert isinstance(it.base, nn.Module)
    differ = 0
    for name, one in it.base.named_parameters():
        sums, masked = ((made.student.network.get_parameter(name) - one).detach() for made in (plain, merged))
        mask = masked / sums
        assert float(mask.mean()) == pytest.approx(1, abs=1e-2)
        assert float(mask.min()) > -1e-2
        if binarise:
            high = float(mask.max())
            assert bool(((mask.abs() < 1e-2) | ((mask - high).abs() < 1e-2 * high)).all())
        differ += bool((mask - 1).abs().max() > 0.05)
    assert differ > 3
    fixed = merged.learned["coefficients"]
    assert {domain: value for domain, value in fixed.items()} == pytest.approx(dict.fromkeys(DOMAINS[:2], 0.3))


def test_sources_that_agree_count_alike_and_their_entropy_falls() -> None:
    base = random_network(1, 50)
    source = moved(base, 1)
    it = make_problem([source, copy.deepcopy(source)], needs=(), batches=FEW[:2], base=base)
    # Adam would go apart where a gradient is rounding, as that of a bias before a norm is.
    merged = only(ConcreteByDescent("learned", batch=99, steps=60, rate=0.05), it)
    mine, theirs = (list(one.values()) for one in merged.learned["coefficients"].values())
    assert mine == pytest.approx(theirs, abs=1e-5)
    curve = merged.curves["entropy"]["all layers"]
    assert curve[59] < curve[30], "in the second half, on all pictures and without chance"


@pytest.mark.parametrize("options", [{}, {"coefficients": "learned", "batch": 99}])
def test_sources_that_are_their_base_come_back(options: dict[str, object]) -> None:
    base = random_network(1, 50)
    it = make_problem([copy.deepcopy(base) for _ in range(2)], needs=(), batches=FEW[:2], base=base)
    found = only(Concrete(steps=5, rate=0.1, **options), it).student.network  # type: ignore[arg-type]
    for name, one in base.named_parameters():
        assert torch.allclose(found.get_parameter(name), one, atol=1e-7), name


def test_what_was_learned_is_told() -> None:
    it = problem()
    for coefficients in ("fixed", "learned"):
        merged = only(Concrete(coefficients, steps=6, rate=0.1), it)  # type: ignore[arg-type]
        names = [name for name, _ in it.sources[0].named_parameters()]
        assert list(merged.learned["open"]) == names
        quantities = {"open"} | ({f"coefficient {d}" for d in DOMAINS[:2]} if coefficients == "learned" else set())
        assert set(merged.layers) == {layer.name for layer in it.spec.layers}
        assert all(set(told) == quantities for told in merged.layers.values())
        assert merged.curves["open"]["all layers"][0] == pytest.approx(0.5)
        assert merged.curves["open"]["all layers"][6] != merged.curves["open"]["all layers"][0]
        curve = merged.curves.get("coefficient", {}).get("all layers")
        assert (curve is None) == (coefficients == "fixed")
        if curve is not None:
            assert [curve[step] for step in (0, 1, 2, 3)] == pytest.approx([0.3] * 4), "until the second half"
            assert curve[6] != curve[3]


def test_sources_are_left_alone_and_the_same_comes_twice() -> None:
    it = problem()
    before = [copy.deepcopy(one.state_dict()) for one in it.sources]
    for method in (Concrete(steps=5, batch=3), Concrete("learned", steps=6, batch=3)):
        with torch.no_grad():  # as a merge runs it
            first = only(method, it)
        assert same_state(first.student.state_dict(), only(method, it).student.state_dict())
        assert all(same_state(one.state_dict(), state) for one, state in zip(it.sources, before, strict=True))


@pytest.mark.parametrize(("norms", "batch"), [("running", 24), ("mixed", 4)])
def test_processes_have_one_student_and_that_of_one(norms: Norms, batch: int) -> None:
    it = problem(batches=[(domain, pictures(12, i)) for i, domain in enumerate(DOMAINS[:2])])

    def run(method: Concrete) -> Callable[[World], dict[str, Tensor]]:
        return lambda world: dict(only(method, dealt(it, world)).student.network.state_dict())

    whole = ConcreteByDescent(norms=norms, batch=batch, steps=6, rate=30)
    alone, found = run(whole)(World()), together(2, run(whole))
    start = only(TaskArithmetic(0.3), it).student.network.state_dict()
    far = 0.0
    for name, one in alone.items():
        assert torch.equal(found[0][name], found[1][name])
        # Gradients are summed in another order, which a thousandth of the largest weight is far beyond.
        assert torch.allclose(found[0][name], one, atol=1e-3 * float(one.abs().max()))
        far = max(far, float((one - start[name]).abs().max()))
    assert far > 0.05, "they have moved"
    found = together(2, run(Concrete("learned", batch=6, steps=6, rate=0.1)))
    assert same_state(found[0], found[1])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [6, 7, 11])
def test_processes_split_a_batch_as_one_does(count: int, size: int) -> None:
    whole = torch.arange(count)
    shares = together(size, lambda world: halves({"art": whole[world.rank :: size]}, world))
    first, second = (sorted(torch.cat([share[half]["art"] for share in shares]).tolist()) for half in (0, 1))
    assert first == list(range((count + 1) // 2))
    assert second == list(range(count // 2, count))
    assert all(len(half["art"]) for share in shares for half in share)


def test_a_process_with_one_picture_has_it_in_both_halves() -> None:
    shares = together(3, lambda world: halves({"art": torch.tensor([world.rank])}, world))
    assert [[half["art"].tolist() for half in share] for share in shares] == [[[r], [r]] for r in range(3)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"coefficients": "task"}, "coefficients is 'task'; allowed: 'fixed', 'learned'"),
        ({"temperature": 0.0}, "temperature is 0.0; allowed: above 0"),
        ({"inner_rate": -1.0}, "inner_rate is -1.0; allowed: above 0"),
        ({"norms": "own"}, "norms is 'own'"),
    ],
)
def test_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Concrete(**arguments)  # type: ignore[arg-type]


def test_it_needs_a_base() -> None:
    with pytest.raises(ConfigurationError, match="method concrete needs base"):
        prepare_case(Concrete(), replace(problem(), base=None), {}, [1.0])
