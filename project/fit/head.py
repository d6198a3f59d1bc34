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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from project.models import LabelSpace
from project.runtime.processes import ALONE, World

GRADIENT_TOLERANCE = 1e-7
"""Of the first gradient; at 1e-6, a head of a very certain network stopped 0.2 % above its least."""


@dataclass(frozen=True)
class HeadView:
    """What the pictures of one domain ask of the head.

    Args:
        features: x, float32, with a last column of ones where the head adds a constant; shape (pictures, inputs (+ 1)).
        logits: t, float32, of the source that owns the domain or the mean of all; shape (pictures, classes).
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
    problem = _HeadProblem(start, views, damping, constant, world)
    if world.rank == 0:
        _search(problem.solution, problem.objective, steps)
        problem.follow(False)
    else:
        while problem.follow(True):
            problem.divergence()
    fitted = start + problem.change()
    world.broadcast(fitted, 0)
    return fitted


def own_heads(labels: LabelSpace, domain: str, owners: Mapping[str, int]) -> list[slice]:
    """List the logits that a domain's pictures ask for something: its own head's, else those of its source or of all.

    Args:
        labels: Label space of the student.
        domain: Name of the domain.
        owners: domain -> index of its source.
    """
    if labels.mode == "shared" or domain in labels.domains:
        return [labels.columns(domain)]
    owner = owners.get(domain)
    return [labels.columns(other) for other in labels.domains if owner is None or owners.get(other) == owner]


class _HeadProblem:
    """The objective of a head over the pictures of all processes, in the coordinates of the search.

    Args:
        start: W⁰, shape (classes, inputs (+ 1)), float64.
        views: Domains of this process.
        damping: λ over the mean second moment of x.
        constant: Whether the last column belongs to a constant.
        world: The processes that share the pictures.
    """

    def __init__(self, start: Tensor, views: Sequence[HeadView], damping: float, constant: bool, world: World) -> None:
        self.views, self.world = views, world
        self.share, curvature, level = _scales(start, views, constant, world)
        self.pull = torch.full_like(start, damping * level * curvature)
        if constant:
            self.pull[:, -1] = 0.0
        self.targets = [view.logits.to(start).softmax(1) for view in views]
        self.root = _root(start, views, self.share, damping * level, world)
        self.known = [view.features.to(start) @ start.mT for view in views]
        self.features = [
            torch.linalg.solve_triangular(self.root, view.features.to(start).mT, upper=False).mT for view in views
        ]
        self.solution = torch.zeros_like(start, requires_grad=True)  # W = W⁰ + solution · root⁻¹

    def change(self) -> Tensor:
        """W − W⁰."""
        weights: Tensor = torch.linalg.solve_triangular(self.root, self.solution.detach(), upper=False, left=False)
        return weights

    def divergence(self) -> tuple[Tensor, Tensor]:
        """The divergence on the pictures of all processes, and its gradient by ``solution``."""
        solution = self.solution.detach()
        loss, gradient = solution.new_zeros(1), torch.zeros_like(solution)
        for view, base, x, p in zip(self.views, self.known, self.features, self.targets, strict=True):
            predicted, share = (base + x @ solution.mT).log_softmax(1), view.weight * self.share
            loss += share * F.kl_div(predicted, p, reduction="sum")
            gradient.addmm_((predicted.exp() - p).mT, x, alpha=share)
        both = torch.cat([gradient.flatten(), loss])
        self.world.reduce(both)
        return both[-1], both[:-1].view_as(solution)

    def follow(self, more: bool) -> bool:
        """Move to where the first process is; whether it needs the divergence there."""
        message = torch.cat([self.solution.detach().flatten(), self.solution.new_tensor([float(more)])])
        self.world.broadcast(message, 0)
        self.solution.data.copy_(message[:-1].view_as(self.solution))
        return bool(message[-1])

    def objective(self) -> Tensor:
        """The divergence and the pull; leaves its gradient in ``solution``."""
        self.follow(True)
        loss, gradient = self.divergence()
        moved = self.change()
        pulled = self.pull * moved
        slope = torch.linalg.solve_triangular(self.root, pulled.mT, upper=False).mT
        self.solution.grad = gradient + 2 * slope
        return loss + (pulled * moved).sum()


def _search(solution: Tensor, objective: Callable[[], Tensor], steps: int) -> None:
    """L-BFGS from where the solution stands, in place."""
    objective()
    assert solution.grad is not None
    solver = torch.optim.LBFGS(
        [solution],
        max_iter=steps,
        tolerance_grad=max(1e-8, GRADIENT_TOLERANCE * float(solution.grad.abs().max())),
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
