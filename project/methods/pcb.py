"""PCB-Merging (Du et al., arXiv 2410.02396): parameters compete within and between the tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from project.errors import ConfigurationError, at_least, share
from project.methods.shared.aligned import Align
from project.methods.shared.arithmetic import TaskVectors


class PCB(TaskVectors):
    """θ₀ + λ Σ sᵢ ⊙ τ̂ᵢ / Σ sᵢ, where sᵢ says how much each entry of a task vector has won.

    With τ̂ᵢ the task vector, its magnitudes clamped between their ``clamp`` and 1 − ``clamp`` quantiles, N tasks, and
    minmax scaling a vector's range to 0 … 1:

        βᵢ = exp(N · minmax(|τ̂ᵢ|)²) ⊙ tanh(τᵢ ⊙ Σⱼ τⱼ)

    and sᵢ = minmax of βᵢ, after everything below its 1 − ``keep`` quantile was raised to that quantile: what has lost
    weighs 0.

    Args:
        keep: Share of each task vector that weighs more than 0.
        scale: λ; the paper searches it between 0.8 and 1.3 with labels.
        clamp: Quantile of the magnitudes beyond which, at either end, they are clamped.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``pcb``.
    """

    def __init__(
        self,
        keep: float = 0.1,
        scale: float = 1.2,
        clamp: float = 1e-4,
        align: Align = "none",
        label: str | None = None,
    ) -> None:
        super().__init__(align, label)
        share(keep=keep)
        at_least(0, scale=scale, clamp=clamp)
        if clamp >= 0.5:
            raise ConfigurationError(f"clamp is {clamp}; allowed: 0 up to, but without, 0.5.")
        self.keep, self.scale, self.clamp = keep, scale, clamp

    def vector(self, vectors: Tensor, sizes: Sequence[int]) -> Tensor:
        """Compute λ Σ sᵢ ⊙ τ̂ᵢ / Σ sᵢ, shape (parameters,)."""
        total, above, below = vectors.sum(0), torch.zeros_like(vectors[0]), torch.zeros_like(vectors[0])
        for vector in vectors:  # one at a time: each takes several vectors of room
            size, edge = len(vector), int(self.clamp * len(vector))
            magnitudes = vector.abs()
            least, most = magnitudes.kthvalue(edge + 1).values, magnitudes.kthvalue(size - edge).values
            magnitudes = magnitudes.clamp(least, most)
            won = torch.exp(len(vectors) * _minmax(magnitudes).square()) * torch.tanh(vector * total)
            bar = won.kthvalue(max(1, size - round(self.keep * size))).values  # what is at the bar has lost
            share = _minmax(won.clamp(min=bar))
            above += share * vector.sign() * magnitudes
            below += share
        return self.scale * above / below.clamp(min=1e-12)


def _minmax(values: Tensor) -> Tensor:
    """Scale values to the range 0 … 1; all 0 where they are all the same."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if bool(high > low) else torch.zeros_like(values)
