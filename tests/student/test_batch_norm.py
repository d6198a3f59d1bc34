"""A batch that is normalised by its own statistics is one batch, in however many processes its pictures are."""

import copy
from typing import Any

import pytest
import torch
from helpers import pictures, random_network, same_state
from meeting import Thready, together
from torch import Tensor, nn

from project.runtime import World
from project.student import batch_norms, own_statistics


def answered(net: nn.Module, given: Tensor, weights: Tensor, world: World) -> list[Tensor]:
    """Logits of this process' pictures, and the gradients of all parameters of a sum over all processes' logits."""
    with torch.enable_grad(), own_statistics(net, world=world):
        logits = net(given)
        gradients = torch.autograd.grad((logits * weights).tanh().sum(), list(net.parameters()))
    for gradient in gradients:
        world.reduce(gradient)
    return [logits.detach(), *gradients]


@pytest.mark.parametrize("structure", range(4))
@pytest.mark.parametrize("shares", [(6, 5), (1, 9, 2), (7, 0)])
def test_processes_normalise_by_the_statistics_of_all_their_pictures(structure: int, shares: tuple[int, ...]) -> None:
    net, count = random_network(structure, structure).double(), sum(shares)
    given, weights = pictures(count, 0).double(), torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
    nets = [copy.deepcopy(net) for _ in shares]
    before = copy.deepcopy(net.state_dict())
    trained = copy.deepcopy(net)
    for norm in batch_norms(trained).values():
        norm.train()
    expected = (trained(given) * weights).tanh().sum()
    expected_gradients = torch.autograd.grad(expected, list(trained.parameters()))

    def work(world: World) -> list[Tensor]:
        start = sum(shares[: world.rank])
        part = slice(start, start + shares[world.rank])
        return answered(nets[world.rank], given[part], weights[part], world)

    found = together(len(shares), work)
    with torch.no_grad():
        logits = copy.deepcopy(trained)(given)
    assert torch.allclose(torch.cat([one[0] for one in found]), logits, rtol=1e-9, atol=1e-9)
    for one in found:
        for mine, theirs in zip(one[1:], expected_gradients, strict=True):
            # Biases before a norm have no gradient but rounding.
            assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-9), mine.shape
    assert all(same_state(one.state_dict(), before) for one in nets), "running statistics stay"
    assert not any(module.training or "forward" in vars(module) for one in nets for module in one.modules())


def test_alone_torch_normalises() -> None:
    net, given = random_network(1, 1), pictures(6, 0)
    trained = copy.deepcopy(net)
    for norm in batch_norms(trained).values():
        norm.train()
    with torch.no_grad(), own_statistics(net):
        assert torch.equal(net(given), trained(given))


def test_a_lone_value_goes_by_the_running_statistics() -> None:
    nets: list[Any] = [nn.Sequential(nn.BatchNorm1d(3)).eval() for _ in range(2)]
    for net in nets:
        net[0].running_mean.fill_(1.0)
        net[0].running_var.fill_(4.0)
    value = torch.tensor([[5.0, 1.0, 0.0]])

    def work(world: Thready) -> Tensor:
        with own_statistics(nets[world.rank], world=world):
            found: Tensor = nets[world.rank](value[world.rank :])
            return found

    found, empty = together(2, work)  # type: ignore[arg-type]
    assert torch.allclose(found, torch.tensor([[2.0, 0.0, -0.5]]), atol=1e-4)
    assert empty.shape == (0, 3)
    with own_statistics(nets[0]):
        assert torch.allclose(nets[0](value), found, atol=1e-6)
