"""The head that fastai puts on a trunk: the largest and the mean value of every channel side by side, and norms."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d


class PooledLayer(nn.Module):
    """Largest and mean value of every channel side by side, a batch norm over them, and a linear layer.

    Args:
        channels: Number of channels.
        outputs: Units of the layer.
        bias: Whether it has biases.

    Shape:
        (batch, channels, height, width) in, (batch, outputs) out.
    """

    def __init__(self, channels: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2 * channels)
        self.linear = nn.Linear(2 * channels, outputs, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, normalise and weigh."""
        read: Tensor = self.linear(self.norm(torch.cat([_largest(x), _mean(x)], 1)))
        return read


class PooledSum(nn.Module):
    """The same function with a norm and a linear layer for each half, which have an entry for every channel.

    Args:
        whole: The module, whose values it takes over.
    """

    def __init__(self, whole: PooledLayer) -> None:
        super().__init__()
        norm, linear = whole.norm, whole.linear
        channels, device = norm.num_features // 2, linear.weight.device
        self.largest, self.mean = (nn.BatchNorm1d(channels, norm.eps, norm.momentum, device=device) for _ in range(2))
        with torch.device("meta"):  # no random numbers are drawn
            first, second = (
                nn.Linear(channels, linear.out_features, biased) for biased in (linear.bias is not None, False)
            )
        self.of_largest, self.of_mean = first.to_empty(device=device), second.to_empty(device=device)
        if device.type != "meta":
            self.load_state_dict(halves(whole.state_dict()))
        self.train(whole.training)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, normalise and weigh."""
        read: Tensor = self.of_largest(self.largest(_largest(x))) + self.of_mean(self.mean(_mean(x)))
        return read


def halves(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a :class:`PooledSum`, from those of a :class:`PooledLayer`."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        kind, _, leaf = name.partition(".")
        if kind == "linear":
            parts = tensor.chunk(2, 1) if leaf == "weight" else (tensor,)
            found |= dict(zip((f"of_largest.{leaf}", f"of_mean.{leaf}"), parts, strict=False))
        else:
            parts = tensor.chunk(2) if tensor.ndim else (tensor, tensor)
            found |= dict(zip((f"largest.{leaf}", f"mean.{leaf}"), parts, strict=True))
    return found


def whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a :class:`PooledLayer`, from those of a :class:`PooledSum`."""
    found = {"linear.weight": torch.cat([state["of_largest.weight"], state["of_mean.weight"]], 1)}
    if "of_largest.bias" in state:
        found["linear.bias"] = state["of_largest.bias"]
    for name, tensor in state.items():
        kind, _, leaf = name.partition(".")
        if kind == "largest":
            found[f"norm.{leaf}"] = torch.cat([tensor, state[f"mean.{leaf}"]]) if tensor.ndim else tensor
    return found


def _largest(x: Tensor) -> Tensor:
    return adaptive_max_pool2d(x, 1).flatten(1)


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))
