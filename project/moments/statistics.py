"""What calibration leaves behind: joint second moments of every layer's inputs and of every unit, per domain."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from project.errors import MergeError
from project.moments.layer import LayerMoment, layer_moment
from project.moments.lockstep import Lockstep
from project.moments.moment import Moment, SecondMoment
from project.moments.patches import unit_columns
from project.symmetry import Layer, Spec

M = TypeVar("M", bound=SecondMoment)
K = TypeVar("K", str, tuple[int, str])
LAYERS, UNITS, PICTURES, INPUTS = "layers", "units", "pictures", "inputs"


class Statistics:
    """Joint second moments of N sources, per domain.

    Attributes:
        layers: layer -> domain -> moment of (z¹; …; z^N; 1): the layer's inputs in all sources (DESIGN §4).
        inputs: layer -> (source, domain) -> moment of z^s alone, on the domains that the source is looked at.
        units: value of the graph -> domain -> moment of (a¹; …; a^N; 1): its units in all sources.
        pictures: domain -> number of pictures seen.
    """

    def __init__(self) -> None:
        self.layers: dict[str, dict[str, LayerMoment]] = {}
        self.inputs: dict[str, dict[tuple[int, str], LayerMoment]] = {}
        self.units: dict[str, dict[str, Moment]] = {}
        self.pictures: dict[str, int] = {}

    def layer(self, name: str) -> LayerMoment:
        """Moment of a layer's inputs over all domains."""
        return _sum(self.layers, name)

    def unit(self, node: str) -> Moment:
        """Moment of a value's units over all domains."""
        return _sum(self.units, node)

    @property
    def tables(self) -> dict[str, dict[str, dict[Any, SecondMoment]]]:
        """All moments by kind, name, and domain or (source, domain)."""
        return cast(
            dict[str, dict[str, dict[Any, SecondMoment]]],
            {LAYERS: self.layers, INPUTS: self.inputs, UNITS: self.units},
        )

    def named(self) -> dict[str, SecondMoment]:
        """All moments by :func:`entry_name`, in an order that is the same in every process."""
        return {
            entry_name(kind, name, key): table[name][key]
            for kind, table in self.tables.items()
            for name in sorted(table)
            for key in sorted(table[name])
        }

    def moments(self) -> Iterable[SecondMoment]:
        """All moments, in an order that is the same in every process."""
        return self.named().values()

    def add(self, other: "Statistics") -> None:
        """Add statistics of the same sources on other pictures, such as another shard's, in place.

        Moments of what only the other has seen come along as copies.
        """
        for kind, table in other.tables.items():
            mine = self.tables[kind]
            for name, moments in table.items():
                for key, moment in moments.items():
                    if key in mine.setdefault(name, {}):
                        mine[name][key].add(moment)
                    else:
                        mine[name][key] = moment.clone()
        for domain, count in other.pictures.items():
            self.pictures[domain] = self.pictures.get(domain, 0) + count

    def reduce(self, all_reduce: Callable[[Tensor], object]) -> None:
        """Sum over processes, in place and without copies.

        Args:
            all_reduce: Sums a tensor over all processes in place.
        """
        device: torch.device | str = "cpu"
        for moment in self.moments():
            moment.reduce(all_reduce)
            device = moment.device
        for domain in sorted(self.pictures):
            seen = torch.tensor(self.pictures[domain], device=device)
            all_reduce(seen)
            self.pictures[domain] = int(seen)


def entry_name(kind: str, name: str, key: str | tuple[int, str]) -> str:
    """Name of one moment in files: its kind, its layer or value, and its domain or the source's number and domain."""
    return f"{kind}/{name}/{key if isinstance(key, str) else f'{key[0]} {key[1]}'}"


def own_domains(sources: int, domains: Sequence[str], owners: Mapping[str, int]) -> list[list[str]]:
    """For every source, the domains it owns; all of them where it owns none."""
    own = [[domain for domain in domains if owners.get(domain) == source] for source in range(sources)]
    return [mine or list(domains) for mine in own]


def _sum(table: Mapping[str, Mapping[str, M]], name: str) -> M:
    if name not in table or not table[name]:
        raise MergeError(f"statistics hold nothing for {name!r}; gather them on this architecture first.")
    first, *others = table[name].values()
    total = first.clone()
    for moment in others:
        total.add(moment)
    return total


class Collector:
    """A tap that adds every value of a lockstep run to statistics.

    Args:
        spec: Groups and layers of the sources.
        sources: The sources in lockstep.
        needs: Which kinds of moments to gather: ``layers``, ``inputs``, ``units``.
        domains: Names of the domains; every process must be given the same.
        owners: For ``inputs``, domain -> index of the source that is looked at there; sources that own none are looked
            at on all domains.
        only: Names of the moments to gather, see :func:`entry_name`; default: all.
        device: Where the moments live; default: where the sources are. ``meta`` for their shapes alone.
    """

    def __init__(
        self,
        spec: Spec,
        sources: Lockstep,
        needs: Collection[str],
        domains: Collection[str],
        owners: Mapping[str, int] | None = None,
        only: Collection[str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.only = only
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
        device = next(sources.parameters()).device if device is None else device
        for layer in self.layers.values():
            module, sizes = self._inputs(layer)
            self.statistics.layers[layer.name] = {
                domain: layer_moment(module, sum(sizes), layer.sides, constant=layer.bias, device=device)
                for domain in self._chosen(LAYERS, layer.name, self.domains)
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
                for s, domain in self._chosen(INPUTS, layer.name, own)
            }
        for node, size in self._unit_sizes(spec).items():
            chosen = self._chosen(UNITS, node, self.domains)
            self.statistics.units[node] = {domain: Moment(size, device) for domain in chosen}

    @torch.no_grad()
    def gather(self, domain: str, pictures: Tensor) -> list[Tensor]:
        """Run the sources on pictures of one domain and add what they do to the statistics."""
        self.domain = domain
        self.sources.taps.append(self)
        try:
            logits = self.sources(pictures)
        finally:
            self.sources.taps.remove(self)
        self.statistics.pictures[domain] += pictures.shape[0]
        return list(logits)

    def __call__(self, node: fx.Node, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Add one value; called by the lockstep."""
        if node.name in self.layers:
            wanted = self.statistics.layers[self.layers[node.name].name].get(self.domain)
            if wanted is not None:
                wanted.read(inputs)
        if node.name in self.readers:
            layer = self.readers[node.name]
            for (source, domain), moment in self.statistics.inputs[layer.name].items():
                if domain == self.domain:
                    moment.read([inputs[source]])
        if node.name in self.units:
            units = self.statistics.units[node.name].get(self.domain)
            if units is not None:
                units.update(unit_columns(outputs, self.dims[node.name]))

    def _chosen(self, kind: str, name: str, keys: Iterable[K]) -> list[K]:
        """The domains, or sources and domains, for which a moment is to be gathered."""
        return [key for key in keys if self.only is None or entry_name(kind, name, key) in self.only]

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
