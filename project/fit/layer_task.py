"""A layer about to be fitted, and what the calibration pictures ask of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from project.alignment import UnitMap
from project.fit.activations import Activations, Batch
from project.fit.head import HeadView
from project.fit.neighbours import LayerContext
from project.fit.normal_equations import Gram, NormalEquations
from project.fit.positions import AllPositions, SampledPositions
from project.fit.row_blocks import followed_inputs, seen_weights
from project.moments import GroupedMoment, InputMoment, cross_moment, exact_products, layer_moment
from project.runtime.spill import waiting
from project.student.layers import resized, weight_of
from project.symmetry import Layer


@dataclass(eq=False, kw_only=True)
class LayerTask:
    """A layer about to be fitted, and its data, which is gathered when it is first asked for.

    All processes must ask for the same in the same order: they add up what they have gathered.

    Args:
        node: Its call in the student's graph.
        layer: The layer, with a constant where the norm behind it adds one.
        start: W⁰, float64, shape (outputs, inputs · taps (+ 1)), of a grouped convolution the inputs of a block.
        outputs: Unit map of what it writes.
        inputs: Unit map of what it reads.
        reader: A layer without values that reads the student's inputs as a source's layer reads its own.
        scales: For every source, scale and shift of the norm behind the layer: float64, shape (its outputs,).
        context: What reads the layer's output in the graph.
        activations: The batches that it is fitted to.
        positions: The positions of their pictures.
        logits: Whether the layer writes these, in which, where one source leads, the others have a say, too.
    """

    node: fx.Node
    layer: Layer
    start: Tensor
    outputs: UnitMap
    inputs: UnitMap
    reader: nn.Module
    scales: Sequence[tuple[Tensor, Tensor]]
    context: LayerContext
    activations: Activations
    positions: AllPositions
    logits: bool = False
    # No functools.cached_property: before Python 3.12 it has a lock, behind which threads cannot meet in a collective.
    _targets: Sequence[Tensor] | None = field(default=None, init=False)
    _grams: list[Gram] | None = field(default=None, init=False)
    _equations: NormalEquations | None = field(default=None, init=False)

    def every(self, step: int, offset: int = 0) -> "LayerTask":
        """Take every so many batches of each domain, from some batch on.

        Args:
            step: One batch in so many.
            offset: Number of the first one.
        """
        return replace(self, activations=self.activations.every(step, offset))

    def sampled(self, step: int) -> "LayerTask":
        """Take one position in so many of each picture, at least one.

        Args:
            step: One position in so many.
        """
        batches, scratch = self.activations.batches, self.activations.scratch
        drawn = SampledPositions(self.node, self.reader, batches, step, self.layer.positions, scratch)
        return replace(self, positions=drawn)

    @property
    def targets(self) -> Sequence[Tensor]:
        """What each batch asks of the layer: float32, shape (batch, outputs, …) or (samples, outputs).

        It is the blend of its sources' outputs, less what the student adds to the layer's output anyway.
        """
        if self._targets is None:
            self._targets = waiting(map(self._target, self.activations.batches), self.activations.scratch)
        return self._targets

    @property
    def grams(self) -> list[Gram]:
        """E[x xᵀ] of every domain, over all processes, of the inputs that some row following the domain sees."""
        if self._grams is None:
            moments, columns = self._block_moments() if self.layer.blocks > 1 else self._input_moments()
            for moment in moments:
                moment.reduce(self.activations.world.reduce)
            parts = zip(moments, self.activations.owners, columns, self.activations.weights, strict=True)
            self._grams = [Gram(part.mean(), part.count, owner, seen, weight) for part, owner, seen, weight in parts]
        return self._grams

    @property
    def normal_equations(self) -> NormalEquations:
        """The normal equations towards the :attr:`targets`, over all processes."""
        if self._equations is None:
            self._equations = self.equations_towards(self.targets)
        return self._equations

    def equations_towards(self, targets: Iterable[Tensor]) -> NormalEquations:
        """Gather the normal equations of the layer, E[t xᵀ] and E[t²] of every domain, over all processes.

        Args:
            targets: t of every batch, float32, in the shape of :attr:`targets`.
        """
        activations, layer, reader = self.activations, self.layer, self.positions.reader
        like, unknowns = self.grams[0].matrix, weight_of(reader)[0].numel() + layer.bias
        crosses = [like.new_zeros(self.outputs.units, unknowns) for _ in self.grams]
        powers = [like.new_zeros(self.outputs.units) for _ in self.grams]
        for batch, target in zip(activations.batches, targets, strict=True):
            values = self.positions.inputs(batch)
            crosses[batch.domain] += cross_moment(target, values, reader, constant=layer.bias)
            powers[batch.domain] += target.square().transpose(0, 1).flatten(1).sum(1)
        for cross, power, gram in zip(crosses, powers, self.grams, strict=True):
            activations.world.reduce(cross)
            activations.world.reduce(power)
            cross.div_(max(1, gram.samples))
            power.div_(max(1, gram.samples))
        return NormalEquations(self.grams, crosses, powers)

    def rectified_targets(self, matrix: Tensor) -> Iterator[Tensor]:
        """Replace targets by the prediction where the rectifier behind the layer would cut both off.

        Args:
            matrix: The weights that predict, float32, in the shape of the start.

        Yields:
            For every batch, float32, in the shape of :attr:`targets`.
        """
        reader, addend = self.positions.reader, self.context.addend
        for batch, target in zip(self.activations.batches, self.targets, strict=True):
            values = self.positions.inputs(batch)
            predicted = _apply(reader, values, matrix, constant=self.layer.bias)
            added = 0.0 if addend is None else self.positions.outputs(batch, batch.student_value(addend))
            yield torch.where(target + added < 0, (predicted + added).clamp_max(0) - added, target)

    def head_views(self, rows: slice, domains: Sequence[bool]) -> list[HeadView]:
        """Collect what the batches of some domains ask of one head of the layer that writes the logits.

        Args:
            rows: The head's logits.
            domains: For each domain, whether it asks for something.
        """
        views = []
        seen = seen_weights(self.layer, self.outputs, self.inputs)[rows.start]
        for batch, target in zip(self.activations.batches, self.targets, strict=True):
            features = batch.student.first_argument(self.node)
            if self.layer.bias:
                features = torch.cat([features, features.new_ones(len(features), 1)], 1)
            if domains[batch.domain]:
                kept = features[:, seen.to(features.device)]
                views.append(HeadView(kept, target[:, rows], self.activations.weights[batch.domain]))
        return views

    def _target(self, batch: Batch) -> Tensor:
        shares = batch.shares(self.outputs)
        if self.logits and batch.lead is not None:  # the others have as much of a say as there are units of theirs
            apart = float((self.inputs.present.sum(1) == 1).sum()) / sum(self.inputs.sizes)
            shares = (1 - apart) * shares + apart * self.outputs.mean
        blended = self.outputs.blend(self._source_outputs(batch), shares, axis=1)
        if self.context.addend is None:
            return blended
        return blended - self.positions.outputs(batch, batch.student_value(self.context.addend))

    def _source_outputs(self, batch: Batch) -> Iterator[tuple[int, Tensor]]:
        """What each source's layer makes of a batch, its norm and its own addend included."""
        for source in batch.sources:
            values = self.positions.outputs(batch, batch.source_value(source, self.node.name)).float()
            if self.context.norm is not None:
                shape = (1, -1) + (1,) * (values.dim() - 2)
                scale, shift = (tensor.to(values).view(shape) for tensor in self.scales[source])
                values = values * scale + shift
            if self.context.addend is not None:
                values = values + self.positions.outputs(batch, batch.source_value(source, self.context.addend))
            yield source, values

    def _input_moments(self) -> tuple[Sequence[InputMoment], Sequence[Tensor]]:
        """E[x xᵀ] of each domain in this process, and which entries of x it holds."""
        layer, inputs = self.layer, self.inputs
        units = [followed_inputs(self.outputs, inputs, owner) for owner in self.activations.owners]
        columns = [_columns(seen, inputs.units, layer) for seen in units]
        reader = self.positions.reader
        wide = weight_of(reader).shape[1] // inputs.units  # entries of a unit on the axis, after flattening
        moments = [
            layer_moment(reader, int(seen.sum()) * wide, layer.sides, constant=layer.bias, device=self.start.device)
            for seen in units
        ]
        for batch in self.activations.batches:
            values = self.positions.inputs(batch)
            if len(columns[batch.domain]) < self.start.shape[1]:
                grouped = torch.unflatten(values, 1, (-1, wide))
                values = grouped[:, units[batch.domain].to(values.device)].flatten(1, 2)
            moments[batch.domain].read([values])
        return moments, columns

    def _block_moments(self) -> tuple[Sequence[InputMoment], Sequence[None]]:
        """E[x xᵀ] of every block of a grouped convolution, of each domain in this process."""
        assert isinstance(self.reader, nn.Conv2d)
        owners, device = self.activations.owners, self.start.device
        moments = [GroupedMoment(self.reader, constant=self.layer.bias, device=device) for _ in owners]
        for batch in self.activations.batches:
            moments[batch.domain].read([batch.student.first_argument(self.node)])
        return moments, [None] * len(moments)


