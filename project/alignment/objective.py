"""What the matched units of the sources shall have in common, given how those of the other groups stand."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from torch import Tensor

from project.alignment.assignment import total_similarity
from project.alignment.similarity import BUFFERS, activation_similarity, weight_correlation, weight_similarity
from project.alignment.zip_sets import Zip
from project.moments import Statistics
from project.symmetry import Group, Spec, permute_tensors


@dataclass(frozen=True, eq=False)
class AscentObjective(ABC):
    """What coordinate ascent raises.

    Args:
        spec: Groups of the sources.
        states: State dict of every source, without the tensors that do not count.
    """

    spec: Spec
    states: Sequence[Mapping[str, Tensor]]

    @abstractmethod
    def similarity(self, group: Group, members: Mapping[str, Tensor], skip: Collection[str] = ()) -> Tensor:
        """How alike the units of a group are, all other groups as they stand.

        Args:
            group: The group.
            members: Matched units of all groups: integer, shape (size, sources) each.
            skip: Tensors to leave out.

        Returns:
            Float64, shape (N · size, N · size): units of all sources, source after source.
        """

    def total(self, groups: Sequence[Group], members: Mapping[str, Tensor]) -> float:
        """What the matched units of some groups have in common, over all pairs of sources."""
        return sum(total_similarity(self.similarity(group, members), members[group.name]) for group in groups)


class Products(AscentObjective):
    """Inner products of weights: every group's ascent raises one sum over all tensors (Git Re-Basin)."""

    def similarity(self, group: Group, members: Mapping[str, Tensor], skip: Collection[str] = ()) -> Tensor:
        """Inner products of all that belongs to a unit."""
        return weight_similarity(self.spec, group, self.states, members, skip)

    def total(self, groups: Sequence[Group], members: Mapping[str, Tensor]) -> float:
        """Inner products of the tensors that hold units of the groups, each tensor once."""
        spec, states = self.spec, self.states
        tensors = {axis.tensor for group in groups for axis in group.axes if axis.tensor in states[0]}
        names = sorted(name for name in tensors if not name.endswith(BUFFERS))
        touching = {g.name for g in spec.free if any(axis.tensor in tensors for axis in g.axes)}
        renamed = []
        for source, state in enumerate(states):
            orders = {group: members[group][:, source] for group in touching}
            renamed.append(permute_tensors({name: state[name].cpu() for name in names}, spec, orders))
        pairs = combinations(renamed, 2)
        return sum(float((a[name].double() * b[name].double()).sum()) for a, b in pairs for name in names)


@dataclass(frozen=True, eq=False)
class Dual(AscentObjective):
    """S = α S_w + (1 − α) S_act, Pearson correlations of weights and of activations (MuDSC, arXiv 2403.01753).

    Args:
        alpha: α, the share of the weights.
        activations: group -> S_act; empty where α is 1.
        zips: Groups whose units stand in sets, not in rows.
    """

    alpha: float
    activations: Mapping[str, Tensor]
    zips: Mapping[str, Zip] = field(default_factory=dict)

    @classmethod
    def of(
        cls, spec: Spec, states: Sequence[Mapping[str, Tensor]], alpha: float, statistics: Statistics | None
    ) -> "Dual":
        """With S_act of all permutation groups, as far as it counts.

        Args:
            spec: Groups of the sources.
            states: State dict of every source, without the tensors that do not count.
            alpha: α.
            statistics: With unit moments of all sources, where α is below 1.
        """
        found = {}
        if alpha < 1:
            assert statistics is not None
            found = {group.name: activation_similarity(statistics, group).cpu() for group in spec.free}
        return cls(spec, states, alpha, found)

    def similarity(self, group: Group, members: Mapping[str, Tensor], skip: Collection[str] = ()) -> Tensor:
        """S, its weights as they stand."""
        if self.alpha == 0:
            return self.activations[group.name]
        weights = weight_correlation(self.spec, group, self.states, members, skip, self.zips).mul_(self.alpha)
        return weights if self.alpha == 1 else weights.add_(self.activations[group.name], alpha=1 - self.alpha)


def counted(spec: Spec, states: Sequence[Mapping[str, Tensor]], *, heads: bool) -> list[dict[str, Tensor]]:
    """The tensors that count where weights are compared.

    Args:
        spec: Groups of the sources.
        states: State dict of every source.
        heads: Whether the heads' weights count: only where their rows mean the same classes.
    """
    ignored = set() if heads else {axis.tensor for axis in spec.output.axes}
    return [{name: tensor for name, tensor in state.items() if name not in ignored} for state in states]


def similarity_bytes(spec: Spec, sources: int, *, kept: bool, copies: int = 2) -> int:
    """About how many bytes of similarities are held at once, most of them of the groups matched together.

    Args:
        spec: Groups of the sources.
        sources: Number of sources.
        kept: Whether S_act of all groups is held beside, see :meth:`Dual.of`.
        copies: How often those of the groups matched together are held.
    """
    needed = {group.name: 8 * (sources * group.size) ** 2 for group in spec.free}
    together = (sum(needed.get(one.name, 0) for one in spec.tied(group)) for group in spec.free)
    return copies * max(together, default=0) + (sum(needed.values()) if kept else 0)
