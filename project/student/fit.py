"""The least-squares fit of one layer in closed form, from the joint second moment of its inputs (DESIGN §4).

With u = (z¹; …; z^N; 1) the layer's inputs in all sources and G = E[u uᵀ], the student's inputs are M u and its targets
T u. The weights that minimise E‖W M u − T u‖² + λ‖W − W⁰‖² are

    W = W⁰ + (T − W⁰M) G Mᵀ (M G Mᵀ + λ I)⁻¹

row block by row block, since rows with the same sources see the same inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from project.alignment import UnitMap, overlap
from project.errors import MergeError
from project.symmetry import Layer


@dataclass(frozen=True)
class View:
    """What one part of the calibration data asks of the student.

    Args:
        joint: E[u uᵀ] on that part, float64.
        inputs: Blend of the input axis: which sources' units the student's input is the mean of.
        outputs: Blend of the output axis: which sources' outputs are the target.
        weight: Share of this part in the whole.
    """

    joint: Tensor
    inputs: Tensor
    outputs: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class LayerFit:
    """A fitted layer and what is known of the fit.

    Args:
        matrix: Shape (outputs, inputs · taps (+ 1 for the constant)), float64.
        before: Residual of the start point, E‖W⁰z − t‖² / E‖t‖².
        after: Residual of the fit.
        condition: Largest over the row blocks of an estimate of the solved matrix's condition: the squared ratio of
            the extreme entries of its Cholesky factor's diagonal, or the ratio of eigenvalues after a fallback.
        fallbacks: Number of row blocks that were not positive definite and went through eigenvalues.
    """

    matrix: Tensor
    before: float
    after: float
    condition: float
    fallbacks: int


def joint_matrix(layer: Layer, modules: Sequence[nn.Module]) -> list[Tensor]:
    """The layer's weight matrix of every source, its constant as a last column: float64."""
    matrices = []
    for module in modules:
        weight = module.weight.detach().flatten(1).double()  # type: ignore[operator, union-attr]
        bias = [module.bias.detach().double()[:, None]] if layer.bias else []  # type: ignore[operator, union-attr]
        matrices.append(torch.cat([weight, *bias], 1))
    return matrices


def targets(layer: Layer, matrices: Sequence[Tensor], outputs: UnitMap, blend: Tensor) -> Tensor:
    """T: the student's targets as a matrix over u; shape (outputs, Σ inputs · taps (+ 1)).

    Args:
        layer: The layer.
        matrices: From :func:`joint_matrix`.
        outputs: Unit map of the output axis.
        blend: Which sources' outputs are the target of each row; shape (outputs, sources).
    """
    beyond = int(layer.bias)
    size = sum(matrix.shape[1] - beyond for matrix in matrices)
    result = matrices[0].new_zeros(outputs.units, size + beyond)
    start = 0
    for source, matrix in enumerate(matrices):
        rows = outputs.present[:, source].nonzero()[:, 0].to(matrix.device)
        units = outputs.members.to(matrix.device)[rows, source]
        scaled = matrix[units] * blend.to(matrix)[rows, source, None]
        width = matrix.shape[1] - beyond
        result[rows, start : start + width] = scaled[:, :width]
        if beyond:
            result[rows, -1] += scaled[:, -1]
        start += width
    return result


def start_matrix(layer: Layer, matrices: Sequence[Tensor], outputs: UnitMap, inputs: UnitMap) -> Tensor:
    """W⁰: what the sources' weights make of the student before any fit; shape (outputs, inputs · taps (+ 1)).

    Every row adds, over its sources, the source's weights to the units in that source's place, divided by the number
    of sources in the row: between merged units the mean of the sources, from a single unit into a merged row its
    share (METHODS §1b).
    """
    return inputs.pull(targets(layer, matrices, outputs, outputs.mean).mT.contiguous(), taps=layer.taps).mT


