"""Conjugate gradients (Hestenes and Stiefel 1952) on tensors, for operators that are never written out."""

from collections.abc import Callable

import torch
from torch import Tensor


class ConjugateGradients:
    """Solves C x = b for a symmetric positive semi-definite C, a step at a time.

    The same iterates as ``scipy.sparse.linalg.cg``, on any device.

    Args:
        apply: C x.
        right: b.
        start: x₀; left unchanged.
        residual: b − C x₀, where the caller has it more exactly.
        tolerance: It has converged when ‖b − C x‖ is at most this times ‖b‖.
        diagonal: The diagonal of C, to precondition by (Jacobi); None for none.

    Attributes:
        solution: x.
        residual: b − C x, as the recursion has it.
        steps: Steps taken.
    """

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        right: Tensor,
        start: Tensor,
        *,
        residual: Tensor | None = None,
        tolerance: float = 1e-5,
        diagonal: Tensor | None = None,
    ) -> None:
        self.apply = apply
        self.solution, self.steps = start.clone(), 0
        self.residual = right - apply(start) if residual is None else residual
        self.scale = float(right.norm())
        self._goal = tolerance * self.scale
        self._inverse = None if diagonal is None else torch.where(diagonal > 0, diagonal.reciprocal(), 0.0)
        self._direction = torch.zeros_like(start)
        self._power = 1.0
        self._broken = False

    @property
    def distance(self) -> float:
        """‖b − C x‖."""
        return float(self.residual.norm())

    @property
    def converged(self) -> bool:
        """Whether another step is of no use."""
        return self._broken or self.distance <= self._goal

    def step(self) -> bool:
        """Take a step, unless it has converged; return whether one was taken."""
        if self.converged:
            return False
        scaled = self.residual if self._inverse is None else self._inverse * self.residual
        power = float((self.residual * scaled).sum())
        self._direction = scaled + (power / self._power if self.steps else 0.0) * self._direction
        image = self.apply(self._direction)
        curvature = float((self._direction * image).sum())
        if curvature <= 0:  # rounding is all that is left of a direction that C does not see
            self._broken = True
            return False
        length = power / curvature
        self.solution += length * self._direction
        self.residual = self.residual - length * image
        self._power = power
        self.steps += 1
        return True
