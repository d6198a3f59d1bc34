"""AdaMerging (Yang et al., arXiv 2310.02575): coefficients of task vectors that make predictions sure."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from project.errors import ConfigurationError, flags, one_of, share
from project.methods.shared import Learned
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arithmetic import task_vectors
from project.methods.shared.blend import Blend
from project.methods.shared.entropy import Norms, Objective
from project.methods.ties import elected, trimmed
from project.student import Student

Coefficients = Literal["task", "layer"]


class AdaMerging(Learned):
    """θ₀ + Σ λᵢ τᵢ, with the λᵢ that minimise the entropy of the classes predicted on the calibration pictures.

    The entropy is the mean over a domain's pictures, of what its own head predicts, summed over the domains. No label
    is read. The paper adapts to the test pictures themselves; here the calibration pictures serve, which are none.
    Two domains of one source share its λ.

    Args:
        coefficients: One λᵢ for each source (``task``), or for each source and tensor (``layer``).
        plus: AdaMerging++: of each τᵢ only its largest entries that have the sign elected for their place, as TIES
            trims and elects.
        keep: For ``plus``: share of each task vector that is kept, its largest entries by magnitude.
        scale: Where all λ start.
        clamp: Whether λ stay within 0 and 1: what leaves is set back to the bound after each step.
        steps: Steps of Adam.
        batch: Pictures of each domain in a step, over all processes.
        rate: Learning rate.
        norms: What batch norms normalise by meanwhile, without changing their statistics: a step's own pictures, all
            domains together (``mixed``), as re-estimation does after the merge, or each ``domain`` alone, all
            processes' shares of a step together; or the mean of the sources' ``running`` statistics.
        seed: Seed of the order of the pictures.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``adamerging``.
    """

    def __init__(
        self,
        coefficients: Coefficients = "layer",
        plus: bool = False,
        keep: float = 0.2,
        scale: float = 0.3,
        clamp: bool = True,
        steps: int = 500,
        batch: int = 16,
        rate: float = 1e-3,
        norms: Norms = "mixed",
        seed: int = 0,
        align: Align = "none",
        label: str | None = None,
    ) -> None:
        super().__init__(scale, steps, batch, rate, norms, seed, align, label)
        one_of(Coefficients, coefficients=coefficients)
        share(keep=keep)
        flags(plus=plus, clamp=clamp)
        if clamp and scale > 1:
            raise ConfigurationError(f"scale is {scale}, where clamp is true; allowed: 0 to 1, or clamp false.")
        self.coefficients: Coefficients = coefficients
        self.plus, self.keep, self.clamp = plus, keep, clamp

    @torch.no_grad()
    def blend(self, space: Space, student: Student) -> Blend:
        """Set up the task vectors, with all λ at their start."""
        base, vectors = self.constants(space, student)
        if self.plus:
            chosen = elected(trimmed(task_vectors(space, space.base), self.keep))
            parts = torch.split(chosen, [tensor.numel() for tensor in base.values()], 1)
            vectors = {
                name: part.reshape(vector.shape).to(vector)
                for (name, vector), part in zip(vectors.items(), parts, strict=True)
            }
        return Blend(base, vectors, self.scale, layerwise=self.coefficients == "layer")

    def differentiate(
        self, blend: Blend, objective: Objective, batch: Mapping[str, Tensor], step: int, steps: int
    ) -> dict[str, float]:
        """Set the gradient of λ."""
        blend.coefficients.grad, entropies = objective.gradient(blend.tensors(), batch, blend.coefficients)
        return entropies

    @torch.no_grad()
    def confine(self, blend: Blend) -> None:
        """Clamp λ to 0 … 1."""
        if self.clamp:
            blend.coefficients.clamp_(0, 1)

    def merged(self, blend: Blend) -> dict[str, Tensor]:
        """Compute θ₀ + Σ λᵢ τᵢ, by name."""
        return blend.tensors()
