"""Linear layers that write queries, keys and values at once, as a layer each."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from project.models.unfused.plain_layers import linear

PARTS = {3: ("query", "key", "value"), 2: ("key", "value")}


class Projections(nn.Module):
    """The same function as a linear layer whose outputs are several equal parts, with a layer for each of them.

    Args:
        fused: The layer.
        names: Of the parts.
    """

    def __init__(self, fused: nn.Linear, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        biases = [None] * len(names) if fused.bias is None else fused.bias.detach().chunk(len(names))
        for name, weight, bias in zip(names, fused.weight.detach().chunk(len(names)), biases, strict=True):
            self.add_module(name, linear(weight, bias, fused.weight.device))
        self.train(fused.training)

    def forward(self, values: Tensor) -> Tensor:
        """Put the parts side by side.

        Args:
            values: Shape (…, inputs).
        """
        return torch.cat([self.get_submodule(name)(values) for name in self.names], -1)


def projected(network: nn.Module) -> None:
    """Write out every layer in which a module with heads computes equal parts of one width each at once.

    Args:
        network: Changed in place.
    """
    for owner in list(network.modules()):
        heads = getattr(owner, "num_heads", None)
        if not isinstance(heads, int) or isinstance(owner, nn.MultiheadAttention) or owner._parameters:
            continue  # with parameters of its own it may read the layer's tensors instead of calling it
        for name, layer in list(owner.named_children()):
            if type(layer) is not nn.Linear:
                continue
            parts = layer.out_features // layer.in_features
            if parts in PARTS and layer.out_features == parts * layer.in_features:
                owner._modules[name] = Projections(layer, PARTS[parts])
