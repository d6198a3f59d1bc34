"""MaTS: closed forms where there are some, dense systems where there are none, and sources that agree."""

import copy
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from helpers import (
    DOMAINS,
    Case,
    close,
    make_problem,
    merge_case,
    permuted_copy,
    pictures,
    prepare_case,
    random_network,
    same_state,
    space_of,
    traced,
)
from torch import Tensor, nn

from project.errors import ConfigurationError, MergeError
from project.methods import (
    TIES,
    Average,
    Fisher,
    MaTS,
    Merged,
    Method,
    Permutation,
    PLeaS,
    RegMean,
    Run,
    TaskArithmetic,
)
from project.methods.mats import Estimate
from project.methods.shared.conjugate import ConjugateGradients
from project.methods.shared.systems import Elementwise, Gram, Kronecker, System
from project.moments import DIAGONAL, FACTORS, INPUTS, UNITS, fisher_need

NEEDS = (INPUTS, UNITS, fisher_need(DIAGONAL, "sampled"), fisher_need(FACTORS, "sampled"))
FEW = [(domain, pictures(8, i)) for i, domain in enumerate(DOMAINS[:3])]
ESTIMATES: list[Estimate] = ["average", "diagonal", "gram", "kfac"]


@cache
def problem(structure: int = 0, count: int = 2, mode: str = "shared", many: int = 16, **others: object) -> Case:
    sources = [random_network(structure, weights) for weights in range(count)]
    batches = [(domain, pictures(many, 100 + i)) for i, domain in enumerate(DOMAINS[:count])]
    return make_problem(sources, mode, needs=NEEDS, batches=batches, **others)


@cache
def twins(mode: str) -> Case:
    """A network and a copy of it whose units stand in another order."""
    network = random_network(2, 2)
    twin = copy.deepcopy(network)
    permuted_copy(network, twin, traced(network, (3, 11, 13)), 0)
    return make_problem([network, twin], mode, needs=NEEDS, batches=FEW[:2], base="mean")


@cache
def agreeing(mode: str, count: int = 3) -> Case:
    network = random_network(4, 4)
    sources = [network, *(copy.deepcopy(network) for _ in range(count - 1))]
    return make_problem(sources, mode, needs=NEEDS, batches=FEW[:count], base=random_network(4, 9))


def only(method: Method, it: Case) -> Merged:
    (merged,) = merge_case(method, it, [1.0, 1.5])
    assert merged.budget.number == 1.0
    return merged


def parameters(merged: Merged) -> dict[str, Tensor]:
    return {name: one.detach().double() for name, one in merged.student.network.named_parameters()}


def semidefinite(size: int, seed: int) -> Tensor:
    random = np.random.default_rng(seed)
    factor = random.normal(size=(size, size))
    return torch.from_numpy(factor @ factor.T + 0.3 * np.eye(size))


def dense(system: System) -> np.ndarray:
    """Σ Cᵢ written out, column by column, for the flattened tensor."""
    shape = system.mean.shape
    units = torch.eye(shape.numel(), dtype=torch.float64)
    return np.stack([system.apply(unit.view(shape)).flatten().numpy() for unit in units], 1)


