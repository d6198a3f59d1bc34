"""TIES-Merging (Yadav et al., arXiv 2306.01708): trim, elect signs, and average what agrees."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from project.errors import at_least, one_of, share
from project.methods.shared.aligned import Align
from project.methods.shared.arithmetic import TaskVectors


class TIES(TaskVectors):
    """θ₀ + λ τ, where τ averages the task vectors' largest entries, as far as they have the elected sign.

    The sign of an entry is that of the sum of the trimmed task vectors; where that is 0, that of most other entries.

    Args:
        keep: Share of each task vector that is kept, its largest entries by magnitude.
        scale: λ.
        trim: Whether the largest entries are chosen among all of a task vector (``global``, the paper's; wide layers
            take most of it) or within each tensor (``tensor``).
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``ties``.
    """

    def __init__(
        self,
        keep: float = 0.2,
        scale: float = 1.0,
        trim: Literal["global", "tensor"] = "global",
        align: Align = "none",
        label: str | None = None,
    ) -> None:
        super().__init__(align, label)
        share(keep=keep)
        at_least(0, scale=scale)
        one_of(("global", "tensor"), trim=trim)
        self.keep, self.scale, self.trim = keep, scale, trim

    def vector(self, vectors: Tensor, sizes: Sequence[int]) -> Tensor:
        """Compute λ τ, shape (parameters,)."""
        parts = [vectors] if self.trim == "global" else list(torch.split(vectors, list(sizes), 1))
        return self.scale * disjoint_mean(torch.cat([trimmed(part, self.keep) for part in parts], 1))


def trimmed(vectors: Tensor, keep: float) -> Tensor:
    """Keep each row's largest entries by magnitude, the others 0.

    Args:
        vectors: Shape (sources, entries).
        keep: Share of the entries that stay; at least one does.
    """
    drop = min(vectors.shape[1] - round(keep * vectors.shape[1]), vectors.shape[1] - 1)
    if drop == 0:
        return vectors
    least = vectors.abs().kthvalue(drop + 1, 1, keepdim=True).values
    return torch.where(vectors.abs() >= least, vectors, 0.0)


def elected(vectors: Tensor) -> Tensor:
    """Keep each row's entries that have the sign elected for their place, the others 0.

    Args:
        vectors: Shape (sources, entries).
    """
    signs = vectors.sum(0).sign()
    signs = torch.where(signs == 0, signs.sum().sign(), signs)
    return torch.where(vectors.sign() == signs, vectors, 0.0)


def disjoint_mean(vectors: Tensor) -> Tensor:
    """Average, for each entry, the rows that have its elected sign.

    Args:
        vectors: Shape (sources, entries).
    """
    agreeing = elected(vectors)
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
