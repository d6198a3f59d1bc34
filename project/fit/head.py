"""Fitting a head to the classes that its sources see: logits are means to an end, their softmax is what counts.

Least squares on logits spends itself on how sure a source is of what it is sure of anyway. The head minimises

    E KL(softmax(t) ‖ softmax(W x)) + λ‖W − W⁰‖²

instead (Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv 1503.02531), which is convex in W
and has one minimum for λ > 0. Least squares curves by 2 E[x xᵀ] in every row, this by at most p (1 − p) E[x xᵀ] for a
class of probability p; so the mean of p (1 − p) goes into λ, which then pulls twice as hard as it does there.

L-BFGS looks for the minimum in coordinates in which E[x xᵀ] + λ I, with that λ of least squares, is the identity: there
the objective curves about as much in every direction, and some dozens of steps do what takes hundreds in W's own.
The first of several processes searches; the others follow it from point to point, each with its share of the pictures,
so that machines which differ in the last bit cannot part ways.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from project.runtime.processes import ALONE, World

ENOUGH = 1e-7  # of the first gradient; at 1e-6, a head of a very certain network stopped 0.2 % above its least


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
    world: World = ALONE,
) -> Tensor:
    """Minimise the divergence of the student's classes from the sources', by L-BFGS.

    Args:
        start: W⁰, shape (classes, inputs (+ 1)), float64.
        views: Domains; at least one picture over all processes.
        damping: λ over the mean second moment of x, where least squares would be solved.
        constant: Whether the last column belongs to a constant, which is not damped.
        steps: Most steps of L-BFGS.
        world: The processes that share the pictures.

    Returns:
        W, of the same shape, and the same in all processes.
    """
    share, curvature, level = _scales(start, views, constant, world)
    pull = torch.full_like(start, damping * level * curvature)
    if constant:
        pull[:, -1] = 0.0
    targets = [view.logits.to(start).softmax(1) for view in views]
    root = _root(start, views, share, damping * level, world)
    known = [view.features.to(start) @ start.mT for view in views]
    features = [torch.linalg.solve_triangular(root, view.features.to(start).mT, upper=False).mT for view in views]
    solution = torch.zeros_like(start, requires_grad=True)  # W = W⁰ + solution · root⁻¹

    def change() -> Tensor:
        found: Tensor = torch.linalg.solve_triangular(root, solution.detach(), upper=False, left=False)
        return found

    def divergence() -> tuple[Tensor, Tensor]:
        """The divergence on the pictures of all processes, and its gradient by ``solution``."""
        solution.grad = None
        with torch.enable_grad():
            loss = 0.0 * solution.sum()  # a process without pictures has a gradient too
            for view, base, x, p in zip(views, known, features, targets, strict=True):
                found = (base + x @ solution.mT).log_softmax(1)
                loss = loss + view.weight * share * F.kl_div(found, p, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
        assert solution.grad is not None
        both = torch.cat([solution.grad.flatten(), loss.detach()[None]])
        world.reduce(both)
        return both[-1], both[:-1].view_as(solution)

    def asked(more: bool) -> bool:
        """Move to where the first process is; whether it asks for the divergence there."""
        told = torch.cat([solution.detach().flatten(), solution.new_tensor([float(more)])])
        world.broadcast(told, 0)
        solution.data.copy_(told[:-1].view_as(solution))
        return bool(told[-1])

    def objective() -> Tensor:
        """The divergence and the pull; leaves its gradient in ``solution``."""
        asked(True)
        loss, gradient = divergence()
        moved = change()
        pulled = pull * moved
        found = torch.linalg.solve_triangular(root, pulled.mT, upper=False).mT
        solution.grad = gradient + 2 * found
        return loss + (pulled * moved).sum()

    if world.rank == 0:
        _search(solution, objective, steps)
        asked(False)
    else:
        while asked(True):
            divergence()
    found = start + change()
    world.broadcast(found, 0)
    return found


def _search(solution: Tensor, objective: Callable[[], Tensor], steps: int) -> None:
    """L-BFGS from where the solution stands, in place."""
    objective()
    assert solution.grad is not None
    solver = torch.optim.LBFGS(
        [solution],
        max_iter=steps,
        tolerance_grad=max(1e-8, ENOUGH * float(solution.grad.abs().max())),
        tolerance_change=0.0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )  # the change tolerance would stop it where the loss is flat to 1e-9, the weights to its root
    solver.step(objective)  # type: ignore[no-untyped-call]


def _root(start: Tensor, views: Sequence[HeadView], share: float, shift: float, world: World) -> Tensor:
    """The Cholesky factor of E[x xᵀ] + shift · I over all processes, the shift a millionth of its diagonal at least."""
    gram = start.new_zeros(start.shape[1], start.shape[1])
    for view in views:
        x = view.features.to(start)
        gram.addmm_(x.mT, x, alpha=view.weight * share)
    world.reduce(gram)
    gram.diagonal().add_(max(shift, 1e-6 * float(gram.diagonal().mean())) or 1.0)
    root: Tensor = torch.linalg.cholesky(gram)
    return root


def _scales(start: Tensor, views: Sequence[HeadView], constant: bool, world: World) -> tuple[float, float, float]:
    """One over the weighted number of pictures; mean of p (1 − p); mean second moment of x: over all processes."""
    sums = start.new_zeros(5)
    for view in views:
        p = view.logits.to(start).softmax(1)
        x = view.features.to(start)[:, : start.shape[1] - constant]
        parts = (len(p), (p * (1 - p)).sum(), p.numel(), x.square().sum(), x.numel())
        sums += view.weight * sums.new_tensor([float(part) for part in parts])
    world.reduce(sums)
    pictures, curves, entries, power, inputs = sums.tolist()
    return 1 / pictures, curves / entries, power / (inputs or 1.0)