def test_operators_are_the_dense_matrices() -> None:
    random = np.random.default_rng(0)
    sources = [torch.from_numpy(random.normal(size=(3, 4))) for _ in range(2)]
    inputs, outputs = [semidefinite(4, s) for s in (1, 2)], [semidefinite(3, s) for s in (3, 4)]
    weights = [torch.from_numpy(random.uniform(size=(3, 4))) for _ in range(2)]
    cases: list[tuple[System, list[np.ndarray]]] = [
        (Elementwise("w", sources, weights), [np.diag(one.numpy().ravel()) for one in weights]),
        (Gram("w", sources, inputs), [np.kron(np.eye(3), a.numpy()) for a in inputs]),
        (
            Kronecker("w", sources, inputs, outputs),
            [np.kron(g.numpy(), a.numpy()) for g, a in zip(outputs, inputs, strict=True)],
        ),
    ]
    damped = [np.kron(g.numpy(), a.numpy()) for g, a in zip(outputs, inputs, strict=True)]
    shift = 0.5 * np.mean([np.diag(matrix).mean() for matrix in damped]) * np.eye(12)
    cases.append((Kronecker("w", sources, inputs, outputs, damping=0.5), [matrix + shift for matrix in damped]))
    values, thetas = torch.from_numpy(random.normal(size=(3, 4))), [one.numpy().ravel() for one in sources]
    for system, expected in cases:
        total = sum(expected)
        assert np.allclose(dense(system), total)
        assert np.allclose(system.diagonal.numpy().ravel(), np.diag(total))
        right = sum(matrix @ theta for matrix, theta in zip(expected, thetas, strict=True))
        assert np.allclose(system.right.numpy().ravel(), right)
        for at in (values, system.mean):
            assert np.allclose(system.residual(at).numpy().ravel(), right - total @ at.numpy().ravel())
            assert system.energy(at) == pytest.approx(energy(at.numpy().ravel(), thetas, expected))
            assert system.energy(at, system.residual(at)) == system.energy(at)
        assert system.scale == pytest.approx(energy(np.zeros(12), thetas, expected))


def test_blocks_are_systems_side_by_side() -> None:
    random = np.random.default_rng(0)
    sources = [torch.from_numpy(random.normal(size=(2, 3, 4))) for _ in range(3)]
    inputs = [torch.stack([semidefinite(4, seed), semidefinite(4, seed + 3)]) for seed in range(3)]
    outputs = [torch.stack([semidefinite(3, seed), semidefinite(3, seed + 3)]) for seed in range(6, 9)]
    values = torch.from_numpy(random.normal(size=(2, 3, 4)))
    grams = Gram("w", sources, inputs), [Gram("w", [s[b] for s in sources], [a[b] for a in inputs]) for b in (0, 1)]
    kronecker = (
        Kronecker("w", sources, inputs, outputs),
        [Kronecker("w", [s[b] for s in sources], [a[b] for a in inputs], [g[b] for g in outputs]) for b in (0, 1)],
    )
    for whole, parts in (grams, kronecker):
        for found, expected in (
            (whole.apply(values), [one.apply(values[b]) for b, one in enumerate(parts)]),
            (whole.residual(values), [one.residual(values[b]) for b, one in enumerate(parts)]),
            (whole.diagonal, [one.diagonal for one in parts]),
        ):
            assert torch.allclose(found, torch.stack(list(expected)))
        assert whole.energy(values) == pytest.approx(sum(one.energy(values[b]) for b, one in enumerate(parts)))


def energy(values: np.ndarray, sources: list[np.ndarray], matrices: list[np.ndarray]) -> float:
    """Σ ‖θ − θᵢ‖² in the norms of the Cᵢ, written out."""
    gaps = [values - one for one in sources]
    return float(sum(gap @ matrix @ gap for gap, matrix in zip(gaps, matrices, strict=True)))


def solved(system: System, start: Tensor) -> Tensor:
    solver = ConjugateGradients(system.apply, system.right, start.clone(), tolerance=1e-12)
    while solver.step():
        pass
    return solver.solution


def test_by_hand() -> None:
    """One output, two inputs: (3 + 1) w = 3 and (1 + 3) w = 3; with outputs that weigh 2 and 1, 7 w = 6 and 5 w = 3."""
    sources = [torch.tensor([one], dtype=torch.float64) for one in ([1.0, 0.0], [0.0, 1.0])]
    inputs = [torch.diag(torch.tensor(one, dtype=torch.float64)) for one in ([3.0, 1.0], [1.0, 3.0])]
    outputs = [torch.tensor([[one]], dtype=torch.float64) for one in (2.0, 1.0)]
    cases: list[tuple[System, list[float]]] = [
        (Gram("w", sources, inputs), [0.75, 0.75]),
        (Kronecker("w", sources, inputs, outputs), [6 / 7, 3 / 5]),
        (
            Elementwise("w", sources, [torch.tensor([[1.0, 3.0]]).double(), torch.tensor([[3.0, 1.0]]).double()]),
            [1 / 4] * 2,
        ),
    ]
    for system, expected in cases:
        assert solved(system, torch.zeros(1, 2, dtype=torch.float64)).flatten().tolist() == pytest.approx(expected)


