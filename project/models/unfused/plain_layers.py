"""Plain layers of torch's from tensors."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def linear(weight: Tensor, bias: Tensor | None, device: torch.device) -> nn.Linear:
    """A linear layer of a weight (outputs, inputs) and a bias (outputs,), both copied."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device, weight.dtype)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer
