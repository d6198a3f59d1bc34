"""The parameters of a merged network as a function of what is learned: coefficients of task vectors, and a mask."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn


class Blend(nn.Module):
    """θ₀ + Σ λᵢ m ⊙ τᵢ: its parameters are the λ, base and task vectors are constants that no file holds.

    Args:
        base: θ₀, by name.
        vectors: τᵢ = θᵢ − θ₀, by the same names, each of shape (sources, …).
        scale: Where all λ start.
        layerwise: Whether every tensor has coefficients of its own.
    """

    def __init__(
        self, base: Mapping[str, Tensor], vectors: Mapping[str, Tensor], scale: float, *, layerwise: bool
    ) -> None:
        super().__init__()
        self.base, self.vectors = dict(base), dict(vectors)
        first = next(iter(self.vectors.values()))
        rows = len(self.base) if layerwise else 1
        self.coefficients = nn.Parameter(first.new_full((rows, len(first)), scale))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Blend":
        """Take the constants along wherever the parameters go."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.base = {name: fn(tensor) for name, tensor in self.base.items()}
        self.vectors = {name: fn(tensor) for name, tensor in self.vectors.items()}
        return self

    def tensors(
        self, coefficients: Tensor | None = None, masks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Compute θ₀ + Σ λᵢ m ⊙ τᵢ, by name.

        Args:
            coefficients: In place of the module's own, shape (tensors or 1, sources).
            masks: m, by name; None for 1.
        """
        rows = (self.coefficients if coefficients is None else coefficients).expand(len(self.base), -1)
        moved = {name: torch.tensordot(row, self.vectors[name], 1) for name, row in zip(self.base, rows, strict=True)}
        if masks is not None:
            moved = {name: masks[name] * tensor for name, tensor in moved.items()}
        return {name: tensor + moved[name] for name, tensor in self.base.items()}


class MaskedBlend(Blend):
    """The same with a mask that all sources share: its parameters are also x, one logit for each of the base's.

    Args:
        base: θ₀, by name.
        vectors: τᵢ = θᵢ − θ₀, by the same names, each of shape (sources, …).
        scale: Where all λ start.
        layerwise: Whether every tensor has coefficients of its own.
        temperature: T.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        vectors: Mapping[str, Tensor],
        scale: float,
        *,
        layerwise: bool,
        temperature: float,
    ) -> None:
        super().__init__(base, vectors, scale, layerwise=layerwise)
        self.temperature = temperature
        size = sum(tensor.numel() for tensor in self.base.values())
        self.logits = nn.Parameter(self.coefficients.new_zeros(size))

    def masks(self, uniform: Tensor | None = None, *, binarise: bool = False) -> dict[str, Tensor]:
        """Compute M = σ((logit u + x) / T), over its mean in each tensor: a mean of 1, whatever share is open.

        Args:
            uniform: u, from 0 to 1, one for each logit; None for ½, at which half of all masks lie below.
            binarise: Take 1 where x ≥ 0 and 0 elsewhere in place of it.
        """
        noise = 0 if uniform is None else uniform.logit(torch.finfo(uniform.dtype).eps)
        whole = (self.logits >= 0).to(self.logits) if binarise else ((noise + self.logits) / self.temperature).sigmoid()
        parts = torch.split(whole, [tensor.numel() for tensor in self.base.values()])
        tiny = torch.finfo(whole.dtype).tiny  # a tensor that is closed as a whole stays at the base
        return {
            name: (part / part.mean().clamp(min=tiny)).view_as(tensor)
            for (name, tensor), part in zip(self.base.items(), parts, strict=True)
        }

    def uniform(self, seed: int, step: int) -> Tensor:
        """Draw u for one step, the same in every process and on every device: shape (parameters,)."""
        drawn = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
        return torch.rand(len(self.logits), generator=torch.Generator().manual_seed(drawn)).to(self.logits)

    def openness(self) -> dict[str, float]:
        """Measure, for each tensor, the mean of σ(x), the chance that an entry is open."""
        parts = torch.split(self.logits.detach().sigmoid(), [tensor.numel() for tensor in self.base.values()])
        return {name: float(part.mean()) for name, part in zip(self.base, parts, strict=True)}
