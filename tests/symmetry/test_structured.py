"""Grouped and depthwise convolutions, norms over units, attention, concatenation: their groups hold."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torchvision
from helpers import traced
from kinds import KINDS, SIDE, kind
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from project.errors import MergeError
from project.models import written_out
from project.symmetry import Spec, check_equivalence, permute_state, random_orders, trace

SHAPE = (3, SIDE, SIDE)


def worst(network: nn.Module, spec: Spec, orders: dict[str, Tensor]) -> float:
    batch = torch.randn(2, *spec.picture, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        before = network(batch)
        after = functional_call(network, permute_state(network.state_dict(), spec, orders), (batch,))
    return float((after - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("name", KINDS)
def test_any_group_may_be_permuted(name: str) -> None:
    network = kind(name, 0)
    spec = traced(network, SHAPE)
    assert list(check_equivalence(network, spec, tolerance=1e-4)) == [group.name for group in spec.free]
    assert worst(network, spec, random_orders(spec, spec.free, torch.Generator().manual_seed(1))) < 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_every_group_moves_what_it_should(name: str) -> None:
    """Left where it is, any of a group's axes breaks the function: none is there for nothing."""
    network = kind(name, 0).double()
    spec = traced(network, SHAPE)
    state = network.state_dict()
    for group in spec.free:
        orders = random_orders(spec, [group], torch.Generator().manual_seed(3))
        moved = permute_state(state, spec, orders)
        changed = {key for key in state if not torch.equal(state[key], moved[key])}
        if all(torch.equal(order, torch.arange(len(order))) for order in orders.values()):
            assert group.size == 1
            continue
        assert changed
        batch = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        with torch.no_grad():
            before = network(batch)
            for key in sorted(changed):
                if torch.allclose(
                    functional_call(network, {**state, key: torch.randn_like(state[key])}, (batch,)), before
                ):
                    continue  # a norm of single units takes the constants before it away, whatever they are
                broken = functional_call(network, {**moved, key: state[key]}, (batch,))
                assert float((broken - before).abs().max() / before.abs().max()) > 1e-9, (group.name, key)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("grouped", {1, 4}), ("depthwise", {1}), ("multiplied", {1, 6}), ("group norm", {1, 3}), ("attention", {1, 2})],
)
def test_blocks_are_those_of_the_layers(name: str, blocks: set[int]) -> None:
    spec = traced(kind(name, 0), SHAPE)
    assert {group.blocks for group in spec.free} == blocks
    for group in spec.free:
        assert group.size % group.blocks == 0
        assert (group.tied is None) == (group.blocks == 1)
        assert all(other.blocks == group.blocks for other in spec.tied(group))


def test_tied_blocks_must_move_together() -> None:
    spec = traced(kind("grouped", 0), SHAPE)
    group = next(g for g in spec.free if g.blocks > 1 and len(spec.tied(g)) > 1)
    size = group.size // group.blocks
    turned = torch.arange(group.size).roll(size)
    state = kind("grouped", 0).state_dict()
    with pytest.raises(MergeError, match="move their tied blocks differently"):
        permute_state(state, spec, {group.name: turned})
    with pytest.raises(MergeError, match=f"tears its {group.blocks} blocks apart"):
        permute_state(state, spec, {group.name: torch.arange(group.size).roll(1)})


def test_all_permutations_of_a_small_grouped_layer() -> None:
    """Exactly the permutations that keep blocks together leave the function alone, by brute force."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1, groups=2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    ).double().eval()  # fmt: skip
    spec, state, batch = trace(network, (3, 2, 2)), network.state_dict(), torch.randn(2, 3, 2, 2).double()
    count = 0
    with torch.no_grad():
        before = network(batch)
        for first, second in itertools.product(itertools.permutations(range(4)), repeat=2):
            try:
                moved = permute_state(state, spec, {"0": torch.tensor(first), "2": torch.tensor(second)})
            except MergeError:
                continue
            count += 1
            assert torch.allclose(functional_call(network, moved, (batch,)), before, atol=1e-12)
    assert count == 2 * 2**2 * 2**2  # orders of two blocks, two units in each, on both sides


BIG: dict[str, Callable[[], nn.Module]] = {
    name: lambda name=name, more=more: torchvision.models.get_model(name, weights=None, num_classes=7, **more)
    for name, more in {
        "resnext50_32x4d": {},
        "regnet_y_400mf": {},
        "mobilenet_v2": {},
        "mobilenet_v3_small": {},
        "efficientnet_b0": {},
        "convnext_tiny": {},
        "mnasnet0_5": {},
        "shufflenet_v2_x0_5": {},
        "densenet121": {},
        "squeezenet1_1": {},
        "googlenet": {"init_weights": False},
        "vit_b_16": {"image_size": 64},
    }.items()
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BIG)
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    network = written_out(BIG[name]().eval())
    for parameter in network.parameters():  # layer scales, class tokens and heads begin at (almost) zero
        if float(parameter.detach().abs().max()) < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    check_equivalence(network, trace(network, (3, 64, 64)), tolerance=1e-4)


@pytest.mark.parametrize(
    ("name", "groups"),
    [("resnext50_32x4d", 37), ("mobilenet_v2", 25), ("convnext_tiny", 22), ("vit_b_16", 37), ("regnet_y_400mf", 53)],
)
def test_number_of_groups(name: str, groups: int) -> None:
    """One residual stream a stage (one in all for ViT), and what lies inside each block."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # it computes its widths with tensors
        network = written_out(BIG[name]().eval())
    assert len(trace(network, (3, 64, 64)).free) == groups


class Mixing(nn.Module):
    """Positions that are put together by their likeness, units before positions or behind them."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(3, units, 1) for units in (4, 4, 6))
        self.head, self.before = nn.Linear(6, 2), before

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        likeness = (query.transpose(1, 2) @ key).softmax(-1)
        mixed = value @ likeness.transpose(1, 2) if self.before else (likeness @ value.transpose(1, 2)).transpose(1, 2)
        return self.head(mixed.mean(-1))


@pytest.mark.parametrize("before", [True, False])
def test_products_of_matrices_are_counted_whichever_side_units_stand_on(before: bool) -> None:
    network = Mixing(before).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 5, 5))
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    spec = trace(network, (3, 5, 5))
    assert 2 * sum(spec.groups[name].size * count for name, count in spec.products.items()) == counted
