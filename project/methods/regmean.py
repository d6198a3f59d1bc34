"""RegMean (Jin et al., arXiv 2212.09849): every layer does on each source's inputs what that source does."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from project.allocation import Budget
from project.errors import at_least, between
from project.fit import Factor
from project.fit.memory_estimate import solve_bytes
from project.methods.base import Method, Preparation
from project.methods.problem import PictureCounts, Problem, Run
from project.methods.shared import Arithmetic
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arithmetic import Combined
from project.methods.shared.systems import Gram, diagonals, merged_layers
from project.moments import INPUTS
from project.student import Student


class RegMean(Arithmetic):
    """W = (Σ Wᵢ Aᵢ) (Σ Aᵢ)⁻¹ for every layer, where Aᵢ = E[z zᵀ] is over what source i reads there.

    It minimises Σ E‖W z − Wᵢ z‖² over each source's own inputs z, patches where the layer is a convolution. Blocks of a
    grouped or depthwise one are systems of their own. Biases and norms become the mean of the sources.

    Args:
        off_diagonal: Factor of what is off the diagonal of each Aᵢ; the paper has 0.7 to 0.9, without it layers of few
            samples overfit.
        ridge: Added to the diagonal, relative to its mean: inputs that no picture excites stay at the mean.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``regmean``.
    """

    def __init__(
        self, off_diagonal: float = 0.9, ridge: float = 1e-6, align: Align = "none", label: str | None = None
    ) -> None:
        super().__init__(align, label)
        between(0, 1, off_diagonal=off_diagonal)
        at_least(0, ridge=ridge)
        self.off_diagonal, self.ridge = off_diagonal, ridge
        self.needs = self.needs | {INPUTS}

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Count in the memory of the largest layer's solution."""
        sizes = problem.spec.sizes
        sides = [(layer.taps * sizes[layer.inputs] // layer.blocks, layer.blocks) for layer in problem.spec.layers]
        solving = max(solve_bytes(unknowns, 1, blocks) for unknowns, blocks in sides)
        return super().prepare(problem, pictures, budgets, planned).adding(solving, solving)

    def combine(self, space: Space, student: Student, run: Run) -> Combined:
        """Solve each layer in closed form."""
        parameters, layers = dict(space.mean), {}
        for layer in merged_layers(space):
            weight, layers[layer.name] = self._solved(Gram.of(space, layer, off_diagonal=self.off_diagonal))
            parameters[f"{layer.name}.weight"] = weight.view_as(space.mean[f"{layer.name}.weight"])
        return Combined(parameters, layers)

    def _solved(self, system: Gram) -> tuple[Tensor, dict[str, float]]:
        """Solve one layer: shape (outputs, inputs · taps), or that for each of its blocks; and measure its fit."""
        level = diagonals(system.total).mean(-1)
        factor = Factor(system.total, self.ridge * level)
        weight = system.mean + factor.solve(system.centred)
        return weight, {
            "residual_before": system.loss(system.mean),
            "residual_after": system.loss(weight),
            "condition": factor.condition,
            "fallbacks": float(factor.fallbacks),
        }
