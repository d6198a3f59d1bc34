"""The closed form against numpy's least squares on the stacked data."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import brute_start, random_map, unfolded
from torch import Tensor, nn

from project.alignment import UnitMap
from project.errors import MergeError
from project.fit import Factor, View, damping, factor, fit_layer
from project.moments import LayerMoment, Moment
from project.moments.correlations import CorrelationMoment
from project.moments.layer import UnfoldedMoment
from project.student import joint_matrix, start_matrix
from project.symmetry import Layer


@dataclass
class Scene:
    """One layer of N sources, what it reads on every domain, and unit maps for a student."""

    layer: Layer
    modules: list[nn.Module]
    data: list[list[Tensor]]  # domain -> source -> what the layer reads
    outputs: UnitMap
    inputs: UnitMap
    correlated: bool = False

    @property
    def count(self) -> int:
        return len(self.modules)

    def views(self, own: bool) -> list[View]:
        matrices = joint_matrix(self.layer, self.modules)
        moments = [self._moment(values) for values in self.data]
        if own:
            return [View(self.layer, matrices, moment, owner) for owner, moment in enumerate(moments)]
        total, *others = moments
        for moment in others:
            total.add(moment)
        return [View(self.layer, matrices, total)]

    def _moment(self, values: list[Tensor]) -> LayerMoment:
        first, inputs = self.modules[0], sum(value.shape[1] for value in values)
        if self.correlated:
            assert isinstance(first, nn.Conv2d)
            height, width = values[0].shape[2:]
            correlated = CorrelationMoment(first, inputs, (height, width), constant=self.layer.bias)
            correlated.read(values)
            return correlated
        unfolded = UnfoldedMoment(first, inputs, constant=self.layer.bias)
        unfolded.read(values)
        return unfolded

    def stacked(self, own: bool) -> tuple[np.ndarray, np.ndarray]:
        """What the student reads and should write, row by row: (samples, inputs), (samples, outputs)."""
        read, wanted = [], []
        for domain, values in enumerate(self.data):
            pairs = list(zip(values, self.modules, strict=True))
            x = [unfolded(value, module).T.numpy() for value, module in pairs]  # unit after unit, its taps together
            weights = [module.weight.detach().double().flatten(1).numpy() for module in self.modules]
            biases = [module.bias.detach().double().numpy() if self.layer.bias else 0.0 for module in self.modules]
            y = [a @ w.T + b for a, w, b in zip(x, weights, biases, strict=True)]
            owner = domain if own else None
            read.append(self._merge(x, self.inputs, self.layer.taps, owner))
            wanted.append(self._merge(y, self.outputs, 1, owner))
        z = np.concatenate(read)
        return np.concatenate([z, np.ones((len(z), int(self.layer.bias)))], 1), np.concatenate(wanted)

    def _merge(self, values: list[np.ndarray], units: UnitMap, taps: int, owner: int | None) -> np.ndarray:
        columns = []
        for row in units.members.tolist():
            there = [s for s, unit in enumerate(row) if unit >= 0]
            if owner in there:
                there = [owner]  # type: ignore[list-item]
            columns.append(np.mean([values[s][:, row[s] * taps : (row[s] + 1) * taps] for s in there], 0))
        return np.concatenate(columns, 1)

    def start(self) -> np.ndarray:
        return brute_start(
            [m.numpy() for m in joint_matrix(self.layer, self.modules)],
            self.outputs,
            self.inputs,
            self.layer.taps,
            self.layer.bias,
        )

    def allowed(self) -> np.ndarray:
        """Which weights may differ from zero, by brute force; shape of the matrix."""
        rows = []
        for o in self.outputs.members.tolist():
            row = []
            for i in self.inputs.members.tolist():
                row += [any(a >= 0 and b >= 0 for a, b in zip(o, i, strict=True))] * self.layer.taps
            rows.append(row + [True] * self.layer.bias)
        return np.array(rows)

    def solved(self, ridge: float, own: bool, rcond: float | None = None) -> np.ndarray:
        """Row by row: least squares on the data with the ridge as further samples, centred on the start point."""
        z, t = self.stacked(own)
        start, allowed = self.start(), self.allowed()
        count = self.inputs.units * self.layer.taps
        result = np.zeros_like(start)
        for row, seen in enumerate(allowed):
            weight = np.sqrt(
                damping(ridge, int(seen.sum()), len(z)) * np.mean(z[:, :count][:, seen[:count]] ** 2) * len(z)
            )
            system = np.concatenate([z[:, seen], weight * np.eye(seen.sum())])
            right = np.concatenate([t[:, row], weight * start[row, seen]])
            result[row, seen] = np.linalg.lstsq(system, right, rcond=rcond)[0]
        return result


def whole(generator: torch.Generator, *shape: int) -> Tensor:
    """Small whole numbers, so that float32 products are exact and only the solution is tested."""
    return torch.randint(-4, 5, shape, generator=generator).float()


def scene(kind: str, count: int, seed: int, *, bias: bool, pictures: int = 30) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    size, width, taps = 3 + seed % 2, 4, {"conv": 6, "correlated": 6, "linear": 1, "flattened": 3}[kind]
    inputs, outputs = random_map(size, count, seed), random_map(width, count, seed + 1000)
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for _ in range(count):
        if taps == 6:
            modules.append(nn.Conv2d(size, width, (3, 2), (1, 2), (2, 1), bias=bias))
        else:
            modules.append(nn.Linear(size * taps, width, bias=bias))
    shape = (size, 5, 6) if taps == 6 else (size * taps,)
    data = [
        [whole(generator, (3 + d) * pictures, *shape) for _ in range(count)] for d in range(count)
    ]  # domains of unequal sizes
    return Scene(Layer("it", "it", "in", "out", taps, 1, bias), modules, data, outputs, inputs, kind == "correlated")


CASES = [
    (kind, count, seed)
    for kind in ("conv", "correlated", "linear", "flattened")
    for count in (2, 3)
    for seed in range(2)
]
MORE = [pytest.param(kind, count, seed + 2, marks=pytest.mark.slow) for kind, count, seed in CASES]  # as seeds 0 and 1


@pytest.mark.parametrize(("kind", "count", "seed"), [*CASES, *MORE])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_closed_form_is_least_squares(kind: str, count: int, seed: int, own: bool, ridge: float) -> None:
    it = scene(kind, count, seed, bias=seed % 2 == 0)
    fit = fit_layer(it.layer, joint_matrix(it.layer, it.modules), it.outputs, it.inputs, it.views(own), ridge=ridge)
    found, (z, t) = fit.matrix.numpy(), it.stacked(own)
    assert np.allclose(found, it.solved(ridge, own), rtol=0, atol=1e-8)
    assert not found[~it.allowed()].any()  # zero blocks are exactly zero
    power = np.mean((t**2).sum(1))
    assert fit.before == pytest.approx(np.mean(((z @ it.start().T - t) ** 2).sum(1)) / power, abs=1e-10)
    assert fit.after == pytest.approx(np.mean(((z @ found.T - t) ** 2).sum(1)) / power, abs=1e-10)
    assert fit.after <= fit.before + 1e-12
    assert fit.fallbacks == 0
    ends = np.cumsum([len(values[0]) for values in it.data]) * len(z) // sum(len(values[0]) for values in it.data)
    parts = zip(np.split(z, ends[:-1]), np.split(t, ends[:-1]), strict=True) if own else [(z, t)]
    wanted = [np.sum((x @ found.T - y) ** 2) / np.sum(y**2) for x, y in parts]
    assert fit.domains == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize(("kind", "count", "seed"), CASES)
@pytest.mark.parametrize("own", [False, True])
def test_what_one_student_asked_for_serves_the_next(kind: str, count: int, seed: int, own: bool) -> None:
    """Students of unlike unit maps, in any order, from the same views: each as from views of its own."""
    it = scene(kind, count, seed, bias=True)
    matrices, views = joint_matrix(it.layer, it.modules), it.views(own)
    size, width = it.inputs.sizes[0], it.outputs.sizes[0]
    merged = UnitMap.identity(width, count), UnitMap.identity(size, count)
    for outputs, inputs in (merged, (it.outputs, it.inputs), (it.outputs, merged[1]), (merged[0], it.inputs)):
        one, alone = (fit_layer(it.layer, matrices, outputs, inputs, v, ridge=0.1) for v in (views, it.views(own)))
        assert torch.allclose(one.matrix, alone.matrix, rtol=0, atol=1e-10)
        assert (one.before, one.after) == (pytest.approx(alone.before), pytest.approx(alone.after))


@pytest.mark.parametrize(("kind", "count", "seed"), CASES)
def test_start_point(kind: str, count: int, seed: int) -> None:
    it = scene(kind, count, seed, bias=seed % 2 == 0)
    found = start_matrix(it.layer, joint_matrix(it.layer, it.modules), it.outputs, it.inputs)
    assert np.allclose(found.numpy(), it.start(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_start_point_is_the_table_of_two_sources(seed: int) -> None:
    """Rows are outputs, columns inputs; B indexed through the permutation."""
    torch.manual_seed(seed)
    modules = [nn.Linear(5, 6, bias=False) for _ in range(2)]
    a, b = (module.weight.detach().double() for module in modules)
    p, q = torch.randperm(5), torch.randperm(6)  # matched inputs and outputs of B
    inputs = UnitMap.sorted(torch.stack([torch.arange(5), p], 1)).split(torch.tensor([0, 3]))
    outputs = UnitMap.sorted(torch.stack([torch.arange(6), q], 1)).split(torch.tensor([1, 2, 5]))
    i, i_a, i_b = torch.tensor([1, 2, 4]), torch.tensor([0, 3]), p[[0, 3]].sort().values
    o, o_a, o_b = torch.tensor([0, 3, 4]), torch.tensor([1, 2, 5]), q[[1, 2, 5]].sort().values
    inputs = UnitMap.sorted(torch.cat([torch.stack([i, p[i]], 1), _single(i_a, 0), _single(i_b, 1)]))
    outputs = UnitMap.sorted(torch.cat([torch.stack([o, q[o]], 1), _single(o_a, 0), _single(o_b, 1)]))
    zero = torch.zeros
    table = torch.cat(
        [
            torch.cat([(a[o][:, i] + b[q[o]][:, p[i]]) / 2, a[o][:, i_a] / 2, b[q[o]][:, i_b] / 2], 1),
            torch.cat([a[o_a][:, i], a[o_a][:, i_a], zero(3, 2)], 1),
            torch.cat([b[o_b][:, p[i]], zero(3, 2), b[o_b][:, i_b]], 1),
        ]
    )
    found = start_matrix(Layer("it", "it", "in", "out", 1, 1, False), [a, b], outputs, inputs)
    assert torch.allclose(found, table, atol=1e-14)


def _single(units: Tensor, source: int) -> Tensor:
    rows = torch.full((len(units), 2), -1)
    rows[:, source] = units
    return rows


@pytest.mark.parametrize("count", [2, 3])
def test_sources_apart_are_left_exactly_as_they_are(count: int) -> None:
    it = scene("conv", count, 0, bias=True)
    outputs, inputs = UnitMap.apart((4,) * count), UnitMap.apart((3,) * count)
    matrices = joint_matrix(it.layer, it.modules)
    for own in (False, True):
        fit = fit_layer(it.layer, matrices, outputs, inputs, it.views(own), ridge=0.1)
        dense = torch.block_diag(*(matrix[:, :-1] for matrix in matrices))
        assert torch.equal(fit.matrix, torch.cat([dense, torch.cat([m[:, -1:] for m in matrices])], 1))
        assert (fit.before, fit.after) == (0.0, 0.0)


def test_a_large_ridge_is_the_start_point() -> None:
    it = scene("conv", 2, 1, bias=False)
    fit = fit_layer(it.layer, joint_matrix(it.layer, it.modules), it.outputs, it.inputs, it.views(True), ridge=1e9)
    assert np.allclose(fit.matrix.numpy(), it.start(), atol=1e-7)
    assert fit.after == pytest.approx(fit.before, rel=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_dead_inputs_are_no_obstacle(ridge: float) -> None:
    """A unit that is always zero leaves its weights at the start point."""
    it = scene("linear", 2, 2, bias=True)
    it.inputs = UnitMap.identity(3, 2)
    it.outputs = UnitMap.identity(4, 2)
    for values in it.data:
        for value in values:
            value[:, 1] = 0.0
    fit = fit_layer(it.layer, joint_matrix(it.layer, it.modules), it.outputs, it.inputs, it.views(False), ridge=ridge)
    assert np.allclose(fit.matrix[:, 1].numpy(), it.start()[:, 1], atol=1e-8)
    z, t = it.stacked(False)
    best = it.solved(ridge, False)
    assert np.mean((z @ fit.matrix.numpy().T - t) ** 2) == pytest.approx(np.mean((z @ best.T - t) ** 2), rel=1e-6)
    assert (fit.fallbacks > 0) == (ridge == 0)


@pytest.mark.parametrize("seed", range(4))
def test_twin_inputs_without_ridge_are_no_worse_than_the_best(seed: int) -> None:
    """Two inputs that are one to rounding: the moments are singular to rounding, the fit must not be lost in it."""
    it = scene("linear", 2, 2 * seed, bias=True)
    it.inputs, it.outputs = UnitMap.identity(3, 2), UnitMap.identity(4, 2)
    generator = torch.Generator().manual_seed(seed)
    for values in it.data:
        for value in values:
            value.normal_(generator=generator)
            value[:, 1] = value[:, 0] * 0.7
    fit = fit_layer(it.layer, joint_matrix(it.layer, it.modules), it.outputs, it.inputs, it.views(False), ridge=0.0)
    z, t = it.stacked(False)
    least = np.mean((z @ it.solved(0.0, False, rcond=1e-6).T - t) ** 2)  # rounding is no direction to fit
    assert np.mean((z @ fit.matrix.numpy().T - t) ** 2) == pytest.approx(least, rel=1e-3)
    assert float(fit.matrix.abs().max()) < 10 * np.abs(it.start()).max()


def test_too_few_samples_without_ridge_are_refused() -> None:
    it = scene("flattened", 2, 1, bias=True, pictures=1)
    matrices, views = joint_matrix(it.layer, it.modules), it.views(False)
    with pytest.raises(MergeError, match=r"layer 'it' has \d+ unknowns a row but only 7 samples and ridge is 0"):
        fit_layer(it.layer, matrices, it.outputs, it.inputs, views, ridge=0.0)
    assert fit_layer(it.layer, matrices, it.outputs, it.inputs, views, ridge=1e-2).matrix.isfinite().all()


def test_a_domain_without_pictures_weighs_nothing() -> None:
    it = scene("linear", 2, 0, bias=True)
    matrices, views = joint_matrix(it.layer, it.modules), it.views(True)
    nothing = View(it.layer, matrices, Moment(views[0].moment.size), 1)
    with_it = fit_layer(it.layer, matrices, it.outputs, it.inputs, [*views, nothing], ridge=0.1)
    without = fit_layer(it.layer, matrices, it.outputs, it.inputs, views, ridge=0.1)
    assert torch.equal(with_it.matrix, without.matrix)


@pytest.mark.parametrize("spread", [1e1, 1e3, 1e6])
def test_the_condition_is_told_from_below_and_nearly(spread: float) -> None:
    """A few steps of power iteration find the extreme eigenvalues of matrices with any eigenvectors."""
    draw = torch.Generator().manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(4, 40, 40, generator=draw, dtype=torch.float64))
    vectors[2:, :20, 20:] = vectors[2:, 20:, :20] = 0  # units that have nothing to do with each other
    vectors[2:], _ = torch.linalg.qr(vectors[2:])
    values = torch.logspace(0, np.log10(spread), 40, dtype=torch.float64)
    factor = Factor(vectors * values @ vectors.mT, 0.0)
    assert spread / 4 < factor.condition <= spread * (1 + 1e-6)


@pytest.mark.parametrize(("ridge", "single"), [(0.1, True), (1e-7, False)])
def test_large_systems_are_solved_in_single_precision_where_the_ridge_allows(
    ridge: float, single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what that leaves of an error hardly shows in what the weights put out."""
    draw = torch.Generator().manual_seed(0)
    samples = torch.randn(200, 120, generator=draw, dtype=torch.float64).relu() * torch.logspace(-1, 1, 120)
    gram = samples.mT @ samples / 200
    right = torch.randn(3, 120, generator=draw, dtype=torch.float64) @ gram
    shift = ridge * float(gram.diagonal().mean())
    exact = Factor(gram, shift).solve(right)
    monkeypatch.setattr(factor, "LARGE", 100)
    large = Factor(gram, shift)
    assert large.single is single
    error = large.solve(right) - exact
    energy = ((error @ gram) * error).sum() / ((exact @ gram) * exact).sum()
    assert float(energy) <= (1e-4**2 if single else 0.0)
    assert large.condition == pytest.approx(Factor(gram, shift).condition, rel=0.1)
