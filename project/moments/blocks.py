"""The second moments of what the blocks of a grouped convolution read, each block's by itself."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from project.moments.moment import Sums
from project.moments.patches import exact_products, joint_columns


class BlockMoment(Sums):
    """The sum over samples of x xᵀ for the patches x of every block of a grouped convolution.

    A block's outputs read that block alone, so that nothing else is needed to fit it: with w entries a patch, B · w²
    numbers where a dense layer has (B · w)². A depthwise convolution has one channel a block.

    Args:
        layer: The convolution.
        constant: Whether a patch ends with a 1.
        device: Where the total lives.
    """

    def __init__(self, layer: nn.Conv2d, *, constant: bool, device: torch.device | str = "cpu") -> None:
        width = layer.in_channels // layer.groups * cast(int, math.prod(layer.kernel_size))
        self.layer, self.width, self.constant = layer, width, constant
        super().__init__([(layer.groups, width + constant, width + constant)], device)

    def read(self, values: Sequence[Tensor]) -> None:
        """Add pictures.

        Args:
            values: What the convolution reads, in one network: (batch, channels, height, width).
        """
        (total,) = self._totals
        for columns in joint_columns(values, [self.layer], constant=False):
            patches = columns.view(self.layer.groups, self.width, -1)
            with exact_products(columns.device):
                total[:, : self.width, : self.width] += patches @ patches.mT
            if self.constant:
                sums = patches.sum(2)
                total[:, -1, :-1] += sums
                total[:, :-1, -1] += sums
                total[:, -1, -1] += columns.shape[1]
            self.count += columns.shape[1]

    def mean(self) -> Tensor:
        """E[x xᵀ] of every block, float64, shape (blocks, width, width)."""
        return self.totals[0] / max(1, self.count)

    def _flush(self) -> None:
        """Nothing waits."""
