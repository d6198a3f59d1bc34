"""Methods for sources of one base: on sources that agree, on task vectors that do not meet, and worked by hand."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers import (
    DOMAINS,
    Case,
    close,
    make_problem,
    message_of,
    only,
    pictures,
    prepare_case,
    random_network,
    same_state,
    space_of,
)
from torch import Tensor, nn

from project.errors import ConfigurationError
from project.methods import PCB, TIES, Average, Fisher, Merged, Method, RegMean, TaskArithmetic
from project.methods.ties import disjoint_mean, trimmed
from project.moments import DIAGONAL, INPUTS, UNITS, fisher_need

NEEDS = (INPUTS, UNITS, fisher_need(DIAGONAL, "exact"))
FEW = [(domain, pictures(8, i)) for i, domain in enumerate(DOMAINS[:3])]


def parameters(merged: Merged) -> dict[str, Tensor]:
    return {name: one.detach().double() for name, one in merged.student.network.named_parameters()}


def joined(merged: Merged, like: nn.Module) -> Tensor:
    """The student's parameters as one vector; norms that the sources have without a scale are left out."""
    found = parameters(merged)
    return torch.cat([found[name].flatten() for name, _ in like.named_parameters()])


def flat(network: nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten() for one in network.parameters()]).double()


def load(network: nn.Module, values: Tensor) -> nn.Module:
    nn.utils.vector_to_parameters(values.float(), network.parameters())
    return network.requires_grad_(False)


def family(vectors: list[Tensor], structure: int = 1) -> tuple[list[nn.Module], nn.Module]:
    """Networks at these task vectors from a random base."""
    base = random_network(structure, 50)
    return [load(copy.deepcopy(base), flat(base) + one) for one in vectors], base


def disjoint(count: int, structure: int = 1, seed: int = 0) -> list[Tensor]:
    """Random task vectors of which none is where another is: orthogonal, however a method looks at them."""
    random, size = np.random.default_rng(seed), len(flat(random_network(structure)))
    owner = random.integers(0, count, size)
    values = 0.1 * random.normal(size=size)
    return [torch.from_numpy(np.where(owner == index, values, 0.0)) for index in range(count)]


@cache
def agreeing(mode: str) -> Case:
    network = random_network(1, 1)
    sources = [network, copy.deepcopy(network), copy.deepcopy(network)]
    return make_problem(sources, mode, needs=NEEDS, batches=FEW, base=random_network(1, 9))


EVERY: dict[str, Callable[[], Method]] = {
    "average": lambda: Average([1.0, 0.5, 2.0]),
    "task arithmetic": lambda: TaskArithmetic(1 / 3),
    "ties": lambda: TIES(keep=1.0),
    "ties by tensor": lambda: TIES(keep=1.0, trim="tensor"),
    "fisher": lambda: Fisher("exact", [1.0, 0.5, 2.0]),
    "regmean": lambda: RegMean(),
    "regmean, nothing off the diagonal": lambda: RegMean(0.0, 0.01),
}


@pytest.mark.parametrize("mode", ["shared", "different"])
@pytest.mark.parametrize("name", EVERY)
def test_sources_that_agree_come_back(name: str, mode: str) -> None:
    it = agreeing(mode)
    network, method = it.sources[0], EVERY[name]()
    prepare_case(method, it, dict.fromkeys(DOMAINS[:3], 8), [1.0])
    merged = only(method, it)
    batch = pictures(4, 7)
    with torch.no_grad():
        expected = network(batch).repeat(1, 3 if mode == "different" else 1)
        assert close(merged.student(batch), expected, 1e-5)
    assert merged.name.endswith("-1.00")
    for buffer, values in network.named_buffers():
        assert torch.allclose(merged.student.network.state_dict()[buffer], values), "buffers take no part"


