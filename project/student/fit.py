"""The least-squares fit of one layer in closed form, from the joint second moment of its inputs (DESIGN §4).

With u = (z¹; …; z^N; 1) the layer's inputs in all sources, G = E[u uᵀ], and y = (y¹; …; y^N) = V u its outputs there,
the student's inputs are M u and its targets B y: M and B blend the units that its unit maps put together. The weights
that minimise E‖W M u − B y‖² + λ‖W − W⁰‖² are

    W = W⁰ + (B V G Mᵀ − W⁰ M G Mᵀ) (M G Mᵀ + λ I)⁻¹

row block by row block, since rows with the same sources see the same inputs. G and V G Vᵀ do not depend on the unit
maps: a further budget costs gathers, the products with V and W⁰, and the factorisation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations_with_replacement, pairwise

import torch
from torch import Tensor, nn

from project.alignment import UnitMap
from project.moments import SecondMoment
from project.student.layers import bias_of, weight_of
from project.student.solver import Equations, LayerFit, LayerSolver
from project.symmetry import Layer


@dataclass(frozen=True, eq=False)
class View:
    """What one part of the calibration data says of a layer, for any student.

    Args:
        inputs: G = E[u uᵀ], float64.
        matrices: V: the sources' weights, from :func:`joint_matrix`.
        bias: Whether u and the matrices end with a constant.
        samples: Number of samples behind G.
        owner: Source whose units alone this part asks merged units to follow; None for the mean of all.
        weight: What each of its samples counts for.
    """

    inputs: Tensor
    matrices: Sequence[Tensor]
    bias: bool
    samples: int
    owner: int | None = None
    weight: float = 1.0
    _outputs: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False)

    def blend(self, units: UnitMap) -> Tensor:
        """Shares of the sources in each student unit."""
        return units.mean if self.owner is None else units.own(self.owner)

    def cross(self, outputs: UnitMap, half: Tensor) -> Tensor:
        """B V (G Mᵀ), shape (outputs, inputs · taps (+ 1)); of V only what the targets hold.

        Args:
            outputs: Unit map of the output axis.
            half: G Mᵀ.
        """
        blend = self.blend(outputs).to(half)
        result = half.new_zeros(outputs.units, half.shape[1])
        for source, (matrix, place) in enumerate(zip(self.matrices, self._places, strict=True)):
            rows = blend[:, source].nonzero()[:, 0]
            mine = matrix[outputs.members.to(half.device)[rows, source]] * blend[rows, source, None]
            width = place.stop - place.start
            result[rows] += mine[:, :width] @ half[place] + mine[:, width:] @ half[len(half) - self.bias :]
        return result

    def power(self, outputs: UnitMap) -> Tensor:
        """The diagonal of B V G Vᵀ Bᵀ = E[t tᵀ], shape (outputs,)."""
        blend = self.blend(outputs).to(self.inputs)
        result, members = blend.new_zeros(outputs.units), outputs.members.to(self.inputs.device)
        for a, b in combinations_with_replacement(range(len(self.matrices)), 2):
            share = blend[:, a] * blend[:, b] * (1 if a == b else 2)
            rows = share.nonzero()[:, 0]
            if len(rows):
                result[rows] += share[rows] * self._responses(a, b)[members[rows, a], members[rows, b]]
        return result

    @property
    def _places(self) -> list[slice]:
        """Where each source's inputs stand in u."""
        ends = list(accumulate((matrix.shape[1] - self.bias for matrix in self.matrices), initial=0))
        return [slice(start, stop) for start, stop in pairwise(ends)]

    def _responses(self, a: int, b: int) -> Tensor:
        """E[y yᵀ] between the outputs of two sources; the same for every student."""
        if (a, b) not in self._outputs:
            mine, theirs = self._places[a], self._places[b]
            left, right, last = self.matrices[a], self.matrices[b], slice(len(self.inputs) - self.bias, None)
            wide, other = mine.stop - mine.start, theirs.stop - theirs.start

            def through(columns: slice) -> Tensor:
                return left[:, :wide] @ self.inputs[mine, columns] + left[:, wide:] @ self.inputs[last, columns]

            self._outputs[a, b] = through(theirs) @ right[:, :other].mT + through(last) @ right[:, other:].mT
        return self._outputs[a, b]


