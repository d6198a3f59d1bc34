"""Depthwise convolutions and squeeze and excite: what must hold of every student holds of theirs."""

import copy

import pytest
import torch
from helpers import close, make_problem, merge_case, permuted_copy, pictures, traced
from kinds import SIDE, kind
from torch import nn

from project.alignment import UnitMap
from project.allocation import executed_macs, nominal_macs
from project.methods import Method, Permutation, PLeaS

SHAPE = (3, SIDE, SIDE)
METHODS = {
    "permutation": lambda: Permutation("weights"),
    "permutation by activations": lambda: Permutation(similarity="correlation"),
    "pleas": lambda: PLeaS(targets="mean"),
    "pleas joint": lambda: PLeaS(fit="joint", targets="mean"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [2, 3])
def test_permuted_copies_merge_to_themselves(name: str, count: int) -> None:
    first = kind("depthwise", 0)
    spec = traced(first, SHAPE)
    sources = [first, *(copy.deepcopy(first) for _ in range(count - 1))]
    for seed, twin in enumerate(sources[1:]):
        permuted_copy(first, twin, spec, seed)
    method: Method = METHODS[name]()
    (merged,) = merge_case(method, make_problem(sources, shape=SHAPE), [1.0])
    batch = pictures(4, 7, SHAPE)
    with torch.no_grad():
        assert close(merged.student(batch), first(batch), 1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [2, 3])
def test_sources_apart_are_the_sources(name: str, count: int) -> None:
    sources = [kind("depthwise", seed) for seed in range(count)]
    problem = make_problem(sources, "different", shape=SHAPE)
    method: Method = METHODS[name]()
    (merged,) = merge_case(method, problem, [float(count)])
    batch = pictures(4, 7, SHAPE)
    with torch.no_grad():
        assert close(merged.student(batch), torch.cat([source(batch) for source in sources], 1))


@pytest.mark.parametrize("budget", [1.0, 1.3, 1.7, 2.0])
def test_nominal_is_counted(budget: float) -> None:
    sources = [kind("depthwise", seed) for seed in range(2)]
    problem = make_problem(sources, "different", shape=SHAPE)
    for method in (PLeaS(), Permutation("weights")):
        (merged,) = merge_case(method, problem, [budget])
        executed = executed_macs(merged.student.network, SHAPE)
        assert executed == nominal_macs(problem.spec, merged.student.maps)
        assert executed <= budget * problem.unit * (1 + 1e-9) or budget == 1.0


def test_a_kernel_is_the_mean_of_its_rows_sources() -> None:
    sources = [kind("depthwise", seed) for seed in range(2)]
    problem = make_problem(sources, shape=SHAPE, batches=[])
    maps = {**problem.fixed, **{g.name: UnitMap.identity(g.size, 2) for g in problem.spec.free}}
    layer = next(layer for layer in problem.spec.layers if layer.blocks > 1)
    matched = torch.stack([torch.arange(8), torch.arange(8).flip(0)], 1)
    maps[layer.outputs] = UnitMap.sorted(matched).split(torch.tensor([2, 5]))
    student = problem.start(maps).network
    kernels = [source.get_submodule(layer.name).weight for source in sources]
    found = student.get_submodule(layer.name)
    assert isinstance(found, nn.Conv2d)
    assert found.groups == 10
    for row, units in enumerate(maps[layer.outputs].members.tolist()):
        there = [kernel[unit] for kernel, unit in zip(kernels, units, strict=True) if unit >= 0]
        assert torch.allclose(found.weight[row], torch.stack(there).mean(0), atol=1e-6)
