"""Some positions of what a layer reads and writes, each a sample of its own.

Neighbouring positions of a picture say much the same. Where a picture has thousands of them, leaving out most costs
little accuracy; a patch that is read alone is a sample of a linear layer.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Self

import torch
from torch import Tensor, nn

from project.moments.patches import geometry, padded


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions of a layer's output, for every picture of a batch its own.

    Args:
        layer: ``nn.Conv2d`` (one group, zero padding) or ``nn.Linear``.
        sides: Sizes of the axes of the positions, such as height and width.
        places: Numbers of the positions, counted along the last axis first, shape (batch, drawn).
    """

    layer: nn.Module
    sides: tuple[int, ...]
    places: Tensor

    @classmethod
    def draw(cls, values: Tensor, layer: nn.Module, step: int, seed: int) -> Self:
        """One position in so many, at least one: from every run of so many neighbours one, whichever.

        Args:
            values: What the layer reads: (batch, channels, height, width), or (batch, …, features).
            layer: The layer.
            step: How many.
            seed: The same seed draws the same positions.
        """
        sides = (*values.shape[1:-1],)
        if isinstance(layer, nn.Conv2d):
            sides = geometry(layer, values.shape[2:]).positions
        count = math.prod(sides)
        edges = torch.arange(drawn_count(count, step) + 1) * count // drawn_count(count, step)
        random = torch.rand(len(values), len(edges) - 1, generator=torch.Generator().manual_seed(seed))
        return cls(layer, sides, (edges[:-1] + (random * edges.diff()).long()).to(values.device))

    def outputs(self, values: Tensor) -> Tensor:
        """What the layer puts out there, or a value that is added to it.

        Args:
            values: Of the layer's shape, or to be broadcast along its positions: (batch, units, height, width) or
                (batch, …, units).

        Returns:
            Shape (batch · drawn, units).
        """
        if isinstance(self.layer, nn.Conv2d):
            rows = values.expand(-1, -1, *self.sides).flatten(2).mT
        else:
            rows = values.expand(-1, *self.sides, -1).flatten(1, -2) if self.sides else values[:, None]
        return rows.gather(1, self.places[:, :, None].expand(-1, -1, rows.shape[2])).flatten(0, 1)

    def inputs(self, values: Tensor) -> Tensor:
        """What the layer multiplies there.

        Args:
            values: What it reads.

        Returns:
            Shape (batch · drawn, inputs · taps), entries in the order of ``weight.flatten(1)``.
        """
        if not isinstance(self.layer, nn.Conv2d):
            return self.outputs(values)
        shape = geometry(self.layer, values.shape[2:])
        maps = padded(values, shape)
        tall, wide = maps.shape[2:]
        top, left = self.places // self.sides[1] * shape.stride[0], self.places % self.sides[1] * shape.stride[1]
        corners = torch.arange(len(values), device=maps.device)[:, None] * tall * wide + top * wide + left
        taps = [i * shape.dilation[0] * wide + j * shape.dilation[1] for i, j in product(*map(range, shape.kernel))]
        rows = maps.permute(0, 2, 3, 1).flatten(0, 2)  # one for every place of every map
        return rows[corners.flatten()[:, None] + torch.tensor(taps, device=maps.device)].transpose(1, 2).flatten(1)


def drawn_count(count: int, step: int) -> int:
    """How many of some positions are drawn."""
    return max(1, count // step)
