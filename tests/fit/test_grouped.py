"""Grouped and depthwise convolutions in the sequential fit, against least squares on each block's stacked data."""

import numpy as np
import pytest
import torch
from helpers import Case, estimate_case, make_problem, merge_case, moved, random_map
from kinds import SIDE, kind
from meeting import together
from torch import Tensor, nn

from project.alignment import UnitMap
from project.errors import MergeError
from project.fit import LayerFit, SequentialFit, damping
from project.fit.grouped import BlockSolver
from project.fit.layer_fit import domain_misfits
from project.fit.normal_equations import Gram, NormalEquations
from project.methods import PLeaS
from project.runtime import World
from project.symmetry import Layer

SHAPE = (3, SIDE, SIDE)
KINDS = ["grouped", "depthwise", "multiplied", "convnext", "shuffled"]


class System:
    """Random equations of a grouped layer: patches and targets of three owners' domains, one of them without."""

    def __init__(self, seed: int, tall: int = 2, wide: int = 4, samples: int = 30) -> None:
        generator = torch.Generator().manual_seed(seed)
        blocks = random_map(5, 3, seed).members  # rows of blocks; each block's units stand side by side
        self.outputs, self.inputs = UnitMap.sorted(spread(blocks, tall)), UnitMap.sorted(spread(blocks, 1))
        self.blocks, self.unknowns = len(blocks), wide + 1
        self.layer = Layer("layer", "layer", "in", "out", wide, 1, bias=True, blocks=5)
        self.owners, self.weights = (0, 1, 2, None), (1.0, 0.5, 0.0, 2.0)
        self.x = [torch.randn(self.blocks, wide, samples, dtype=torch.float64, generator=generator) for _ in range(4)]
        self.x = [torch.cat([x, x.new_ones(self.blocks, 1, samples)], 1) for x in self.x]
        self.t = [torch.randn(self.blocks, tall, samples, dtype=torch.float64, generator=generator) for _ in range(4)]
        self.start = torch.randn(self.blocks * tall, wide + 1, dtype=torch.float64, generator=generator)

    def equations(self, parts: slice = slice(None)) -> NormalEquations:
        chosen = list(zip(self.x, self.t, self.owners, self.weights, strict=True))[parts]
        grams = [Gram(x @ x.mT / x.shape[2], x.shape[2], owner, None, w) for x, _, owner, w in chosen]
        crosses = [(t @ x.mT / x.shape[2]).flatten(0, 1) for x, t, _, _ in chosen]
        powers = [t.square().mean(2).flatten() for _, t, _, _ in chosen]
        return NormalEquations(grams, crosses, powers)

    def solve(self, ridge: float, world: World | None = None, parts: slice = slice(None)) -> LayerFit:
        asked = self.equations(parts)
        axes = (self.layer, self.start, self.outputs, self.inputs)
        return BlockSolver(*axes, asked.grams, ridge, world or World()).solve(asked.crosses, asked.powers)


def spread(blocks: Tensor, size: int) -> Tensor:
    """Members of units that stand in blocks of a size, from those of the blocks."""
    units = blocks[:, None] * size + torch.arange(size)[None, :, None]
    return torch.where(blocks[:, None] < 0, -1, units).flatten(0, 1)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_every_block_is_least_squares_on_the_domains_that_it_follows(seed: int, ridge: float) -> None:
    it = System(seed)
    fit = it.solve(ridge)
    found, starts = (one.view(it.blocks, 2, -1).numpy() for one in (fit.matrix, it.start))
    energy, power = np.zeros(2), 0.0
    for block in range(it.blocks):
        present = it.outputs.present[2 * block]
        followed = [i for i, owner in enumerate(it.owners) if it.weights[i] and (owner is None or present[owner])]
        root = np.concatenate([np.full(it.x[i].shape[2], it.weights[i] ** 0.5) for i in followed])
        x = np.concatenate([it.x[i][block].numpy().T for i in followed]) * root[:, None]
        t = np.concatenate([it.t[i][block].numpy().T for i in followed]) * root[:, None]
        samples, total = sum(it.x[i].shape[2] for i in followed), float(np.sum(root**2))
        shift = damping(ridge, it.unknowns, samples) * np.mean(np.sum(x[:, :-1] ** 2, 0) / total)
        system = np.concatenate([x, np.sqrt(shift * total) * np.eye(it.unknowns)])
        aims = np.concatenate([t, np.sqrt(shift * total) * starts[block].T])
        assert np.allclose(found[block], np.linalg.lstsq(system, aims, rcond=None)[0].T, atol=1e-9)
        energy += [np.sum((x @ matrix[block].T - t) ** 2) / total for matrix in (starts, found)]
        power += np.sum(t**2) / total
    assert (fit.before, fit.after) == pytest.approx(tuple(energy / power))