def fit_layer(
    layer: Layer,
    matrices: Sequence[Tensor],
    outputs: UnitMap,
    inputs: UnitMap,
    views: Sequence[View],
    *,
    ridge: float,
    samples: int,
) -> LayerFit:
    """Solve for one layer of the student.

    Args:
        layer: The layer.
        matrices: The sources' weights, from :func:`joint_matrix`.
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        views: Parts of the calibration data with the inputs and targets they ask for.
        ridge: λ over the mean diagonal of M G Mᵀ; pulls towards the start point.
        samples: Number of samples behind the moments.

    Raises:
        MergeError: With ridge 0 and fewer samples than unknowns in a row.
    """
    taps = layer.taps
    start = start_matrix(layer, matrices, outputs, inputs).contiguous()
    cross, gram, energy = torch.zeros_like(start), start.new_zeros(start.shape[1], start.shape[1]), 0.0
    for view in views:
        # D = T − W⁰M: exactly zero where nothing is merged, so that such a student stays exactly its sources.
        error = targets(layer, matrices, outputs, view.outputs).mT - inputs.push(start.mT, view.inputs, taps)
        product = view.joint @ error
        energy += view.weight * float((product * error).sum())
        cross.add_(inputs.pull(product, view.inputs, taps).mT, alpha=view.weight)
        half = inputs.pull(view.joint, view.inputs, taps).mT.contiguous()
        gram.add_(inputs.pull(half, view.inputs, taps), alpha=view.weight)
        del product, half
    # E‖t‖² with t = W⁰z + (t − W⁰z), from what is at hand.
    power = float(((start @ gram) * start).sum() + 2 * (cross * start).sum()) + energy
    before = energy / max(power, 1e-300)
    if not bool(cross.any()):
        return LayerFit(start, before, before, 1.0, 0)
    shift = ridge * float(gram.diagonal()[: inputs.units * taps].mean())
    seen = overlap(outputs, inputs).to(start.device).repeat_interleave(taps, 1)
    if layer.bias:
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], 1)
    delta, conditions, fallbacks = torch.zeros_like(start), [1.0], 0
    for rows, _ in outputs.blocks:
        columns = seen[rows.start].nonzero()[:, 0]
        if ridge == 0 and samples < len(columns):
            raise MergeError(
                f"layer {layer.name!r} has {len(columns)} unknowns a row but only {samples} samples and ridge is 0; "
                f"use more calibration pictures or a ridge above 0."
            )
        matrix = gram if len(columns) == len(gram) else gram[columns][:, columns]
        solved, condition, fell = _solve(matrix, cross[rows][:, columns], shift)
        delta[rows] = delta[rows].index_copy(1, columns, solved)
        conditions.append(condition)
        fallbacks += fell
    # With Δ(A + λI) = R, the residual is E‖Dz‖² − ⟨Δ, R⟩ − λ‖Δ‖².
    left = energy - float((delta * cross).sum()) - shift * float(delta.square().sum())
    return LayerFit(start + delta, before, max(left, 0.0) / max(power, 1e-300), max(conditions), fallbacks)


def _solve(gram: Tensor, cross: Tensor, shift: float) -> tuple[Tensor, float, int]:
    """Δ with Δ (gram + shift·I) = cross; its condition estimate; whether eigenvalues were needed."""
    matrix = gram.clone()
    matrix.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not int(failed):
        pivots = factor.diagonal()
        solved = torch.cholesky_solve(cross.mT, factor).mT
        return solved, float((pivots.max() / pivots.min()) ** 2), 0
    values, vectors = torch.linalg.eigh(matrix)
    floor = values[-1] * torch.finfo(torch.float32).eps  # the moments are sums of float32 products
    inverse = torch.where(values > floor, values.reciprocal(), 0.0)  # least-norm step in what the data determine
    smallest = values[values > floor].min()
    return ((cross @ vectors) * inverse) @ vectors.mT, float(values[-1] / smallest), 1
