"""The head's fit against SciPy's minimiser of the same objective, written out in numpy."""

import numpy as np
import pytest
import torch
from meeting import together
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from project.fit.head import HeadView, fit_head
from project.runtime import World

Array = NDArray[np.float64]


def example(seed: int, constant: bool) -> tuple[torch.Tensor, list[HeadView]]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(5, 4 + constant, generator=generator, dtype=torch.float64)
    views = []
    for pictures, weight in ((30, 1.0), (20, 2.0), (10, 0.5)):
        x = torch.randn(pictures, 4, generator=generator)
        if constant:
            x = torch.cat([x, torch.ones(pictures, 1)], 1)
        views.append(HeadView(x, 3 * torch.randn(pictures, 5, generator=generator), weight))
    return start, views


def reference(start: Array, views: list[HeadView], damping: float, constant: bool) -> Array:
    inputs, weights = 4, np.concatenate([np.full(len(view.features), view.weight) for view in views])
    x = np.concatenate([view.features.double().numpy() for view in views])
    p = softmax(np.concatenate([view.logits.double().numpy() for view in views]), 1)
    curvature = np.average((p * (1 - p)).mean(1), weights=weights)
    pull = damping * curvature * np.average(np.square(x[:, :inputs]).mean(1), weights=weights)

    def objective(flat: Array) -> float:
        change = flat.reshape(start.shape)
        found = log_softmax(x @ (start + change).T, 1)
        total = np.average((p * (np.log(p) - found)).sum(1), weights=weights)
        damped = change[:, :inputs] if constant else change
        return float(total + pull * np.square(damped).sum())

    best = minimize(objective, np.zeros(start.size), method="BFGS", options={"gtol": 1e-8})
    return start + best.x.reshape(start.shape)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_it_minimises_the_divergence(seed: int, constant: bool) -> None:
    start, views = example(seed, constant)
    found = fit_head(start, views, damping=0.3, constant=constant)
    assert np.allclose(found.numpy(), reference(start.numpy(), views, 0.3, constant), atol=1e-4)


def test_it_starts_and_ends_where_the_classes_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    x, start = torch.randn(50, 4, generator=generator), torch.randn(3, 4, generator=generator, dtype=torch.float64)
    found = fit_head(start, [HeadView(x, x.double() @ start.mT)], damping=1e-3, constant=False)
    assert torch.allclose(found, start, atol=1e-6)


@pytest.mark.parametrize("alike", [True, False])
def test_pieces_over_processes_are_the_whole(alike: bool) -> None:
    """Two processes with half the pictures each and one without any add up, whatever the others' own bits say."""
    start, views = example(1, True)
    whole = fit_head(start, views, damping=0.1, constant=True)

    def process(world: World) -> torch.Tensor:
        mine = [
            HeadView(v.features[world.rank :: 2], v.logits[world.rank :: 2], v.weight) for v in views if world.rank < 2
        ]
        near = start if alike else start * (1 + 1e-9 * world.rank)
        return fit_head(near, mine, damping=0.1, constant=True, world=world)

    results = together(3, process)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.allclose(results[0], whole, atol=1e-6)
