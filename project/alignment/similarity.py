"""How alike the units of the sources are, from what they do on the calibration pictures."""

from typing import Literal

import torch
from torch import Tensor

from project.moments import Statistics
from project.symmetry import Group

Similarity = Literal["correlation", "distance"]


def activation_similarity(statistics: Statistics, group: Group, kind: Similarity = "correlation") -> Tensor:
    """Compare all units of all sources over all calibration pictures, at every value that carries the group.

    Args:
        statistics: With unit moments.
        group: The group whose units are compared.
        kind: ``correlation``: Pearson's, averaged over the group's values. ``distance``: minus the root mean square
            difference, averaged over the group's values (PLeaS, arXiv 2407.02447).

    Returns:
        Float64, shape (Σ sizes, Σ sizes): units of all sources, source after source. Units that never vary have
        correlation 0 with everything.
    """
    compare = _correlation if kind == "correlation" else _distance
    total = None
    for node in group.nodes:
        value = compare(statistics.unit(node).mean())
        total = value if total is None else total.add_(value)
    assert total is not None
    return total / len(group.nodes)


def _correlation(second: Tensor) -> Tensor:
    mean = second[:-1, -1]
    covariance = second[:-1, :-1] - torch.outer(mean, mean)
    variance = covariance.diagonal()
    # Below the rounding of float32 products, a variance is that of a unit which never varies.
    alive = variance > 1e-5 * second.diagonal()[:-1].clamp_min(1e-30)
    scale = torch.where(alive, variance.clamp_min(1e-300).rsqrt(), 0.0)
    return covariance * scale[:, None] * scale


def _distance(second: Tensor) -> Tensor:
    square = second.diagonal()[:-1]
    return -(square[:, None] + square - 2 * second[:-1, :-1]).clamp_min_(0).sqrt_()
