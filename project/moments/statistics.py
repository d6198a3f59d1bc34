"""What calibration leaves behind: joint second moments of every layer's inputs and of every unit, per domain."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from project.errors import MergeError
from project.moments.fisher import Classes, FisherCollector, FisherMoment, fisher_kinds
from project.moments.layer import LayerMoment, layer_moment
from project.moments.lockstep import Lockstep
from project.moments.moment import Moment, SecondMoment
from project.moments.patches import unit_columns
from project.symmetry import Layer, Spec

M = TypeVar("M", bound=SecondMoment)
LAYERS, UNITS, PICTURES, INPUTS = "layers", "units", "pictures", "inputs"


class Statistics:
    """Joint second moments of N sources, per domain.

    Attributes:
        layers: layer -> domain -> moment of (z¹; …; z^N; 1): the layer's inputs in all sources (DESIGN §4).
        inputs: layer -> (source, domain) -> moment of z^s alone, on the domains that the source is looked at.
        units: value of the graph -> domain -> moment of (a¹; …; a^N; 1): its units in all sources.
        fisher: kind of classes -> (source, domain) -> moments of the source's gradients there.
        pictures: domain -> number of pictures seen.
    """

    def __init__(self) -> None:
        self.fisher: dict[Classes, dict[tuple[int, str], FisherMoment]] = {}
        self.layers: dict[str, dict[str, LayerMoment]] = {}
        self.inputs: dict[str, dict[tuple[int, str], LayerMoment]] = {}
        self.units: dict[str, dict[str, Moment]] = {}
        self.pictures: dict[str, int] = {}

    def layer(self, name: str) -> LayerMoment:
        """Moment of a layer's inputs over all domains."""
        return _sum(self.layers.get(name, {}).values(), name)

    def unit(self, node: str) -> Moment:
        """Moment of a value's units over all domains."""
        return _sum(self.units.get(node, {}).values(), node)

    def input(self, name: str, source: int) -> Tensor:
        """E[z zᵀ] of what a source reads in a layer, over all its domains: float64, shape (inputs · taps,) twice."""
        return _sum((moment for (one, _), moment in self.inputs.get(name, {}).items() if one == source), name).mean()

    def gradients(self, source: int, classes: Classes) -> FisherMoment:
        """Moments of a source's gradients over all its domains."""
        own = [moment for (index, _), moment in self.fisher.get(classes, {}).items() if index == source]
        if not own:
            raise MergeError(f"statistics hold no gradients of {classes!r} classes; gather them first.")
        total = deepcopy(own[0])
        for moment in own[1:]:
            total.add(moment)
        return total

    def moments(self) -> Iterable[SecondMoment]:
        """All moments, in an order that is the same in every process."""
        tables: tuple[Mapping[str, Mapping[Any, SecondMoment]], ...] = (self.layers, self.inputs, self.units)
        for table in tables:
            for name in sorted(table):
                for key in sorted(table[name]):
                    yield table[name][key]

    def reduce(self, all_reduce: Callable[[Tensor], object]) -> None:
        """Sum over processes, in place and without copies.

        Args:
            all_reduce: Sums a tensor over all processes in place.
        """
        for moment in self.moments():
            moment.reduce(all_reduce)
        for kind in sorted(self.fisher):
            for key in sorted(self.fisher[kind]):
                self.fisher[kind][key].reduce(all_reduce)
        device = next((moment.device for moment in self.moments()), "cpu")
        for domain in sorted(self.pictures):
            seen = torch.tensor(self.pictures[domain], device=device)
            all_reduce(seen)
            self.pictures[domain] = int(seen)


def own_domains(sources: int, domains: Sequence[str], owners: Mapping[str, int]) -> list[list[str]]:
    """For every source, the domains it owns; all of them where it owns none."""
    own = [[domain for domain in domains if owners.get(domain) == source] for source in range(sources)]
    return [mine or list(domains) for mine in own]


def _sum(moments: Iterable[M], name: str) -> M:
    parts = list(moments)
    if not parts:
        raise MergeError(f"statistics hold nothing for {name!r}; gather them on this architecture first.")
    total = parts[0].clone()
    for moment in parts[1:]:
        total.add(moment)
    return total


