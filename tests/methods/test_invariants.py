"""What must hold of every student: copies merge to themselves, sources apart are the sources."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from helpers import (
    DOMAINS,
    GATHERED,
    PICTURE,
    Case,
    close,
    make_problem,
    merge_case,
    permuted_copy,
    permuted_family,
    pictures,
    random_network,
    resnet,
    same_state,
    traced,
)
from torch import Tensor, nn

from project.alignment import UnitMap
from project.allocation import nominal_macs
from project.methods import Average, Merged, Method, Permutation, PLeaS
from project.methods.shared import pleas_joint
from project.runtime import World
from project.student import BlockLayer, reestimate
from project.symmetry import Layer

METHODS: dict[str, Callable[[], Method]] = {
    "permutation by weights": lambda: Permutation("weights"),
    "permutation by correlation": lambda: Permutation(similarity="correlation"),
    "permutation by distance, front": lambda: Permutation(similarity="distance", separate="front"),
    "pleas joint, mean": lambda: PLeaS(fit="joint", targets="mean"),
    "pleas joint, own": lambda: PLeaS(fit="joint", similarity="correlation"),
    "pleas joint, mean, by weights, front, fitted heads": lambda: PLeaS(
        "weights", separate="front", fit="joint", targets="mean", heads="fitted"
    ),
    "permutation by weights, uniform, in steps": lambda: Permutation("weights", separate="uniform", step=2),
    "pleas joint, own, gain": lambda: PLeaS(fit="joint", separate="gain"),
    "pleas": lambda: PLeaS(),
    "pleas mean, by weights, front": lambda: PLeaS("weights", separate="front", targets="mean"),
}
SLOW = pytest.mark.slow
MANY = ("permutation by correlation", "pleas joint, own", "pleas")
# Each way with two sources; four sources by one way to match and both ways to fit, which others share.
CASES = [(name, 0, 2) for name in METHODS]
CASES += [pytest.param(name, 1, 3, marks=SLOW) for name in METHODS]  # type: ignore[misc]
CASES += [(name, 2, 4) if name in MANY else pytest.param(name, 2, 4, marks=SLOW) for name in METHODS]  # type: ignore[misc]


def only(method: Method, problem: Case, budget: float) -> Merged:
    (merged,) = merge_case(method, problem, [budget])
    return merged


@torch.no_grad()
def run(network: nn.Module, batch: Tensor) -> Tensor:
    return network(batch)


@pytest.mark.parametrize(("name", "seed", "count"), CASES)
def test_permuted_copies_merge_to_themselves(name: str, seed: int, count: int) -> None:
    sources = permuted_family(random_network(seed, seed), count)
    batch = pictures(6, 7)
    for mode in ("shared", "different"):
        merged = only(METHODS[name](), make_problem(sources, mode), 1.0)
        expected = run(sources[0], batch)
        assert close(run(merged.student, batch), expected.repeat(1, 1 if mode == "shared" else count), 1e-4)


@pytest.mark.parametrize(("name", "seed", "count"), CASES)
def test_one_trunk_keeps_unequal_heads_at_every_budget(name: str, seed: int, count: int) -> None:
    """Networks that differ by the order of their units and by their heads alone lose nothing by being merged."""
    sources = []
    for index, classes in enumerate((3, 7, 2)[:count]):
        plain, twin = random_network(seed, seed, classes), random_network(seed, seed, classes)
        permuted_copy(plain, twin, traced(plain, PICTURE), index)
        sources.append(twin)
    problem, batch = make_problem(sources, "different"), pictures(6, 7)
    for merged in merge_case(METHODS[name](), problem, [1.0, 1.5, count - 0.3]):
        logits = run(merged.student, batch)
        for domain, source in zip(DOMAINS, sources, strict=False):
            assert close(logits[:, problem.labels.columns(domain)], run(source, batch), 1e-4)
            shares = merged.student.probabilities(batch, domain)
            assert close(shares, run(source, batch).softmax(1), 1e-3)


@pytest.mark.parametrize(("name", "seed", "count"), CASES)
def test_sources_apart_keep_their_own_heads(name: str, seed: int, count: int) -> None:
    sources = [
        random_network(seed, weights, classes) for weights, classes in zip(range(count), (3, 7, 2, 4), strict=False)
    ]
    problem = make_problem(sources, "different")
    merged, batch = only(METHODS[name](), problem, float(count)), pictures(6, 7)
    logits = run(merged.student, batch)
    assert logits.shape == (6, sum((3, 7, 2, 4)[:count]))
    for domain, source in zip(DOMAINS, sources, strict=False):
        assert close(logits[:, problem.labels.columns(domain)], run(source, batch))
    assert_copies(merged, problem)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "pleas" and "own" not in name])  # follow no head
@pytest.mark.parametrize(("seed", "count"), [(0, 2), pytest.param(1, 3, marks=SLOW), pytest.param(2, 4, marks=SLOW)])
def test_sources_apart_average_a_shared_head(name: str, seed: int, count: int) -> None:
    sources = [random_network(seed, weights) for weights in range(count)]
    problem = make_problem(sources)
    merged, batch = only(METHODS[name](), problem, float(count)), pictures(6, 7)
    assert close(run(merged.student, batch), torch.stack([run(source, batch) for source in sources]).mean(0))
    assert_copies(merged, problem)


def assert_copies(merged: Merged, problem: Case) -> None:
    """Every layer inside holds bitwise copies of the sources' weights, source after source, units as matched."""
    network, maps = merged.student.network, merged.student.maps
    for layer in problem.spec.layers:
        if layer.outputs == problem.spec.output.name and problem.labels.mode == "shared":
            continue
        found = network.get_submodule(layer.name)
        parts = list(found.parts) if isinstance(found, BlockLayer) else [found]
        weights, biases = [], []
        for index, source in enumerate(problem.sources):
            rows, columns = (maps[group].members[:, index] for group in (layer.outputs, layer.inputs))
            rows, columns = rows[rows >= 0], columns[columns >= 0]
            original = source.get_submodule(layer.name)
            matrix = original.weight.flatten(1).unflatten(1, (len(columns), -1))
            weights.append(matrix[rows][:, columns].flatten())
            if layer.bias:
                biases.append(original.bias[rows])
        assert torch.equal(torch.cat([part.weight.flatten() for part in parts]), torch.cat(weights))
        if layer.bias:
            assert torch.equal(torch.cat([part.bias for part in parts]), torch.cat(biases))
    for norm in problem.spec.norms:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            originals = [getattr(source.get_submodule(norm.name), tensor) for source in problem.sources]
            if originals[0] is not None:
                columns = maps[norm.group].members.unbind(1)
                pairs = zip(originals, columns, strict=True)
                expected = torch.cat([original[column[column >= 0]] for original, column in pairs])
                assert torch.equal(getattr(network.get_submodule(norm.name), tensor), expected)


