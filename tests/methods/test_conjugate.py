"""Conjugate gradients step by step against SciPy's."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from project.methods.shared.conjugate import ConjugateGradients


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_iterates_are_scipys(seed: int, preconditioned: bool) -> None:
    random = np.random.default_rng(seed)
    shape = (3, 4)
    factor = random.normal(size=(12, 12)) * np.exp(0.5 * random.normal(size=12))
    matrix, right, start = factor @ factor.T + 3 * np.eye(12), random.normal(size=12), random.normal(size=12)
    expected: list[np.ndarray] = []
    scipy.sparse.linalg.cg(
        matrix, right, start, rtol=1e-8, maxiter=9, M=np.diag(1 / np.diag(matrix)) if preconditioned else None,
        callback=lambda x: expected.append(x.copy()),
    )  # fmt: skip
    operator = torch.from_numpy(matrix)
    solver = ConjugateGradients(
        lambda x: (operator @ x.flatten()).view(shape),
        torch.from_numpy(right).view(shape),
        torch.from_numpy(start).view(shape),
        tolerance=1e-8,
        diagonal=operator.diagonal().view(shape) if preconditioned else None,
    )
    for iterate in expected:
        assert solver.step()
        assert np.allclose(solver.solution.numpy().ravel(), iterate, rtol=1e-7, atol=1e-8)
        gap = right - matrix @ iterate
        assert solver.distance == pytest.approx(float(np.linalg.norm(gap)), rel=1e-5, abs=1e-8)


def test_it_stops_where_scipy_stops() -> None:
    random = np.random.default_rng(0)
    factor = random.normal(size=(30, 30))
    matrix, right = factor @ factor.T + np.eye(30), random.normal(size=30)
    steps: list[int] = []
    found, _ = scipy.sparse.linalg.cg(matrix, right, rtol=1e-5, callback=lambda _: steps.append(1))
    operator = torch.from_numpy(matrix)
    solver = ConjugateGradients(lambda x: operator @ x, torch.from_numpy(right), torch.zeros(30, dtype=torch.float64))
    while solver.step():
        pass
    assert solver.steps == len(steps)
    assert np.allclose(solver.solution.numpy(), found)


def test_directions_that_nothing_sees_stay_where_they_are() -> None:
    """A singular, consistent system: the solution differs from the start where the operator acts alone."""
    diagonal = torch.tensor([2.0, 0.0, 5.0, 0.0], dtype=torch.float64)
    start = torch.tensor([1.0, 7.0, 1.0, -3.0], dtype=torch.float64)
    right = diagonal * torch.tensor([3.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    solver = ConjugateGradients(lambda x: diagonal * x, right, start, tolerance=0.0)
    for _ in range(10):
        solver.step()
    assert torch.allclose(solver.solution, torch.tensor([3.0, 7.0, -1.0, -3.0], dtype=torch.float64))
    assert torch.equal(start, torch.tensor([1.0, 7.0, 1.0, -3.0], dtype=torch.float64))
