"""What is measured of a fit, against the sums it stands for, and as rows that processes share."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from project.fit import Factor, LayerFit, Measurements
from project.fit.layer_fit import Residual, fit_of


def test_measurements_come_back_from_their_row() -> None:
    fit = LayerFit(torch.zeros(2, 3), 0.5, 0.25, 7.0, 3, pictures=0.5, positions=0.125)
    told = fit.measurements
    assert asdict(told) == {
        "residual_before": 0.5,
        "residual_after": 0.25,
        "condition": 7.0,
        "fallbacks": 3.0,
        "pictures": 0.5,
        "positions": 0.125,
    }
    assert Measurements.from_row(torch.tensor(told.to_row(), dtype=torch.float64).tolist()) == told


def scene(seed: int, shift: float) -> tuple[Residual, float, float, float]:
    """A solved layer, and E‖t‖², E‖W⁰ x − t‖² and E‖W x − t‖² from its samples."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    x, t, start = normal(4, 50), normal(3, 50), normal(3, 4)
    gram, cross = x @ x.mT / 50, t @ x.mT / 50
    factor, gap = Factor(gram, shift), cross - start @ gram
    delta = factor.solve(gap)
    power, before, after = (float(v.square().sum()) / 50 for v in (t, start @ x - t, (start + delta) @ x - t))
    return Residual.measure(power, cross, start @ gram, start, delta, gap, factor), power, before, after


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_residual_is_that_of_the_samples(seed: int, shift: float) -> None:
    residual, power, before, after = scene(seed, shift)
    assert (residual.power, residual.before, residual.after) == pytest.approx((power, before, after))
    assert Residual.from_row(torch.tensor(residual.to_row(), dtype=torch.float64).tolist()) == residual


def test_residuals_of_rows_add_up() -> None:
    parts = [Residual(2.0, 1.0, 0.5, 3.0, 0), Residual(6.0, 3.0, 0.1, 9.0, 1)]
    fit = fit_of(torch.zeros(2, 2), parts, 1)
    assert (fit.before, fit.after, fit.condition, fit.fallbacks) == pytest.approx((0.5, 0.075, 9.0, 1))
    nothing = fit_of(torch.zeros(2, 2), [], 0)
    assert (nothing.before, nothing.after, nothing.condition) == (0.0, 0.0, 1.0)
