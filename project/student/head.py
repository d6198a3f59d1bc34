"""Fitting a head to the classes that its sources see: logits are means to an end, their softmax is what counts.

Least squares on logits spends itself on how sure a source is of what it is sure of anyway. The head minimises

    E KL(softmax(t) ‖ softmax(W x)) + λ‖W − W⁰‖²

instead (Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv 1503.02531), which is convex in W
and has one minimum for λ > 0. Least squares curves by 2 E[x xᵀ] in every row, this by at most p (1 − p) E[x xᵀ] for a
class of probability p; so the mean of p (1 − p) goes into λ, which then pulls twice as hard as it does there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from project.moments import Reduce


@dataclass(frozen=True)
class HeadView:
    """What the pictures of one domain ask of the head.

    Args:
        features: x, with a last column of ones where the head adds a constant; shape (pictures, inputs (+ 1)).
        logits: t, of the source that owns the domain or the mean of all; shape (pictures, classes).
        weight: What each picture counts for.
    """

    features: Tensor
    logits: Tensor
    weight: float = 1.0


def fit_head(
    start: Tensor,
    views: Sequence[HeadView],
    *,
    damping: float,
    constant: bool,
    steps: int = 500,
    reduce: Reduce = lambda tensor: tensor,
) -> Tensor:
    """Minimise the divergence of the student's classes from the sources', by L-BFGS.

    Args:
        start: W⁰, shape (classes, inputs (+ 1)), float64.
        views: Domains; at least one picture over all processes.
        damping: λ over the mean second moment of x, where least squares would be solved.
        constant: Whether the last column belongs to a constant, which is not damped.
        steps: Most steps of L-BFGS.
        reduce: Sums a tensor over all processes in place.

    Returns:
        W, of the same shape.
    """
    share, curvature, level = _scales(start, views, constant, reduce)
    pull = torch.full_like(start, damping * level * curvature)
    if constant:
        pull[:, -1] = 0.0
    targets = [view.logits.to(start).softmax(1) for view in views]
    features = [view.features.to(start) for view in views]
    change = torch.zeros_like(start, requires_grad=True)
    solver = torch.optim.LBFGS(
        [change],
        max_iter=steps,
        tolerance_grad=1e-8,
        tolerance_change=0.0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )  # the change tolerance would stop it where the loss is flat to 1e-9, the weights to its root

    def objective() -> Tensor:
        """The objective of all processes; leaves its gradient in ``change``."""
        solver.zero_grad()
        with torch.enable_grad():
            matrix = start + change
            loss = 0.0 * change.sum()  # a process without pictures has a gradient too
            for view, x, p in zip(views, features, targets, strict=True):
                found = (x @ matrix.mT).log_softmax(1)
                loss = loss + view.weight * share * F.kl_div(found, p, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
        assert change.grad is not None
        both = torch.cat([change.grad.flatten(), loss.detach()[None]])
        reduce(both)
        change.grad.copy_(both[:-1].view_as(change) + 2 * pull * change.detach())
        return both[-1] + (pull * change.detach().square()).sum()

    solver.step(objective)  # type: ignore[no-untyped-call]
    return start + change.detach()


def _scales(start: Tensor, views: Sequence[HeadView], constant: bool, reduce: Reduce) -> tuple[float, float, float]:
    """One over the weighted number of pictures; mean of p (1 − p); mean second moment of x: over all processes."""
    sums = start.new_zeros(5)
    for view in views:
        p = view.logits.to(start).softmax(1)
        x = view.features.to(start)[:, : start.shape[1] - constant]
        parts = (len(p), (p * (1 - p)).sum(), p.numel(), x.square().sum(), x.numel())
        sums += view.weight * sums.new_tensor([float(part) for part in parts])
    reduce(sums)
    pictures, curves, entries, power, inputs = sums.tolist()
    return 1 / pictures, curves / entries, power / (inputs or 1.0)
