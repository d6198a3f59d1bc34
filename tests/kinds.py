"""Small networks of every kind of layer that ties units, from seeds."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from disturbing import disturb
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock, CNBlockConfig, ConvNeXt, LayerNorm2d
from torchvision.models.densenet import DenseNet
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.ops import SqueezeExcitation

from project.models import written_out

SIDE = 16


class Sum(nn.Module):
    """A residual sum, inside a stage."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Concatenated(nn.Module):
    """Branches side by side, as in GoogLeNet, then read by one layer after flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.left, self.right = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 3, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([self.left(x), F.relu(self.right(x)), x], 1)
        return self.head(F.adaptive_avg_pool2d(F.relu(self.norm(x)), 2).flatten(1))


class Moved(nn.Module):
    """Units on the last axis, cut and put together again, scaled by a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = nn.Conv2d(3, 6, 3, 2, 1), nn.Parameter(torch.ones(6))
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        first, last = x.chunk(2, dim=1)
        x = torch.cat([last, first], 1) * self.scale[None, None, :]
        x = x + F.gelu(self.inner(x))
        return self.head(x.reshape(x.shape[0], -1, 6).mean(1))


class Attention(nn.Module):
    """Attention between two streams, keys and values of other widths, batch on the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(3, 5, 8, 8)
        self.attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.stem(x).flatten(2).permute(2, 0, 1), self.other(x).flatten(2).permute(2, 0, 1)
        return self.head((query + self.attention(query, key, key)[0]).mean(0))


def convolutions(*body: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *body, nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(width, 5),
    )  # fmt: skip


def grouped() -> nn.Module:
    return convolutions(
        Sum(
            nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 1, 1, groups=4, bias=False),
            nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8),
        ),
        width=8,
    )  # fmt: skip


def depthwise() -> nn.Module:
    """An inverted residual with squeeze and excite."""
    return convolutions(
        Sum(
            nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
            SqueezeExcitation(8, 3), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4),
        ),
        nn.Conv2d(4, 4, 3, groups=4),
        width=4,
    )  # fmt: skip


def multiplied() -> nn.Module:
    """A depthwise convolution with two kernels a unit."""
    body = (nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, 1, 1, groups=6), nn.ReLU(), nn.Conv2d(12, 6, 1))
    return convolutions(*body, width=6)


def normed() -> nn.Module:
    """GroupNorm over three groups, over all units, over single units."""
    return convolutions(
        Sum(nn.GroupNorm(3, 6), nn.Conv2d(6, 9, 1), nn.GroupNorm(3, 9), nn.ReLU(), nn.Conv2d(9, 6, 3, padding=1)),
        nn.Conv2d(6, 5, 1), nn.GroupNorm(1, 5), nn.ReLU(), nn.Conv2d(5, 6, 1, bias=False), nn.GroupNorm(6, 6),
        LayerNorm2d(6), width=6,
    )  # fmt: skip


def convnext() -> nn.Module:
    stages = [CNBlockConfig(6, 8, 1), CNBlockConfig(8, None, 2)]
    return ConvNeXt(stages, stochastic_depth_prob=0.1, layer_scale=0.5, num_classes=5, block=CNBlock)


def transformer() -> nn.Module:
    return VisionTransformer(SIDE, 8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=5)


def shuffled() -> nn.Module:
    """ShuffleNet; without units that a rectifier silences on all pictures."""
    network = ShuffleNetV2([2, 2, 2], [6, 8, 12, 16, 12], num_classes=5)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(0.1))
    return network


KINDS: dict[str, Callable[[], nn.Module]] = {
    "grouped": grouped,
    "depthwise": depthwise,
    "multiplied": multiplied,
    "group norm": normed,
    "convnext": convnext,
    "transformer": transformer,
    "attention": Attention,
    "concatenated": Concatenated,
    "moved": Moved,
    "dense": partial(DenseNet, 3, (2, 2), 6, 2, num_classes=5),
    "shuffled": shuffled,
}


def kind(name: str, seed: int) -> nn.Module:
    """A network of that kind in eval mode; weights, tables and statistics are random, scales are near 1."""
    generator = torch.Generator().manual_seed(seed)
    network = written_out(KINDS[name]().eval())
    network.origin = "kind", name  # type: ignore[assignment]
    for key, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if key.endswith("running_var") or (key.endswith("weight") and tensor.dim() == 1) or "scale" in key:
            tensor.copy_(0.5 + noise.abs())
        elif tensor.dim() > 1 and "token" not in key and "embedding" not in key:
            tensor.copy_(noise * (2.0 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(0.4 * noise)
    return disturb(network)
