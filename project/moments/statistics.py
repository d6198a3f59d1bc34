"""What calibration leaves behind: joint second moments of every layer's inputs and of every unit, per domain."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast, get_args

import torch
from torch import Tensor, fx, nn

from project.errors import MergeError
from project.moments.blocks import VectorMoment, block_moment
from project.moments.derived import ReadByLayer, Rule, affine_norms, rules
from project.moments.fisher import (
    DIAGONAL,
    FACTORS,
    Classes,
    FisherCollector,
    SquareMoment,
    fisher_kinds,
    fisher_need,
)
from project.moments.layer import InputMoment, LayerMoment, input_moment, layer_moment
from project.moments.lockstep import Lockstep
from project.moments.moment import Moment, Sums
from project.moments.patches import unit_columns, unit_sums
from project.runtime import Reduce
from project.symmetry import Layer, Spec

M = TypeVar("M", bound=Sums)
K = TypeVar("K", str, tuple[int, str])
LAYERS, UNITS, PICTURES, INPUTS = "layers", "units", "pictures", "inputs"


class Statistics:
    """Joint second moments of N sources, per domain.

    Attributes:
        layers: layer -> domain -> moment of (z¹; …; z^N; 1): the layer's inputs in all sources.
        inputs: layer -> (source, domain) -> moment of z^s alone, on the domains that the source is looked at; of a
            grouped convolution, and below in ``factors``, block by block.
        units: value of the graph -> domain -> moment of (a¹; …; a^N; 1): its units in all sources.
        squares: kind of classes -> parameter -> (source, domain) -> moment of its gradients there, entry by entry.
        factors: kind of classes -> layer -> (source, domain) -> moment of the gradients of the layer's output there.
        pictures: domain -> number of pictures seen.
    """

    def __init__(self) -> None:
        self.layers: dict[str, dict[str, LayerMoment]] = {}
        self.inputs: dict[str, dict[tuple[int, str], InputMoment]] = {}
        self.units: dict[str, dict[str, Moment]] = {}
        self.squares: dict[Classes, dict[str, dict[tuple[int, str], SquareMoment]]] = {c: {} for c in get_args(Classes)}
        self.factors: dict[Classes, dict[str, dict[tuple[int, str], VectorMoment]]] = {c: {} for c in get_args(Classes)}
        self.pictures: dict[str, int] = {}

    def layer(self, name: str) -> LayerMoment:
        """Moment of a layer's inputs over all domains."""
        return _sum(self.layers.get(name, {}).values(), name)

    def unit(self, node: str) -> Moment:
        """Moment of a value's units over all domains."""
        return _sum(self.units.get(node, {}).values(), node)

    def input(self, name: str, source: int) -> Tensor:
        """E[z zᵀ] of what a source reads in a layer, over all its domains.

        Returns:
            Float64, shape (inputs · taps, inputs · taps); of a grouped convolution (blocks, those of a block twice).
        """
        return _of_source(self.inputs.get(name, {}), source, name)

    def square(self, name: str, source: int, classes: Classes) -> Tensor:
        """Mean square of a parameter's gradient in a source, over all its domains: float64, in its shape."""
        return _of_source(self.squares[classes].get(name, {}), source, name)

    def factor(self, name: str, source: int, classes: Classes) -> Tensor:
        """E[g gᵀ] of the gradients of a layer's output, over all a source's domains.

        Returns:
            Float64, shape (outputs, outputs); of a grouped convolution (blocks, those of a block twice).
        """
        return _of_source(self.factors[classes].get(name, {}), source, name)

    @property
    def tables(self) -> dict[str, dict[str, dict[Any, Sums]]]:
        """All moments by kind, name, and domain or (source, domain)."""
        squares = {fisher_need(DIAGONAL, classes): table for classes, table in self.squares.items()}
        factors = {fisher_need(FACTORS, classes): table for classes, table in self.factors.items()}
        return cast(
            dict[str, dict[str, dict[Any, Sums]]],
            {LAYERS: self.layers, INPUTS: self.inputs, UNITS: self.units, **squares, **factors},
        )

    def named(self) -> dict[str, Sums]:
        """All moments by :func:`entry_name`, in an order that is the same in every process."""
        return {
            entry_name(kind, name, key): table[name][key]
            for kind, table in self.tables.items()
            for name in sorted(table)
            for key in sorted(table[name])
        }

    def moments(self) -> Iterable[Sums]:
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

    def reduce(self, all_reduce: Reduce) -> None:
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


