"""Which positions of each picture a layer is fitted to: all, or a sample of them."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, fx, nn

from project.fit.activations import Batch
from project.moments import Positions, drawn_count, flat
from project.runtime.spill import waiting
from project.student.layers import weight_of


class AllPositions:
    """Everything that a layer reads and writes, laid out as it reads and writes it.

    Args:
        node: The layer's call in the student's graph.
        reader: A layer without values that reads the student's inputs, an ``nn.Conv2d`` or an ``nn.Linear``.
    """

    share = 1.0
    """Of the layer's positions."""

    def __init__(self, node: fx.Node, reader: nn.Module) -> None:
        self.node, self.reader = node, reader

    def inputs(self, batch: Batch) -> Tensor:
        """Take what the student's layer reads of a batch.

        Returns:
            What :attr:`reader` reads: (batch, inputs, height, width) of a convolution, else (samples, inputs).
        """
        return flat(batch.student.first_argument(self.node), self.reader)

    def outputs(self, batch: Batch, values: Tensor) -> Tensor:
        """Take a value of a batch that has the layer's positions, or fewer to be broadcast.

        Args:
            batch: The batch.
            values: (batch, units, height, width) or (batch, …, units), units of the student or of a source.

        Returns:
            What :attr:`reader` would write: (batch, units, height, width) of a convolution, else (samples, units).
        """
        return flat(values, self.reader)


class SampledPositions(AllPositions):
    """Positions of each picture that are drawn once, each a sample of a linear layer.

    Args:
        node: The layer's call in the student's graph.
        layer: A layer without values that reads the student's inputs.
        batches: What will be looked at.
        step: One position in so many is drawn.
        positions: How many positions the layer has.
        scratch: Folder for what waits to be looked at again; None to hold it in memory.
    """

    def __init__(
        self, node: fx.Node, layer: nn.Module, batches: Sequence[Batch], step: int, positions: int, scratch: Path | None
    ) -> None:
        super().__init__(node, nn.Linear(weight_of(layer)[0].numel(), 1, device="meta"))
        self.share = drawn_count(positions, step) / positions
        self._index = {batch.number: index for index, batch in enumerate(batches)}
        self._positions: list[Positions] = []
        self._inputs = waiting((self._draw(batch, layer, step) for batch in batches), scratch)

    def _draw(self, batch: Batch, layer: nn.Module, step: int) -> Tensor:
        values = batch.student.first_argument(self.node)
        self._positions.append(Positions.draw(values, layer, step, batch.number))
        return self._positions[-1].inputs(values)

    def inputs(self, batch: Batch) -> Tensor:
        """Take what the student's layer multiplies at the positions: shape (samples, inputs · taps)."""
        return self._inputs[self._index[batch.number]]

    def outputs(self, batch: Batch, values: Tensor) -> Tensor:
        """Take a value at the positions: shape (samples, units)."""
        return self._positions[self._index[batch.number]].outputs(values)