def test_pcb_keeps_or_drops_what_all_agree_on() -> None:
    """Of sources that agree, every entry is theirs where it won, and the base's where it lost."""
    (vector,) = disjoint(1)
    sources, base = family([vector, vector, vector])
    it = make_problem(sources, needs=(), batches=FEW, base=base)
    found = joined(only(PCB(keep=0.3, scale=1.0, clamp=0.0), it), base)
    kept = torch.isclose(found, flat(sources[0]), atol=1e-6)
    lost = torch.isclose(found, flat(base), atol=1e-6)
    assert bool((kept | lost).all())
    assert float(kept.double().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(vector[kept].abs().min()) >= float(vector[~kept].abs().max()) - 1e-6, "the largest have won"


@pytest.mark.parametrize("count", [2, 3])
def test_task_vectors_that_do_not_meet_add_up(count: int) -> None:
    vectors = disjoint(count)
    sources, base = family(vectors)
    it = make_problem(sources, needs=NEEDS, batches=FEW[:count], base=base)
    together = flat(base) + sum(vectors)
    for method in (TaskArithmetic(1.0), TIES(keep=1.0), PCB(keep=1.0, scale=1.0, clamp=0.0)):
        found = joined(only(method, it), base)
        missed = ~torch.isclose(found, together, atol=1e-6)
        assert int(missed.sum()) <= (count if isinstance(method, PCB) else 0), "PCB: each one's least entry has lost"
    assert torch.allclose(joined(only(Average(), it), base), flat(base) + sum(vectors) / count, atol=1e-6)
    halves = TIES(keep=0.4).vector(torch.stack(vectors), [len(vectors[0])])
    assert torch.equal(halves != 0, sum(trimmed(one[None], 0.4)[0] for one in vectors) != 0)


def test_fisher_gives_each_entry_to_whom_it_matters() -> None:
    vectors = disjoint(2)
    sources, base = family(vectors)
    it = make_problem(sources, needs=NEEDS, batches=FEW[:2])
    start = 0
    for table in it.statistics.squares["exact"].values():
        for (source, _), moment in table.items():
            one = moment.totals[0]
            mine = vectors[source][start : start + one.numel()].view_as(one) != 0
            moment.load([mine.double()], 1)
        start += one.numel()
    found = joined(only(Fisher("exact", floor=1e-9), it), base)
    assert torch.allclose(found, flat(base) + sum(vectors), atol=1e-5)


def test_regmean_of_inputs_that_do_not_meet_does_what_both_do() -> None:
    """Sources that read orthogonal inputs are no hindrance to each other, whatever their weights."""
    it = make_problem([random_network(1, weights) for weights in (0, 1)], needs=NEEDS, batches=FEW[:2])
    layer, random = it.spec.layers[-1], np.random.default_rng(0)
    size = it.sources[0].get_submodule(layer.name).weight[0].numel()
    axes = torch.from_numpy(np.linalg.qr(random.normal(size=(size, size)))[0]).float()
    halves = axes[:, : size // 2], axes[:, size // 2 :]
    for (source, _), moment in it.statistics.inputs[layer.name].items():
        moment.totals[0].zero_()
        moment.count = 0
        moment.update(halves[source] @ torch.from_numpy(random.normal(size=(halves[source].shape[1], 60))).float())
    found = parameters(only(RegMean(1.0, 0.0), it))[f"{layer.name}.weight"].flatten(1)
    for source, half in zip(it.sources, halves, strict=True):
        wanted = source.get_submodule(layer.name).weight.detach().flatten(1).double() @ half.double()
        assert close(found @ half.double(), wanted, 1e-4)


# ---- worked by hand ------------------------------------------------------------------------------------------------


def vector(method: TIES | PCB | TaskArithmetic, *vectors: list[float], sizes: list[int] | None = None) -> list[float]:
    stacked = torch.tensor(vectors, dtype=torch.float64)
    return method.vector(stacked, sizes or [stacked.shape[1]]).tolist()


def test_task_arithmetic_by_hand() -> None:
    assert vector(TaskArithmetic(0.5), [1.0, -2.0], [3.0, 4.0]) == [2.0, 1.0]


def test_ties_by_hand() -> None:
    """Half of four entries stay: (0, −2, 3, 0), (5, 0, 0, −4), (0, 3, 2, 0); signs of the sums: +, +, +, −."""
    three = [1.0, -2.0, 3.0, 0.5], [5.0, 1.0, -2.0, -4.0], [1.0, 3.0, 2.0, 0.0]
    assert vector(TIES(keep=0.5), *three) == [5.0, 3.0, 2.5, -4.0]
    assert vector(TIES(keep=0.5, scale=2.0), *three) == [10.0, 6.0, 5.0, -8.0]
    # Within tensors of two: (0, −2 | 3, 0), (5, 0 | 0, −4), (0, 3 | 2, 0): the same here; with three and one, not.
    assert vector(TIES(keep=0.5, trim="tensor"), *three, sizes=[2, 2]) == [5.0, 3.0, 2.5, -4.0]
    assert vector(TIES(keep=0.34, trim="tensor"), *three, sizes=[3, 1]) == [5.0, 3.0, 3.0, -4.0]
    assert vector(TIES(keep=0.3), *three) == [5.0, 3.0, 3.0, 0.0]


def test_ties_sides_with_most_where_the_sum_is_0() -> None:
    stacked = torch.tensor([[1.0, 2.0, -3.0], [-1.0, 2.0, 1.0]], dtype=torch.float64)
    # Sums 0, 4, −2: one + and one −, so that the first has no sign, and nothing agrees with it.
    assert disjoint_mean(stacked).tolist() == [0.0, 2.0, -3.0]
    stacked = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 2.0, 1.0]], dtype=torch.float64)
    assert disjoint_mean(stacked).tolist() == [1.0, 2.0, 2.0]