def test_a_layer_whose_maps_a_budget_leaves_as_they_were_is_not_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joint fit: a layer's equations follow from its unit maps; all others are those of the student alone."""
    it = make_problem([random_network(0, weights) for weights in (0, 1)])
    solved, fit = [], pleas_joint.fit_layer

    def counted(layer: Layer, *arguments: Any, **options: Any) -> Any:
        solved.append(layer.name)
        return fit(layer, *arguments, **options)

    monkeypatch.setattr(pleas_joint, "fit_layer", counted)
    method = PLeaS(fit="joint", separate="front")
    together = list(merge_case(method, it, [1.0, 1.2, 2.0]))
    maps = [
        {(one.student.maps[layer.outputs], one.student.maps[layer.inputs]) for one in together}
        for layer in it.spec.layers
    ]
    assert len(solved) == sum(map(len, maps)) < 3 * len(it.spec.layers)
    for one, budget in zip(together, (1.0, 1.2, 2.0), strict=True):
        alone = only(method, it, budget)
        for name, tensor in alone.student.state_dict().items():
            assert torch.allclose(tensor, one.student.state_dict()[name], rtol=0, atol=1e-6), (budget, name)


def test_layers_are_dealt_out_alike_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of bytes differ between processes, and sums of floats with their order."""
    it = make_problem([random_network(1, weights) for weights in (0, 1)])
    deal, dealt = World.deal, []

    def watched(world: World, efforts: Sequence[float]) -> list[int]:
        dealt.append(list(efforts))
        return deal(world, efforts)

    monkeypatch.setattr(World, "deal", watched)
    for salt in range(3):
        salted = partial(lambda salt, units: hash((salt, units.members.numpy().tobytes())), salt)
        monkeypatch.setattr(UnitMap, "__hash__", lambda units, salted=salted: salted(units))
        list(merge_case(PLeaS(fit="joint", separate="uniform"), it, [1.0, 1.2, 1.45, 1.75]))
    assert len(dealt) == 3
    assert all(efforts == dealt[0] for efforts in dealt)


@pytest.mark.parametrize("name", ["permutation by weights", "pleas joint, mean", "pleas"])
def test_the_order_of_the_sources_does_not_matter(name: str) -> None:
    """Each with its own pictures; at sizes at which three sources share some units, two others, one the rest."""
    batch = pictures(6, 7)
    found: dict[float, list[Tensor]] = {1.0: [], 1.9: []}
    for order in ((0, 1, 2), (2, 0, 1)):
        sources = [random_network(4, weights) for weights in order]
        batches = [(domain, pictures(40, 100 + i)) for domain, i in zip(DOMAINS, order, strict=False)]
        made = merge_case(METHODS[name]().changed(separate="front"), make_problem(sources, batches=batches), found)
        for (budget, logits), merged in zip(found.items(), made, strict=True):
            logits.append(run(merged.student, batch))
            counts = torch.cat([units.present.sum(1) for units in merged.student.maps.values()])
            assert bool((counts == 2).any()) == (budget > 1)
    for one, other in found.values():
        assert close(other, one, 1e-3)


@pytest.mark.parametrize("mode", [pytest.param("shared", marks=pytest.mark.slow), "different"])
def test_resnet20_at_both_ends(mode: str) -> None:
    batch = pictures(4, 7)
    twins = make_problem(
        permuted_family(resnet("resnet20", 0), 2), mode, batches=[("art", pictures(20, 1)), ("birds", pictures(20, 2))]
    )
    merged = only(PLeaS(), twins, 1.0)
    assert close(run(merged.student, batch)[:, :5], run(twins.sources[0], batch), 1e-4)
    others = make_problem([resnet("resnet20", 1), resnet("resnet20", 2)], mode)
    merged = only(PLeaS("weights", targets="mean"), others, 2.0)
    logits = [run(source, batch) for source in others.sources]
    expected = torch.cat(logits, 1) if mode == "different" else torch.stack(logits).mean(0)
    assert close(run(merged.student, batch), expected)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [1.4, *(pytest.param(one, marks=pytest.mark.slow) for one in (1.0, 2.0))])
def test_same_seed_same_student_and_sources_untouched(name: str, budget: float) -> None:
    students = []
    for _ in range(2):
        GATHERED.clear()
        sources = [random_network(5, weights) for weights in (0, 1)]
        before = [{key: tensor.clone() for key, tensor in source.state_dict().items()} for source in sources]
        students.append(only(METHODS[name](), make_problem(sources, "different"), budget).student.state_dict())
        for source, state in zip(sources, before, strict=True):
            assert same_state(state, source.state_dict())
            assert not any(module.training for module in source.modules())
    assert same_state(*students)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *((name, 2) for name in METHODS if name not in MANY),
        *((name, 3) for name in MANY),
        *(pytest.param(name, 3, marks=SLOW) for name in METHODS if name not in MANY),  # as those with two
    ],
)
def test_budgets_together_are_budgets_alone(name: str, count: int) -> None:
    """One alignment and one set of statistics serve every budget."""
    problem = make_problem([random_network(2, weights) for weights in range(count)])
    budgets = (1.0, 1.7, float(count))
    together = list(merge_case(METHODS[name](), problem, budgets))
    for merged, budget in zip(together, budgets, strict=True):
        assert same_state(merged.student.state_dict(), only(METHODS[name](), problem, budget).student.state_dict())
        assert merged.name == f"{merged.method}-{budget:.2f}"
    sizes = [nominal_macs(problem.spec, merged.student.maps) for merged in together]
    assert sizes == sorted(sizes)


def test_fits_report_less_than_their_start_points() -> None:
    problem = make_problem([random_network(2, weights) for weights in (0, 1)])
    for merged in merge_case(PLeaS(separate="back"), problem, [1.0, 1.5]):  # what stands at the front is exact then
        assert set(merged.layers) == {layer.name for layer in problem.spec.layers}
        for found in merged.layers.values():
            assert 0 <= found["residual_after"] <= found["residual_before"] * (1 + 1e-9)
    different = make_problem([random_network(2, weights) for weights in (0, 1)], "different")
    head = different.spec.layers[-1].name
    assert head not in only(PLeaS(fit="joint"), different, 1.0).layers
    assert head in only(PLeaS(fit="joint", heads="fitted"), different, 1.0).layers


def test_average_is_the_mean_of_the_weights() -> None:
    sources = [random_network(3, weights) for weights in (0, 1, 2)]
    student = only(Average(), make_problem(sources), 2.0).student.network.state_dict()
    for name in sources[0].state_dict():
        if "num_batches" not in name:
            mean = torch.stack([source.state_dict()[name].double() for source in sources]).mean(0)
            assert torch.allclose(student[name].double(), mean, atol=1e-6)


def test_a_norm_that_never_runs_is_not_shared_with_the_student() -> None:
    """Sources stay bit-identical whatever happens to the student afterwards."""

    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.spare = random_network(0), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    sources = [Spare().eval() for _ in range(2)]
    assert sources[0].spare.running_var is not None
    sources[0].spare.running_var.fill_(7.0)
    student = only(Permutation("weights"), make_problem(sources), 1.0).student
    reestimate(student, [pictures(4, 0)])
    assert bool((sources[0].spare.running_var == 7.0).all())


SETTINGS = [
    {"targets": "own", "norm": "after", "compensate": False, "rounds": 0, "logits": "squares"},
    {"targets": "own", "norm": "before", "compensate": True, "rounds": 1, "logits": "divergence"},
    {"targets": "mean", "norm": "after", "compensate": True, "rounds": 2, "logits": "squares"},
    {"targets": "mean", "norm": "before", "compensate": False, "rounds": 0, "logits": "divergence"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: "-".join(map(str, one.values())))
def test_every_way_to_fit_sequentially_runs(settings: dict[str, object]) -> None:
    """Copies come back whatever the settings; sources that differ make a student whose residuals fall."""
    method, batch = PLeaS(**settings), pictures(6, 7)  # type: ignore[arg-type]
    copies = make_problem(permuted_family(random_network(2, 2), 2))
    assert close(run(only(method, copies, 1.0).student, batch), run(copies.sources[0], batch), 1e-4)
    merged = only(method, make_problem([random_network(2, weights) for weights in range(2)]), 1.3)
    assert torch.isfinite(run(merged.student, batch)).all()
    assert sum(fit["residual_after"] for fit in merged.layers.values()) < sum(
        fit["residual_before"] for fit in merged.layers.values()
    )
