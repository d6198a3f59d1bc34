"""Pictures of no domain go to the source whose norms know them."""

import copy

import numpy as np
import pytest
import torch
from helpers import pictures, resnet
from torch import Tensor, nn

from project.errors import MergeError
from project.student import deal_out, norm_distance, reestimate

SHAPE = (3, 16, 16)


@pytest.mark.parametrize("seed", range(2))
def test_the_distance_is_the_mean_over_units_and_norms(seed: int) -> None:
    network, probe = resnet("resnet20", seed), pictures(4, seed, SHAPE)
    seen: dict[str, Tensor] = {}
    norms = {name: one for name, one in network.named_modules() if isinstance(one, nn.BatchNorm2d)}
    handles = [
        one.register_forward_hook(lambda module, args, out, name=name: seen.update({name: args[0].double()}))
        for name, one in norms.items()
    ]
    with torch.no_grad():
        network(probe)
    for handle in handles:
        handle.remove()
    expected = np.zeros(4)
    for name, one in norms.items():
        mean, variance = one.running_mean.numpy(), one.running_var.numpy() + one.eps  # type: ignore[union-attr]
        for i in range(4):
            expected[i] += np.mean((seen[name][i].numpy().mean((1, 2)) - mean) ** 2 / variance) / len(norms)
    assert np.allclose(norm_distance(network, probe), expected, rtol=1e-4)
    assert not any(one._forward_pre_hooks for one in norms.values()), "nothing stays behind"


@pytest.mark.parametrize("count", [2, 3])
def test_pictures_return_to_the_source_that_saw_their_like(count: int) -> None:
    start = resnet("resnet20", 0)
    levels = torch.linspace(-2, 2, count)
    kinds = [0.3 * pictures(24, index, SHAPE) + level for index, level in enumerate(levels)]
    sources = []
    for kind in kinds:
        sources.append(copy.deepcopy(start))
        reestimate(sources[-1], [kind[:16]])
    mixed = torch.cat([kind[16:] for kind in kinds])
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))
    dealt = deal_out(sources, list(mixed[order].split(5)))
    for index, mine in enumerate(dealt):
        found = {tuple(x.flatten()[:9].tolist()) for x in torch.cat(mine)}
        assert found == {tuple(x.flatten()[:9].tolist()) for x in kinds[index][16:]}


def test_networks_without_norms_know_no_pictures() -> None:
    with pytest.raises(MergeError, match="batch norms"):
        norm_distance(nn.Conv2d(3, 2, 3), pictures(2, 0))
