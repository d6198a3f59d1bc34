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
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from project.alignment import UnitMap
from project.fit.layer_fit import LayerFit, domain_misfits
from project.fit.normal_equations import Gram, NormalEquations
from project.fit.solver import LayerSolver
from project.moments import Pull, SecondMoment
from project.student.start import start_matrix, targets
from project.symmetry import Layer


class View:
    """What one part of the calibration data says of a layer, for any student.

    Args:
        layer: The layer.
        matrices: V: the sources' weights, float64, from :func:`joint_matrix`.
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
        self._outputs = _slices([len(matrix) for matrix in matrices])
        self._inputs = _slices([matrix.shape[1] - layer.bias for matrix in matrices])
        rows, columns = self._outputs[-1].stop, self._inputs[-1].stop + layer.bias
        self._crossed = matrices[0].new_zeros(rows, columns)  # V G, as far as it was asked for
        self._known = torch.zeros(rows, len(matrices), dtype=torch.bool)  # of which output, on whose inputs

    @property
    def samples(self) -> int:
        """Number of samples behind the moment."""
        return self.moment.count

    def shares(self, units: UnitMap) -> Tensor:
        """Shares of the sources in what this part asks of each student unit: float64, shape (units, sources)."""
        return units.shares(self.owner)

    def gram(self, inputs: UnitMap) -> Tensor:
        """Compute M G Mᵀ = E[z zᵀ] of the student's inputs z = M u.

        Args:
            inputs: Unit map of the input axis.

        Returns:
            Float64, shape (inputs · taps (+ 1), inputs · taps (+ 1)).
        """
        shares = self.shares(inputs)

        def pull(joint: Tensor, taps: int) -> Tensor:
            return inputs.pull(joint, shares, taps)

        return self.moment.mean(pull, pull, taps=self.layer.taps)

    def crossed(self, outputs: UnitMap, inputs: UnitMap) -> tuple[Tensor, Tensor]:
        """Compute B V G Mᵀ = E[t zᵀ] and the diagonal of B V G Vᵀ Bᵀ = E[t tᵀ], of the student's targets t = B V u.

        Args:
            outputs: Unit map of the output axis.
            inputs: Unit map of the input axis.

        Returns:
            Float64, shapes (outputs, inputs · taps (+ 1)) and (outputs,).
        """
        shares, read_shares = self.shares(outputs), self.shares(inputs)
        read = (shares.any(0) | read_shares.any(0)).nonzero()[:, 0]
        joint = self._crossed.new_zeros(outputs.units, self._crossed.shape[1])  # B V G
        for source in range(len(self.matrices)):
            rows = shares[:, source].nonzero()[:, 0]
            units = outputs.members[rows, source]
            self._learn(source, units, read)
            crossed = self._crossed[self._outputs[source]][units.to(joint.device)]
            joint[rows.to(joint.device)] += crossed * shares[rows, source].to(joint)[:, None]
        power = (targets(self.layer, self.matrices, outputs, shares) * joint).sum(1)
        return inputs.pull(joint.mT.contiguous(), read_shares, self.layer.taps).mT, power

    def _learn(self, source: int, units: Tensor, others: Tensor) -> None:
        """Fill in what V G holds of some outputs of a source, on the inputs of others; the same for every student."""
        known = self._known[self._outputs[source]]
        units = units[~known[units][:, others].all(1)]
        if not len(units) or not self.samples:
            return
        left = self._of([source])
        right = left if others.tolist() == [source] else self._of(others.tolist())
        matrix, rows = self.matrices[source], self._crossed[self._outputs[source]]
        products = matrix[units.to(matrix.device)] @ self.moment.mean(left, right, taps=self.layer.taps)
        start, numbers = 0, units.to(rows.device)
        for columns in (self._inputs[other] for other in others.tolist()):
            rows[numbers, columns] = products[:, start : (start := start + columns.stop - columns.start)]
        rows[numbers, self._inputs[-1].stop :] = products[:, start:]
        known[units[:, None], others] = True

    def _of(self, sources: Sequence[int]) -> Pull:
        """Make what takes some sources' inputs out of u, and the constant with them."""
        slices = [*(self._inputs[source] for source in sources), slice(self._inputs[-1].stop, None)]

        def pull(joint: Tensor, taps: int) -> Tensor:
            wide = self.layer.taps // taps  # entries of u for each row
            return torch.cat([joint[p.start // wide : None if p.stop is None else p.stop // wide] for p in slices])

        return pull


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Slices of vectors of these sizes that stand one behind the other."""
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
    """Fit one layer of the student in closed form, on the sources' inputs.

    Args:
        layer: The layer.
        matrices: V: the sources' weights, float64, from :func:`joint_matrix`.
        outputs: Unit map of the output axis.
        inputs: Unit map of the input axis.
        views: Parts of the calibration data; they weigh by their samples.
        ridge: Pull towards the start point, see :func:`~project.fit.normal_equations.damping`.
        same_input: Whether all sources read the same values, as in a layer on the picture.

    Raises:
        MergeError: With ridge 0 and fewer samples than unknowns in a row.
    """
    samples = sum(view.samples for view in views if view.weight)
    weight = sum(view.samples * view.weight for view in views)
    start = start_matrix(layer, matrices, outputs, inputs).contiguous()
    if all(_exact(layer, matrices, start, outputs, inputs, view, same_input) for view in views):
        return LayerFit(start, 0.0, 0.0, 1.0, 0, domains=[0.0] * len(views))
    cross, gram = torch.zeros_like(start), start.new_zeros(start.shape[1], start.shape[1])
    power = start.new_zeros(len(start))
    for view in (view for view in views if view.samples * view.weight):
        share, (view_cross, view_power) = view.samples * view.weight / weight, view.crossed(outputs, inputs)
        gram.add_(view.gram(inputs), alpha=share)
        cross.add_(view_cross, alpha=share)
        power.add_(view_power, alpha=share)
    fit = LayerSolver(layer, start, outputs, inputs, [Gram(gram, samples)], ridge).solve([cross], [power])
    del gram, cross
    return replace(fit, domains=[_view_misfit(layer, fit.matrix, outputs, inputs, view) for view in views])


def _view_misfit(layer: Layer, matrix: Tensor, outputs: UnitMap, inputs: UnitMap, view: View) -> float:
    """E‖W z − t‖² / E‖t‖² on one part of the data, put together anew: the parts of all views need much memory."""
    if not view.samples:
        return torch.nan
    cross, power = view.crossed(outputs, inputs)
    equations = NormalEquations([Gram(view.gram(inputs), view.samples)], [cross], [power])
    return domain_misfits(layer, outputs, inputs, matrix, equations)[0]


def _exact(
    layer: Layer,
    matrices: Sequence[Tensor],
    start: Tensor,
    outputs: UnitMap,
    inputs: UnitMap,
    view: View,
    same_input: bool,
) -> bool:
    """Whether the start point reproduces its targets on any input: B V = W⁰ M, as where nothing is merged.

    Such a layer is left as it is, so that a student without merged units is exactly its sources.
    """
    goals = targets(layer, matrices, outputs, view.shares(outputs)).mT.contiguous()  # (B V)ᵀ
    if same_input:
        return torch.equal(inputs.pull(goals, taps=layer.taps), start.mT)
    return torch.equal(goals, inputs.push(start.mT.contiguous(), view.shares(inputs), layer.taps))