def test_pcb_by_hand() -> None:
    """Two task vectors of three entries, everything kept but what is least."""
    one, two = np.array([1.0, 2.0, -3.0]), np.array([2.0, -2.0, -1.0])
    # minmax |τ|: (0, ½, 1) and (1, 1, 0); τ ⊙ Σ: (3, 0, 12) and (6, 0, 4).
    first = np.exp(2 * np.array([0.0, 0.25, 1.0])) * np.tanh([3.0, 0.0, 12.0])
    second = np.exp(2 * np.array([1.0, 1.0, 0.0])) * np.tanh([6.0, 0.0, 4.0])
    shares = [(won - won.min()) / (won.max() - won.min()) for won in (first, second)]
    expected = (shares[0] * one + shares[1] * two) / np.maximum(shares[0] + shares[1], 1e-12)
    assert np.allclose(vector(PCB(1.0, 1.0, 0.0), one.tolist(), two.tolist()), expected)
    assert expected[1] == 0
    # A third of it: only the largest of each, −3 and 2, is left; nothing shares their places.
    assert np.allclose(vector(PCB(1 / 3, 1.0, 0.0), one.tolist(), two.tolist()), [2.0, 0.0, -3.0])
    assert np.allclose(vector(PCB(1 / 3, 0.5, 0.0), one.tolist(), two.tolist()), [1.0, 0.0, -1.5])


class Tiny(nn.Module):
    """One layer of two inputs and one or two logits."""

    def __init__(self, *weights: list[float]) -> None:
        super().__init__()
        self.stem, self.pool, self.head = nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Linear(2, 2)
        self.stem.weight.data.fill_(0.5)
        self.head.weight.data = torch.tensor(weights)
        self.head.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.stem(x)).flatten(1))


def test_averages_by_hand() -> None:
    sources = [Tiny([1.0, 2.0], [0.0, 4.0]).eval(), Tiny([3.0, 0.0], [8.0, 4.0]).eval()]
    it = make_problem(sources, needs=(INPUTS, fisher_need(DIAGONAL, "exact")), batches=FEW[:2])
    head = parameters(only(Average([3, 1]), it))["head.weight"]
    assert head.tolist() == [[1.5, 1.5], [2.0, 4.0]]
    shares = torch.tensor([[[3.0, 0.0], [4.0, 0.0]], [[0.0, 0.0], [3.0, 4.0]]])
    for name, table in it.statistics.squares["exact"].items():
        for (source, _), moment in table.items():
            moment.load([shares[source].double() if name == "head.weight" else torch.zeros_like(moment.totals[0])], 1)
    # F̂ = F / 5: (.6, 0 | .8, 0) and (0, 0 | .6, .8).
    head = parameters(only(Fisher("exact", floor=1e-12), it))["head.weight"]
    expected = [[1.0, 1.0], [0.6 / 1.4 * 8, 4.0]]
    assert np.allclose(head.numpy(), expected)
    weighted = parameters(only(Fisher("exact", [1, 2], floor=1e-12), it))["head.weight"]
    assert weighted[1, 0].item() == pytest.approx(1.2 / 2.0 * 8)
    inputs = {0: torch.tensor([[2.0, 1.0], [1.0, 1.0]]), 1: torch.tensor([[2.0, -1.0], [-1.0, 3.0]])}
    for (source, _), moment in it.statistics.inputs["head"].items():
        moment.totals[0].copy_(inputs[source])
        moment.count = 1
    # Σ A = diag(4, 4); first row: ((1, 2) A₁ + (3, 0) A₂) / 4 = ((4, 3) + (6, −3)) / 4.
    head = parameters(only(RegMean(1.0, 0.0), it))["head.weight"]
    assert np.allclose(head.numpy(), [[2.5, 0.0], [(4 + 12) / 4, (4 + 4) / 4]])
    # Without what is off the diagonal: ((2, 2) + (6, 0)) / 4.
    assert np.allclose(parameters(only(RegMean(0.0, 0.0), it))["head.weight"][0].numpy(), [2.0, 0.5])


