"""Which axes move together, and that moving them leaves the function alone."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from helpers import PICTURE, pictures, random_network, resnet, same_state
from torch import nn
from torch.func import functional_call

from project.errors import MergeError
from project.models import Architecture
from project.symmetry import Spec, check_equivalence, permute_axis, permute_state, trace


@cache
def case(name: str, seed: int) -> tuple[nn.Module, Spec]:
    """The same for every test, which is to leave it as it is."""
    network = random_network(seed, seed) if name == "random" else resnet(name, seed)
    return network, trace(network, PICTURE if name != "resnet18" else (3, 40, 33))


CASES = [*(("random", seed) for seed in range(12)), ("resnet20", 0), ("resnet18", 0)]


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_any_group_may_be_permuted(name: str, seed: int) -> None:
    network, spec = case(name, seed)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    differences = check_equivalence(network, spec, seed=seed, tolerance=1e-4)
    assert list(differences) == [group.name for group in spec.free]
    assert same_state(before, network.state_dict())
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize(("name", "seed"), CASES)
@torch.no_grad()
def test_all_groups_may_be_permuted_at_once(name: str, seed: int) -> None:
    network, spec = case(name, seed)
    generator = torch.Generator().manual_seed(seed)
    orders = {group.name: torch.randperm(group.size, generator=generator) for group in spec.free}
    batch = pictures(3, seed, spec.picture)
    logits = network(batch)
    state = dict(network.state_dict())
    after = functional_call(network, permute_state(state, spec, orders), (batch,))
    assert float((after - logits).abs().max() / logits.abs().max()) < 1e-4
    # A permutation undone is the state itself.
    back = permute_state(permute_state(state, spec, orders), spec, {k: order.argsort() for k, order in orders.items()})
    assert same_state(state, back)
    # And it did change something.
    assert not same_state(state, permute_state(state, spec, orders))


@pytest.mark.parametrize(("name", "groups"), [("resnet18", 12), ("resnet50", 37), ("resnet101", 71)])
def test_number_of_groups(name: str, groups: int) -> None:
    with torch.device("meta"):
        network = Architecture(name, 7).build().eval()
    spec = trace(network, (3, 64, 64))
    assert len(spec.free) == groups
    assert spec.groups["input"].size == 3
    assert (spec.output.size, spec.output.fixed) == (7, "output")


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_every_unit_axis_is_in_one_group(name: str, seed: int) -> None:
    network, spec = case(name, seed)
    owned: dict[tuple[str, int], list[str]] = {}
    for group in spec.groups.values():
        for axis in group.axes:
            owned.setdefault((axis.tensor, axis.dim), []).append(group.name)
            assert network.state_dict()[axis.tensor].shape[axis.dim] == group.size * axis.taps
    wanted = {
        (key, dim)
        for key, tensor in network.state_dict().items()
        for dim in range(min(tensor.dim(), 2))  # kernels' sides are no unit axes; counters have no axis
    }
    assert set(owned) == wanted
    assert all(len(names) == 1 for names in owned.values())


def test_layers_count_their_positions() -> None:
    network, spec = copy.deepcopy(case("random", 3))
    sizes = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: sizes.update({name: out.shape[2:].numel()}))
    network(torch.zeros(1, *PICTURE))
    assert {layer.name: layer.positions for layer in spec.layers} == {
        layer.name: sizes[layer.name] for layer in spec.layers
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_wrong_spec_is_found_and_named(seed: int) -> None:
    network, spec = case("random", seed) if seed else case("resnet20", 0)
    weights = {layer.name + ".weight" for layer in spec.layers}
    for group in spec.free[:8]:
        axis = next(axis for axis in group.axes[seed % 2 :] if axis.tensor in weights)
        doctored = replace(group, axes=tuple(other for other in group.axes if other != axis))
        wrong = replace(spec, groups={**spec.groups, group.name: doctored})
        with pytest.raises(MergeError, match=f"group '{group.name}'"):
            check_equivalence(network, wrong, tolerance=1e-4)


@pytest.mark.parametrize("taps", [1, 4])
def test_units_keep_their_taps_together(taps: int) -> None:
    tensor, order = torch.randn(3, 5 * taps), torch.tensor([3, 0, 4, 1, 2])
    moved = permute_axis(tensor, 1, order, taps)
    for new, old in enumerate(order.tolist()):
        assert torch.equal(moved[:, new * taps : (new + 1) * taps], tensor[:, old * taps : (old + 1) * taps])


def test_a_wrong_spec_is_found_whatever_the_seed() -> None:
    """A permutation that moves nothing proves nothing."""
    network = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5)
    ).eval()
    spec = trace(network, PICTURE)
    group = spec.free[0]
    wrong = replace(spec, groups={**spec.groups, group.name: replace(group, axes=group.axes[:-1])})
    for seed in range(8):
        with pytest.raises(MergeError, match=f"group '{group.name}'"):
            check_equivalence(network, wrong, seed=seed, tolerance=1e-4)
