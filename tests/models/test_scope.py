"""Weight scopes against torch.distributions, numpy, and the derivative written out."""

import numpy as np
import pytest
import torch
from helpers import permuted_copy, resnet
from torch.distributions import Normal, kl_divergence

from project.errors import ConfigurationError
from project.models.scope import Scope, check_scopes, fused_scope, layer_weights, scope_divergence, scope_of
from project.symmetry import trace


def weights(seed: int, *shape: int, std: float = 0.1, mean: float = 0.02) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std + mean


@pytest.mark.parametrize("target", [Scope(0.0, 0.1), Scope(0.3, 0.02), Scope(-0.1, 2.0)])
def test_divergence_is_that_of_normal_distributions(target: Scope) -> None:
    layer = weights(0, 8, 4, 3, 3)
    own = scope_of(layer)
    expected = kl_divergence(Normal(own.mean, own.std), Normal(*target))
    assert scope_divergence(layer, target) == pytest.approx(float(expected), rel=1e-4)


def test_a_layer_is_at_no_distance_from_its_own_scope() -> None:
    layer = weights(1, 6, 5).requires_grad_()
    found = scope_divergence(layer, scope_of(layer))
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=1e-6)
    assert layer.grad is not None
    assert float(layer.grad.abs().max()) < 1e-5


def test_its_gradient_is_the_one_of_the_formula() -> None:
    layer, target = weights(2, 7, 9).requires_grad_(), Scope(-0.05, 0.3)
    scope_divergence(layer, target).backward()
    mean, std = scope_of(layer)
    values = layer.detach()
    expected = ((mean - target.mean) / target.std**2 + (values - mean) * (target.std**-2 - std**-2)) / values.numel()
    assert layer.grad is not None
    assert torch.allclose(layer.grad, expected, atol=1e-6)


def test_fused_scopes_are_those_of_their_definitions() -> None:
    layers = [weights(seed, 5, 4, 3, 3, std=0.1 * (seed + 1), mean=0.3 * seed) for seed in range(3)]
    arrays = [layer.double().numpy() for layer in layers]
    means, variances = [a.mean() for a in arrays], [a.var() for a in arrays]
    pooled = np.concatenate([a.ravel() for a in arrays])
    expected = {
        "variances": (np.mean(means), np.mean(variances) ** 0.5),
        "pooled": (pooled.mean(), pooled.std()),
        "average": (np.mean(arrays, 0).mean(), np.mean(arrays, 0).std()),
    }
    for fusion, wanted in expected.items():
        assert fused_scope(layers, fusion) == pytest.approx(wanted), fusion  # type: ignore[arg-type]
    shared = fused_scope(layers, "variances", [0.5, 0.5, 0.0])
    assert shared == pytest.approx((np.mean(means[:2]), np.mean(variances[:2]) ** 0.5))
    with pytest.raises(ConfigurationError, match="fusion is 'median'; allowed: 'variances', 'pooled', 'average'"):
        fused_scope(layers, "median")  # type: ignore[arg-type]


def test_the_average_of_unlike_networks_spreads_less_than_each() -> None:
    layers = [weights(seed, 64, 64, mean=0.0) for seed in range(4)]
    assert fused_scope(layers, "average").std == pytest.approx(fused_scope(layers).std / 2, rel=0.05)  # 1/√4


def test_scopes_do_not_see_the_order_of_units() -> None:
    network, twin = resnet("resnet20", 0), resnet("resnet20", 0)
    permuted_copy(network, twin, trace(network, (3, 16, 16)), 1)
    for mine, theirs in zip(layer_weights(network).values(), layer_weights(twin).values(), strict=True):
        assert scope_of(mine) == pytest.approx(scope_of(theirs))


def test_which_weights_have_a_scope() -> None:
    network = resnet("resnet20", 0)
    expected = [name for name, one in network.named_parameters() if one.dim() > 1]
    assert list(layer_weights(network)) == expected
    assert list(layer_weights(network.fc)) == ["weight"]


def test_weights_that_are_all_alike_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"start: all weights of fc.weight are 0, so they have no scope\."):
        check_scopes({"conv1.weight": Scope(0, 1), "fc.weight": scope_of(torch.zeros(3, 3))}, "start")