# ---- heads and bases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [TaskArithmetic(0.5), TIES(), PCB()])
def test_a_base_of_other_classes_serves_the_trunk(method: Method) -> None:
    sources = [random_network(1, weights) for weights in (0, 1)]
    base, other = random_network(1, 5), random_network(1, 5, classes=9)
    head = [name for name, _ in base.named_parameters()][-1].rpartition(".")[0]
    other.load_state_dict({k: v for k, v in base.state_dict().items() if not k.startswith(head)}, strict=False)
    it = make_problem(sources, needs=(), batches=FEW[:2], base=other)
    found = parameters(only(method, it))
    told = message_of(method, it)
    assert told is not None
    assert f"{head}.weight" in told
    for name, mean in space_of(it, "none").mean.items():
        if name.startswith(head):
            assert close(found[name], mean, 1e-6)
    different = [parameters(only(method, make_problem(sources, "different", needs=(), batches=FEW[:2], base=one)))
                 for one in (base, other)]  # fmt: skip
    assert all(torch.equal(one, different[1][name]) for name, one in different[0].items())


def test_heads_of_different_label_spaces_stay_the_sources() -> None:
    sources = [random_network(1, 0, 3), random_network(1, 1, 7)]
    it = make_problem(sources, "different", needs=NEEDS, batches=FEW[:2], base="mean")
    for method in (TIES(), PCB(), TaskArithmetic(), Fisher("exact"), RegMean()):
        head = only(method, it).student.network.get_submodule(it.spec.head.name)
        expected = torch.cat([source.get_submodule(it.spec.head.name).weight for source in sources])
        assert torch.equal(head.weight, expected)


def test_the_mean_is_a_base_only_where_it_is_asked_for() -> None:
    sources = [random_network(1, weights) for weights in (0, 1)]
    it = make_problem(sources, needs=(), batches=FEW[:2])
    for method in (TIES(), PCB(), TaskArithmetic()):
        with pytest.raises(ConfigurationError, match=r"needs base, which is not given; set it to .* or to 'mean'"):
            prepare_case(method, it, {}, [1.0])
        prepare_case(method, replace(it, base="mean"), {}, [1.0])
    mean = only(Average(), it).student.state_dict()
    found = only(TaskArithmetic(), replace(it, base="mean")).student.state_dict()
    assert all(torch.allclose(found[name], one, atol=1e-6) for name, one in mean.items())


def test_sources_and_base_are_left_alone_and_the_same_comes_twice() -> None:
    vectors = disjoint(2, 0)
    sources, base = family(vectors, 0)
    before = [copy.deepcopy(one.state_dict()) for one in (*sources, base)]
    it = make_problem(sources, needs=NEEDS, batches=FEW[:2], base=base)
    for method in (TIES(), PCB(), TaskArithmetic(), Average([1, 2]), Fisher("exact"), RegMean()):
        first, second = only(method, it).student.state_dict(), only(method, it).student.state_dict()
        assert same_state(first, second)
        for one, state in zip((*sources, base), before, strict=True):
            assert same_state(one.state_dict(), state)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (lambda: TIES(keep=0.0), "keep is 0.0; allowed: above 0, up to 1"),
        (lambda: TIES(trim="layers"), "trim is 'layers'; allowed: 'global', 'tensor'"),  # type: ignore[arg-type]
        (lambda: TaskArithmetic(float("inf")), "scale is inf; allowed: 0 or more"),
        (lambda: PCB(clamp=0.5), "clamp is 0.5; allowed: 0 up to"),
        (lambda: Fisher(floor=0.0), "floor is 0.0; allowed: above 0"),
        (lambda: Fisher("all"), "classes is 'all'"),  # type: ignore[arg-type]
        (lambda: Average([0.0, 0.0]), r"weights is \[0.0, 0.0\]; .* 0 or more each, and not all 0"),
        (lambda: RegMean(2.0), "off_diagonal is 2.0; allowed: 0 to 1"),
        (lambda: RegMean(ridge=-1.0), "ridge is -1.0; allowed: 0 or more"),
    ],
)
def test_arguments(method: Callable[[], Method], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        method()


def test_weights_of_another_number_of_sources_are_refused() -> None:
    it = make_problem([random_network(1, weights) for weights in (0, 1)], needs=(), batches=FEW[:2])
    for method in (Average([1, 2, 3]), Fisher(weights=[1, 2, 3])):
        with pytest.raises(ConfigurationError, match="weights holds 3 numbers for 2 sources"):
            prepare_case(method, it, dict.fromkeys(DOMAINS[:2], 8), [1.0])
