"""How far the running statistics of batch norms are from those of what they read.

The distance of two Gaussians is Bhattacharyya's, averaged over units. Against the Kullback-Leibler divergence it grows
slowly, so that a few units far off, and pictures unlike the others, weigh little.
"""

from collections.abc import Collection, Mapping
from math import nan

import numpy as np
import torch
from torch import Tensor, nn

from project.moments import BatchNorm
from project.student import batch_norms


class _Enough(Exception):
    """All norms that are asked for have been seen."""


def distances(network: nn.Module, pictures: Tensor, names: Collection[str] | None = None) -> dict[str, float]:
    """How far the running statistics of norms are from those of what they read, in the order in which they read it.

    Args:
        network: In eval mode; it is run no further than the last of the norms.
        pictures: Shape (batch, channels, height, width).
        names: Of the norms; all by default. Those that never ran, or of whose units none is alive, are left out.

    Returns:
        Norm -> mean over its living units of the Bhattacharyya distance between two Gaussians (Kailath 1967).
    """
    norms = {name: norm for name, norm in batch_norms(network).items() if not untouched(norm)}
    wanted = set(norms if names is None else names)
    found: dict[str, float] = {}
    left = set(wanted)

    def look(name: str, norm: BatchNorm, values: Tensor) -> None:
        if name in left:
            left.discard(name)
            found[name] = _distance(norm, values)
            if not left:
                raise _Enough

    handles = [
        norm.register_forward_pre_hook(lambda norm, inputs, name=name: look(name, norm, inputs[0]))
        for name, norm in norms.items()
        if name in wanted
    ]
    try:
        if wanted:
            network(pictures)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {name: distance for name, distance in found.items() if distance == distance}


def _distance(norm: BatchNorm, values: Tensor) -> float:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    values, others = values.float(), [0, *range(2, values.dim())]
    mean = values.mean(others)
    seen = values.square().mean(others) - mean.square()  # several times faster than torch.var_mean
    one, other = seen.clamp(min=0) + norm.eps, norm.running_var.float() + norm.eps
    both = one + other
    distance = (mean - norm.running_mean).square() / (4 * both) + torch.log(both / (2 * (one * other).sqrt())) / 2
    alive = torch.maximum(one, other) > 2 * norm.eps
    return float(distance[alive].mean()) if bool(alive.any()) else nan


def mean_of(found: Mapping[str, float], names: Collection[str]) -> float:
    """The mean distance of some norms."""
    return float(np.mean([found[name] for name in names])) if names else nan


def untouched(norm: BatchNorm) -> bool:
    """Whether the statistics of a norm are those that it was made with."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return not bool(norm.running_mean.any()) and bool((norm.running_var == 1).all())
