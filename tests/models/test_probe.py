"""The probe against general solvers, and what it must not depend on."""

import numpy as np
import pytest
import torch
from helpers import pictures, random_network
from scipy.optimize import check_grad
from torch.nn.functional import cross_entropy

from project.errors import DataError
from project.models.probe import _objective, fit_probe, held_out, run_with_features


def samples(seed: int, count: int = 90, features: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy clusters of unequal scale, and a feature that never moves."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    centres = 2 * torch.randn(classes, features, generator=generator)
    found = centres[labels] + torch.randn(count, features, generator=generator)
    found = found * torch.logspace(-2, 2, features) + 3
    found[:, -1] = 0.7
    return found, labels


def test_the_optimum_is_torch_s() -> None:
    features, labels = samples(0)
    probe = fit_probe(features, labels, 3, strengths=[0.03])
    inputs = features[:, :-1].double()
    inputs = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
    weight = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        search.zero_grad()
        loss = cross_entropy(inputs @ weight.mT + bias, labels) + 0.03 / 2 * weight.square().sum()
        loss.backward()
        return loss

    search.step(closure)
    expected = (inputs @ weight.mT + bias).softmax(1).detach()
    assert torch.allclose(probe(features.double()).softmax(1), expected, atol=1e-4)


def test_the_gradient_is_the_objective_s() -> None:
    features, labels = samples(1, 20)
    point = np.random.default_rng(0).normal(size=3 * 6)
    arguments = (features.double() / 100, labels, 0.1)
    error = check_grad(
        lambda flat: _objective(flat, *arguments)[0], lambda flat: _objective(flat, *arguments)[1], point
    )
    assert error < 1e-5


def test_the_strength_is_the_best_on_what_is_held_out() -> None:
    features, labels = samples(2)
    strengths = [1e-4, 100.0, 1e-1]
    aside = held_out(labels, 0)
    right = {}
    for strength in strengths:
        probe = fit_probe(features[~aside], labels[~aside], 3, [strength])
        right[strength] = int((probe(features[aside].double()).argmax(1) == labels[aside]).sum())
    best = max(right.values())
    assert fit_probe(features, labels, 3, strengths).strength == max(s for s in strengths if right[s] == best)


def test_scale_and_offset_of_features_do_not_matter() -> None:
    features, labels = samples(3)
    features = features.double()
    one = fit_probe(features, labels, 3)
    other = fit_probe(7 * features - 2, labels, 3)
    assert one.strength == other.strength
    assert torch.allclose(one(features), other(7 * features - 2), atol=1e-5)
    again = fit_probe(features, labels, 3)
    assert torch.equal(one.weight, again.weight)


def test_a_fifth_of_every_class_is_held_out() -> None:
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    counts = [int(held_out(labels, 0)[labels == label].sum()) for label in range(3)]
    assert counts == [2, 1, 0]
    assert torch.equal(held_out(labels, 0), held_out(labels, 0))
    with pytest.raises(DataError, match="two pictures"):
        fit_probe(torch.rand(3, 2), torch.tensor([0, 1, 2]), 3)


def test_heads_read_what_probes_get() -> None:
    network = random_network(4)
    head = list(dict(network.named_modules()))[-1]
    with torch.no_grad():
        logits, features = run_with_features(network, head, pictures(3, 0))
        assert torch.equal(logits, network(pictures(3, 0)))
        assert torch.equal(network.get_submodule(head)(features), logits)
    assert not network.get_submodule(head)._forward_pre_hooks
