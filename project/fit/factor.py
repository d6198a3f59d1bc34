"""Symmetric positive matrices, factorised once for any number of right-hand sides.

Large ones whose shift keeps their condition small, as a few steps of power iteration estimate it, are factorised and
solved in float32, in half the time: what that leaves of an error is about the condition times 6e-8 of the solution, in
directions in which the inputs hardly vary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

POWER_STEPS = 4  # of power iteration: each reads the matrix once, where the factorisation multiplies all of it
LARGE = 1024  # unknowns from which solving takes more of a merge than anything else
MAX_SINGLE_CONDITION = 1e5  # of a matrix that is solved in float32


class Factor:
    """A factorised gram + shift · I, or a batch of them: by Cholesky, or by eigenvalues where that fails.

    Args:
        gram: Float64, shape (…, unknowns, unknowns).
        shift: A number, or one for each matrix, shape (…).
    """

    def __init__(self, gram: Tensor, shift: Tensor | float) -> None:
        self.shift = torch.as_tensor(shift).to(gram)
        matrix = self._shifted(gram, torch.float32 if self._suits_single(gram) else gram.dtype)
        self._cholesky, failed = torch.linalg.cholesky_ex(matrix)
        if matrix.dtype != gram.dtype and bool(failed.any()):
            matrix = self._shifted(gram, gram.dtype)
            self._cholesky, failed = torch.linalg.cholesky_ex(matrix)
        self.single = matrix.dtype != gram.dtype
        """Whether they are solved in float32."""
        self._failed = failed != 0
        self.fallbacks = int(self._failed.sum())
        """How many matrices were not positive definite."""
        condition = self._estimated_condition(matrix)
        if self.fallbacks:
            values, self._vectors = torch.linalg.eigh(matrix[self._failed])
            largest = values[..., -1:]
            kept = values > largest * torch.finfo(torch.float32).eps  # the moments are sums of float32 products
            self._inverse = torch.where(kept, values.reciprocal(), 0.0)  # least norm in what the data determine
            least = torch.where(kept, values, largest).amin(-1)
            condition[self._failed] = torch.where(kept.any(-1), largest[..., 0] / least, 1.0)  # none: all inputs dead
        self.condition = float(condition.max()) if condition.numel() else 1.0
        """The largest of the matrices' estimated conditions."""

    def _shifted(self, gram: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of the gram with the shift on its diagonal."""
        matrix = gram.to(dtype, copy=True)
        matrix.diagonal(dim1=-2, dim2=-1).add_(self.shift[..., None].to(dtype))
        return matrix

    def _suits_single(self, gram: Tensor) -> bool:
        """Whether the matrices are large, and their shift keeps all eigenvalues near enough to the largest."""
        rounds_further = gram.device.type != "cpu" and torch.get_float32_matmul_precision() != "highest"  # to TF32
        if gram.shape[-1] < LARGE or not gram.numel() or rounds_further:
            return False
        largest = self._iterated(gram.diagonal(dim1=-2, dim2=-1), lambda vector: gram @ vector)
        return bool((largest <= MAX_SINGLE_CONDITION * self.shift).all())

    def _estimated_condition(self, matrix: Tensor) -> Tensor:
        """Estimate the ratio of the extreme eigenvalues, from below: power iteration on matrix and inverse."""
        pivots = self._cholesky.diagonal(dim1=-2, dim2=-1)
        largest = self._iterated(pivots, lambda vector: matrix @ vector)
        inverse = self._iterated(1 / pivots, self._solved)
        return largest * inverse

    def _solved(self, right: Tensor) -> Tensor:
        """Solve for (gram + shift · I)⁻¹ right; ``torch.cholesky_solve`` would copy the factor, often half the work."""
        half = torch.linalg.solve_triangular(self._cholesky, right.to(self._cholesky), upper=False)
        solution: Tensor = torch.linalg.solve_triangular(self._cholesky.mT, half, upper=True)
        return solution.to(right)

    @staticmethod
    def _iterated(start: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        """Estimate the largest eigenvalue, from below; one whose eigenvector is across the start escapes it."""
        vector = start[..., None] / torch.linalg.vector_norm(start, dim=-1)[..., None, None]
        for _ in range(POWER_STEPS):
            vector = apply(vector)
            length = torch.linalg.vector_norm(vector, dim=(-2, -1))
            vector = vector / length[..., None, None]
        largest: Tensor = length
        return largest

    def solve(self, right: Tensor) -> Tensor:
        """Solve X (gram + shift · I) = right.

        Args:
            right: Float64, shape (…, rows, unknowns).

        Returns:
            X, of the same shape.
        """
        solution = self._solved(right.mT).mT
        if self.fallbacks:
            vectors = self._vectors
            solution[self._failed] = ((right[self._failed] @ vectors) * self._inverse[..., None, :]) @ vectors.mT
        return solution