class Collector:
    """A tap that adds every value of a lockstep run to statistics.

    Args:
        spec: Groups and layers of the sources.
        sources: The sources in lockstep.
        needs: Which kinds of moments to gather: ``layers``, ``inputs``, ``units``, and those of
            :func:`~project.moments.fisher.fisher_need`.
        domains: Names of the domains; every process must be given the same.
        owners: For ``inputs`` and gradients, domain -> index of the source that is looked at there; sources that own
            none are looked at on all domains.
        columns: For gradients, domain -> columns of its owner's logits that are its head; default: all of them.
    """

    def __init__(
        self,
        spec: Spec,
        sources: Lockstep,
        needs: Collection[str],
        domains: Collection[str],
        owners: Mapping[str, int] | None = None,
        columns: Mapping[str, slice] | None = None,
    ) -> None:
        self.statistics = Statistics()
        self.sources = sources
        self.domain = ""
        matrices = [layer for layer in spec.layers if layer.blocks == 1]
        self.layers = {layer.node: layer for layer in matrices} if LAYERS in needs else {}
        self.readers = {layer.node: layer for layer in matrices} if INPUTS in needs else {}
        wanted = (node for group in spec.groups.values() if group.fixed != "input" for node in group.nodes)
        self.dims = spec.dims
        self.units = set(wanted) if UNITS in needs else set()
        self.domains = tuple(domains)
        self.statistics.pictures = dict.fromkeys(self.domains, 0)
        # All of them now, so that processes that see nothing of a domain still take part in its sum.
        device = next(sources.parameters()).device
        for layer in self.layers.values():
            module, sizes = self._inputs(layer)
            self.statistics.layers[layer.name] = {
                domain: layer_moment(module, sum(sizes), layer.sides, constant=layer.bias, device=device)
                for domain in self.domains
            }
        own = [
            (source, domain)
            for source, looked_at in enumerate(own_domains(len(sources.graphs), self.domains, owners or {}))
            for domain in looked_at
        ]
        for layer in self.readers.values():
            module, sizes = self._inputs(layer)
            self.statistics.inputs[layer.name] = {
                (s, domain): layer_moment(module, sizes[s], layer.sides, constant=False, device=device)
                for s, domain in own
            }
        self.fisher = [
            FisherCollector(classes, sources.networks, matrices, own, wanted, columns or {})
            for classes, wanted in fisher_kinds(needs).items()
        ]
        self.statistics.fisher = {one.classes: one.moments for one in self.fisher}
        for node, size in self._unit_sizes(spec).items():
            self.statistics.units[node] = {domain: Moment(size, device) for domain in self.domains}

    @torch.no_grad()
    def gather(self, domain: str, pictures: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """Run the sources on pictures of one domain and add what they do to the statistics.

        Args:
            domain: Its name.
            pictures: Shape (batch, channels, height, width).
            labels: Classes among the domain's own, shape (batch,); only gradients of ``labels`` look at them.
        """
        self.domain = domain
        self.sources.taps.append(self)
        try:
            logits = self.sources(pictures)
        finally:
            self.sources.taps.remove(self)
        for one in self.fisher:
            one.gather(domain, pictures, labels)
        self.statistics.pictures[domain] += pictures.shape[0]
        return list(logits)

    def __call__(self, node: fx.Node, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Add one value; called by the lockstep."""
        if node.name in self.layers:
            layer = self.layers[node.name]
            moment = self.statistics.layers[layer.name][self.domain]
            moment.read(inputs)
        if node.name in self.readers:
            layer = self.readers[node.name]
            for (source, domain), moment in self.statistics.inputs[layer.name].items():
                if domain == self.domain:
                    moment.read([inputs[source]])
        if node.name in self.units:
            self.statistics.units[node.name][self.domain].update(unit_columns(outputs, self.dims[node.name]))

    def _unit_sizes(self, spec: Spec) -> dict[str, int]:
        """Length of the joint vector of each wanted value; heads may differ between sources."""
        joint = {name: group.size * len(self.sources.graphs) + 1 for name, group in spec.groups.items()}
        joint[spec.output.name] = sum(len(weight) for weight in self._weights(spec.head)) + 1
        return {node: joint[name] for name, group in spec.groups.items() for node in group.nodes if node in self.units}

    def _inputs(self, layer: Layer) -> tuple[nn.Module, list[int]]:
        """A layer, and the width of its input axis in every source."""
        return self.sources.layers(layer.name)[0], [weight.shape[1] for weight in self._weights(layer)]

    def _weights(self, layer: Layer) -> list[Tensor]:
        return [cast(Tensor, module.weight) for module in self.sources.layers(layer.name)]
