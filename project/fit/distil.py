"""Distillation: a student is asked to do, on every picture, what the source that owns the picture's domain does.

No label is read. Compared are the values that layers read (features), group by group through the unit maps, and the
logits (Hinton et al., arXiv 1503.02531). Targets are those of the sequential fit: a student unit that holds a unit of
the owner follows that unit; one that does not is left free on the domain's pictures; without an owner, the mean of all
sources is followed. With all sources side by side the features have nothing left to learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import kl_div

from project.alignment import UnitMap
from project.errors import ConfigurationError, above, at_least
from project.moments import ForwardPass
from project.student.build import Student
from project.student.graph import student_graph
from project.symmetry import graph_of


@dataclass(frozen=True)
class DistillationLoss:
    """How far a student is from its sources on a batch.

    Args:
        total: The weighted sum, a scalar to be minimised.
        features: group -> Σ(student − target)² / Σ target² over its values that layers read, mean over the domains.
        logits: T² · KL(target ‖ student) of the class probabilities at temperature T, mean over the domains.
        outputs: domain -> the student's logits, shape (batch, classes of the domain).
    """

    total: Tensor
    features: Mapping[str, Tensor]
    logits: Tensor
    outputs: Mapping[str, Tensor]


class Distillation:
    """Compares a student with its sources on unlabelled pictures.

    Gradients reach the student's own parameters. All domains of a batch pass through it together, so that norms in
    training mode see their mixture; which mode they are in is left to the caller. As in::

        distillation = Distillation(student, sources, owners)
        for batch in batches:  # domain -> pictures
            optimizer.zero_grad()
            distillation(batch).total.backward()
            optimizer.step()

    Args:
        student: The student, of any budget.
        sources: Its sources in the order of its unit maps, in eval mode; left bit-identical.
        owners: domain -> index of its source.
        features: Weight of the features: of the mean over the groups.
        logits: Weight of the logits.
        temperature: What logits are divided by before they become probabilities.

    Raises:
        ConfigurationError: If a weight or the temperature is not allowed, the number of sources is another, or features
            are asked of a student that was zipped.
    """

    def __init__(
        self,
        student: Student,
        sources: Sequence[nn.Module],
        owners: Mapping[str, int],
        *,
        features: float = 1.0,
        logits: float = 1.0,
        temperature: float = 2.0,
    ) -> None:
        check_loss_weights(features, logits, temperature)
        count = student.maps[student.spec.output.name].sources
        if len(sources) != count:
            raise ConfigurationError(f"sources holds {len(sources)} networks; the student was made of {count}.")
        if features and student.zipped:
            raise ConfigurationError(
                f"features is {features}, but units of the student stand for several of one source; allowed: 0."
            )
        self.student, self.owners = student, dict(owners)
        self.weights, self.temperature = (features, logits), temperature
        self.graph = student_graph(student.network)
        self.sources = [graph_of(source) for source in sources]
        nodes = {node.name: node for node in self.graph.graph.nodes}
        reads = {str(nodes[layer.node].args[0]): layer.inputs for layer in student.spec.layers}
        self.read = {name: group for name, group in reads.items() if group != student.spec.input.name}
        layers = {str(nodes[layer.node].args[0]): sources[0].get_submodule(layer.name) for layer in student.spec.layers}
        self.last = {name for name, layer in layers.items() if isinstance(layer, nn.Linear)}

    def to(self, device: torch.device) -> None:
        """Bring the sources to a device; the student is where its owner put it."""
        for source in self.sources:
            source.to(device)

    def __call__(self, batch: Mapping[str, Tensor]) -> DistillationLoss:
        """Compare the student with its sources on a batch.

        Args:
            batch: domain -> pictures, float32, shape (batch, channels, height, width); one domain or more.
        """
        sizes = [len(pictures) for pictures in batch.values()]
        run = ForwardPass(self.graph, torch.cat(list(batch.values())))
        guides = [_Guide(self, domain, pictures) for domain, pictures in batch.items()]
        sums: dict[str, Tensor] = {}  # group -> (domains, 2): squared errors and squared targets
        for node in self.graph.graph.nodes:
            value = run.step(node)
            for guide in guides:
                guide.step(node)
            if node.op == "output":
                break
            group = self.read.get(node.name)
            if group is not None:
                parts = zip(guides, torch.split_with_sizes(value, sizes), strict=True)
                last = node.name in self.last
                squares = torch.stack([guide.squares(group, part, last=last) for guide, part in parts])
                sums[group] = sums[group] + squares if group in sums else squares
            run.release(node)
            for guide in guides:
                guide.release(node)
        features = {group: (s[:, 0] / s[:, 1].clamp_min(1e-12)).mean() for group, s in sums.items()}
        parts = zip(guides, torch.split_with_sizes(value, sizes), strict=True)
        outputs = {guide.domain: part[:, guide.columns] for guide, part in parts}
        logits = torch.stack([guide.divergence(outputs[guide.domain]) for guide in guides]).mean()
        total = self.weights[1] * logits
        if features:
            total = total + self.weights[0] * torch.stack(list(features.values())).mean()
        return DistillationLoss(total, features, logits, outputs)


class _Guide:
    """What the sources that a domain's pictures ask for do on a batch of them."""

    def __init__(self, parent: Distillation, domain: str, pictures: Tensor) -> None:
        self.domain, self.student, self.temperature = domain, parent.student, parent.temperature
        self.owner = parent.owners.get(domain)
        self.columns = self.student.labels.columns(domain)
        needed = range(len(parent.sources)) if self.owner is None else (self.owner,)
        self.runs = {source: ForwardPass(parent.sources[source], pictures) for source in needed}
        self.values: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, node: fx.Node) -> None:
        """Let the sources compute their values of this name."""
        self.values = {source: run.step(run.nodes[node.name]) for source, run in self.runs.items()}

    def release(self, node: fx.Node) -> None:
        """Forget what the sources do not read again."""
        for run in self.runs.values():
            run.release(run.nodes[node.name])

    def squares(self, group: str, value: Tensor, *, last: bool) -> Tensor:
        """Sums of squares of the error and of the target, over the units that follow: shape (2,).

        Args:
            group: Group, or join of groups.
            value: The student's value.
            last: Whether its units stand on the last axis, not on axis 1.
        """
        units = self.student.maps[group]
        rows = units.present.any(1) if self.owner is None else units.present[:, self.owner]
        value = (value.movedim(-1, 1) if last else value).reshape(len(value), units.units, -1)
        target = self._target(units, last=last)
        if not bool(rows.all()):
            rows = rows.to(value.device)
            value, target = value[:, rows], target[:, rows]
        return torch.stack([(value.float() - target).square().sum(), target.square().sum()])

    def divergence(self, logits: Tensor) -> Tensor:
        """T² · KL(target ‖ student) over the domain's classes, mean over pictures."""
        units = self.student.maps[self.student.spec.output.name]
        target = self._target(units)[:, self.columns].flatten(1) / self.temperature
        logits = logits.float() / self.temperature
        divergence = kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence

    @torch.no_grad()
    def _target(self, units: UnitMap, *, last: bool = False) -> Tensor:
        """What the student's units should do: as the owner's, or the mean of all; shape (batch, units, positions)."""
        values = (
            (
                source,
                (value.movedim(-1, 1) if last else value).reshape(len(value), units.sizes[source], -1).float(),
            )
            for source, value in self.values.items()
        )
        return units.blend(values, units.shares(self.owner), axis=1)


def check_loss_weights(features: float, logits: float, temperature: float) -> None:
    """Refuse weights that leave nothing to learn, and temperatures that are none.

    Raises:
        ConfigurationError: With the value and what is allowed.
    """
    at_least(0, features=features, logits=logits)
    above(0, temperature=temperature)
    if features == logits == 0:
        raise ConfigurationError("features and logits are both 0, which leaves nothing to learn.")
