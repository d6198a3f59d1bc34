"""What keeping matched units apart is worth: the share of the logits' variance that merging them would spoil.

Three factors, all from what calibration leaves behind and from the sources' weights:

- the **error** a merged unit is left with. One unit cannot compute two functions: with wₛ the weights before it in
  source s (aligned, the norm behind them brought in), Gₛ the second moment of what it reads there on the source's own
  domains, and w what the merged unit will have, it is Σₛ (w − wₛ)ᵀ Gₛ (w − wₛ). A fit that lets merged units follow the
  source that owns a picture chooses the w for which this is least; without one, w is the mean. Inputs are taken as
  right, so that every layer answers for its own errors alone. Early layers read few inputs and cannot tell domains
  apart by them; late ones can, and are left with little.
- the unit's **share** of what the layers that read its group receive: its variance times the squared norm of their
  weights on it.
- the **reach** of the value it is part of. An error's size relative to its value is carried through layers, norms and
  rectifiers unchanged, which holds for random weights; where values are added, by the addend's share of the variance.
  From the logits back, this gives the part of their variance that descends from a value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from project.alignment import UnitMap
from project.allocation import why_not_larger
from project.errors import MergeError
from project.fit.folding import fold_norm, scale_and_shift
from project.fit.neighbours import context_of
from project.fit.normal_equations import damping
from project.moments import Moment, Statistics, exact_products, own_domains
from project.student.start import joint_matrix
from project.symmetry import Layer, Spec, graph_of

ASSUMED_RIDGE = 0.05  # the pull towards the mean that a fit of so many samples would have


def why_no_gains(spec: Spec) -> str | None:
    """Explain why gains of units are not known in an architecture; None where they are."""
    if spec.joins:
        return f"groups stand side by side on one axis ({next(iter(spec.joins))!r})"
    return why_not_larger(spec)


@torch.no_grad()
def separation_gains(
    spec: Spec,
    sources: Sequence[nn.Module],
    owners: Mapping[str, int],
    statistics: Statistics,
    maps: Mapping[str, UnitMap],
    *,
    fitted: bool,
) -> dict[str, Tensor]:
    """Estimate what keeping the sources of a row apart is worth, for every row of every group.

    Args:
        spec: Groups of the sources.
        sources: The sources.
        owners: domain -> index of its source; a source without a domain is looked at on all of them.
        statistics: With moments of units and of every source's own inputs.
        maps: Unit maps of the full merge.
        fitted: Whether merged units will follow, domain by domain, the source that owns the domain.

    Returns:
        group -> float64, shape (rows of its unit map,), 0 or more.
    """
    return _Gains(spec, sources, owners, statistics, maps, fitted).all()


class _Gains:
    """The statistics, looked at source by source in the numbering of the unit maps."""

    def __init__(
        self,
        spec: Spec,
        sources: Sequence[nn.Module],
        owners: Mapping[str, int],
        statistics: Statistics,
        maps: Mapping[str, UnitMap],
        fitted: bool,
    ) -> None:
        self.spec, self.sources, self.statistics, self.maps, self.fitted = spec, sources, statistics, maps, fitted
        self.domains = own_domains(len(sources), list(statistics.pictures), owners)
        graph = graph_of(sources[0])
        self.graph, self.nodes = graph, {node.name: node for node in graph.graph.nodes}
        self.groups = {node: group.name for group in spec.groups.values() for node in group.nodes}

    def all(self) -> dict[str, Tensor]:
        """Gains of all groups."""
        gains = {group.name: torch.zeros(self.maps[group.name].units, dtype=torch.float64) for group in self.spec.free}
        reach = self._reach()
        read = {group: self._read(group) for group in gains}
        for layer in self.spec.layers:
            if layer.outputs not in gains or layer.blocks > 1:
                continue
            written, error = self._errors(layer)
            share = read[layer.outputs] / read[layer.outputs].sum().clamp_min(1e-300)
            relative = (error / written.clamp_min(1e-300)).where(written > 0, 0.0)
            gains[layer.outputs] += reach[self._result(layer)] * share * relative
        return gains

    def _result(self, layer: Layer) -> str:
        """The value that a layer makes, its norm with it."""
        norm = self._norm(layer)
        users = self.nodes[layer.node].users
        return layer.node if norm is None else next(user.name for user in users if str(user.target) == norm)

    def _norm(self, layer: Layer) -> str | None:
        return context_of(self.graph, self.nodes[layer.node], set()).norm

    def _reach(self) -> dict[str, float]:
        """Value -> part of the logits' variance that descends from it."""
        reach = dict.fromkeys(self.nodes, 0.0)
        for node in reversed(list(self.nodes.values())):
            if node.op == "output":
                reach[node.all_input_nodes[0].name] = 1.0
                continue
            powers = [self._variance(other) for other in node.all_input_nodes]
            for other, power in zip(node.all_input_nodes, powers, strict=True):
                share = power / max(sum(powers), 1e-300) if len(powers) > 1 else 1.0
                reach[other.name] += share * reach[node.name]
        return reach

    def _variance(self, node: fx.Node) -> float:
        """Variance of a value, summed over its units, every source on its own domains."""
        if node.name not in self.statistics.units:
            return 0.0
        return sum(float(self._variances(node.name, source).sum()) for source in range(len(self.sources)))

    def _read(self, group: str) -> Tensor:
        """Share that each unit has of what the group's readers receive, averaged over the readers; shape (rows,)."""
        units, shares = self.maps[group], []
        readers = (layer for layer in self.spec.layers if layer.inputs == group and layer.blocks == 1)
        for layer in readers:
            received = torch.zeros(units.units, dtype=torch.float64)
            for source, weight in enumerate(self._weights(layer)):
                variance = self._variances(self._values(layer), source)
                received += weight.square().sum((0, 2)) * _aligned(variance, units, source)
            shares.append(received / received.sum().clamp_min(1e-300))
        return torch.stack(shares).mean(0)

    def _errors(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Σₛ wₛᵀ Gₛ wₛ and Σₛ (w − wₛ)ᵀ Gₛ (w − wₛ) of every row of a layer's output; the latter 0 for single units.

        With m the mean of the wₛ, w = m + d and Q = Σₛ (wₛ − m)ᵀ Gₛ, a fit with ridge λ has d (Σₛ Gₛ + λ I) = Q, and
        the error is Σₛ (wₛ − m)ᵀ Gₛ (wₛ − m) − Q d − λ dᵀ d: no products beyond those of the mean.
        """
        weights, inputs = [weight.flatten(1).float() for weight in self._weights(layer)], self._inputs(layer)
        written = self._written(layer)
        error = torch.zeros_like(written)
        for rows, sources in self.maps[layer.outputs].blocks:
            present = [source for source, is_present in enumerate(sources) if is_present]
            if len(present) == 1:
                continue
            mean = torch.stack([weights[source][rows] for source in present]).mean(0)
            gaps = [weights[source][rows] - mean for source in present]
            products = [inputs[source].times(gap) for source, gap in zip(present, gaps, strict=True)]
            own = [(gap * product).sum(1) for gap, product in zip(gaps, products, strict=True)]
            left = torch.stack(own).double().sum(0)
            if self.fitted:
                pull = torch.stack(products).sum(0).double()
                total = torch.zeros(pull.shape[1], pull.shape[1], dtype=torch.float64)
                for source in present:
                    inputs[source].add_to(total)
                share = damping(ASSUMED_RIDGE, len(total), sum(self._samples(layer, source) for source in present))
                ridge = share * float(total.diagonal().mean()) + 1e-300
                total.diagonal().add_(ridge)
                change = torch.cholesky_solve(pull.mT, torch.linalg.cholesky(total)).mT
                left = left - (change * (pull + ridge * change)).sum(1)
            error[rows] = left.clamp_min(0)
        return written, error

    def _written(self, layer: Layer) -> Tensor:
        """Σₛ wₛᵀ Gₛ wₛ of every row, which the moments of the layer's own output tell."""
        units, norm = self.maps[layer.outputs], self._norm(layer)
        written = torch.zeros(units.units, dtype=torch.float64)
        for index, source in enumerate(self.sources):
            module = source.get_submodule(layer.name)
            scale, _ = scale_and_shift(source, norm, module)
            variance, mean = self._variances(layer.node, index), self._mean(layer.node, index)
            bias = getattr(module, "bias", None)
            centre = mean if bias is None else mean - bias.double().cpu()
            written += _aligned(scale.cpu().square() * (variance + centre.square()), units, index)
        return written

    def _samples(self, layer: Layer, source: int) -> int:
        return sum(self.statistics.inputs[layer.name][source, domain].count for domain in self.domains[source])

    def _weights(self, layer: Layer) -> list[Tensor]:
        """A layer's weights in every source, aligned, the norm behind them brought in: (outputs, inputs, taps)."""
        modules, norm = [source.get_submodule(layer.name) for source in self.sources], self._norm(layer)
        result = []
        for index, (matrix, module) in enumerate(zip(joint_matrix(layer, modules), modules, strict=True)):
            scale, shift = scale_and_shift(self.sources[index], norm, module)
            weight = fold_norm(matrix, scale, shift, layer.bias)[:, :-1].cpu()
            weight = weight.reshape(len(weight), -1, layer.taps)
            weight = _aligned(weight, self.maps[layer.outputs], index)
            result.append(_aligned(weight.transpose(0, 1), self.maps[layer.inputs], index).transpose(0, 1))
        return result

    def _inputs(self, layer: Layer) -> list["_Inputs"]:
        """What every source's layer reads on the source's own domains."""
        if layer.name not in self.statistics.inputs:
            raise MergeError(f"gains need moments of what layer {layer.name!r} reads; gather inputs first.")
        inputs = []
        for source, domains in enumerate(self.domains):
            first, *others = (self.statistics.inputs[layer.name][source, domain] for domain in domains)
            gram = first.sum()
            for moment in others:
                gram.add_(moment.sum())
            gram = gram.div_(max(1, self._samples(layer, source))).float().cpu()
            inputs.append(_Inputs(gram, _places(self.maps[layer.inputs], source, layer.taps)))
        return inputs

    def _values(self, layer: Layer) -> str:
        """The value with known moments that a layer reads; what lies between only moves it about."""
        node = self.nodes[layer.node].all_input_nodes[0]
        while node.name not in self.statistics.units:
            node = node.all_input_nodes[0]
        return str(node.name)

    def _variances(self, node: str, source: int) -> Tensor:
        """Variance of each of a source's units at a value, in its own numbering."""
        own, moments, count = self._moments(node, source)
        power = torch.stack([moment.lower.diagonal()[own] for moment in moments]).sum(0).cpu() / count
        return power - self._mean(node, source).square()

    def _mean(self, node: str, source: int) -> Tensor:
        """Mean of a source's units at a value, in its own numbering."""
        own, moments, count = self._moments(node, source)
        return torch.stack([moment.lower[-1, own] for moment in moments]).sum(0).cpu() / count

    def _moments(self, node: str, source: int) -> tuple[slice, list[Moment], int]:
        """A source's units in the moments of a value on its own domains, and the number of samples."""
        sizes = self.maps[self.groups[node]].sizes
        moments = [self.statistics.units[node][domain] for domain in self.domains[source]]
        own = slice(sum(sizes[:source]), sum(sizes[: source + 1]))
        return own, moments, max(1, sum(moment.count for moment in moments))


@dataclass(frozen=True)
class _Inputs:
    """What a layer reads in one source.

    Args:
        gram: Gₛ in the source's own numbering, float32, shape (inputs · taps, inputs · taps).
        places: Where each of its entries stands in the numbering of the unit map, shape (inputs · taps,).
    """

    gram: Tensor
    places: Tensor

    def times(self, rows: Tensor) -> Tensor:
        """X Gₛ for rows in the numbering of the unit map, float32: rows are brought to the moment, which is larger."""
        product = torch.zeros_like(rows)
        with exact_products(rows.device):
            product[:, self.places] = rows[:, self.places] @ self.gram
        return product

    def add_to(self, total: Tensor) -> None:
        """Add Gₛ to a matrix in the numbering of the unit map."""
        total[self.places[:, None], self.places] += self.gram


def _places(units: UnitMap, source: int, taps: int) -> Tensor:
    """The entry of the unit map's numbering for every entry of a source's own, each unit with its taps."""
    rows = torch.empty(units.sizes[source], dtype=torch.long)
    present = units.present[:, source]
    rows[units.members[present, source]] = present.nonzero().flatten()
    return (rows[:, None] * taps + torch.arange(taps)).flatten()


def _aligned(values: Tensor, units: UnitMap, source: int) -> Tensor:
    """A source's entries on the first axis, put where its units stand in a unit map; zero in rows without it."""
    present = units.present[:, source].view(-1, *[1] * (values.dim() - 1))
    return values[units.members[:, source].clamp_min(0)] * present