def domain_of(entry: str) -> str:
    """The domain of a moment, from the name that :func:`entry_name` gives it."""
    kind, _, rest = entry.partition("/")
    key = rest.rpartition("/")[2]
    return key if kind in (LAYERS, UNITS) else key.partition(" ")[2]


def check_finite(statistics: Statistics) -> None:
    """Refuse sums that are not finite: no student follows from them.

    Raises:
        MergeError: With the layer or value and the domain.
    """
    for name, moment in statistics.named().items():
        for total in moment.totals:
            if total.numel() and not all(map(math.isfinite, map(float, torch.aminmax(total)))):
                kind, _, rest = name.partition("/")
                raise MergeError(
                    f"what the sources do on the calibration pictures of {domain_of(name)} is not finite in "
                    f"{rest.rpartition('/')[0]!r} ({kind}): values there are too large to be squared in float32."
                )


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


def _of_source(table: Mapping[tuple[int, str], M], source: int, name: str) -> Tensor:
    """The mean over all domains of one source."""
    return _sum((moment for (one, _), moment in table.items() if one == source), name).mean()


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
        only: Names of the moments to gather, see :func:`entry_name`; default: all.
        device: Where the moments live; default: where the sources are. ``meta`` for their shapes alone.

    Attributes:
        held: The statistics without what follows from them by :mod:`~project.moments.derived`, as they are: samples
            that wait to be added go on waiting.
    """

    def __init__(
        self,
        spec: Spec,
        sources: Lockstep,
        needs: Collection[str],
        domains: Collection[str],
        owners: Mapping[str, int] | None = None,
        columns: Mapping[str, slice] | None = None,
        only: Collection[str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.only = only
        self.held = Statistics()
        self.sources = sources
        self.domain, self._rules = "", dict[tuple[str, str], Rule]()
        # Which blocks of the sources go together nobody knows yet, so that grouped layers have no joint moments.
        self.layers = {layer.node: layer for layer in spec.layers if layer.blocks == 1} if LAYERS in needs else {}
        self.readers = {layer.node: layer for layer in spec.layers} if INPUTS in needs else {}
        wanted = (node for group in spec.groups.values() if group.fixed != "input" for node in group.nodes)
        self.dims = spec.dims
        self.units = set(wanted) if UNITS in needs else set()
        self.domains = tuple(domains)
        self.held.pictures = dict.fromkeys(self.domains, 0)
        # All of them now, so that processes that see nothing of a domain still take part in its sum.
        device = next(sources.parameters()).device if device is None else torch.device(device)
        for layer in self.layers.values():
            module, sizes = self._inputs(layer)
            self.held.layers[layer.name] = {
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
            self.held.inputs[layer.name] = {
                (s, domain): input_moment(module, sizes[s], layer.sides, constant=False, device=device)
                for s, domain in self._chosen(INPUTS, layer.name, own)
            }
        self.fisher = [
            self._gradients(classes, wanted, spec.layers, own, columns or {}, device)
            for classes, wanted in fisher_kinds(needs).items()
        ]
        for node, size in self._unit_sizes(spec).items():
            chosen = self._chosen(UNITS, node, self.domains)
            self.held.units[node] = {domain: Moment(size, device) for domain in chosen}
        if device.type != "meta":
            graph = cast(fx.GraphModule, sources.graphs[0])
            affine = affine_norms(graph, sources.networks) if self.units else {}
            for domain in self.domains:
                units = {node: table[domain] for node, table in self.held.units.items() if domain in table}
                layers = {
                    node: self.held.layers[layer.name][domain]
                    for node, layer in self.layers.items()
                    if domain in self.held.layers[layer.name]
                }
                self._rules |= {(node, domain): rule for node, rule in rules(graph, affine, units, layers)}

    @property
    def statistics(self) -> Statistics:
        """What was gathered so far, with what follows from it; samples that waited are added for it."""
        for (node, domain), rule in self._rules.items():
            rule.settle(self.held.units[node][domain])
        return self.held

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
        self.held.pictures[domain] += pictures.shape[0]
        return list(logits)

    def __call__(self, node: fx.Node, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Add one value; called by the lockstep."""
        if node.name in self.layers:
            wanted = self.held.layers[self.layers[node.name].name].get(self.domain)
            if wanted is not None:
                wanted.read(inputs)
        if node.name in self.readers:
            layer = self.readers[node.name]
            for (source, domain), moment in self.held.inputs[layer.name].items():
                if domain == self.domain:
                    moment.read([inputs[source]])
        if node.name in self.units:
            units, dim = self.held.units[node.name].get(self.domain), self.dims[node.name]
            rule = self._rules.get((node.name, self.domain))
            if units is not None and rule is None:
                units.update(unit_columns(outputs, dim))
            elif units is not None and isinstance(rule, ReadByLayer):
                units.add_sums(unit_sums(outputs, dim), outputs[0].numel() // outputs[0].shape[dim])

    def _gradients(
        self,
        classes: Classes,
        wanted: Collection[str],
        layers: Sequence[Layer],
        own: Sequence[tuple[int, str]],
        columns: Mapping[str, slice],
        device: torch.device | str,
    ) -> FisherCollector:
        """What gathers the gradients of one kind of classes, and the moments that it adds to."""
        squares, factors = self.held.squares[classes], self.held.factors[classes]
        networks = self.sources.networks
        for name in dict(networks[0].named_parameters()) if DIAGONAL in wanted else ():
            chosen = self._chosen(fisher_need(DIAGONAL, classes), name, own)
            squares[name] = {key: SquareMoment(networks[key[0]].get_parameter(name).shape, device) for key in chosen}
        for layer in layers if FACTORS in wanted else ():
            outputs = [len(weight) for weight in self._weights(layer)]
            chosen = self._chosen(fisher_need(FACTORS, classes), layer.name, own)
            factors[layer.name] = {key: block_moment(layer.blocks, outputs[key[0]], device) for key in chosen}
        return FisherCollector(classes, networks, columns, squares, factors)

    def _chosen(self, kind: str, name: str, keys: Iterable[K]) -> list[K]:
        """The domains, or sources and domains, for which a moment is to be gathered."""
        return [key for key in keys if self.only is None or entry_name(kind, name, key) in self.only]

    def _unit_sizes(self, spec: Spec) -> dict[str, int]:
        """Length of the joint vector of each wanted value; heads may differ between sources."""
        joint = {name: group.size * len(self.sources.graphs) + 1 for name, group in spec.groups.items()}
        joint[spec.output.name] = sum(len(weight) for weight in self._weights(spec.head)) + 1
        return {node: joint[name] for name, group in spec.groups.items() for node in group.nodes if node in self.units}

    def _inputs(self, layer: Layer) -> tuple[nn.Module, list[int]]:
        """A layer, and how many inputs each of its outputs reads in every source."""
        return self.sources.layers(layer.name)[0], [weight.shape[1] for weight in self._weights(layer)]

    def _weights(self, layer: Layer) -> list[Tensor]:
        return [cast(Tensor, module.weight) for module in self.sources.layers(layer.name)]
