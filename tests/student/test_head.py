"""The head's fit against SciPy's minimiser of the same objective, written out in numpy."""

from threading import Barrier, Thread

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from project.student.head import HeadView, fit_head

Array = NDArray[np.float64]


def example(seed: int, constant: bool) -> tuple[torch.Tensor, torch.Tensor, list[HeadView]]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(5, 4 + constant, generator=generator, dtype=torch.float64)
    allowed = torch.rand(5, 4 + constant, generator=generator) < 0.8
    views = []
    for pictures, columns, weight in ((30, slice(0, 3), 1.0), (20, slice(3, 5), 2.0), (10, slice(0, 5), 0.5)):
        x = torch.randn(pictures, 4, generator=generator)
        if constant:
            x = torch.cat([x, torch.ones(pictures, 1)], 1)
        views.append(HeadView(x, 3 * torch.randn(pictures, 5, generator=generator), columns, weight))
    return start, allowed, views


def reference(start: Array, allowed: NDArray[np.bool_], views: list[HeadView], damping: float, constant: bool) -> Array:
    probabilities = [softmax(view.logits.double().numpy()[:, view.columns], 1) for view in views]
    count = sum(view.weight * len(view.features) for view in views)
    curves = [view.weight * (p * (1 - p)) for view, p in zip(views, probabilities, strict=True)]
    entries = sum(view.weight * p.size for view, p in zip(views, probabilities, strict=True))
    x = [view.features.double().numpy() for view in views]
    inputs = 4
    power = sum(view.weight * np.square(one[:, :inputs]).sum() for view, one in zip(views, x, strict=True))
    level = power / sum(view.weight * len(one) * inputs for view, one in zip(views, x, strict=True))
    pull = damping * level * sum(c.sum() for c in curves) / entries

    def objective(flat: Array) -> float:
        change = np.zeros_like(start)
        change[allowed] = flat
        matrix, total = start + change, 0.0
        for view, one, p in zip(views, x, probabilities, strict=True):
            found = log_softmax(one @ matrix[view.columns].T, 1)
            total += view.weight / count * float((p * (np.log(p) - found)).sum())
        damped = change[:, :inputs] if constant else change
        return total + pull * float(np.square(damped).sum())

    best = minimize(objective, np.zeros(allowed.sum()), method="BFGS", options={"gtol": 1e-8})
    result = start.copy()
    result[allowed] += best.x
    return result


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_it_minimises_the_divergence(seed: int, constant: bool) -> None:
    start, allowed, views = example(seed, constant)
    found = fit_head(start, allowed, views, damping=0.3, constant=constant)
    wanted = reference(start.numpy(), allowed.numpy(), views, 0.3, constant)
    assert np.allclose(found.numpy(), wanted, atol=1e-4)
    assert torch.equal(found[~allowed], start[~allowed])


def test_it_starts_and_ends_where_the_classes_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    x, start = torch.randn(50, 4, generator=generator), torch.randn(3, 4, generator=generator, dtype=torch.float64)
    view = HeadView(x, (x.double() @ start.mT), slice(0, 3))
    found = fit_head(start, torch.ones(3, 4, dtype=torch.bool), [view], damping=1e-3, constant=False)
    assert torch.allclose(found, start, atol=1e-6)


def test_pieces_over_processes_are_the_whole() -> None:
    """Two processes with half the pictures each and one without any add up: threads that meet at every sum."""
    start, allowed, views = example(1, True)
    whole = fit_head(start, allowed, views, damping=0.1, constant=True)
    barrier, parts, results = Barrier(3, timeout=30), [None] * 3, [None] * 3  # type: ignore[var-annotated]

    def process(rank: int) -> None:
        def reduce(tensor: torch.Tensor) -> None:
            parts[rank] = tensor.clone()  # type: ignore[call-overload]
            barrier.wait()
            total = torch.stack(parts).sum(0)  # type: ignore[arg-type]
            barrier.wait()
            tensor.copy_(total)

        mine = [HeadView(v.features[rank::2], v.logits[rank::2], v.columns, v.weight) for v in views if rank < 2]
        results[rank] = fit_head(start, allowed, mine, damping=0.1, constant=True, reduce=reduce)  # type: ignore[call-overload]

    threads = [Thread(target=process, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0], results[1])  # type: ignore[arg-type]
    assert torch.equal(results[0], results[2])  # type: ignore[arg-type]
    assert torch.allclose(results[0], whole, atol=1e-6)  # type: ignore[arg-type]