def test_what_is_left_is_told_of_every_domain_and_by_every_process() -> None:
    it = System(5)
    weights, axes = it.start.view(it.blocks, 2, -1), (it.layer, it.outputs, it.inputs)
    found = domain_misfits(*axes, it.start, it.equations())
    for x, t, owner, share in zip(it.x, it.t, it.owners, found, strict=True):
        follows = torch.ones(it.blocks, dtype=torch.bool) if owner is None else it.outputs.present[::2, owner]
        left, asked = (one[follows].square().sum() for one in (weights @ x - t, t))
        assert share == pytest.approx(float(left / asked))
    for told in together(3, lambda world: domain_misfits(*axes, it.start, it.equations(), world)):
        assert told == found


def test_blocks_that_no_domain_speaks_of_stay_at_their_start() -> None:
    it = System(1)
    fit = it.solve(0.1, parts=slice(0, 1))
    silent = ~it.outputs.present[:, 0]
    assert 0 < int(silent.sum()) < len(silent)
    changed = (fit.matrix != it.start).any(1)
    assert torch.equal(changed, ~silent)


def test_dead_blocks_stay_at_their_start_and_the_others_are_solved() -> None:
    it = System(2)
    alive = it.solve(0.0)
    for x in it.x:
        x[1, :-1] = 0
    fit = it.solve(0.0)
    assert fit.fallbacks == 1
    rows = slice(2, 4)
    assert torch.allclose(fit.matrix[rows, :-1], it.start[rows, :-1])
    others = [row for row in range(len(it.start)) if row not in (2, 3)]
    assert torch.allclose(fit.matrix[others], alive.matrix[others])


def test_too_few_samples_without_ridge_are_refused() -> None:
    it = System(3, samples=1)
    with pytest.raises(MergeError, match=r"layer 'layer' has 5 unknowns a row but only \d samples and ridge is 0"):
        it.solve(0.0)
    assert it.solve(0.1).matrix.isfinite().all()


@pytest.mark.parametrize("size", [2, 3, 30])
def test_processes_solve_their_blocks_and_are_told_the_others(size: int) -> None:
    it = System(4)
    alone, found = it.solve(0.1), together(size, lambda world: it.solve(0.1, world))
    for fit in found:
        assert torch.equal(fit.matrix, found[0].matrix), "the same in all, bit for bit"
        assert torch.allclose(fit.matrix, alone.matrix, rtol=1e-9, atol=1e-9)
        assert (fit.before, fit.after) == pytest.approx((alone.before, alone.after))
        assert (fit.condition, fit.fallbacks) == (pytest.approx(alone.condition), alone.fallbacks)


def problem(name: str, count: int = 2) -> Case:
    base = kind(name, 0)
    return make_problem([base, *(moved(base, seed, 0.1) for seed in range(1, count))], shape=SHAPE)


@pytest.mark.parametrize("name", KINDS)
def test_a_fit_comes_closer_to_the_targets(name: str) -> None:
    it = problem(name)
    (merged,) = merge_case(PLeaS("weights"), it, [1.0])
    grouped = [layer.name for layer in it.spec.layers if layer.blocks > 1]
    assert grouped
    for layer in grouped:
        assert 0 < merged.layers[layer]["residual_after"] < merged.layers[layer]["residual_before"]


@pytest.mark.parametrize("name", ["grouped", "depthwise", "multiplied"])
def test_the_layers_residual_is_that_of_the_network(name: str) -> None:
    """E‖W x − t‖² from the moments is what the fitted student's own values say, beside its sources'."""
    it = problem(name)
    maps = {**it.fixed, **{group.name: UnitMap.identity(group.size, 2) for group in it.spec.free}}
    student = it.start(maps)
    fits = SequentialFit(
        student, it.sources, it.owners, it.pictures, ridge=0.1, rounds=0, absorb=False, compensate=False
    ).run()
    layer = next(layer for layer in it.spec.layers if layer.blocks > 1)
    gap = power = 0.0
    for domain, batches in it.pictures.items():
        values = [value(network, layer.name, batches) for network in (student.network, it.sources[it.owners[domain]])]
        gap, power = gap + float((values[0] - values[1]).square().sum()), power + float(values[1].square().sum())
    assert fits[layer.name].residual_after == pytest.approx(gap / power, rel=1e-4)


def value(network: nn.Module, layer: str, batches: list[Tensor]) -> Tensor:
    """What a layer puts out."""
    found: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        for batch in batches:
            network(batch)
    handle.remove()
    return torch.cat(found)


def test_memory_counts_every_block() -> None:
    """A wide depthwise convolution with a large kernel on small maps: its grams are what takes most."""

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        body = nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 7, padding=3, groups=64), nn.ReLU()
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3)).eval()

    it = make_problem([network(seed) for seed in (0, 1)], shape=(3, 4, 4), batches=[])
    systems = 64 * 50 * 50 * 8  # bytes of one float64 gram for each channel: 7 × 7 taps and a constant
    found = estimate_case(PLeaS("weights"), it, dict.fromkeys(it.owners, 1), [1.0], 1)
    assert 5 * systems < found.least <= found.whole < 8 * systems, "one for each domain, and some to solve"
