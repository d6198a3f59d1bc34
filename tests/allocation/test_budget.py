"""Sizes: nominal = counted = the weights that may differ from zero; whole budgets."""

from collections.abc import Mapping
from typing import cast

import pytest
import torch
from helpers import PICTURE, Case, close, make_problem, pictures, random_map, random_network, resnet
from torch import Tensor, nn

from project.alignment import Alignment, UnitMap, overlap
from project.allocation import Budget, executed_macs, nominal_macs, stagewise
from project.models import Architecture
from project.student import BlockLayer, start_student
from project.student.layers import dense_layer, load_matrix, student_layer
from project.symmetry import trace

BUDGETS = (1.0, 1.2, 1.7, 2.0, 2.6, 3.0, 4.0)


def random_alignment(problem: Case, seed: int) -> Alignment:
    generator = torch.Generator().manual_seed(seed)
    count, free = len(problem.sources), problem.spec.free
    members = {
        group.name: torch.stack([torch.randperm(group.size, generator=generator) for _ in range(count)], 1)
        for group in free
    }
    points = {group.name: torch.randn(group.size, count, 3, generator=generator) for group in free}
    return Alignment(
        members,
        {group.name: torch.randn(group.size, generator=generator) for group in free},
        {name: (values[:, :, None] - values[:, None]).square().sum(3) for name, values in points.items()},
    )


def bare(seed: int, count: int, mode: str) -> Case:
    classes = (3, 7, 4, 2) if mode == "different" else (5, 5, 5, 5)
    return make_problem([random_network(seed, s, classes[s]) for s in range(count)], mode, batches=[])


def brute_macs(problem: Case, maps: Mapping[str, UnitMap]) -> int:
    """Weights that may differ from zero × output positions, a weight at a time; positions counted by hooks."""
    positions: dict[str, int] = {}
    handles = [
        problem.sources[0]
        .get_submodule(layer.name)
        .register_forward_hook(
            lambda _module, _inputs, out, name=layer.name: positions.update({name: out.shape[2:].numel()})
        )
        for layer in problem.spec.layers
    ]
    problem.sources[0](torch.zeros(1, *problem.spec.picture))
    for handle in handles:
        handle.remove()
    total = 0
    for layer in problem.spec.layers:
        weight = problem.sources[0].get_submodule(layer.name).weight
        taps = weight[0].numel() // problem.spec.groups[layer.inputs].size
        outputs, inputs = (maps[name].members.numpy() >= 0 for name in (layer.outputs, layer.inputs))
        seen = (outputs[:, None] & inputs[None]).any(2).sum()
        total += int(seen) * taps * positions[layer.name]
    return total


@pytest.mark.parametrize(
    ("seed", "count", "mode", "front"),
    [
        *((0, 2, "shared", True), (0, 2, "different", False), (1, 3, "shared", False), (1, 3, "different", True)),
        *(pytest.param(0, 2, *one, marks=pytest.mark.slow) for one in (("shared", False), ("different", True))),
        *(pytest.param(1, 3, *one, marks=pytest.mark.slow) for one in (("shared", True), ("different", False))),
        *(
            pytest.param(*one, mode, front, marks=pytest.mark.slow)
            for one in ((2, 2), (3, 4))
            for mode in ("shared", "different")
            for front in (False, True)
        ),
    ],
)
def test_nominal_is_counted_is_brute(seed: int, count: int, mode: str, front: bool) -> None:
    problem = bare(seed, count, mode)
    alignment = random_alignment(problem, seed)
    unit = sum(executed_macs(source, PICTURE) for source in problem.sources) / count
    assert problem.unit == unit
    sizes = []
    for budget in (b for b in BUDGETS if b <= count):
        maps = stagewise(problem.spec, alignment, problem.fixed, Budget(budget), front=front)
        student = problem.start(maps)
        nominal = nominal_macs(problem.spec, maps)
        assert nominal == executed_macs(student.network, PICTURE) == brute_macs(problem, maps)
        sizes.append(nominal)
    assert sizes == sorted(sizes)
    assert sizes[-1] == sum(executed_macs(source, PICTURE) for source in problem.sources)


@pytest.mark.parametrize(("seed", "count"), [(seed, 2 + seed % 2) for seed in range(8)])
def test_blocks_of_any_map_cost_what_they_should(seed: int, count: int) -> None:
    """Not only what a budget makes: rows for some of three sources too."""
    problem = bare(seed, count, "different")
    maps = {**problem.fixed, **{g.name: random_map(g.size, count, seed + i) for i, g in enumerate(problem.spec.free)}}
    student = problem.start(maps)
    assert executed_macs(student.network, PICTURE) == nominal_macs(problem.spec, maps) == brute_macs(problem, maps)
    dense = student.dense()
    batch = pictures(3, 0)
    with torch.no_grad():
        assert close(dense(batch), student(batch))
    assert not any(isinstance(module, BlockLayer) for module in dense.modules())
    assert any(isinstance(module, BlockLayer) for module in student.modules())
    assert trace(dense.eval(), PICTURE).sizes == {
        name: units.units for name, units in maps.items()
    }  # what comes out can be traced, and merged, again


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize(
    ("seed", "count", "mode"),
    [
        (0, 2, "shared"), (1, 3, "different"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((0, 2, "different"), (1, 3, "shared"))),
    ],
)  # fmt: skip
def test_stagewise_keeps_to_the_budget(seed: int, count: int, mode: str, front: bool) -> None:
    problem = bare(seed, count, mode)
    alignment = random_alignment(problem, seed)
    spec, fixed = problem.spec, problem.fixed
    full = nominal_macs(spec, stagewise(spec, alignment, fixed, Budget(0.0), front=front))
    order = spec.free if front else spec.free[::-1]
    last = 0
    for step in range(13):
        budget = 1 + step * (count - 1) / 12
        maps = stagewise(spec, alignment, fixed, Budget(budget), front=front)
        size = nominal_macs(spec, maps)
        assert size >= last
        assert size == full or size <= budget * problem.unit * (1 + 1e-9)
        last = size
        widths = [(maps[group.name].units - group.size) / (group.size * (count - 1)) for group in order]
        partial = next((i for i, width in enumerate(widths) if width < 1), len(widths))
        assert all(width == 0 for width in widths[partial + 1 :])  # whole groups, from one end, one in part
        if partial < len(widths):
            group = order[partial]
            splitting, steps = alignment.splitting(group.name), maps[group.name].units - group.size
            assert torch.equal(maps[group.name].members, splitting.after(steps).members)  # dearest merges first
            more = {**maps, group.name: splitting.after(steps + 1)}
            assert nominal_macs(spec, more) > budget * problem.unit  # one unit more would be too much
    assert all(width == 1 for width in widths)


