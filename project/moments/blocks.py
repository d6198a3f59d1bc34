"""Second moments within blocks of units, each block's by itself: of a grouped convolution, nothing else is needed."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from project.moments.moment import SAMPLES_PER_PRODUCT, Moment, Sums
from project.moments.patches import exact_products, joint_columns


class BlockMoment(Sums):
    """The sum over samples of x xᵀ for every block x of a vector: B · w² numbers where the vector has (B · w)².

    Args:
        blocks: B, how many blocks.
        width: w, entries of a block.
        constant: Whether each block ends with a 1 of its own.
        device: Where the total lives.
    """

    def __init__(self, blocks: int, width: int, *, constant: bool = False, device: torch.device | str = "cpu") -> None:
        self.blocks, self.width, self.constant = blocks, width, constant
        super().__init__([(blocks, width + constant, width + constant)], device)

    def update(self, columns: Tensor, samples: int | None = None) -> None:
        """Add samples.

        Args:
            columns: Float32, shape (blocks · width, samples), without the ones.
            samples: How many they count for, where several columns make one; default: one each.
        """
        (total,) = self._totals
        parts = columns.view(self.blocks, self.width, -1)
        with exact_products(columns.device):
            for chunk in torch.split(parts, SAMPLES_PER_PRODUCT, 2):
                total[:, : self.width, : self.width] += chunk @ chunk.mT
        if self.constant:
            sums = parts.sum(2)
            total[:, -1, :-1] += sums
            total[:, :-1, -1] += sums
            total[:, -1, -1] += columns.shape[1]
        self.count += columns.shape[1] if samples is None else samples

    def sum(self) -> Tensor:
        """The sum for every block, float64, shape (blocks, width, width)."""
        return self.totals[0].clone()

    def mean(self) -> Tensor:
        """E[x xᵀ] of every block, float64, shape (blocks, width, width)."""
        return self.sum().div_(max(1, self.count))

    def _flush(self) -> None:
        """Nothing waits."""


class GroupedMoment(BlockMoment):
    """The moment of the patches that every block of a grouped convolution reads; a depthwise one has a channel a block.

    Args:
        layer: The convolution.
        constant: Whether a patch ends with a 1.
        device: Where the total lives.
    """

    def __init__(self, layer: nn.Conv2d, *, constant: bool, device: torch.device | str = "cpu") -> None:
        width = layer.in_channels // layer.groups * cast(int, math.prod(layer.kernel_size))
        super().__init__(layer.groups, width, constant=constant, device=device)
        self.layer = layer

    def read(self, values: Sequence[Tensor]) -> None:
        """Add pictures.

        Args:
            values: What the convolution reads, in one network: (batch, channels, height, width).
        """
        for columns in joint_columns(values, [self.layer], constant=False):
            self.update(columns)


VectorMoment = Moment | BlockMoment


def block_moment(blocks: int, size: int, device: torch.device | str = "cpu") -> VectorMoment:
    """An empty moment of a vector, block by block where there are several.

    Args:
        blocks: How many equal blocks.
        size: Length of the vector.
        device: Where the total lives.
    """
    return Moment(size, device) if blocks == 1 else BlockMoment(blocks, size // blocks, device=device)
