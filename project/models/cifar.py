"""The narrow ResNets for small pictures of He et al. 2015 (arXiv 1512.03385), section 4.2."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class CifarResNet(nn.Module):
    """Three stages of basic blocks with 16, 32 and 64 channels, each times ``width``.

    Shortcuts that change shape are projections (option B): the zero-padded ones of option A tie the channels of one
    stage to fixed positions of the next, which leaves no unit free to be permuted.

    Args:
        blocks: Basic blocks per stage; the depth is 6 · blocks + 2.
        num_classes: Number of logits.
        width: Factor on the number of channels of every layer.

    Shape:
        Pictures (batch, 3, height, width) in, logits (batch, num_classes) out.
    """

    def __init__(self, blocks: int, num_classes: int, width: int = 1) -> None:
        super().__init__()
        channels = 16 * width
        self.conv1 = nn.Conv2d(3, channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(channels, channels, blocks, stride=1)
        self.layer2 = _stage(channels, 2 * channels, blocks, stride=2)
        self.layer3 = _stage(2 * channels, 4 * channels, blocks, stride=2)
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


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    projection = None
    if stride != 1 or inputs != outputs:
        projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = BasicBlock(inputs, outputs, stride, projection)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))
