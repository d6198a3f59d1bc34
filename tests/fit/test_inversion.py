"""Pictures that are changed until a source finds them less strange."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers import Case, make_problem, merge_case, pictures, prepare_case, resnet, same_state
from torch import Tensor, nn

from project.errors import ConfigurationError, MergeError
from project.fit import restyled, strangeness
from project.methods import PLeaS
from project.models import Preprocessing

SHAPE = (3, 16, 16)


@pytest.mark.parametrize("seed", range(2))
def test_strangeness_is_by_its_definition(seed: int) -> None:
    network, probe = resnet("resnet20", seed), pictures(4, seed, SHAPE)
    norms = {name: one for name, one in network.named_modules() if isinstance(one, nn.BatchNorm2d)}
    seen: dict[str, Tensor] = {}
    handles = [
        one.register_forward_hook(lambda module, args, out, name=name: seen.update({name: args[0].double()}))
        for name, one in norms.items()
    ]
    with torch.no_grad():
        network(probe)
    for handle in handles:
        handle.remove()
    expected = []
    for name, one in norms.items():
        values = seen[name].numpy()
        mean, deviation = one.running_mean.numpy(), np.sqrt(one.running_var.numpy() + one.eps)  # type: ignore[union-attr]
        spread = np.log(np.sqrt(values.var((0, 2, 3)) + one.eps) / deviation)
        expected.append(np.mean(((values.mean((0, 2, 3)) - mean) / deviation) ** 2 + spread**2))
    with torch.no_grad():
        assert np.isclose(float(strangeness(network, probe)), np.mean(expected), rtol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_restyled_pictures_are_less_strange_and_still_pictures(seed: int) -> None:
    network, scale = resnet("resnet20", seed), Preprocessing(16)
    before, parameters = copy.deepcopy(network.state_dict()), list(network.parameters())
    values = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (scale.mean, scale.std))
    start = (values - mean) / std
    kept = start.clone()
    with torch.no_grad():
        found = restyled(network, start, 20, scale)
        assert strangeness(network, found) < strangeness(network, start)
    assert torch.equal(start, kept)
    back = found * std + mean
    assert back.min() > -1e-5
    assert back.max() < 1 + 1e-5
    assert same_state(before, network.state_dict())
    assert all(one.grad is None for one in parameters)
    assert not found.requires_grad
    assert not any(module._forward_pre_hooks for module in network.modules()), "nothing stays behind"
    assert torch.equal(restyled(network, start, 0, scale), start)


@cache
def public() -> tuple[Case, Tensor]:
    """Random sources, and pictures that are of none of their domains."""
    sources = [resnet("resnet20", weights) for weights in (0, 1)]
    probe = pictures(24, 3, SHAPE)
    problem = make_problem(sources, shape=SHAPE, needs=("units",))
    for source in sources:
        source.requires_grad_(False)
    return problem, probe


def logits(problem: Case, given: dict[str, list[Tensor]], owners: dict[str, int], method: PLeaS) -> Tensor:
    (merged,) = merge_case(method, replace(problem, pictures=given, owners=owners), [1.0])
    with torch.no_grad():
        return merged.student(pictures(3, 9, SHAPE))


def test_each_source_owns_its_version_of_what_is_of_no_domain() -> None:
    problem, probe = public()
    own = {d: [restyled(problem.sources[s], probe, 3)] for d, s in problem.owners.items()}
    expected = logits(problem, own, dict(problem.owners), PLeaS(ridge=1.0))
    found = logits(problem, {"public": [probe]}, dict(problem.owners), PLeaS(ridge=1.0, restyle_steps=3))
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
def test_without_steps_the_target_is_the_mean() -> None:
    problem, probe = public()
    given, owners = {"public": [probe]}, dict(problem.owners)
    mean = logits(problem, given, owners, PLeaS(ridge=1.0, targets="mean"))
    assert torch.equal(logits(problem, given, owners, PLeaS(ridge=1.0, restyle_steps=0)), mean)
    assert not torch.equal(logits(problem, given, owners, PLeaS(ridge=1.0, restyle_steps=1)), mean)


class Plain(nn.Module):
    """No batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def test_networks_without_norms_remember_no_pictures() -> None:
    with pytest.raises(MergeError, match="no batch norm"):
        strangeness(Plain(), pictures(2, 0))
    problem = make_problem([Plain().eval(), Plain().eval()])
    with pytest.raises(ConfigurationError, match=r"have no batch norms to restyle .* set restyle_steps to 0"):
        prepare_case(PLeaS(), problem, {"public": 1000}, [1.0])
    prepare_case(PLeaS(restyle_steps=0), problem, {"public": 1000}, [1.0])
    prepare_case(PLeaS(), problem, {"art": 1000, "birds": 1000}, [1.0])
