"""How alike the units of the sources are, from what they do on the calibration pictures or from their weights."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from project.alignment.zip_sets import Zip, set_power
from project.errors import MergeError
from project.moments import Statistics
from project.symmetry import Axis, Group, Spec, move_units

Similarity = Literal["correlation", "distance"]

BUFFERS = ("running_mean", "running_var")  # statistics of the data, no parameters: they take no part in matching


def activation_similarity(statistics: Statistics, group: Group, kind: Similarity = "correlation") -> Tensor:
    """Compare all units of all sources over all calibration pictures, at every value that carries the group.

    Args:
        statistics: With unit moments.
        group: The group whose units are compared.
        kind: ``correlation``: Pearson's, averaged over the group's values. ``distance``: minus the root mean square
            difference, averaged over the group's values (PLeaS, arXiv 2407.02447).

    Returns:
        Float64, shape (Σ sizes, Σ sizes): units of all sources, source after source. Units that never vary have
        correlation 0 with everything.
    """
    compare = _correlation if kind == "correlation" else _distance
    total = None
    for node in group.nodes:
        value = compare(statistics.unit(node).mean())
        total = value if total is None else total.add_(value)
    if total is None:
        raise MergeError(f"no value of the graph carries the units of group {group.name!r} alone; match by weights.")
    return total / len(group.nodes)


def _correlation(second: Tensor) -> Tensor:
    mean = second[:-1, -1]
    covariance = second[:-1, :-1] - torch.outer(mean, mean)
    variance = covariance.diagonal()
    # Below the rounding of float32 products, a variance is that of a unit which never varies.
    alive = variance > 1e-5 * second.diagonal()[:-1].clamp_min(1e-30)
    scale = torch.where(alive, variance.clamp_min(1e-300).rsqrt(), 0.0)
    return covariance * scale[:, None] * scale


def _distance(second: Tensor) -> Tensor:
    square = second.diagonal()[:-1]
    return -(square[:, None] + square - 2 * second[:-1, :-1]).clamp_min_(0).sqrt_()


def weight_similarity(
    spec: Spec,
    group: Group,
    states: Sequence[Mapping[str, Tensor]],
    members: Mapping[str, Tensor],
    skip: Collection[str] = (),
) -> Tensor:
    """Inner products of the weights of a group's units, all other axes matched as they stand.

    Args:
        spec: Groups of the sources.
        group: The group whose units are compared.
        states: State dict of every source, without the tensors that do not count.
        members: Matched units of all groups: integer, shape (size, sources) each.
        skip: Tensors to leave out.

    Returns:
        Float64, shape (Σ sizes, Σ sizes): units of all sources, source after source. Between two units of one source
        all entries but the diagonal, their squared norms, are 0.
    """
    size, sources = group.size, len(states)
    total = torch.zeros(sources, size, sources, size, dtype=torch.float64)
    for rows in _weights(spec, group, states, members, skip):
        for s, t in combinations(range(sources), 2):
            total[s, :, t] += rows[s] @ rows[t].mT
        for s in range(sources):
            total[s, :, s].diagonal().add_(rows[s].double().square().sum(1))
    for s, t in combinations(range(sources), 2):
        total[t, :, s] = total[s, :, t].mT
    return total.view(sources * size, -1)


def weight_correlation(
    spec: Spec,
    group: Group,
    states: Sequence[Mapping[str, Tensor]],
    members: Mapping[str, Tensor],
    skip: Collection[str] = (),
    zips: Mapping[str, Zip] | None = None,
) -> Tensor:
    """Pearson's correlation of the weights of a group's units, all of a unit's end to end.

    Args:
        spec: Groups of the sources.
        group: The group whose units are compared.
        states: State dict of every source, without the tensors that do not count.
        members: Matched units of all groups but those in ``zips``: integer, shape (size, sources) each.
        skip: Tensors to leave out.
        zips: Groups whose units stand in sets, not in rows.

    Returns:
        Float64, shape (Σ sizes, Σ sizes): units of all sources, source after source. Units whose weights are all the
        same have correlation 0 with everything.
    """
    units = len(states) * group.size
    second = torch.zeros(units + 1, units + 1, dtype=torch.float64)  # of the weights and a constant
    for rows in _weights(spec, group, states, members, skip, zips):
        joint = torch.cat(rows)
        second[:-1, :-1] += joint @ joint.mT
        second[:-1, -1] += joint.double().sum(1)
        second[-1, -1] += joint.shape[1]
    return _correlation(second / second[-1, -1].clone().clamp_min(1))


def _weights(
    spec: Spec,
    group: Group,
    states: Sequence[Mapping[str, Tensor]],
    members: Mapping[str, Tensor],
    skip: Collection[str],
    zips: Mapping[str, Zip] | None = None,
) -> Iterator[list[Tensor]]:
    """What belongs to a group's units on each axis in every source, (size, entries), other axes as they stand."""
    zips = zips or {}
    beside: dict[str, list[tuple[Group, Axis]]] = {axis.tensor: [] for axis in group.axes}
    for other in spec.free:
        for tied in other.axes:
            if tied.tensor in beside:
                beside[tied.tensor].append((other, tied))
    for axis in group.axes:
        if axis.tensor.endswith(BUFFERS) or axis.tensor not in states[0] or axis.tensor in skip:
            continue
        others = [(other, tied) for other, tied in beside[axis.tensor] if tied.dim != axis.dim]
        rows = []
        for source, state in enumerate(states):
            tensor = state[axis.tensor].cpu()
            home = torch.zeros(1, dtype=torch.long)
            if group.name in zips:
                home = zips[group.name].homes[:, source]
            elif group.blocks > 1:
                home = block_rows(members[group.name], group.blocks)[:, source].argsort()  # where each block has gone
            for other, tied in others:
                if other.name in zips:
                    tensor = zips[other.name].fold(tensor, tied, source, set_power(spec, other, tied), moved=False)
                    continue
                order = members[other.name][:, source]
                if tied.within:  # blocks of this group's units stay where they are
                    order = order.view(other.blocks, -1)[home].flatten()
                tensor = move_units(tensor, tied, order, other.blocks)
            if axis.within:
                tensor = torch.unflatten(tensor, 0, (group.blocks, -1))[home].flatten(0, 1)
            rows.append(_rows(tensor, axis, group))
        yield rows


def _rows(tensor: Tensor, axis: Axis, group: Group) -> Tensor:
    """What belongs to each unit on an axis: shape (size, entries)."""
    if axis.within:
        return torch.unflatten(tensor, 0, (group.blocks, -1)).movedim(2, 1).reshape(group.size, -1)
    moved = tensor.movedim(axis.dim, 0)
    if axis.entries is not None:
        moved = moved[torch.tensor(axis.entries)]
    return moved.reshape(group.size, -1)


def block_rows(members: Tensor, blocks: int) -> Tensor:
    """Which blocks stand in one row: shape (blocks, sources)."""
    size = len(members) // blocks
    return members[::size] // size


def squared_distances(similarity: Tensor, *, inner: bool) -> Tensor:
    """Squared distances that belong to a similarity.

    Args:
        similarity: Symmetric on its last two axes.
        inner: Whether it is an inner product, as correlations and products of weights are; else minus a distance.

    Returns:
        Of the same shape, 0 or more.
    """
    if not inner:
        return similarity.square()
    squares = similarity.diagonal(dim1=-2, dim2=-1)
    return (squares[..., :, None] + squares[..., None, :] - 2 * similarity).clamp_min(0)