def resized_reader(layer: nn.Module, inputs: UnitMap) -> nn.Module:
    """Make a layer without values that reads the student's inputs as a source's layer reads its own.

    Args:
        layer: A source's layer.
        inputs: Unit map of what it reads.
    """
    wide = layer.in_features // inputs.sizes[0] if isinstance(layer, nn.Linear) else 1
    blocks = inputs.units * layer.groups // inputs.sizes[0] if isinstance(layer, nn.Conv2d) and layer.groups > 1 else 1
    with torch.device("meta"):
        return resized(layer, inputs.units * wide, blocks, blocks)


def _columns(units: Tensor, count: int, layer: Layer) -> Tensor:
    """Number the entries of x that belong to some input units, the constant with them."""
    columns = (units.nonzero() * layer.taps + torch.arange(layer.taps)).flatten()
    return torch.cat([columns, torch.tensor([count * layer.taps])]) if layer.bias else columns


def _apply(reader: nn.Module, values: Tensor, matrix: Tensor, *, constant: bool) -> Tensor:
    """Compute the layer's output with these weights, their last column a constant."""
    weight, bias = (matrix[:, :-1], matrix[:, -1]) if constant else (matrix, None)
    values = values.float()
    with exact_products(values.device):
        if not isinstance(reader, nn.Conv2d):
            return F.linear(values, weight, bias)
        weight = weight.reshape(len(matrix), values.shape[1] // reader.groups, *reader.kernel_size)
        return F.conv2d(values, weight, bias, reader.stride, reader.padding, reader.dilation, reader.groups)
