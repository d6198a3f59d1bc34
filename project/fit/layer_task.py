"""One layer's place in the walk of the sequential fit, and what is looked at there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, fx, nn

from project.alignment import UnitMap
from project.fit.neighbours import LayerContext
from project.moments import Positions, Run, drawn_count, flat
from project.runtime.spill import waiting
from project.student.layers import weight_of
from project.symmetry import Layer

Scales = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerTask:
    """A layer that is about to be fitted, and where it stands.

    Args:
        node: Its call in the student's graph.
        layer: The layer, with a constant where the norm behind it adds one.
        outputs: Unit map of what it writes.
        inputs: Unit map of what it reads.
        reader: A layer without values that reads the student's inputs as a source's layer reads its own.
        scales: For every source, scale and shift of the norm behind the layer.
        plan: What stands around it.
    """

    node: fx.Node
    layer: Layer
    outputs: UnitMap
    inputs: UnitMap
    reader: nn.Module
    scales: Scales
    plan: LayerContext


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of one domain on its way through the student and the sources that it needs.

    Args:
        number: Of the batch among all of this process.
        domain: Number of its domain.
        owner: Source whose domain it is; None where merged units follow the mean of all.
        pictures: How many.
        student: Its pass through the student.
        sources: Source -> its pass through it.
    """

    number: int
    domain: int
    owner: int | None
    pictures: int
    student: Run
    sources: Mapping[int, Run]


class AllPositions:
    """Looks at everything that a layer reads and writes, as it does itself."""

    share = 1.0
    """Of the layer's positions."""

    def reader(self, place: LayerTask) -> nn.Module:
        """A layer without values that reads :meth:`inputs`."""
        return place.reader

    def inputs(self, batch: Batch, place: LayerTask) -> Tensor:
        """What the layer reads."""
        return flat(batch.student.first_argument(place.node), place.reader)

    def outputs(self, batch: Batch, place: LayerTask, values: Tensor) -> Tensor:
        """A value that has the layer's positions, or fewer to be broadcast."""
        return flat(values, place.reader)


class SampledPositions(AllPositions):
    """Looks at positions of each picture that are drawn once, each a sample of a linear layer.

    Args:
        place: The layer, the only one that it can look at.
        batches: What will be looked at.
        step: One position in so many is drawn.
        scratch: Folder for what waits to be looked at again; None to hold it in memory.
    """

    def __init__(self, place: LayerTask, batches: Sequence[Batch], step: int, scratch: Path | None) -> None:
        self.share = drawn_count(place.layer.positions, step) / place.layer.positions
        self._index = {batch.number: index for index, batch in enumerate(batches)}
        self._positions: list[Positions] = []
        self._inputs = waiting((self._draw(batch, place, step) for batch in batches), scratch)

    def _draw(self, batch: Batch, place: LayerTask, step: int) -> Tensor:
        values = batch.student.first_argument(place.node)
        self._positions.append(Positions.draw(values, place.reader, step, batch.number))
        return self._positions[-1].inputs(values)

    def reader(self, place: LayerTask) -> nn.Module:
        """A linear layer without values that reads :meth:`inputs`."""
        return nn.Linear(weight_of(place.reader)[0].numel(), 1, device="meta")

    def inputs(self, batch: Batch, place: LayerTask) -> Tensor:
        """What the layer multiplies at the positions."""
        return self._inputs[self._index[batch.number]]

    def outputs(self, batch: Batch, place: LayerTask, values: Tensor) -> Tensor:
        """A value at the positions."""
        return self._positions[self._index[batch.number]].outputs(values)