def test_three_sources_share_in_pairs() -> None:
    """Between one size and three, some rows have lost one source while the two others stay merged."""
    problem = bare(1, 3, "different")
    alignment = random_alignment(problem, 1)
    seen = set()
    for budget in (1.2, 1.6, 2.0, 2.4):
        maps = stagewise(problem.spec, alignment, problem.fixed, Budget(budget))
        seen |= {sum(there) for name in alignment.members for _, there in maps[name].blocks}
    assert seen == {1, 2, 3}


def test_all_merged_and_all_apart_of_resnet18() -> None:
    with torch.device("meta"):
        network = Architecture("resnet18", 10).build().eval()
    spec = trace(network, (3, 64, 64))
    fixed = {group.name: UnitMap.identity(group.size, 2) for group in spec.groups.values() if group.fixed}
    merged = {group.name: UnitMap.identity(group.size, 2) for group in spec.free}
    apart = {group.name: UnitMap.apart((group.size, group.size)) for group in spec.free}
    one = nominal_macs(spec, {**fixed, **merged})
    assert nominal_macs(spec, {**fixed, **apart}) == 2 * one
    assert 148e6 < one < 149e6  # 1.81 GMACs at 224 × 224, which has 12.25 times the positions


@pytest.mark.parametrize("budget", [1.3, 2.0])
def test_resnet20_costs_what_it_should(budget: float) -> None:
    sources = [resnet("resnet20", s) for s in (0, 1)]
    problem = make_problem(sources, "different", batches=[])
    maps = stagewise(problem.spec, random_alignment(problem, 0), problem.fixed, Budget(budget))
    student = start_student(sources, problem.spec, maps, problem.labels)
    assert executed_macs(student.network, PICTURE) == nominal_macs(problem.spec, maps)


def test_a_block_layer_is_its_dense_layer() -> None:
    """The layer itself, against the matrix it was given."""
    torch.manual_seed(0)
    for seed, (layer, taps) in enumerate(
        [
            (nn.Conv2d(4, 5, 3, 2, 1, bias=True), 9),
            (nn.Conv2d(4, 5, (2, 3), padding="same", dilation=2, bias=False), 6),
            (nn.Linear(4 * 3, 5), 3),
        ]
    ):
        outputs, inputs = random_map(5, 3, seed + 4), random_map(4, 3, seed + 54)
        check_block_layer(layer, outputs, inputs, taps)


def test_separate_sources_run_as_one_grouped_convolution() -> None:
    """Three sources side by side: nothing gathered, nothing joined, weights and constants where they belong."""
    torch.manual_seed(0)
    outputs, inputs = (UnitMap.identity(size, 3).split(torch.arange(size)) for size in (4, 2))
    layer = nn.Conv2d(2, 4, 3, bias=True)
    check_block_layer(layer, outputs, inputs, 9)
    (part,) = cast(BlockLayer, student_layer(layer, outputs, inputs, 9)).parts
    assert cast(nn.Conv2d, part).groups == 3


def check_block_layer(layer: nn.Module, outputs: UnitMap, inputs: UnitMap, taps: int) -> None:
    matrix = torch.randn(outputs.units, inputs.units * taps)
    matrix *= overlap(outputs, inputs).repeat_interleave(taps, 1)
    bias = torch.randn(outputs.units) if layer.bias is not None else None
    block = student_layer(layer, outputs, inputs, taps)
    assert isinstance(block, BlockLayer)
    load_matrix(block, matrix, bias)
    value: Tensor
    if isinstance(layer, nn.Conv2d):
        value = torch.randn(2, inputs.units, 7, 6)
        expected = nn.functional.conv2d(
            value,
            matrix.view(outputs.units, inputs.units, *layer.kernel_size),
            bias,
            layer.stride,
            layer.padding,
            layer.dilation,
        )
    else:
        value = torch.randn(2, inputs.units * taps)
        expected = nn.functional.linear(value, matrix, bias)
    assert torch.allclose(block(value), expected, atol=1e-5)
    dense = dense_layer(block)
    assert torch.equal(dense.weight.flatten(1), matrix)
    assert torch.allclose(dense(value), expected, atol=1e-5)
