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
from math import isnan
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from project.alignment import UnitMap
from project.fit.activations import Activations
from project.fit.folding import add_constant, fit_norm, fold_norm, scale_and_shift
from project.fit.head import fit_head, own_heads
from project.fit.layer_fit import LayerFit, Measurements
from project.fit.layer_task import LayerTask, resized_reader
from project.fit.neighbours import LayerContext, context_of, is_norm
from project.fit.normal_equations import damping
from project.fit.positions import AllPositions
from project.fit.row_blocks import seen_weights
from project.fit.solve_layer import solve_layer
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
        ridge: Pull towards the start point, see :func:`~project.fit.normal_equations.damping`.
        own: Whether merged units follow the source that owns a picture's domain, or the mean of all sources.
        leads: domain of several sources -> the one that merged units follow there, whose function so stays whole;
            domains that are not in it have the mean of all.
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
            found instead, see :class:`~project.fit.layer_fit.KeptFits`.

    Attributes:
        domain_residuals: domain -> layer -> E‖W x − t‖² / E‖t‖² on the pictures of the domain, over the rows that
            follow its source; filled as layers are fitted.
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
        leads: Mapping[str, int] | None = None,
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
        self.domain_residuals: dict[str, dict[str, float]] = {domain: {} for domain in pictures}
        self.heads = [own_heads(student.labels, domain, owners) for domain in pictures]
        self.activations = Activations(
            self.graph,
            [in_stages(graph_of(source), self.layers) for source in sources],
            pictures,
            [owners.get(domain) if own else None for domain in pictures],
            [(leads or {}).get(domain) for domain in pictures],
            [(weights or {}).get(domain, 1.0) for domain in pictures],
            world,
            scratch,
        )
        self.exact = {group.name: True for group in self.spec.groups.values()}
        self.constants: dict[str, Tensor] = {}  # norm -> what it must add to its fitted inputs
        self.known: set[str] = set()  # values that the student has computed
        self.untouched: set[str] = set()  # norms that already do what their sources' norms do

    @torch.no_grad()
    def run(self, progress: Callable[[str], object] = lambda name: name) -> dict[str, Measurements]:
        """Fit all layers and norms, in execution order.

        Args:
            progress: Called with the name of every layer when it is done.

        Returns:
            layer -> what is known of its fit; its weights are in the student, and there alone.

        Raises:
            MergeError: With ridge 0 and fewer samples than unknowns in a row.
        """
        fits: dict[str, Measurements] = {}
        for node in self.graph.graph.nodes:
            if node.op == "output":
                break
            self.activations.advance_sources(node)
            layer = self.layers.get(node.name)
            if layer is not None:
                fit = self._fit_layer(layer, node)
                if fit is not None:
                    fits[layer.name] = fit.measurements
                progress(layer.name)
            elif node.op == "call_module" and str(node.target) not in self.untouched:
                self._fit_norm(node)
            self.known.add(node.name)
            self.activations.advance_student(node)
        return fits

    def _fit_layer(self, layer: Layer, node: fx.Node) -> LayerFit | None:
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
        task = self._task(layer, node)
        fit = self.kept(layer.name, lambda: self._solve(task))
        for residuals, residual in zip(self.domain_residuals.values(), fit.domains, strict=True):
            if not isnan(residual):
                residuals[layer.name] = residual
        self._write(layer, task.context, fit)
        return fit

    def _exact(self, axis: str) -> bool:
        """Whether the units on an axis, with all that they depend on, do exactly what their sources' do."""
        return all(self.exact[group] for group in self.spec.behind(axis))

    def _context(self, node: fx.Node) -> LayerContext:
        """What reads a layer, as far as it is to be looked at."""
        context = context_of(self.graph, node, self.known)
        if context.norm is not None and not self.absorb:
            return LayerContext()
        return context if self.compensate or context.addend is None else replace(context, addend=None, relu=False)

    def _task(self, layer: Layer, node: fx.Node) -> LayerTask:
        """A layer and its data, all batches and positions."""
        outputs, inputs = self.student.maps[layer.outputs], self.student.maps[layer.inputs]
        context = self._context(node)
        modules = [source.get_submodule(layer.name) for source in self.sources]
        scales = [
            scale_and_shift(source, context.norm, module) for source, module in zip(self.sources, modules, strict=True)
        ]
        matrices = joint_matrix(layer, modules)
        if context.norm is not None:
            matrices = [fold_norm(m, s, b, layer.bias) for m, (s, b) in zip(matrices, scales, strict=True)]
        fitted = replace(layer, bias=layer.bias or context.norm is not None)
        reader = resized_reader(modules[0], inputs)
        logits = layer.outputs == self.spec.output.name
        start = start_matrix(fitted, matrices, outputs, inputs, outputs.shares(self._leader))
        if logits and self._leader is not None:
            start = self._all_but_merged(start, start_matrix(fitted, matrices, outputs, inputs), inputs, layer.taps)
        return LayerTask(
            node=node,
            layer=fitted,
            start=start.contiguous(),
            logits=logits,
            outputs=outputs,
            inputs=inputs,
            reader=reader,
            scales=scales,
            context=context,
            activations=self.activations,
            positions=AllPositions(node, reader),
        )

    @property
    def _leader(self) -> int | None:
        """The source that leads on all pictures, if there is one: the start point is its function, too."""
        first, *others = set(self.activations.leads)
        return None if others else first

    @staticmethod
    def _all_but_merged(leader: Tensor, mean: Tensor, inputs: UnitMap, taps: int) -> Tensor:
        """The head's start where a source leads: the leader's weights on merged units, which do what its own do.

        On all others the mean of the sources' heads, which is the ensemble where no unit is merged.
        """
        start, merged = mean.clone(), (inputs.present.sum(1) > 1).repeat_interleave(taps).to(mean.device)
        start[:, : len(merged)][:, merged] = leader[:, : len(merged)][:, merged]
        return start

    def _solve(self, task: LayerTask) -> LayerFit:
        """Solve for one layer, on as many samples as it needs."""
        plain = task.layer.blocks == 1
        if self.excess is not None and plain:
            task = choose_subsample(task, self.ridge, self.excess)
        fit = solve_layer(task, self.ridge, self.rounds, by_domain=True)
        fit = replace(fit, pictures=len(task.activations.batches) / max(1, len(self.activations.batches)))
        logits = plain and task.layer.outputs == self.spec.output.name and task.layer.positions == 1
        return self._fit_heads(task, fit) if self.divergence and logits else fit

    def _fit_heads(self, task: LayerTask, fit: LayerFit) -> LayerFit:
        """Fit each head of the layer that writes the logits to the classes that its sources see."""
        matrix = fit.matrix.clone()
        for rows in {(rows.start, rows.stop): rows for heads in self.heads for rows in heads}.values():
            domains = [rows in heads for heads in self.heads]
            counted = [gram.samples for gram, asks in zip(task.grams, domains, strict=True) if asks and gram.weight]
            if not sum(counted):
                continue  # no domain asks anything of this head
            seen = seen_weights(task.layer, task.outputs, task.inputs)[rows.start].to(task.start.device)
            matrix[rows.start : rows.stop, seen] = fit_head(
                task.start[rows][:, seen],
                task.head_views(rows, domains),
                damping=damping(self.ridge, int(seen.sum()), sum(counted)),
                constant=task.layer.bias,
                world=self.activations.world,
            )
        return replace(fit, matrix=matrix)

    def _write(self, layer: Layer, context: LayerContext, fit: LayerFit) -> None:
        """Put the weights into the student; a constant goes into the norm behind it, once that is reached."""
        if context.norm is None:
            self.student.load_layer(layer.name, fit.matrix)
            return
        weight, constant = fit.matrix[:, :-1], fit.matrix[:, -1]
        load_matrix(self.graph.get_submodule(layer.name), weight, torch.zeros_like(constant) if layer.bias else None)
        self.constants[context.norm] = constant

    def _fit_norm(self, node: fx.Node) -> None:
        """Give a norm the statistics of what it reads, and fit its scale and shift where no fitted layer has done so.

        Behind a fitted layer it only adds the layer's constant.
        """
        name = str(node.target)
        norm = self.graph.get_submodule(name)
        if not is_norm(self.graph, node) or not isinstance(norm, NORMS):
            return
        units = self.student.maps[next(norm.group for norm in self.spec.norms if norm.name == name)]
        if name in self.constants:
            add_constant(norm, node, units, self.activations, self.constants[name])
        else:
            fit_norm(norm, node, units, self.activations)


def _single(units: UnitMap) -> bool:
    """Whether every unit stands for one unit of one source."""
    return bool((units.present.sum(1) == 1).all())