def test_task_vectors_that_do_not_meet_add_up() -> None:
    """Where each source's curvature lies on its own task vector alone."""
    base, vectors = torch.linspace(-1, 1, 12).double().view(3, 4), torch.zeros(2, 3, 4, dtype=torch.float64)
    vectors[0, :, :2], vectors[1, :, 2:] = 1.0, -2.0
    sources = [base + one for one in vectors]
    inputs = [torch.diag((one[0] != 0).double()) for one in vectors]
    systems: list[System] = [
        Elementwise("w", sources, [(one != 0).double() for one in vectors]),
        Gram("w", sources, inputs),
        Kronecker("w", sources, inputs, [semidefinite(3, seed) for seed in range(2)]),
    ]
    for system in systems:
        assert torch.allclose(solved(system, base), base + vectors.sum(0), atol=1e-6)


@pytest.mark.parametrize("precondition", [False, True])
@pytest.mark.parametrize("start", ["average", "zero"])
def test_average_and_diagonal_are_their_closed_forms(start: str, precondition: bool) -> None:
    count = 3
    it = problem(1, count)
    options = {"start": start, "precondition": precondition, "tolerance": 1e-12, "iterations": 600}
    mean = parameters(only(Average(), it))
    for name, found in parameters(only(MaTS("average", **options), it)).items():
        assert close(found, mean[name], 1e-6)
    space = space_of(it, "none")
    squares = [space.squares(index, "sampled") for index in range(count)]
    for name, found in parameters(only(MaTS("diagonal", **options, damping=1e-3), it)).items():
        if name not in space.names:
            continue
        shift = 1e-3 * sum(float(one[name].mean()) for one in squares) / count
        above = sum((one[name] + shift) * source[name] for one, source in zip(squares, space.sources, strict=True))
        expected = above / sum(one[name] + shift for one in squares)
        dead = shift == 0
        assert dead or torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("structure", range(3))
def test_gram_is_regmean(structure: int) -> None:
    """(Σ Wᵢ Aᵢ) (Σ Aᵢ)⁻¹ by numpy, by RegMean, and by conjugate gradients."""
    it = problem(structure, 3, many=80)
    space, checked = space_of(it, "none"), 0
    regmean = parameters(only(RegMean(off_diagonal=1.0, ridge=0.0), it))
    solved = only(MaTS("gram", precondition=True, iterations=5000, tolerance=1e-12), it)
    found = parameters(solved)
    for layer in it.spec.layers:
        name = f"{layer.name}.weight"
        inputs = [space.gram(layer, index).numpy() for index in range(3)]
        total = sum(inputs)
        if np.linalg.cond(total) > 1e8:
            continue
        checked += 1
        above = sum(one[name].flatten(1).numpy() @ a for one, a in zip(space.sources, inputs, strict=True))
        expected = torch.from_numpy(above @ np.linalg.inv(total))
        assert close(regmean[name].flatten(1), expected, 1e-4)
        assert close(found[name].flatten(1), expected, 1e-4)
        assert solved.layers[layer.name]["cg_residual"] < 1e-10
    assert checked > 1
    for name, mean in space.mean.items():
        if not any(name == f"{layer.name}.weight" for layer in it.spec.layers):
            assert close(found[name], mean, 1e-6)  # biases and norms


