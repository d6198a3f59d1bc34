"""The sequential fit: each layer on what the student itself feeds it, in execution order, in closed form.

The whole calibration set is carried through student and sources together, a value of the graph at a time. At every
layer the student's own inputs x, its earlier layers already fitted, give E[x xᵀ]; the sources give the targets t; the
layer is solved and the walk goes on with its new outputs. One forward pass of each network is all it takes, and the
layer's moments are those of one network instead of N.

What makes it close to the sources (DESIGN §5):

- A picture's target is what the source that owns its domain does (``own``), or the mean of all sources (``mean``).
- A layer followed by a batch norm is fitted to what the norm puts out: each source's scale and shift are brought into
  its weights first, since the scale of weights before a norm is arbitrary and differs between sources. The student's
  norm then takes the exact statistics of its new inputs, with scale and shift that undo them, so that nothing is left
  to re-estimate.
- Where the norm's output is added to something that the student has already computed (a residual sum), the target is
  the source's sum less the student's other addend: what earlier layers got wrong is put right.
- Where a rectifier follows, all negative targets are alike: where both target and prediction are negative, the
  prediction is its own target. A few rounds with the same factorisation settle which those are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from project.alignment import UnitMap, overlap
from project.models import LabelSpace
from project.moments import Moment, Run, cross_moment, flat, joint_columns
from project.student.affine import absorbed, central_moments, rewrite, scale_and_shift
from project.student.build import Student
from project.student.fit import joint_matrix, start_matrix
from project.student.head import HeadView, fit_head
from project.student.layers import load_matrix, resized
from project.student.plan import in_stages
from project.student.solver import Equations, LayerFit, LayerSolver, damping, seen_weights
from project.student.surroundings import Surroundings, is_norm, student_graph, surroundings
from project.symmetry import NORMS, Layer, graph_of

Reduce = Callable[[Tensor], object]


@dataclass(eq=False)
class _Batch:
    """One batch of one domain on its way through the student and the sources that it needs."""

    domain: int
    owner: int | None
    student: Run
    sources: dict[int, Run]


class SequentialFit:
    """Fits a student in place, layer after layer.

    Args:
        student: At its start point, in eval mode.
        sources: The sources, left bit-identical.
        owners: domain -> index of its source.
        batches: domain -> batches of pictures (batch, channels, height, width); every process the same domains.
        ridge: Pull towards the start point, see :func:`~project.student.solver.damping`.
        own: Whether merged units follow the source that owns a picture's domain, or the mean of all sources.
        absorb: Whether a layer is fitted to what the norm behind it puts out, or to what that norm reads; the norm
            is then fitted by itself, and there are neither sums nor rectifiers to look at.
        compensate: Whether a residual sum's target is less what the student has already put into it.
        rounds: Rounds in which rectified targets are settled; 0 for plain targets.
        divergence: Whether the layer that writes the logits is fitted to the sources' classes, see
            :mod:`~project.student.head`, or to their logits like any other layer.
        weights: domain -> weight of each of its pictures; default: 1 for all, 0 leaves a domain out.
        reduce: Sums a tensor over all processes in place.
    """

    def __init__(
        self,
        student: Student,
        sources: Sequence[nn.Module],
        owners: Mapping[str, int],
        batches: Mapping[str, Sequence[Tensor]],
        *,
        ridge: float,
        own: bool = True,
        absorb: bool = True,
        compensate: bool = True,
        rounds: int = 2,
        divergence: bool = True,
        weights: Mapping[str, float] | None = None,
        reduce: Reduce = lambda tensor: tensor,
    ) -> None:
        self.student, self.sources, self.ridge, self.rounds, self.reduce = student, sources, ridge, rounds, reduce
        self.absorb, self.compensate, self.divergence = absorb, compensate, divergence
        self.weights = [(weights or {}).get(domain, 1.0) for domain in batches]
        self.spec = student.spec
        self.layers = {layer.node: layer for layer in self.spec.layers}
        self.graph = in_stages(student_graph(student.network), self.layers)
        graphs = [in_stages(graph_of(source), self.layers) for source in sources]
        self.owners = [owners.get(domain) if own else None for domain in batches]
        self.heads = [_heads(student.labels, domain, owners) for domain in batches]
        self.batches = []
        for index, (pictures, owner) in enumerate(zip(batches.values(), self.owners, strict=True)):
            needed = range(len(sources)) if owner is None else (owner,)
            for batch in pictures:
                runs = {source: Run(graphs[source], batch) for source in needed}
                self.batches.append(_Batch(index, owner, Run(self.graph, batch), runs))
        self.exact = {group.name: True for group in self.spec.groups.values()}
        self.constants: dict[str, Tensor] = {}  # norm -> what it must add to its fitted inputs
        self.known: set[str] = set()  # values that the student has computed
        self.untouched: set[str] = set()  # norms that already do what their sources' norms do

    @torch.no_grad()
    def run(self, progress: Callable[[str], object] = lambda name: name) -> dict[str, LayerFit]:
        """Walk through the graph.

        Args:
            progress: Told the name of every layer when it is done.

        Returns:
            layer -> its fit.
        """
        fits = {}
        for node in self.graph.graph.nodes:
            if node.op == "output":
                break
            for batch in self.batches:
                for source in batch.sources.values():
                    source.step(_twin(source, node))
            layer = self.layers.get(node.name)
            if layer is not None:
                fit = self._layer(layer, node)
                if fit is not None:
                    fits[layer.name] = fit
                progress(layer.name)
            elif node.op == "call_module" and str(node.target) not in self.untouched:
                self._norm(node)
            self.known.add(node.name)
            for batch in self.batches:
                batch.student.step(node)
                batch.student.release(node)
                for source in batch.sources.values():
                    source.release(_twin(source, node))
        return fits

    def _layer(self, layer: Layer, node: fx.Node) -> LayerFit | None:
        """Fit one layer, unless it already does exactly what its sources do."""
        outputs, inputs = self.student.maps[layer.outputs], self.student.maps[layer.inputs]
        if (
            self._exact(layer.inputs)
            and _single(outputs)
            and (_single(inputs) or layer.inputs == self.spec.plain_input)
        ):
            self.untouched |= {str(user.target) for user in node.users if is_norm(self.graph, user)}
            return None
        self.exact |= dict.fromkeys(self.spec.parts(layer.outputs), False)
        if layer.blocks > 1:
            return None  # a grouped convolution stays at its start; the norm behind it is fitted to its sources
        plan = surroundings(self.graph, node, self.known)
        if plan.norm is not None and not self.absorb:
            plan = Surroundings()
        if not self.compensate:
            plan = replace(plan, other=None, rectified=plan.rectified and plan.other is None)
        modules = [source.get_submodule(layer.name) for source in self.sources]
        scales = [
            scale_and_shift(source, plan.norm, module) for source, module in zip(self.sources, modules, strict=True)
        ]
        fitted = replace(layer, bias=layer.bias or plan.norm is not None)
        matrices = joint_matrix(layer, modules)
        if plan.norm is not None:
            matrices = [absorbed(m, s, b, layer.bias) for m, (s, b) in zip(matrices, scales, strict=True)]
        start = start_matrix(fitted, matrices, outputs, inputs).contiguous()
        reader = resized_reader(modules[0], inputs)
        wanted = [self._target(batch, node, outputs, scales, plan) for batch in self.batches]
        equations = self._equations(node, fitted, reader, start)
        solver = LayerSolver(fitted, start, outputs, inputs, equations, self.ridge)
        fit = solver.solve(*self._crosses(node, fitted, reader, wanted, equations))
        for _ in range(self.rounds if plan.rectified else 0):
            matrix = fit.matrix.to(start.device, torch.float32)
            cut = (
                self._rectified(batch, node, reader, fitted, matrix, target, plan)
                for batch, target in zip(self.batches, wanted, strict=True)
            )
            better = solver.solve(*self._crosses(node, fitted, reader, cut, equations))
            fit = replace(fit, matrix=better.matrix)  # residuals stay those of plain targets, which can be compared
        if self.divergence and layer.outputs == self.spec.output.name and layer.positions == 1 and wanted[0].dim() == 2:
            fit = replace(fit, matrix=self._head(layer, node, start, wanted, equations))
        self._write(layer, plan, fit)
        return fit

    def _exact(self, axis: str) -> bool:
        """Whether the units on an axis, with all that they depend on, do exactly what their sources' do."""
        return all(self.exact[group] for group in self.spec.behind(axis))

    def _head(
        self,
        layer: Layer,
        node: fx.Node,
        start: Tensor,
        wanted: Sequence[Tensor],
        equations: Sequence[Equations],
    ) -> Tensor:
        """The layer that writes the logits, fitted to the sources' classes."""
        views = []
        for batch, target in zip(self.batches, wanted, strict=True):
            features = batch.student.first_argument(node)
            if layer.bias:
                features = torch.cat([features, features.new_ones(len(features), 1)], 1)
            weight = self.weights[batch.domain]
            views += [HeadView(features, target, columns, weight) for columns in self.heads[batch.domain]]
        allowed = seen_weights(layer, self.student.maps[layer.outputs], self.student.maps[layer.inputs])
        samples = sum(one.samples for one in equations if one.weight)
        pull = damping(self.ridge, start.shape[1], samples)
        return fit_head(start, allowed.to(start.device), views, damping=pull, constant=layer.bias, reduce=self.reduce)

    def _target(
        self,
        batch: _Batch,
        node: fx.Node,
        outputs: UnitMap,
        scales: Sequence[tuple[Tensor, Tensor]],
        plan: Surroundings,
    ) -> Tensor:
        """What a batch asks of a layer's outputs: the blend of its sources', less what the student has already."""
        blend = outputs.mean if batch.owner is None else outputs.own(batch.owner)
        result: Tensor | None = None
        layer = self.sources[0].get_submodule(str(node.target))
        for source, run in batch.sources.items():
            values = flat(run.env[_twin(run, node)], layer)
            shape = (1, -1) + (1,) * (values.dim() - 2)
            if plan.norm is not None:
                scale, shift = (tensor.to(values).view(shape) for tensor in scales[source])
                values = values * scale + shift
            if plan.other is not None:
                values = values + flat(run.env[run.nodes[plan.other]], layer)
            rows = outputs.present[:, source].nonzero()[:, 0]
            if result is None:
                result = values.new_zeros(values.shape[0], outputs.units, *values.shape[2:])
            share = blend[rows, source].to(values).view(shape)
            result[:, rows.to(values.device)] += values[:, outputs.members[rows, source].to(values.device)] * share
        assert result is not None
        return (
            result if plan.other is None else result - flat(batch.student.env[batch.student.nodes[plan.other]], layer)
        )

    def _equations(self, node: fx.Node, layer: Layer, reader: nn.Module, start: Tensor) -> list[Equations]:
        """E[x xᵀ] of every domain, over all processes, of the inputs that some row following the domain sees."""
        outputs, inputs = self.student.maps[layer.outputs], self.student.maps[layer.inputs]
        units = [followed_inputs(outputs, inputs, owner) for owner in self.owners]
        columns = [_columns(seen, inputs.units, layer) for seen in units]
        moments = [Moment(len(column), start.device) for column in columns]
        for batch in self.batches:
            values = flat(batch.student.first_argument(node), reader)
            if len(columns[batch.domain]) < start.shape[1]:
                wide = values.shape[1] // inputs.units  # entries of a unit on the axis, after flattening
                grouped = torch.unflatten(values, 1, (-1, wide))
                values = grouped[:, units[batch.domain].to(values.device)].flatten(1, 2)
            for piece in joint_columns([values], [reader], constant=layer.bias):
                moments[batch.domain].update(piece)
        for moment in moments:
            moment.reduce(self.reduce)
        return [
            Equations(moment.mean(), moment.count, owner, column, weight)
            for moment, owner, column, weight in zip(moments, self.owners, columns, self.weights, strict=True)
        ]

    def _crosses(
        self, node: fx.Node, layer: Layer, reader: nn.Module, wanted: Iterable[Tensor], equations: Sequence[Equations]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """E[t xᵀ] and E[t²] of every domain, over all processes."""
        outputs, inputs = self.student.maps[layer.outputs], self.student.maps[layer.inputs]
        like = equations[0].gram
        crosses = [like.new_zeros(outputs.units, inputs.units * layer.taps + layer.bias) for _ in equations]
        powers = [like.new_zeros(outputs.units) for _ in equations]
        for batch, target in zip(self.batches, wanted, strict=True):
            values = flat(batch.student.first_argument(node), reader)
            crosses[batch.domain] += cross_moment(target, values, reader, constant=layer.bias)
            powers[batch.domain] += target.square().transpose(0, 1).flatten(1).sum(1)
        for cross, power, one in zip(crosses, powers, equations, strict=True):
            self.reduce(cross)
            self.reduce(power)
            cross.div_(max(1, one.samples))
            power.div_(max(1, one.samples))
        return crosses, powers

    def _rectified(
        self,
        batch: _Batch,
        node: fx.Node,
        reader: nn.Module,
        layer: Layer,
        matrix: Tensor,
        target: Tensor,
        plan: Surroundings,
    ) -> Tensor:
        """The target, and the prediction instead where both would be cut off by the rectifier."""
        predicted = _apply(reader, flat(batch.student.first_argument(node), reader), matrix, constant=layer.bias)
        other = 0.0 if plan.other is None else flat(batch.student.env[batch.student.nodes[plan.other]], reader)
        return torch.where(target + other < 0, (predicted + other).clamp_max(0) - other, target)

    def _write(self, layer: Layer, plan: Surroundings, fit: LayerFit) -> None:
        """Put the weights into the student; a constant goes into the norm behind it, once that is reached."""
        if plan.norm is None:
            self.student.load_layer(layer.name, fit.matrix)
            return
        weight, constant = fit.matrix[:, :-1], fit.matrix[:, -1]
        load_matrix(self.graph.get_submodule(layer.name), weight, torch.zeros_like(constant) if layer.bias else None)
        self.constants[plan.norm] = constant

    def _norm(self, node: fx.Node) -> None:
        """Give a norm the statistics of what it reads, and the scale and shift that its place asks for.

        Behind a fitted layer it only adds the layer's constant. Elsewhere scale and shift are themselves fitted, one
        of each a unit, towards what the sources' norms put out.
        """
        norm = self.graph.get_submodule(str(node.target))
        if not is_norm(self.graph, node) or not isinstance(norm, NORMS):
            return
        units = self.student.maps[next(one.group for one in self.spec.norms if one.name == str(node.target))]
        constant = self.constants.get(str(node.target))
        sums = torch.zeros(len(self.owners), 5, units.units, dtype=torch.float64, device=norm.weight.device)
        for batch in self.batches:
            x = batch.student.first_argument(node)
            t = x if constant is not None else self._target(batch, node, units, (), Surroundings())
            x, t = (values.double().transpose(0, 1).flatten(1) for values in (x, t))
            moments = [torch.full_like(x[:, 0], x.shape[1]), x.sum(1), t.sum(1), x.square().sum(1), (x * t).sum(1)]
            sums[batch.domain] += torch.stack(moments)
        self.reduce(sums)
        sums *= torch.tensor(self.weights).to(sums)[:, None, None]
        if constant is not None:
            _, mean, _, variance, _ = central_moments(sums.sum(0))
            rewrite(norm, mean, variance, torch.ones_like(mean), mean + constant)
            return
        for domain, owner in enumerate(self.owners):
            if owner is not None:  # units without this source do not follow its domain
                sums[domain, :, ~units.present[:, owner]] = 0
        _, mean, aim, variance, covariance = central_moments(sums.sum(0))
        assert norm.running_var is not None
        kept = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        slope = torch.where(variance > 1e-9, covariance / variance.clamp_min(1e-9), kept)
        rewrite(norm, mean, variance, slope, aim)


def followed_inputs(outputs: UnitMap, inputs: UnitMap, owner: int | None) -> Tensor:
    """Input units that some output unit sees which follows a domain of this owner: boolean, shape (inputs,)."""
    rows = torch.ones(outputs.units, dtype=torch.bool) if owner is None else outputs.present[:, owner]
    return overlap(outputs, inputs)[rows].any(0)


def _heads(labels: LabelSpace, domain: str, owners: Mapping[str, int]) -> list[slice]:
    """Logits that a domain's pictures have something to say of: its own head's, else those of its source or of all."""
    if labels.mode == "shared" or domain in labels.domains:
        return [labels.columns(domain)]
    owner = owners.get(domain)
    return [labels.columns(one) for one in labels.domains if owner is None or owners.get(one) == owner]


def _columns(units: Tensor, count: int, layer: Layer) -> Tensor:
    """Entries of x that belong to some input units, the constant with them."""
    columns = (units.nonzero() * layer.taps + torch.arange(layer.taps)).flatten()
    return torch.cat([columns, torch.tensor([count * layer.taps])]) if layer.bias else columns


def resized_reader(layer: nn.Module, inputs: UnitMap) -> nn.Module:
    """A layer without values that reads the student's inputs as a source's layer reads its own."""
    wide = layer.in_features // inputs.sizes[0] if isinstance(layer, nn.Linear) else 1
    with torch.device("meta"):
        return resized(layer, inputs.units * wide, 1)


def _apply(reader: nn.Module, values: Tensor, matrix: Tensor, *, constant: bool) -> Tensor:
    """The layer's output with these weights, their last column a constant."""
    weight, bias = (matrix[:, :-1], matrix[:, -1]) if constant else (matrix, None)
    if not isinstance(reader, nn.Conv2d):
        return F.linear(values, weight, bias)
    weight = weight.reshape(len(matrix), values.shape[1], *reader.kernel_size)
    return F.conv2d(values, weight, bias, reader.stride, reader.padding, reader.dilation)


def _single(units: UnitMap) -> bool:
    return bool((units.present.sum(1) == 1).all())


def _twin(run: Run, node: fx.Node) -> fx.Node:
    """The node of the same name in a run's own graph."""
    return run.nodes[node.name]
