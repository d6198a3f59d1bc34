"""The second moment of what a layer multiplies, gathered the way that takes fewer products."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from project.moments.blocks import GroupedMoment
from project.moments.correlations import CorrelationMoment, pays
from project.moments.moment import Moment
from project.moments.patches import geometry, joint_columns


class UnfoldedMoment(Moment):
    """The moment of a layer's inputs, each sample written out: patches of a convolution, features of a linear layer.

    Args:
        layer: The layer; of a convolution its kernel, stride, padding and dilation.
        inputs: Channels or features of all sources.
        constant: Whether a sample ends with a 1.
        device: Where the total lives.
        sides: Height and width of the maps that a convolution reads.
    """

    def __init__(
        self,
        layer: nn.Module,
        inputs: int,
        *,
        constant: bool,
        device: torch.device | str = "cpu",
        sides: tuple[int, int] = (1, 1),
    ) -> None:
        taps = layer.kernel_size[0] * layer.kernel_size[1] if isinstance(layer, nn.Conv2d) else 1
        super().__init__(inputs * taps + constant, device)
        self.layer, self.channels, self.constant, self.sides = layer, inputs, constant, sides

    @property
    def every_place(self) -> bool:
        """Whether it holds the moment of all places of what the layer reads; see :meth:`places`."""
        if not isinstance(self.layer, nn.Conv2d):
            return True
        shape = geometry(self.layer, self.sides)
        return shape.kernel == (1, 1) and shape.before == (0, 0) and shape.positions == shape.sides

    def places(self) -> Tensor:
        """Lower triangle of the sum of x xᵀ over all places of what the layer reads, without the constant."""
        size = self.size - self.constant
        return self.lower[:size, :size]

    def read(self, values: Sequence[Tensor]) -> None:
        """Add pictures.

        Args:
            values: What the layer reads in every source, on the same pictures; see
                :func:`~project.moments.patches.joint_columns`.
        """
        for columns in joint_columns(values, [self.layer] * len(values), constant=self.constant):
            self.update(columns)


LayerMoment = CorrelationMoment | UnfoldedMoment
InputMoment = LayerMoment | GroupedMoment


def layer_moment(
    layer: nn.Module, inputs: int, sides: tuple[int, int], *, constant: bool, device: torch.device | str = "cpu"
) -> LayerMoment:
    """An empty moment of what a layer multiplies.

    Args:
        layer: ``nn.Conv2d`` (one group, zero padding) or ``nn.Linear``.
        inputs: Channels or features of all sources.
        sides: Height and width of the maps that a convolution reads.
        constant: Whether to append a 1.
        device: Where the totals live.
    """
    if isinstance(layer, nn.Conv2d) and pays(layer, inputs, sides):
        return CorrelationMoment(layer, inputs, sides, constant=constant, device=device)
    return UnfoldedMoment(layer, inputs, constant=constant, device=device, sides=sides)


def input_moment(
    layer: nn.Module, inputs: int, sides: tuple[int, int], *, constant: bool, device: torch.device | str = "cpu"
) -> InputMoment:
    """An empty moment of what a layer multiplies in one network; of a grouped convolution, block by block.

    Args:
        layer: ``nn.Conv2d`` (zero padding) or ``nn.Linear``.
        inputs: Channels or features that each of its outputs reads.
        sides: Height and width of the maps that a convolution reads.
        constant: Whether to append a 1.
        device: Where the totals live.
    """
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return GroupedMoment(layer, constant=constant, device=device)
    return layer_moment(layer, inputs, sides, constant=constant, device=device)
