"""A linear classifier on frozen features, trained with labels: the usual comparison where label spaces differ.

PLeaS (arXiv 2407.02447) and the methods it compares with report such probes of the merged trunk, trained by Adam for 50
epochs. The same objective, which is convex, is solved here to its optimum by L-BFGS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from project.errors import DataError

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
HELD_OUT = 0.2
MIN_DEVIATION_SHARE = 1e-8  # deviation, over the largest, below which a feature is a constant
ITERATIONS = 1000


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier.

    Args:
        weight: Shape (classes, features), float64.
        bias: Shape (classes,), float64.
        strength: Weight of its penalty.
    """

    weight: Tensor
    bias: Tensor
    strength: float

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (batch, classes) of features (batch, features), on their device and in their precision."""
        return features @ self.weight.to(features).mT + self.bias.to(features)


def run_with_features(network: nn.Module, head: str, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Run a network, and keep what its head reads.

    Args:
        network: The network.
        head: Name of the layer that puts out the logits.
        pictures: Shape (batch, 3, height, width).

    Returns:
        Logits (batch, columns) and features (batch, features).
    """
    caught: list[Tensor] = []
    handle = network.get_submodule(head).register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    try:
        logits = network(pictures)
    finally:
        handle.remove()
    return logits, caught[-1]


def fit_probe(
    features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float] = STRENGTHS, seed: int = 0
) -> Probe:
    """Softmax regression with a penalty whose weight is chosen on a held-out fifth of every class.

    With u the features, standardised, the weights minimise mean(-log softmax(W u + b)_label) + strength/2 · ‖W‖². The
    strength is the one most often right on the held-out part, the larger of two that are equally often; the
    classifier is then fitted to all.

    Args:
        features: Shape (samples, features).
        labels: Shape (samples,), from 0 to classes - 1.
        classes: Number of classes.
        strengths: Weights of the penalty to choose from.
        seed: Seed of the choice of the held-out part.

    Raises:
        DataError: If no class has two samples.
    """
    features, labels = features.detach().cpu().double(), labels.cpu()
    aside = held_out(labels, seed)
    if not bool(aside.any()):
        raise DataError("A probe needs two pictures of some class at least: one to fit, one to hold out.")
    ordered = sorted(strengths, reverse=True)
    tried = _path(features[~aside], labels[~aside], classes, ordered)
    right = [int((probe(features[aside]).argmax(1) == labels[aside]).sum()) for probe in tried]
    best = right.index(max(right))
    return _path(features, labels, classes, ordered[: best + 1])[-1]


def held_out(labels: Tensor, seed: int) -> Tensor:
    """Boolean, shape (samples,): a fifth of every class, at least one of two samples and none of one."""
    aside = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0].numpy()
        count = min(max(1, round(HELD_OUT * len(members))), len(members) - 1)
        aside[np.random.default_rng([seed, label]).permutation(members)[:count]] = True
    return aside


def _path(features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float]) -> list[Probe]:
    """The optimum of every strength, each search starting at the one before."""
    from scipy.optimize import minimize  # a while to import, and probes are for a few

    mean, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > MIN_DEVIATION_SHARE * scale.max(), scale, 1.0)
    inputs, found = (features - mean) / scale, np.zeros((classes, features.shape[1] + 1))
    options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "gtol": 1e-6}
    probes = []
    for strength in strengths:
        objective = partial(_objective, inputs=inputs, labels=labels, strength=strength)
        found = minimize(objective, found.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(classes, -1)
        weight, bias = torch.from_numpy(found[:, :-1]) / scale, torch.from_numpy(found[:, -1])
        probes.append(Probe(weight, bias - weight @ mean, strength))
    return probes


def _objective(flat: np.ndarray, inputs: Tensor, labels: Tensor, strength: float) -> tuple[float, np.ndarray]:
    """Value and gradient of the penalised loss at a matrix (classes, features + 1 for the constant), flattened."""
    matrix = torch.from_numpy(flat).view(-1, inputs.shape[1] + 1)
    weight, bias = matrix[:, :-1], matrix[:, -1]
    logits = inputs @ weight.mT + bias
    error = (logits.softmax(1) - one_hot(labels, len(bias))) / len(labels)
    gradient = torch.cat([error.mT @ inputs + strength * weight, error.sum(0)[:, None]], 1)
    return float(cross_entropy(logits, labels) + strength / 2 * weight.square().sum()), gradient.flatten().numpy()
