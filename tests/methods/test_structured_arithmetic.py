"""Arithmetic on networks of every kind of layer: their gradients, second moments and bases move with their units."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from helpers import DOMAINS, close, make_problem, permuted_copy, pictures
from kinds import KINDS, SIDE, kind

from project.methods import EMR, Fisher, MaTS, Method, Problem, RegMean
from project.moments import DIAGONAL, FACTORS, INPUTS, Collector, Lockstep, fisher_need
from project.student import MaskedStudent
from project.symmetry import trace

SHAPE = (3, SIDE, SIDE)
NEEDS = (INPUTS, fisher_need(DIAGONAL, "sampled"), fisher_need(FACTORS, "sampled"))
METHODS: dict[str, Callable[[], Method]] = {
    "emr": lambda: EMR(align="weights"),
    "fisher": lambda: Fisher(align="weights"),
    "regmean": lambda: RegMean(align="weights"),
    "mats, kfac": lambda: MaTS("kfac", align="weights", damping=0.01),
    "mats, diagonal": lambda: MaTS("diagonal", align="weights", iterations=3),
}


@cache
def twins(name: str) -> Problem:
    first = kind(name, 0)
    second = copy.deepcopy(first)
    permuted_copy(first, second, trace(first, SHAPE), 0)
    batches = [(domain, pictures(4, i, SHAPE)) for i, domain in enumerate(DOMAINS[:2])]
    return make_problem([first, second], shape=SHAPE, needs=NEEDS, batches=batches, base="mean")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "depthwise"])
@pytest.mark.parametrize("method", METHODS)
def test_permuted_copies_merge_to_themselves(name: str, method: str) -> None:
    it, batch = twins(name), pictures(4, 7, SHAPE)
    (merged,) = METHODS[method]().merge(it, [1.0])
    with torch.no_grad():
        expected = it.sources[0](batch)
        found = merged.student.answer(batch, DOMAINS[1])
    assert isinstance(merged.student, MaskedStudent) == (method == "emr")
    assert close(found, expected, 1e-3)
    assert it.statistics is not None
    assert all(torch.isfinite(total).all() for moment in it.statistics.moments() for total in moment.totals)


@pytest.mark.parametrize("name", ["group norm", "convnext", "transformer", "attention", "grouped"])
def test_gradients_of_single_pictures(name: str) -> None:
    """Of layers that torch cannot differentiate for many pictures at once, too."""
    network, batch, labels = kind(name, 0), pictures(3, 1, SHAPE), torch.tensor([1, 0, 4])
    needs = [fisher_need(DIAGONAL, "labels")]
    collector = Collector(trace(network, SHAPE), Lockstep([network]), needs, ["art"], {"art": 0})
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
