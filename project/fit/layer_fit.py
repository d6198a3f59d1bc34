"""A fitted layer, and what is measured of its fit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Self

import torch
from torch import Tensor

from project.alignment import UnitMap
from project.fit.factor import Factor
from project.fit.normal_equations import Gram, NormalEquations
from project.fit.row_blocks import followed_blocks
from project.runtime import Progress
from project.runtime.processes import ALONE, World
from project.symmetry import Layer


@dataclass(frozen=True)
class Measurements:
    """What tables and files tell of a layer's fit.

    Args:
        residual_before: Residual of the start point, E‖W⁰x − t‖² / E‖t‖².
        residual_after: Residual of the fit.
        condition: See :class:`LayerFit`.
        fallbacks: See :class:`LayerFit`.
        pictures: Share of the calibration pictures that the layer was fitted to.
        positions: Share of the layer's positions on each of them.
    """

    residual_before: float
    residual_after: float
    condition: float
    fallbacks: float
    pictures: float
    positions: float

    def to_row(self) -> list[float]:
        """List the values in the order of the fields, for a tensor that processes share."""
        return list(astuple(self))

    @classmethod
    def from_row(cls, row: Sequence[float]) -> Self:
        """Read what :meth:`to_row` has listed.

        Args:
            row: Six values.
        """
        return cls(*row)


@dataclass(frozen=True)
class LayerFit:
    """A fitted layer and what is known of the fit.

    Args:
        matrix: Shape (outputs, inputs · taps (+ 1 for the constant)), float64.
        before: Residual of the start point, E‖W⁰x − t‖² / E‖t‖².
        after: Residual of the fit.
        condition: Largest over the row blocks of the solved matrix's condition, the ratio of its extreme eigenvalues:
            estimated from below by a few steps of power iteration, or exact after a fallback.
        fallbacks: Number of row blocks that were not positive definite and went through eigenvalues.
        pictures: Share of the calibration pictures that it was fitted to.
        positions: Share of the layer's positions on each of them.
        domains: Residual of the fit on each part of the calibration data, see :func:`domain_misfits`.
    """

    matrix: Tensor
    before: float
    after: float
    condition: float
    fallbacks: int
    pictures: float = 1.0
    positions: float = 1.0
    domains: Sequence[float] = ()

    @property
    def measurements(self) -> Measurements:
        """What tables and files tell of the fit."""
        return Measurements(
            self.before, self.after, self.condition, float(self.fallbacks), self.pictures, self.positions
        )


@dataclass(frozen=True)
class Residual:
    """What is measured of a fit to some rows of a layer, to be added up over all rows.

    Args:
        power: E‖t‖² of the rows' targets t.
        before: E‖W⁰ x − t‖².
        after: E‖W x − t‖².
        condition: Largest condition of a solved matrix.
        fallbacks: Number of matrices that went through eigenvalues.
    """

    power: float
    before: float
    after: float
    condition: float
    fallbacks: float

    @classmethod
    def measure(
        cls, power: float, cross: Tensor, forward: Tensor, start: Tensor, delta: Tensor, gap: Tensor, factor: Factor
    ) -> Self:
        """Measure a solution from its normal equations.

        Args:
            power: E‖t‖².
            cross: C = E[t xᵀ], float64, shape (…, rows, unknowns).
            forward: W⁰ A with A = E[x xᵀ], of the same shape.
            start: W⁰, of the same shape.
            delta: Δ = R (A + λ I)⁻¹, what the fit adds, of the same shape.
            gap: R = C − W⁰ A, of the same shape.
            factor: Of A + λ I, λ of shape (…).
        """
        before = power - float(((2 * cross - forward) * start).sum())
        # With Δ(A + λI) = R, the residual falls by ⟨Δ, R⟩ + λ‖Δ‖².
        fall = float((delta * gap).sum()) + float((factor.shift[..., None, None] * delta.square()).sum())
        return cls(power, before, before - fall, factor.condition, factor.fallbacks)

    def to_row(self) -> list[float]:
        """List the values in the order of the fields, for a tensor that processes share."""
        return [float(value) for value in astuple(self)]

    @classmethod
    def from_row(cls, row: Sequence[float]) -> Self:
        """Read what :meth:`to_row` has listed.

        Args:
            row: Five values.
        """
        return cls(*row)


def fit_of(matrix: Tensor, residuals: Sequence[Residual], fallbacks: int) -> LayerFit:
    """Put a layer's fit together from what was measured of its rows.

    Args:
        matrix: The fitted weights, float64, shape (outputs, unknowns).
        residuals: Of all rows that were solved for.
        fallbacks: Number of row blocks that went through eigenvalues.
    """
    power = max(sum(part.power for part in residuals), 1e-300)
    before = max(sum(part.before for part in residuals), 0.0) / power
    after = max(sum(part.after for part in residuals), 0.0) / power
    condition = max((part.condition for part in residuals), default=1.0)
    return LayerFit(matrix, before, after, condition, fallbacks)


def misfit(layer: Layer, outputs: UnitMap, inputs: UnitMap, matrix: Tensor, equations: NormalEquations) -> float:
    """Compute E‖W x − t‖² / E‖t‖² of any weights W, over the rows that follow some part of the data.

    Args:
        layer: The layer.
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        matrix: W, float64, shape (outputs, inputs · taps (+ 1)), of a grouped convolution the inputs of a block.
        equations: Normal equations of the data; of a grouped convolution those of one part of it.
    """
    energy = power = 0.0
    sums = _block_sums if layer.blocks > 1 else _row_sums
    for weights, gram, cross, block_power in sums(layer, outputs, inputs, matrix, equations):
        energy += block_power + float(((weights @ gram - 2 * cross) * weights).sum())
        power += block_power
    return max(energy, 0.0) / max(power, 1e-300)


Sums = Iterator[tuple[Tensor, Tensor, Tensor, float]]
"""Of some rows of a layer: W, E[x xᵀ], E[t xᵀ] and E‖t‖²."""


def _row_sums(layer: Layer, outputs: UnitMap, inputs: UnitMap, matrix: Tensor, equations: NormalEquations) -> Sums:
    for block in followed_blocks(layer, outputs, inputs, equations.grams):
        columns = block.columns.to(matrix.device)
        cross = torch.zeros_like(matrix[block.rows][:, columns])
        for part, share in block.shares:
            cross.add_(equations.crosses[part][block.rows][:, columns], alpha=share)
        power = block.power(equations.powers, block.rows)
        yield matrix[block.rows][:, columns], block.gram(equations.grams), cross, power


def _block_sums(layer: Layer, outputs: UnitMap, inputs: UnitMap, matrix: Tensor, equations: NormalEquations) -> Sums:
    (gram,), (cross,), (power,) = equations.grams, equations.crosses, equations.powers
    rows = len(matrix) // len(gram.matrix)
    blocks = _following(outputs, gram)[::rows].to(matrix.device)  # the units of a block stand for the same sources
    weights, crosses, powers = (torch.unflatten(one, 0, (-1, rows))[blocks] for one in (matrix, cross, power))
    yield weights, gram.matrix[blocks], crosses, float(powers.sum())


def _following(outputs: UnitMap, gram: Gram) -> Tensor:
    """Which rows follow a part of the data: boolean, shape (outputs,)."""
    return torch.ones(outputs.units, dtype=torch.bool) if gram.owner is None else outputs.present[:, gram.owner]


def domain_misfits(
    layer: Layer,
    outputs: UnitMap,
    inputs: UnitMap,
    matrix: Tensor,
    equations: NormalEquations,
    world: World = ALONE,
) -> list[float]:
    """Compute the :func:`misfit` of weights on every part of the data by itself, each process its share of the parts.

    Args:
        layer: The layer.
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        matrix: W, float64, as for :func:`misfit`.
        equations: Normal equations of all parts; what a part weighs in the fit plays no role.
        world: The processes, all of which hold the same.

    Returns:
        One share a part; not a number where no row of the layer follows the part, or it holds no samples.
    """
    table = matrix.new_zeros(len(equations.grams))
    for part in range(world.rank, len(equations.grams), world.size):
        gram = replace(equations.grams[part], weight=1.0)
        alone = NormalEquations([gram], [equations.crosses[part]], [equations.powers[part]])
        followed = gram.samples and _following(outputs, gram).any()
        table[part] = misfit(layer, outputs, inputs, matrix, alone) if followed else torch.nan
    world.reduce(table)
    shares: list[float] = table.tolist()
    return shares


class KeptFits:
    """The fits of one walk through a network's layers, in order: the first ones recalled, the others kept when made.

    Args:
        progress: For this walk alone.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress, self.number, self.recalling = progress, 0, True

    def __call__(self, layer: str, solve: Callable[[], LayerFit]) -> LayerFit:
        """Recall the next layer's fit, or make and keep it.

        Args:
            layer: The layer's name.
            solve: Makes the fit, where it was not kept.
        """
        name, self.number = f"{self.number:04}-{layer}", self.number + 1
        kept = self.progress.recall(name) if self.recalling else None
        if kept is not None:
            return LayerFit(**{**kept, "matrix": kept["matrix"].to(self.progress.device)})
        self.recalling = False
        fit = solve()
        self.progress.keep_together(name, vars(fit))
        return fit
