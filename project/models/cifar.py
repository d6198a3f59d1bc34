"""The narrow ResNets for small pictures of He et al. 2015 (arXiv 1512.03385), section 4.2."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

Shortcut = Literal["projection", "padding"]


class CifarResNet(nn.Module):
    """Three stages of basic blocks with 16, 32 and 64 channels, each times ``width``.

    Args:
        blocks: Basic blocks per stage; the depth is 6 · blocks + 2.
        num_classes: Number of logits.
        width: Factor on the number of channels of every layer.
        shortcut: Where the shape changes: ``projection`` (option B), or ``padding`` (option A), which ties the channels
            of one stage to fixed positions of the next.

    Shape:
        Pictures (batch, 3, height, width) in, logits (batch, num_classes) out.
    """

    def __init__(self, blocks: int, num_classes: int, width: int = 1, shortcut: Shortcut = "projection") -> None:
        super().__init__()
        channels = 16 * width
        self.conv1 = nn.Conv2d(3, channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(channels, channels, blocks, 1, shortcut)
        self.layer2 = _stage(channels, 2 * channels, blocks, 2, shortcut)
        self.layer3 = _stage(2 * channels, 4 * channels, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of pictures (batch, 3, height, width)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class PaddedShortcut(nn.Module):
    """Every other pixel of every other row, between channels of zeros: option A, as its usual code has it.

    Args:
        added: Channels of zeros, half of them before the others and half behind.
    """

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (batch, channels + added, height / 2, width / 2) of (batch, channels, height, width)."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))

    def extra_repr(self) -> str:
        """How many channels are added."""
        return f"added={self.added}"


def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    changed: nn.Module | None = None
    if stride != 1 or inputs != outputs:
        projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        changed = projection if shortcut == "projection" else PaddedShortcut(outputs - inputs)
    first = BasicBlock(inputs, outputs, stride, changed)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))