def test_kfac_solves_the_dense_system() -> None:
    """Written out as a Kronecker sum, with both factors from a pass over pictures, and solved by SciPy."""
    it = problem(2, 2)
    space = space_of(it, "none")
    layer = min(it.spec.layers, key=lambda one: space.mean[f"{one.name}.weight"].numel())
    name = f"{layer.name}.weight"
    grams = [space.gram(layer, index).numpy() for index in range(2)]
    factors = [space.factor(layer, index, "sampled").numpy() for index in range(2)]
    sources = [one[name].flatten(1).numpy() for one in space.sources]
    blocks = [np.kron(g, a) for g, a in zip(factors, grams, strict=True)]
    right = sum(block @ one.ravel() for block, one in zip(blocks, sources, strict=True))
    for steps in (1, 3, 7):
        expected, _ = scipy.sparse.linalg.cg(
            sum(blocks), right, x0=np.mean(sources, 0).ravel(), maxiter=steps, rtol=0.0, atol=0.0
        )
        merged = only(MaTS("kfac", iterations=steps, tolerance=0.0), it)
        found = parameters(merged)[name].flatten().numpy()
        assert np.allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
        assert len(merged.curves["cg residual"][layer.name]) == steps + 1


def test_factors_and_inputs_are_those_of_the_sources_domain() -> None:
    it = problem(0, 2)
    for tables in (it.statistics.squares, it.statistics.factors):
        assert tables["sampled"]
        assert all(set(table) == {(0, "art"), (1, "birds")} for table in tables["sampled"].values())
        assert not tables["labels"]


