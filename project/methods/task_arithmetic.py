"""Task arithmetic (Ilharco et al., arXiv 2212.04089): add the task vectors to their base."""

from collections.abc import Sequence

from torch import Tensor

from project.errors import at_least
from project.methods.shared.aligned import Align
from project.methods.shared.arithmetic import TaskVectors


class TaskArithmetic(TaskVectors):
    """θ₀ + λ Σ τᵢ.

    Args:
        scale: λ; 1 over the number of sources makes the average. The sum leaves what they agree on N times too long.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``taskarithmetic``.
    """

    def __init__(self, scale: float = 0.3, align: Align = "none", label: str | None = None) -> None:
        super().__init__(align, label)
        at_least(0, scale=scale)
        self.scale = scale

    def vector(self, vectors: Tensor, sizes: Sequence[int]) -> Tensor:
        """Compute λ Σ τᵢ, shape (parameters,)."""
        return self.scale * vectors.sum(0)
