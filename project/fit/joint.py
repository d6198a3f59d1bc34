"""The least-squares fit of one layer in closed form, from the joint second moment of its inputs.

With u = (z¹; …; z^N; 1) the layer's inputs in all sources, G = E[u uᵀ], and y = (y¹; …; y^N) = V u its outputs there,
the student's inputs are M u and its targets B y: M and B blend the units that its unit maps put together. The weights
that minimise E‖W M u − B y‖² + λ‖W − W⁰‖² are

    W = W⁰ + (B V G Mᵀ − W⁰ M G Mᵀ) (M G Mᵀ + λ I)⁻¹

row block by row block, since rows with the same sources see the same inputs. G and V G do not depend on the unit maps:
what one student has asked of V G serves the next, and a further budget costs what it alone asks for, G put together
anew, the product with W⁰, and the factorisation; where it leaves a layer's unit maps as they were, nothing.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from project.alignment import UnitMap
from project.fit.solver import Equations, LayerFit, LayerSolver
from project.moments import Pull, SecondMoment
from project.student.start import start_matrix, targets
from project.symmetry import Layer


class View:
    """What one part of the calibration data says of a layer, for any student.

    Args:
        layer: The layer.
        matrices: V: the sources' weights, from :func:`joint_matrix`.
        moment: Of u, over the pictures of this part.
        owner: Source whose units alone this part asks merged units to follow; None for the mean of all.
        weight: What each of its samples counts for.
    """

    def __init__(
        self,
        layer: Layer,
        matrices: Sequence[Tensor],
        moment: SecondMoment,
        owner: int | None = None,
        weight: float = 1.0,
    ) -> None:
        self.layer, self.matrices, self.moment, self.owner, self.weight = layer, matrices, moment, owner, weight
        self._outputs = _places([len(matrix) for matrix in matrices])
        self._inputs = _places([matrix.shape[1] - layer.bias for matrix in matrices])
        rows, columns = self._outputs[-1].stop, self._inputs[-1].stop + layer.bias
        self._crossed = matrices[0].new_zeros(rows, columns)  # V G, as far as it was asked for
        self._known = torch.zeros(rows, len(matrices), dtype=torch.bool)  # of which output, on whose inputs

    @property
    def samples(self) -> int:
        """Number of samples behind it."""
        return self.moment.count

    def blend(self, units: UnitMap) -> Tensor:
        """Shares of the sources in each student unit."""
        return units.shares(self.owner)

    def gram(self, inputs: UnitMap) -> Tensor:
        """M G Mᵀ = E[z zᵀ], shape (inputs · taps (+ 1))²."""
        blend = self.blend(inputs)

        def pull(joint: Tensor, taps: int) -> Tensor:
            return inputs.pull(joint, blend, taps)

        return self.moment.mean(pull, pull, taps=self.layer.taps)

    def crossed(self, outputs: UnitMap, inputs: UnitMap) -> tuple[Tensor, Tensor]:
        """B V G Mᵀ = E[t zᵀ] and the diagonal of B V G Vᵀ Bᵀ = E[t tᵀ].

        Args:
            outputs: Unit map of the output axis.
            inputs: Unit map of the input axis.

        Returns:
            Shapes (outputs, inputs · taps (+ 1)) and (outputs,).
        """
        shares, blend = self.blend(outputs), self.blend(inputs)
        read = (shares.any(0) | blend.any(0)).nonzero()[:, 0]
        joint = self._crossed.new_zeros(outputs.units, self._crossed.shape[1])  # B V G
        for source in range(len(self.matrices)):
            rows = shares[:, source].nonzero()[:, 0]
            units = outputs.members[rows, source]
            self._learn(source, units, read)
            mine = self._crossed[self._outputs[source]][units.to(joint.device)]
            joint[rows.to(joint.device)] += mine * shares[rows, source].to(joint)[:, None]
        power = (targets(self.layer, self.matrices, outputs, shares) * joint).sum(1)
        return inputs.pull(joint.mT.contiguous(), blend, self.layer.taps).mT, power

    def _learn(self, source: int, units: Tensor, others: Tensor) -> None:
        """Fill in what V G holds of some outputs of a source, on the inputs of others; the same for every student."""
        known = self._known[self._outputs[source]]
        units = units[~known[units][:, others].all(1)]
        if not len(units) or not self.samples:
            return
        left = self._of([source])
        right = left if others.tolist() == [source] else self._of(others.tolist())
        matrix, rows = self.matrices[source], self._crossed[self._outputs[source]]
        found = matrix[units.to(matrix.device)] @ self.moment.mean(left, right, taps=self.layer.taps)
        start, there = 0, units.to(rows.device)
        for place in (self._inputs[other] for other in others.tolist()):
            rows[there, place] = found[:, start : (start := start + place.stop - place.start)]
        rows[there, self._inputs[-1].stop :] = found[:, start:]
        known[units[:, None], others] = True

    def _of(self, sources: Sequence[int]) -> Pull:
        """What takes some sources' inputs out of u, and the constant with them."""
        places = [*(self._inputs[source] for source in sources), slice(self._inputs[-1].stop, None)]

        def pull(joint: Tensor, taps: int) -> Tensor:
            wide = self.layer.taps // taps  # entries of u for each row
            return torch.cat([joint[p.start // wide : None if p.stop is None else p.stop // wide] for p in places])

        return pull


def _places(sizes: Sequence[int]) -> list[slice]:
    """Where vectors of these sizes stand, one behind the other."""
    return [slice(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0))]


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
        ridge: Pull towards the start point, see :func:`~project.fit.solver.damping`.
        same_input: Whether all sources read the same values, as in a layer on the picture.

    Raises:
        MergeError: With ridge 0 and fewer samples than unknowns in a row.
    """
    samples = sum(one.samples for one in views if one.weight)
    weight = sum(one.samples * one.weight for one in views)
    start = start_matrix(layer, matrices, outputs, inputs).contiguous()
    if all(_exact(layer, matrices, start, outputs, inputs, one, same_input) for one in views):
        return LayerFit(start, 0.0, 0.0, 1.0, 0)
    cross, gram = torch.zeros_like(start), start.new_zeros(start.shape[1], start.shape[1])
    power = start.new_zeros(len(start))
    for one in (one for one in views if one.samples * one.weight):
        share, (asked, size) = one.samples * one.weight / weight, one.crossed(outputs, inputs)
        gram.add_(one.gram(inputs), alpha=share)
        cross.add_(asked, alpha=share)
        power.add_(size, alpha=share)
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