@pytest.mark.parametrize(
    ("estimate", "start", "mode"),
    [  # every start of every estimate in one of them
        pytest.param(estimate, start, mode, marks=() if (i + j + k) % 2 else pytest.mark.slow)
        for i, estimate in enumerate(ESTIMATES)
        for j, start in enumerate(("average", "zero", "base", "taskarithmetic", "ties", "other"))
        for k, mode in enumerate(("shared", "different"))
    ],
)
def test_sources_that_agree_come_back(estimate: Estimate, start: str, mode: str) -> None:
    it = agreeing(mode)
    it = replace(it, made={"other": only(Average(), it).student}, planned={"other": Average()})
    method = MaTS(estimate, start=start)
    prepare_case(method, it, {}, [1.0])
    student = parameters(only(method, it))
    for name, one in it.sources[0].named_parameters():
        if name in space_of(it, "none").names:
            assert torch.equal(student[name].float(), one)


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("start", ["average", "zero"])
def test_the_solver_alone_finds_sources_that_agree(
    estimate: Estimate, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the shortcut for them, on a system that sees every direction."""
    never = property(lambda system: False, lambda system, value: None)
    monkeypatch.setattr(System, "settled", never, raising=False)
    it = agreeing("shared", 2)
    method = MaTS(estimate, start=start, damping=0.1, iterations=300, tolerance=1e-8)
    student = parameters(only(method, it))
    for name, one in it.sources[0].named_parameters():
        assert close(student[name], one.detach().double(), 1e-4), name


@pytest.mark.parametrize("estimate", ["diagonal", "gram", "kfac"])
def test_more_steps_fit_better_and_the_curves_say_so(estimate: Estimate) -> None:
    it = problem(3, 2, mode="different")
    merged = only(MaTS(estimate, iterations=30), it)
    for name, curve in merged.curves["cg loss"].items():
        values = list(curve.values())
        assert list(curve) == list(range(len(values)))
        assert all(b <= a * (1 + 1e-6) + 1e-12 for a, b in pairwise(values)), name
    everything = list(merged.curves["cg loss"]["all layers"].values())
    assert everything[-1] < everything[0]
    for name, found in merged.layers.items():
        assert found["residual_after"] <= found["residual_before"] + 1e-12
        assert found["residual_after"] == pytest.approx(list(merged.curves["cg loss"][name].values())[-1])
        assert 1 <= found["iterations"] <= 30
    assert it.spec.head.name not in merged.layers, "heads of different label spaces are the sources' own"


def test_the_measured_loss_is_the_loss() -> None:
    it = problem(3, 2)
    merged = only(MaTS("gram", iterations=4, tolerance=0.0), it)
    space, found = space_of(it, "none"), parameters(only(MaTS("gram", iterations=4, tolerance=0.0), it))
    for layer in it.spec.layers:
        gaps = [
            found[f"{layer.name}.weight"].flatten(1) - one[f"{layer.name}.weight"].flatten(1) for one in space.sources
        ]
        wide = [one[f"{layer.name}.weight"].flatten(1) for one in space.sources]
        energy, scale = (
            sum(float((one @ space.gram(layer, i) * one).sum()) for i, one in enumerate(ones)) for ones in (gaps, wide)
        )
        assert merged.layers[layer.name]["residual_after"] == pytest.approx(energy / scale, rel=1e-3)


def test_watching_changes_nothing_and_sees_the_student() -> None:
    it = problem(3, 2)
    plain, watched = only(MaTS("gram", iterations=6), it), only(MaTS("gram", iterations=6, watch=3), it)
    assert same_state(plain.student.state_dict(), watched.student.state_dict())
    assert plain.curves == {name: curve for name, curve in watched.curves.items() if name != "cg divergence"}
    assert list(watched.curves["cg divergence"]["all layers"]) == [0, 3, 6]
    assert all(value > 0 for value in watched.curves["cg divergence"]["all layers"].values())
    assert only(MaTS("gram", watch=1), agreeing("shared")).curves == {}


def test_no_steps_is_the_start_point() -> None:
    it = problem(0, 2, base=random_network(0, 7))
    for start, method in (("average", Average()), ("ties", TIES()), ("taskarithmetic", TaskArithmetic())):
        found = only(MaTS("gram", start=start, iterations=0), it).student.network.state_dict()
        expected = only(method, it).student.network.state_dict()
        layers = [f"{layer.name}.weight" for layer in it.spec.layers]
        assert all(torch.equal(found[name], expected[name]) for name in layers)
    listed = only(TIES(keep=0.5), it).student
    found = only(MaTS("gram", start="ties", iterations=0), replace(it, made={"ties": listed}, planned={"ties": TIES()}))
    for layer in it.spec.layers:
        name = f"{layer.name}.weight"
        assert torch.equal(found.student.network.state_dict()[name], listed.network.state_dict()[name])


ALIGNED = {
    "average": lambda align: Average(align=align),
    "ties": lambda align: TIES(keep=1.0, align=align),
    "fisher": lambda align: Fisher(align=align),
    "regmean": lambda align: RegMean(align=align),
    **{estimate: lambda align, estimate=estimate: MaTS(estimate, align=align) for estimate in ESTIMATES},
}


@pytest.mark.parametrize(("align", "mode"), [("weights", "shared"), ("activations", "different")])
@pytest.mark.parametrize("name", ALIGNED)
def test_permuted_copies_merge_to_themselves(name: str, align: str, mode: str) -> None:
    it = twins(mode)
    method = ALIGNED[name](align)
    prepare_case(method, it, dict.fromkeys(DOMAINS[:2], 8), [1.0])
    student, batch = only(method, it).student, pictures(6, 7)
    with torch.no_grad():
        expected = it.sources[0](batch).repeat(1, 2 if mode == "different" else 1)
        assert close(student(batch), expected, 1e-3)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_statistics_move_with_the_units(estimate: Estimate) -> None:
    """A source whose units stand in another order, matched back, gives the same network as the one in order."""
    first, second = random_network(2, 0), random_network(2, 1)
    spec = traced(first, (3, 11, 13))
    moved = copy.deepcopy(second)
    permuted_copy(second, moved, spec, 5)
    batch = pictures(6, 7)
    found = []
    for other in (second, moved):
        it = make_problem([first, other], needs=NEEDS)
        merged = only(MaTS(estimate, align="activations", iterations=20, damping=0.01), it)
        assert merged.matches
        with torch.no_grad():
            found.append(merged.student(batch))
    assert close(found[1], found[0], 2e-2)


def test_alignment_is_permutations() -> None:
    it = problem(5, 3)
    for align in ("weights", "activations"):
        mine, theirs = only(Average(align=align), it), next(iter(merge_case(Permutation(align), it, [1.0])))
        assert same_state(mine.student.state_dict(), theirs.student.state_dict())
        MaTS("gram", start="permutation", align=align).combine(
            space_of(it, align),
            mine.student,
            Run(made={"permutation": theirs.student}),  # type: ignore[arg-type]
        )
    with pytest.raises(MergeError, match="matched in another way"):
        only(MaTS("gram", start="permutation"), replace(it, made={"permutation": theirs.student}))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (lambda: MaTS("hope"), "estimate is 'hope'; allowed: 'average', 'diagonal', 'gram', 'kfac'"),  # type: ignore[arg-type]
        (lambda: MaTS(classes="none"), "classes is 'none'; allowed: 'labels', 'sampled', 'exact'"),  # type: ignore[arg-type]
        (lambda: MaTS(iterations=-1), "iterations is -1"),
        (lambda: MaTS(damping=-1.0), "damping is -1.0"),
        (lambda: MaTS(off_diagonal=1.5), "off_diagonal is 1.5; allowed: 0 to 1"),
        (lambda: MaTS(align="hope"), "align is 'hope'; allowed: 'none', 'activations', 'weights', 'both', or settings"),  # type: ignore[arg-type]
    ],
)
def test_arguments(method: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        method()  # type: ignore[operator]


def test_what_is_missing_is_told_before_the_pass() -> None:
    it = problem()
    with pytest.raises(ConfigurationError, match=r"'pcb'; allowed: .*, 'ties', 'other'; of methods listed"):
        prepare_case(MaTS(start="pcb"), replace(it, planned={"other": Average()}), {}, [1.0])
    with pytest.raises(ConfigurationError, match="method mats needs base, which is not given"):
        prepare_case(MaTS(start="ties"), it, {}, [1.0])
    prepare_case(MaTS(start="ties"), replace(it, planned={"ties": TIES()}), {}, [1.0])
    for other in (Permutation("weights"), TIES(align="activations"), PLeaS(), Permutation(similarity="correlation")):
        with pytest.raises(ConfigurationError, match="whose units are matched in another way than by align 'none'"):
            prepare_case(MaTS(start="other"), replace(it, planned={"other": other}), {}, [1.0])
    both = dict.fromkeys(DOMAINS[:2], 16)
    prepare_case(MaTS(start="other", align="activations"), replace(it, planned={"other": PLeaS()}), both, [1.0])
    prepare_case(MaTS(start="average", align="weights"), replace(it, planned={"average": Average()}), {}, [1.0])
    with pytest.raises(ConfigurationError, match=r"align of method mats is 'weights', .* use align 'none'"):
        prepare_case(MaTS(start="base", align="weights"), replace(it, base=nn.Identity()), {}, [1.0])
    with pytest.raises(ConfigurationError, match="classes is 'labels', but calibration pictures are of 'public'"):
        prepare_case(MaTS("kfac", "labels"), it, {"public": 10}, [1.0])
    prepare_case(MaTS("gram", "labels"), it, {"public": 10}, [1.0])
    assert MaTS("kfac", "labels").labelled
    assert not MaTS("gram", "labels").labelled


def test_shrinking_keeps_the_diagonal_alone() -> None:
    """Without anything off the diagonals, K-FAC is a weighted mean, entry by entry."""
    it = problem(1, 2)
    space = space_of(it, "none")
    found = parameters(only(MaTS("kfac", off_diagonal=0.0, precondition=True), it))
    for layer in it.spec.layers:
        name = f"{layer.name}.weight"
        weights = [
            space.factor(layer, i, "sampled").diagonal()[:, None] * space.gram(layer, i).diagonal()[None, :]
            for i in range(2)
        ]
        above = sum(w * one[name].flatten(1) for w, one in zip(weights, space.sources, strict=True))
        seen = sum(weights) > 1e-12
        expected = torch.where(seen, above / sum(weights), space.mean[name].flatten(1))
        assert torch.allclose(found[name].flatten(1), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
