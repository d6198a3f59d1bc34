"""The sequential fit: each layer on what the student itself feeds it, in execution order, in closed form.

The whole calibration set is carried through student and sources together, a value of the graph at a time. At every
layer the student's own inputs x, its earlier layers already fitted, give E[x xᵀ]; the sources give the targets t; the
layer is solved and the walk goes on with its new outputs. One forward pass of each network is all it takes, and the
layer's moments are those of one network instead of N.

What makes it close to the sources:

- A picture's target is what the source that owns its domain does (``own``), or the mean of all sources (``mean``).
- A layer followed by a batch norm is fitted to what the norm puts out: each source's scale and shift are brought into
  its weights first, since the scale of weights before a norm is arbitrary and differs between sources. The student's
  norm then takes the exact statistics of its new inputs, with scale and shift that undo them, so that nothing is left
  to re-estimate.
- Where the norm's output is added to something that the student has already computed (a residual sum), the target is
  the source's sum less the student's other addend: what earlier layers got wrong is put right.
- Where a rectifier follows, all negative targets are alike: where both target and prediction are negative, the
  prediction is its own target. A few rounds with the same factorisation settle which those are.
- The layer that writes the logits is fitted to the sources' classes (:mod:`~project.fit.head`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from project.alignment import UnitMap
from project.fit.activations import Activations, own_heads, resized_reader
from project.fit.folding import central_moments, fold_norm, scale_and_shift, set_affine
from project.fit.grouped import BlockSolver
from project.fit.head import fit_head
from project.fit.layer_task import LayerTask
from project.fit.neighbours import LayerContext, is_norm, surroundings
from project.fit.solver import Equations, LayerFit, LayerSolver, damping, seen_weights
from project.fit.stages import in_stages
from project.fit.subsample import choose_subsample
from project.runtime.processes import ALONE, World
from project.student.build import Student
from project.student.graph import student_graph
from project.student.layers import load_matrix
from project.student.start import joint_matrix, start_matrix
from project.symmetry import NORMS, Layer, graph_of


class SequentialFit:
    """Fits a student in place, layer after layer.

    Args:
        student: At its start point, in eval mode.
        sources: The sources, left bit-identical.
        owners: domain -> index of its source.
        pictures: domain -> batches of pictures (batch, channels, height, width); every process the same domains.
        ridge: Pull towards the start point, see :func:`~project.fit.solver.damping`.
        own: Whether merged units follow the source that owns a picture's domain, or the mean of all sources.
        absorb: Whether a layer is fitted to what the norm behind it puts out, or to what that norm reads; the norm
            is then fitted by itself, and there are neither sums nor rectifiers to look at.
        compensate: Whether a residual sum's target is less what the student has already put into it.
        rounds: Rounds in which rectified targets are settled; 0 for plain targets.
        divergence: Whether the layer that writes the logits is fitted to the sources' classes, see
            :mod:`~project.fit.head`, or to their logits like any other layer.
        weights: domain -> weight of each of its pictures; default: 1 for all, 0 leaves a domain out.
        excess: Largest relative excess of a layer's residual over that of a fit to all pictures and positions, see
            :mod:`~project.fit.subsample`; None for all of them in every layer.
        world: The processes among which the pictures are dealt out; they share the solves.
        scratch: Folder for the values of waiting batches; None to hold them in memory.
        kept: Called for every layer in order with its name and what solves it; may give back what an earlier walk
            found instead, see :class:`~project.fit.kept_fits.KeptFits`.
    """

    def __init__(
        self,
        student: Student,
        sources: Sequence[nn.Module],
        owners: Mapping[str, int],
        pictures: Mapping[str, Sequence[Tensor]],
        *,
        ridge: float,
        own: bool = True,
        absorb: bool = True,
        compensate: bool = True,
        rounds: int = 2,
        divergence: bool = True,
        weights: Mapping[str, float] | None = None,
        excess: float | None = None,
        world: World = ALONE,
        scratch: Path | None = None,
        kept: Callable[[str, Callable[[], LayerFit]], LayerFit] = lambda layer, solve: solve(),
    ) -> None:
        self.kept = kept
        self.student, self.sources, self.ridge, self.rounds = student, sources, ridge, rounds
        self.absorb, self.compensate, self.divergence, self.excess = absorb, compensate, divergence, excess
        self.spec = student.spec
        self.layers = {layer.node: layer for layer in self.spec.layers}
        self.graph = in_stages(student_graph(student.network), self.layers)
        self.heads = [own_heads(student.labels, domain, owners) for domain in pictures]
        self.carried = Activations(
            self.graph,
            [in_stages(graph_of(source), self.layers) for source in sources],
            pictures,
            [owners.get(domain) if own else None for domain in pictures],
            [(weights or {}).get(domain, 1.0) for domain in pictures],
            world,
            scratch,
        )
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
            self.carried.advance_sources(node)
            layer = self.layers.get(node.name)
            if layer is not None:
                fit = self._layer(layer, node)
                if fit is not None:
                    fits[layer.name] = fit
                progress(layer.name)
            elif node.op == "call_module" and str(node.target) not in self.untouched:
                self._norm(node)
            self.known.add(node.name)
            self.carried.advance_student(node)
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
        plan = self._plan(node)
        modules = [source.get_submodule(layer.name) for source in self.sources]
        scales = [
            scale_and_shift(source, plan.norm, module) for source, module in zip(self.sources, modules, strict=True)
        ]
        matrices = joint_matrix(layer, modules)
        if plan.norm is not None:
            matrices = [fold_norm(m, s, b, layer.bias) for m, (s, b) in zip(matrices, scales, strict=True)]
        fitted = replace(layer, bias=layer.bias or plan.norm is not None)
        start = start_matrix(fitted, matrices, outputs, inputs).contiguous()
        reader = resized_reader(modules[0], inputs)
        place = LayerTask(
            node=node, layer=fitted, outputs=outputs, inputs=inputs, reader=reader, scales=scales, plan=plan
        )
        fit = self.kept(layer.name, lambda: self._solved(place, start))
        self._write(layer, plan, fit)
        return fit

    def _exact(self, axis: str) -> bool:
        """Whether the units on an axis, with all that they depend on, do exactly what their sources' do."""
        return all(self.exact[group] for group in self.spec.behind(axis))

    def _plan(self, node: fx.Node) -> LayerContext:
        """What stands around a layer, as far as it is to be looked at."""
        plan = surroundings(self.graph, node, self.known)
        if plan.norm is not None and not self.absorb:
            return LayerContext()
        return plan if self.compensate or plan.other is None else replace(plan, other=None, rectified=False)

    def _solved(self, place: LayerTask, start: Tensor) -> LayerFit:
        """The fit of one layer."""
        carried = self.carried
        plain = place.layer.blocks == 1
        if self.excess is not None and plain:
            carried = choose_subsample(carried, place, start, self.ridge, self.excess)
        wanted = carried.targets(place)
        equations = carried.equations(place, start)
        solve = LayerSolver if plain else BlockSolver
        solver = solve(place.layer, start, place.outputs, place.inputs, equations, self.ridge, carried.world)
        fit = solver.solve(*carried.crosses(place, wanted, equations))
        looked_at = len(carried.batches) / max(1, len(self.carried.batches))
        fit = replace(fit, pictures=looked_at, positions=carried.look.share)
        for _ in range(self.rounds if place.plan.rectified else 0):
            cut = carried.rectified(place, fit.matrix.to(start.device, torch.float32), wanted)
            better = solver.solve(*carried.crosses(place, cut, equations))
            fit = replace(fit, matrix=better.matrix)  # residuals stay those of plain targets, which can be compared
        logits = plain and place.layer.outputs == self.spec.output.name and place.layer.positions == 1
        return self._heads(carried, place, start, wanted, equations, fit) if self.divergence and logits else fit

    def _heads(
        self,
        carried: Activations,
        place: LayerTask,
        start: Tensor,
        wanted: Sequence[Tensor],
        equations: Sequence[Equations],
        fit: LayerFit,
    ) -> LayerFit:
        """The layer that writes the logits, each head fitted to the classes that its sources see."""
        matrix = fit.matrix.clone()
        for rows in {(rows.start, rows.stop): rows for heads in self.heads for rows in heads}.values():
            domains = [rows in heads for heads in self.heads]
            counted = [one.samples for one, there in zip(equations, domains, strict=True) if there and one.weight]
            if not sum(counted):
                continue  # nothing speaks of this head
            seen = seen_weights(place.layer, place.outputs, place.inputs)[rows.start].to(start.device)
            matrix[rows.start : rows.stop, seen] = fit_head(
                start[rows][:, seen],
                carried.views(place, wanted, rows, domains),
                damping=damping(self.ridge, int(seen.sum()), sum(counted)),
                constant=place.layer.bias,
                world=self.carried.world,
            )
        return replace(fit, matrix=matrix)

    def _write(self, layer: Layer, plan: LayerContext, fit: LayerFit) -> None:
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
        wanted = None if constant is not None else self.carried.norm_targets(node, units)
        sums = self.carried.unit_sums(node, units, wanted, norm.weight.device)
        if constant is not None:
            _, mean, _, variance, _ = central_moments(sums.sum(0))
            set_affine(norm, mean, variance, torch.ones_like(mean), mean + constant)
            return
        for domain, owner in enumerate(self.carried.owners):
            if owner is not None:  # units without this source do not follow its domain
                sums[domain, :, ~units.present[:, owner]] = 0
        count, mean, aim, variance, covariance = central_moments(sums.sum(0))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        followed = count > 0  # other units stay at their start
        mean = torch.where(followed, mean, norm.running_mean.double())
        variance = torch.where(followed, variance, norm.running_var.double())
        aim = torch.where(followed, aim, norm.bias.double())
        kept = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        slope = torch.where(followed & (variance > 1e-9), covariance / variance.clamp_min(1e-9), kept)
        set_affine(norm, mean, variance, slope, aim)


def _single(units: UnitMap) -> bool:
    return bool((units.present.sum(1) == 1).all())
