"""The calibration set on its way through student and sources, and what it says of a layer when it gets there.

All batches stand at the same value of the graph: each source has computed it, the student not yet. What nothing
behind it reads any more is released, so that memory holds little more than two layers' values of all pictures.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from project.alignment import UnitMap, overlap
from project.fit.head import HeadView
from project.fit.layer_task import AllPositions, Batch, LayerTask, SampledPositions, Scales
from project.fit.neighbours import LayerContext
from project.fit.solver import Equations, seen_weights
from project.models import LabelSpace
from project.moments import (
    GroupedMoment,
    InputMoment,
    Run,
    cross_moment,
    exact_products,
    flat,
    layer_moment,
)
from project.runtime.processes import World
from project.runtime.spill import OnDisk, waiting
from project.student.layers import resized, weight_of
from project.symmetry import Layer


class Activations:
    """All batches of all domains.

    Args:
        student: The student's graph.
        sources: The sources' graphs, their values in the same order.
        pictures: domain -> batches of pictures; every process the same domains.
        owners: For each domain, the source that merged units follow on its pictures; None for the mean of all.
        weights: For each domain, what each of its pictures counts for.
        world: The processes among which the pictures are dealt out.
        scratch: Folder for the values of waiting batches; None to hold them in memory.
    """

    def __init__(
        self,
        student: fx.GraphModule,
        sources: Sequence[fx.GraphModule],
        pictures: Mapping[str, Sequence[Tensor]],
        owners: Sequence[int | None],
        weights: Sequence[float],
        world: World,
        scratch: Path | None = None,
    ) -> None:
        self.owners, self.weights, self.world, self.modules = owners, weights, world, sources[0]
        self.scratch, self.device = scratch, next(student.parameters()).device
        self.look = AllPositions()
        self.batches: list[Batch] = []
        for index, (batches, owner) in enumerate(zip(pictures.values(), owners, strict=True)):
            needed = range(len(sources)) if owner is None else (owner,)
            for batch in batches:
                runs = {source: Run(sources[source], batch) for source in needed}
                self.batches.append(Batch(len(self.batches), index, owner, len(batch), Run(student, batch), runs))
                if scratch is not None:
                    for run in (self.batches[-1].student, *runs.values()):
                        run.env = OnDisk(scratch)

    def counts(self) -> tuple[list[int], list[int]]:
        """For each domain, its batches in one process, on average, and its pictures in all; all processes must ask."""
        counts = torch.zeros(len(self.owners), 2)
        for batch in self.batches:
            counts[batch.domain] += torch.tensor([1, batch.pictures])
        self.world.reduce(counts)
        return (counts[:, 0] // self.world.size).int().tolist(), counts[:, 1].int().tolist()

    def every(self, step: int, offset: int = 0) -> "Activations":
        """Every so many batches of each domain, from some batch on; the passes are shared."""
        if step == 1:
            return self
        part, seen = copy(self), [0] * len(self.owners)
        part.batches = []
        for batch in self.batches:
            if seen[batch.domain] % step == offset:
                part.batches.append(batch)
            seen[batch.domain] += 1
        return part

    def drawn(self, place: LayerTask, step: int) -> "Activations":
        """One position in so many of each picture, at least one, for one layer; the passes are shared."""
        part = copy(self)
        part.look = SampledPositions(place, self.batches, step, self.scratch)
        return part

    def advance_sources(self, node: fx.Node) -> None:
        """Let the sources compute a value."""
        with exact_products(self.device):
            for batch in self.batches:
                for source in batch.sources.values():
                    source.step(_twin(source, node))

    def advance_student(self, node: fx.Node) -> None:
        """Let the student compute it too, and forget what nothing behind it reads."""
        with exact_products(self.device):
            for batch in self.batches:
                batch.student.step(node)
                batch.student.release(node)
                for source in batch.sources.values():
                    source.release(_twin(source, node))

    def targets(self, place: LayerTask) -> Sequence[Tensor]:
        """What each batch asks of a layer: the blend of its sources' outputs, less what the student has already."""
        found = (
            _target(batch, place.node, self._seen(batch, place), place.outputs, place.scales, place.plan)
            for batch in self.batches
        )
        return waiting(found, self.scratch)

    def norm_targets(self, node: fx.Node, units: UnitMap) -> Sequence[Tensor]:
        """What each batch asks of a norm: the blend of its sources' outputs."""
        module = self.modules.get_submodule(str(node.target))
        found = (
            _target(batch, node, lambda value: flat(value, module), units, (), LayerContext()) for batch in self.batches
        )
        return waiting(found, self.scratch)

    def _seen(self, batch: Batch, place: LayerTask) -> Callable[[Tensor], Tensor]:
        return lambda values: self.look.outputs(batch, place, values)

    def equations(self, place: LayerTask, start: Tensor) -> list[Equations]:
        """E[x xᵀ] of every domain, over all processes, of the inputs that some row following the domain sees.

        Of a grouped convolution one for every block, shape (blocks, unknowns, unknowns).
        """
        inputs, layer = place.inputs, place.layer
        if layer.blocks > 1:
            return self._block_equations(place, start.device)
        units = [followed_inputs(place.outputs, inputs, owner) for owner in self.owners]
        columns = [_columns(seen, inputs.units, layer) for seen in units]
        reader = self.look.reader(place)
        wide = weight_of(reader).shape[1] // inputs.units  # entries of a unit on the axis, after flattening
        moments = [
            layer_moment(reader, int(seen.sum()) * wide, layer.sides, constant=layer.bias, device=start.device)
            for seen in units
        ]
        for batch in self.batches:
            values = self.look.inputs(batch, place)
            if len(columns[batch.domain]) < start.shape[1]:
                grouped = torch.unflatten(values, 1, (-1, wide))
                values = grouped[:, units[batch.domain].to(values.device)].flatten(1, 2)
            moments[batch.domain].read([values])
        return self._summed(moments, columns)

    def _block_equations(self, place: LayerTask, device: torch.device) -> list[Equations]:
        assert isinstance(place.reader, nn.Conv2d)
        moments = [GroupedMoment(place.reader, constant=place.layer.bias, device=device) for _ in self.owners]
        for batch in self.batches:
            moments[batch.domain].read([batch.student.first_argument(place.node)])
        return self._summed(moments, [None] * len(moments))

    def _summed(self, moments: Sequence[InputMoment], columns: Sequence[Tensor | None]) -> list[Equations]:
        """The moments of all domains over all processes."""
        for moment in moments:
            moment.reduce(self.world.reduce)
        return [
            Equations(moment.mean(), moment.count, owner, column, weight)
            for moment, owner, column, weight in zip(moments, self.owners, columns, self.weights, strict=True)
        ]

    def crosses(
        self, place: LayerTask, wanted: Iterable[Tensor], equations: Sequence[Equations]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """E[t xᵀ] and E[t²] of every domain, over all processes."""
        outputs, layer, reader = place.outputs, place.layer, self.look.reader(place)
        like, unknowns = equations[0].gram, weight_of(reader)[0].numel() + layer.bias
        crosses = [like.new_zeros(outputs.units, unknowns) for _ in equations]
        powers = [like.new_zeros(outputs.units) for _ in equations]
        for batch, target in zip(self.batches, wanted, strict=True):
            values = self.look.inputs(batch, place)
            crosses[batch.domain] += cross_moment(target, values, reader, constant=layer.bias)
            powers[batch.domain] += target.square().transpose(0, 1).flatten(1).sum(1)
        for cross, power, one in zip(crosses, powers, equations, strict=True):
            self.world.reduce(cross)
            self.world.reduce(power)
            cross.div_(max(1, one.samples))
            power.div_(max(1, one.samples))
        return crosses, powers

    def rectified(self, place: LayerTask, matrix: Tensor, wanted: Iterable[Tensor]) -> Iterator[Tensor]:
        """The targets, and the prediction instead where both would be cut off by the rectifier."""
        reader = self.look.reader(place)
        for batch, target in zip(self.batches, wanted, strict=True):
            values = self.look.inputs(batch, place)
            predicted = _apply(reader, values, matrix, constant=place.layer.bias)
            other = 0.0 if place.plan.other is None else self._seen(batch, place)(_known(batch, place.plan.other))
            yield torch.where(target + other < 0, (predicted + other).clamp_max(0) - other, target)

    def views(self, place: LayerTask, wanted: Iterable[Tensor], rows: slice, domains: Sequence[bool]) -> list[HeadView]:
        """What the batches of some domains ask of one head of the layer that writes the logits.

        Args:
            place: The layer.
            wanted: Targets of every batch.
            rows: The head's logits.
            domains: Which domains have something to say of it.
        """
        views = []
        seen = seen_weights(place.layer, place.outputs, place.inputs)[rows.start]
        for batch, target in zip(self.batches, wanted, strict=True):
            features = batch.student.first_argument(place.node)
            if place.layer.bias:
                features = torch.cat([features, features.new_ones(len(features), 1)], 1)
            if domains[batch.domain]:
                kept = features[:, seen.to(features.device)]
                views.append(HeadView(kept, target[:, rows], self.weights[batch.domain]))
        return views

    def unit_sums(self, node: fx.Node, units: UnitMap, wanted: Sequence[Tensor] | None, device: torch.device) -> Tensor:
        """Weighted (count, Σx, Σt, Σx², Σxt) of a norm's input x and targets t; shape (domains, 5, units).

        Args:
            node: The norm's call.
            units: Unit map of its group.
            wanted: Targets of every batch; x itself when None.
            device: Where to sum; a process without pictures has no batch that says.
        """
        sums = torch.zeros(len(self.owners), 5, units.units, dtype=torch.float64, device=device)
        for number, batch in enumerate(self.batches):
            values = batch.student.first_argument(node)
            x, t = (
                one.double().transpose(0, 1).flatten(1)
                for one in (values, values if wanted is None else wanted[number])
            )
            moments = [torch.full_like(x[:, 0], x.shape[1]), x.sum(1), t.sum(1), x.square().sum(1), (x * t).sum(1)]
            sums[batch.domain] += torch.stack(moments)
        self.world.reduce(sums)
        return sums * torch.tensor(self.weights).to(sums)[:, None, None]


def followed_inputs(outputs: UnitMap, inputs: UnitMap, owner: int | None) -> Tensor:
    """Input units that some output unit sees which follows a domain of this owner: boolean, shape (inputs,)."""
    rows = torch.ones(outputs.units, dtype=torch.bool) if owner is None else outputs.present[:, owner]
    return overlap(outputs, inputs)[rows].any(0)


def resized_reader(layer: nn.Module, inputs: UnitMap) -> nn.Module:
    """A layer without values that reads the student's inputs as a source's layer reads its own."""
    wide = layer.in_features // inputs.sizes[0] if isinstance(layer, nn.Linear) else 1
    blocks = inputs.units * layer.groups // inputs.sizes[0] if isinstance(layer, nn.Conv2d) and layer.groups > 1 else 1
    with torch.device("meta"):
        return resized(layer, inputs.units * wide, blocks, blocks)


def own_heads(labels: LabelSpace, domain: str, owners: Mapping[str, int]) -> list[slice]:
    """Logits that a domain's pictures have something to say of: its own head's, else those of its source or of all."""
    if labels.mode == "shared" or domain in labels.domains:
        return [labels.columns(domain)]
    owner = owners.get(domain)
    return [labels.columns(one) for one in labels.domains if owner is None or owners.get(one) == owner]


def _known(batch: Batch, name: str) -> Tensor:
    """A value that the student has computed."""
    value: Tensor = batch.student.env[batch.student.nodes[name]]
    return value


def _target(
    batch: Batch,
    node: fx.Node,
    seen: Callable[[Tensor], Tensor],
    outputs: UnitMap,
    scales: Scales,
    plan: LayerContext,
) -> Tensor:
    blend = outputs.mean if batch.owner is None else outputs.own(batch.owner)
    result: Tensor | None = None
    for source, run in batch.sources.items():
        values = seen(run.env[_twin(run, node)]).float()
        shape = (1, -1) + (1,) * (values.dim() - 2)
        if plan.norm is not None:
            scale, shift = (tensor.to(values).view(shape) for tensor in scales[source])
            values = values * scale + shift
        if plan.other is not None:
            values = values + seen(run.env[run.nodes[plan.other]])
        rows = outputs.present[:, source].nonzero()[:, 0]
        if result is None:
            result = values.new_zeros(values.shape[0], outputs.units, *values.shape[2:])
        share = blend[rows, source].to(values).view(shape)
        result[:, rows.to(values.device)] += values[:, outputs.members[rows, source].to(values.device)] * share
    assert result is not None
    return result if plan.other is None else result - seen(_known(batch, plan.other))


def _columns(units: Tensor, count: int, layer: Layer) -> Tensor:
    """Entries of x that belong to some input units, the constant with them."""
    columns = (units.nonzero() * layer.taps + torch.arange(layer.taps)).flatten()
    return torch.cat([columns, torch.tensor([count * layer.taps])]) if layer.bias else columns


def _apply(reader: nn.Module, values: Tensor, matrix: Tensor, *, constant: bool) -> Tensor:
    """The layer's output with these weights, their last column a constant."""
    weight, bias = (matrix[:, :-1], matrix[:, -1]) if constant else (matrix, None)
    values = values.float()
    with exact_products(values.device):
        if not isinstance(reader, nn.Conv2d):
            return F.linear(values, weight, bias)
        weight = weight.reshape(len(matrix), values.shape[1] // reader.groups, *reader.kernel_size)
        return F.conv2d(values, weight, bias, reader.stride, reader.padding, reader.dilation, reader.groups)


def _twin(run: Run, node: fx.Node) -> fx.Node:
    """The node of the same name in a run's own graph."""
    return run.nodes[node.name]