def view(
    layer: Layer, matrices: Sequence[Tensor], moment: SecondMoment, owner: int | None = None, weight: float = 1.0
) -> View:
    """What the moment of a layer's inputs says of it.

    Args:
        layer: The layer.
        matrices: The sources' weights, from :func:`joint_matrix`.
        moment: Of u, over the pictures of this part.
        owner: See :class:`View`.
        weight: See :class:`View`.
    """
    return View(moment.mean(), matrices, layer.bias, moment.count, owner, weight)


def joint_matrix(layer: Layer, modules: Sequence[nn.Module]) -> list[Tensor]:
    """The layer's weight matrix of every source, its constant as a last column: float64."""
    matrices = []
    for module in modules:
        weight = weight_of(module).detach().flatten(1).double()
        bias = [bias_of(module).detach().double()[:, None]] if layer.bias else []
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
    share (METHODS §1b). Rows of a grouped convolution read the units of their own block, which stand for the same
    sources: each row is the mean of its sources'.
    """
    if layer.blocks > 1:
        return _grouped_start(layer, matrices, outputs, inputs)
    return inputs.pull(targets(layer, matrices, outputs, outputs.mean).mT.contiguous(), taps=layer.taps).mT


def _grouped_start(layer: Layer, matrices: Sequence[Tensor], outputs: UnitMap, inputs: UnitMap) -> Tensor:
    """W⁰ of a grouped convolution; shape (outputs, inputs of a block · taps (+ 1))."""
    tall, wide = outputs.sizes[0] // layer.blocks, inputs.sizes[0] // layer.blocks
    rows = []
    for source, matrix in enumerate(matrices):
        there = outputs.present[:, source].nonzero()[:, 0]
        inside = (inputs.members[:, source].view(-1, wide) % wide).repeat_interleave(tall, 0)[there].to(matrix.device)
        units = outputs.members[there, source].to(matrix.device)
        weights = matrix[units][:, : wide * layer.taps].view(-1, wide, layer.taps)
        weights = weights.gather(1, inside[:, :, None].expand_as(weights)).flatten(1)
        moved = torch.cat([weights, matrix[units][:, wide * layer.taps :]], 1)
        rows.append(torch.zeros_like(matrix).index_copy(0, units, moved))
    return outputs.pull(torch.cat(rows), outputs.mean)


def fit_layer(
    layer: Layer,
    matrices: Sequence[Tensor],
    outputs: UnitMap,
    inputs: UnitMap,
    views: Sequence[View],
    *,
    ridge: float,
    same_input: bool = False,
) -> LayerFit:
    """Solve for one layer of the student, on the sources' inputs.

    Args:
        layer: The layer.
        matrices: The sources' weights, from :func:`joint_matrix`.
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        views: Parts of the calibration data; they weigh by their samples.
        ridge: Pull towards the start point, see :func:`~project.student.solver.damping`.
        same_input: Whether all sources read the same values, as in a layer on the picture.

    Raises:
        MergeError: With ridge 0 and fewer samples than unknowns in a row.
    """
    taps, samples = layer.taps, sum(one.samples for one in views if one.weight)
    weight = sum(one.samples * one.weight for one in views)
    start = start_matrix(layer, matrices, outputs, inputs).contiguous()
    if all(_exact(layer, matrices, start, outputs, inputs, one, same_input) for one in views):
        return LayerFit(start, 0.0, 0.0, 1.0, 0)
    cross, gram = torch.zeros_like(start), start.new_zeros(start.shape[1], start.shape[1])
    power = start.new_zeros(len(start))
    for one in views:
        share, m = one.samples * one.weight / weight, one.blend(inputs)
        half = inputs.pull(one.inputs, m, taps).mT.contiguous()
        gram.add_(inputs.pull(half, m, taps), alpha=share)
        cross.add_(one.cross(outputs, half), alpha=share)
        power.add_(one.power(outputs), alpha=share)
    return LayerSolver(layer, start, outputs, inputs, [Equations(gram, samples)], ridge).solve([cross], [power])


def _exact(
    layer: Layer,
    matrices: Sequence[Tensor],
    start: Tensor,
    outputs: UnitMap,
    inputs: UnitMap,
    one: View,
    same_input: bool,
) -> bool:
    """Whether the start point reproduces its targets on any input: B V = W⁰ M, as where nothing is merged.

    Such a layer is left as it is, so that a student without merged units is exactly its sources.
    """
    wanted = targets(layer, matrices, outputs, one.blend(outputs)).mT.contiguous()
    if same_input:
        return torch.equal(inputs.pull(wanted, taps=layer.taps), start.mT)
    return torch.equal(wanted, inputs.push(start.mT.contiguous(), one.blend(inputs), layer.taps))
