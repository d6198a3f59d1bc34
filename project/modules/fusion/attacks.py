"""Clients that lie, to see what a server makes of them."""

from typing import Literal

import torch
from torch import Tensor

from project.modules.fusion.base import State

Attack = Literal["sign_flip", "scale", "noise", "nan"]
FACTOR = 10.0
"""What ``scale`` multiplies an update by, and how many times its own standard deviation ``noise`` is wide."""


def attacked(client: State, server: State, attack: Attack, generator: torch.Generator) -> dict[str, Tensor]:
    """What a lying client sends in place of what it has learned.

    Args:
        client: What it has learned.
        server: What it began with.
        attack: ``sign_flip`` sends θ − Δ for an update Δ = θₖ − θ; ``scale`` θ + 10 Δ; ``noise`` θ + Δ and normal noise
            of ten times the standard deviation of Δ, tensor by tensor; ``nan`` no numbers at all. Variances of batch
            norms, which cannot be negative, are sent as they are by the first three, and so are counters.
        generator: Draws the noise.
    """
    return {
        name: tensor
        if not tensor.is_floating_point() or (attack != "nan" and name.endswith("running_var"))
        else _lie(tensor, server[name], attack, generator)
        for name, tensor in client.items()
    }


def _lie(tensor: Tensor, start: Tensor, attack: Attack, generator: torch.Generator) -> Tensor:
    update = tensor - start
    if attack == "nan":
        return torch.full_like(tensor, torch.nan)
    if attack == "sign_flip":
        return start - update
    if attack == "scale":
        return start + FACTOR * update
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    return tensor + FACTOR * update.std(correction=0) * noise
