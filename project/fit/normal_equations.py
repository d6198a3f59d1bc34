"""The normal equations of a layer with a ridge: moments of its inputs and targets, and how strong the ridge is.

The weights that minimise E‖W x − t‖² + λ‖W − W⁰‖² solve (W − W⁰)(E[x xᵀ] + λ I) = E[t xᵀ] − W⁰ E[x xᵀ].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from project.errors import MergeError
from project.symmetry import Layer


@dataclass(frozen=True)
class Gram:
    """E[x xᵀ] of the student's inputs x over one part of the calibration data, usually a domain.

    Args:
        matrix: Float64, shape (unknowns, unknowns); of a grouped convolution (blocks, unknowns, unknowns).
        samples: Number of samples behind it; parts weigh by it.
        owner: Source that the part belongs to: rows without that source do not follow it. None: all rows do.
        columns: Which entries of x the matrix holds, ascending; None for all of them.
        weight: What each of its samples counts for.
    """

    matrix: Tensor
    samples: int
    owner: int | None = None
    columns: Tensor | None = None
    weight: float = 1.0

    def select(self, columns: Tensor) -> Tensor:
        """Take the moments of some entries of x.

        Args:
            columns: Their numbers, ascending, shape (count,).

        Returns:
            Float64, shape (count, count); the matrix itself where that is all of it.
        """
        if self.columns is not None:
            columns = torch.searchsorted(self.columns, columns)
        if len(columns) == len(self.matrix):
            return self.matrix
        columns = columns.to(self.matrix.device)
        return self.matrix[columns][:, columns]


@dataclass(frozen=True)
class NormalEquations:
    """What all parts of the calibration data ask of a layer of the student.

    Args:
        grams: E[x xᵀ] of every part.
        crosses: E[t xᵀ] of every part, float64, shape (outputs, unknowns).
        powers: E[t²] of every part, float64, shape (outputs,).
    """

    grams: Sequence[Gram]
    crosses: Sequence[Tensor]
    powers: Sequence[Tensor]


def damping(ridge: float, unknowns: int, samples: int) -> float:
    """Weigh the ridge: λ over the mean diagonal of E[x xᵀ].

    It is the ridge where there are as many samples as unknowns, less with more. Positions of one picture are no
    independent samples, hence the part that does not vanish.

    Args:
        ridge: Pull towards the start point.
        unknowns: Of a row.
        samples: Behind E[x xᵀ].
    """
    return ridge * (0.02 + unknowns / samples)


def refuse_few(layer: Layer, unknowns: int, samples: int, ridge: float) -> None:
    """Refuse to solve for more than the samples determine without a ridge.

    Raises:
        MergeError: With ridge 0 and fewer samples than unknowns.
    """
    if ridge == 0 and samples < unknowns:
        raise MergeError(
            f"layer {layer.name!r} has {unknowns} unknowns a row but only {samples} samples and ridge is 0; use more "
            f"calibration pictures or a ridge above 0."
        )
