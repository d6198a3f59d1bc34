"""Arithmetic on networks of every kind of layer: their gradients, second moments and bases move with their units."""

import copy
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from helpers import DOMAINS, Case, close, make_problem, merge_case, permuted_copy, pictures, space_of, traced, unfolded
from kinds import KINDS, SIDE, kind
from torch import Tensor, nn

from project.methods import EMR, Fisher, MaTS, Method, RegMean
from project.moments import DIAGONAL, FACTORS, INPUTS, Collector, Lockstep, fisher_need
from project.student import MaskedStudent
from project.symmetry import permute_state

SHAPE = (3, SIDE, SIDE)
BLOCKS = ("grouped", "depthwise", "shuffled")
NEEDS = (INPUTS, fisher_need(DIAGONAL, "sampled"), fisher_need(FACTORS, "sampled"))
METHODS: dict[str, Callable[[], Method]] = {
    "emr": lambda: EMR(align="weights"),
    "fisher": lambda: Fisher(align="weights"),
    "regmean": lambda: RegMean(align="weights"),
    "mats, kfac": lambda: MaTS("kfac", align="weights", damping=0.01),
    "mats, diagonal": lambda: MaTS("diagonal", align="weights", iterations=3),
}


@cache
def twins(name: str) -> Case:
    first = kind(name, 0)
    second = copy.deepcopy(first)
    permuted_copy(first, second, traced(first, SHAPE), 0)
    batches = [(domain, pictures(4, i, SHAPE)) for i, domain in enumerate(DOMAINS[:2])]
    return make_problem([first, second], shape=SHAPE, needs=NEEDS, batches=batches, base="mean")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "depthwise"])
@pytest.mark.parametrize("method", METHODS)
def test_permuted_copies_merge_to_themselves(name: str, method: str) -> None:
    it, batch = twins(name), pictures(4, 7, SHAPE)
    (merged,) = merge_case(METHODS[method](), it, [1.0])
    with torch.no_grad():
        expected = it.sources[0](batch)
        found = merged.student.answer(batch, DOMAINS[1])
    assert isinstance(merged.student, MaskedStudent) == (method == "emr")
    assert close(found, expected, 1e-3)
    assert all(torch.isfinite(total).all() for moment in it.statistics.moments() for total in moment.totals)


@pytest.mark.parametrize(
    "name", [name if name in BLOCKS else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_moments_move_with_their_units(name: str) -> None:
    """As they are gathered anew from each source with its units in the student's order; blocks of them, too."""
    batches = [(domain, pictures(4, i, SHAPE)) for i, domain in enumerate(DOMAINS[:2])]
    it = make_problem([kind(name, seed) for seed in range(2)], shape=SHAPE, needs=NEEDS, batches=batches)
    space, moved = space_of(it, "weights"), False
    for index, (domain, batch) in enumerate(batches):
        twin, state = copy.deepcopy(it.sources[index]), it.sources[index].state_dict()
        orders = {group.name: space.maps[group.name].members[:, index] for group in it.spec.free}
        moved |= any(not torch.equal(order, order.sort().values) for order in orders.values())
        twin.load_state_dict(permute_state(state, it.spec, orders))
        collector = Collector(it.spec, Lockstep([twin]), NEEDS, [domain], {domain: 0})
        collector.gather(domain, batch)
        for layer in it.spec.layers:
            assert close(space.gram(layer, index), collector.statistics.input(layer.name, 0), 1e-4), layer.name
            factor = collector.statistics.factor(layer.name, 0, "sampled")
            assert close(space.factor(layer, index, "sampled"), factor, 1e-3), layer.name
    assert moved


@pytest.mark.parametrize("name", ["grouped", "depthwise", "multiplied"])
def test_blocks_are_least_squares_of_their_own(name: str) -> None:
    """RegMean, and MaTS' gram to the end, on what each block reads in the sources."""
    batches = [(domain, pictures(8, i, SHAPE)) for i, domain in enumerate(DOMAINS[:2])]
    it = make_problem([kind(name, seed) for seed in range(2)], shape=SHAPE, needs=(INPUTS,), batches=batches)
    (merged,) = merge_case(RegMean(off_diagonal=1.0, ridge=1e-12), it, [1.0])
    (stepped,) = merge_case(MaTS("gram", iterations=400, tolerance=1e-12), it, [1.0])
    grouped = [layer for layer in it.spec.layers if layer.blocks > 1]
    assert grouped
    for layer in grouped:
        seen = [_read(source, layer.name, batch) for source, (_, batch) in zip(it.sources, batches, strict=True)]
        weights = [source.get_submodule(layer.name).weight.detach().double() for source in it.sources]
        rows = [torch.unflatten(one.flatten(1), 0, (layer.blocks, -1)) for one in weights]
        for block in range(layer.blocks):
            inputs = [one.view(layer.blocks, -1, one.shape[1])[block].numpy() for one in seen]
            wanted = [one[block].numpy() @ x for one, x in zip(rows, inputs, strict=True)]
            expected = np.linalg.lstsq(np.hstack(inputs).T, np.hstack(wanted).T, rcond=None)[0].T
            for one in (merged, stepped):
                found = one.student.network.get_parameter(f"{layer.name}.weight").detach().flatten(1)
                found = torch.unflatten(found, 0, (layer.blocks, -1))[block]
                assert close(found, torch.from_numpy(expected), 1e-4)
        assert merged.layers[layer.name]["residual_after"] < merged.layers[layer.name]["residual_before"]


def _read(network: nn.Module, name: str, batch: Tensor) -> Tensor:
    """The patches that a convolution reads, float64, shape (inputs · taps, samples)."""
    seen: list[Tensor] = []
    layer = network.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].detach()))
    with torch.no_grad():
        network(batch)
    handle.remove()
    return unfolded(seen[0], layer)


@pytest.mark.parametrize("name", ["group norm", "convnext", "transformer", "attention", "grouped"])
def test_gradients_of_single_pictures(name: str) -> None:
    """Of layers that torch cannot differentiate for many pictures at once, too."""
    network, batch, labels = kind(name, 0), pictures(3, 1, SHAPE), torch.tensor([1, 0, 4])
    needs = [fisher_need(DIAGONAL, "labels")]
    collector = Collector(traced(network, SHAPE), Lockstep([network]), needs, ["art"], {"art": 0})
    collector.gather("art", batch, labels)
    found = {key: table[0, "art"].totals[0] for key, table in collector.statistics.squares["labels"].items()}
    expected = {key: torch.zeros_like(one) for key, one in network.named_parameters()}
    for picture, label in zip(batch, labels.tolist(), strict=True):
        network.zero_grad()
        network(picture[None])[0].log_softmax(0)[label].backward()
        for key, one in network.named_parameters():
            expected[key] += 0.0 if one.grad is None else one.grad.square()
    for key, one in expected.items():
        assert torch.allclose(found[key].float(), one, rtol=1e-3, atol=1e-5 * float(one.max()) + 1e-10), key
