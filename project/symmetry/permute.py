"""Renaming the units of a network, and the proof that this leaves its function alone."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from project.errors import MergeError
from project.symmetry.graph import forgotten
from project.symmetry.spec import Axis, Group, Spec

LARGEST_OUTPUT = 1e15  # its square summed over a few hundred million samples is still finite in float32


def permute_axis(tensor: Tensor, dim: int, order: Tensor, taps: int = 1) -> Tensor:
    """Reorder the units on one axis: position i of the result holds what unit ``order[i]`` held."""
    if taps == 1:
        return tensor.index_select(dim, order)
    return torch.unflatten(tensor, dim, (-1, taps)).index_select(dim, order).flatten(dim, dim + 1)


def move_units(tensor: Tensor, axis: Axis, order: Tensor, blocks: int = 1) -> Tensor:
    """Reorder a group's units on one axis, other units on it staying where they are.

    Args:
        tensor: The tensor.
        axis: The axis.
        order: Permutation of the group's units.
        blocks: Blocks of the group. On an axis that holds one block only, axis 0 must have been permuted before.
    """
    order = order.to(tensor.device)
    if axis.within:
        size = len(order) // blocks
        inside = (order.view(blocks, size) % size).repeat_interleave(tensor.shape[0] // blocks, 0)
        inside = inside.repeat_interleave(axis.taps, 1).view(inside.shape + (1,) * (tensor.dim() - 2))
        return tensor.gather(1, inside.expand_as(tensor))
    if axis.entries is None:
        return permute_axis(tensor, axis.dim, order, axis.taps)
    entries = torch.tensor(axis.entries, device=tensor.device)
    moved = tensor.index_select(axis.dim, entries.view(-1, axis.taps)[order].flatten())
    return tensor.index_copy(axis.dim, entries, moved)


def permute_state(state: Mapping[str, Tensor], spec: Spec, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the units of some groups in a state dict.

    Args:
        state: The tensors; left unchanged.
        spec: Groups of the architecture.
        orders: For each group to rename, a permutation of its units (``order[i]`` is the old name of unit i).

    Returns:
        A new state dict of the same function.

    Raises:
        MergeError: Where a permutation tears a block apart, or moves the blocks of tied groups in different ways.
    """
    check_blocks(spec, orders)
    return permute_tensors(state, spec, orders)


def permute_tensors(state: Mapping[str, Tensor], spec: Spec, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As :func:`permute_state`, of some tensors only, for permutations that are known to keep to their blocks."""
    result = dict(state)
    for within in (False, True):  # rows first: blocks of a grouped convolution's weight move with them
        for name, order in orders.items():
            group = spec.groups[name]
            for axis in (axis for axis in group.axes if axis.within == within and axis.tensor in state):
                result[axis.tensor] = move_units(result[axis.tensor], axis, order, group.blocks)
    return result


def check_blocks(spec: Spec, orders: Mapping[str, Tensor]) -> None:
    """Refuse permutations that do not keep to the blocks of their groups.

    Raises:
        MergeError: With the name of the group.
    """
    for name in orders:
        group = spec.groups[name]
        if group.blocks == 1:
            continue
        moved = {other.name: _block_order(other, orders.get(other.name)) for other in spec.tied(group)}
        for other, blocks in moved.items():
            if blocks is None:
                raise MergeError(f"permutation of group {other!r} tears its {group.blocks} blocks apart.")
            if blocks != moved[name]:
                raise MergeError(f"permutations of groups {name!r} and {other!r} move their tied blocks differently.")


def _block_order(group: Group, order: Tensor | None) -> list[int] | None:
    """Which block comes to each block's place; None where blocks are torn apart."""
    if order is None:
        return list(range(group.blocks))
    homes = order.view(group.blocks, -1) // (group.size // group.blocks)
    return homes[:, 0].tolist() if bool((homes == homes[:, :1]).all()) else None


def derangement(size: int, generator: torch.Generator) -> Tensor:
    """A random permutation that moves every unit, since one that moves none would prove nothing."""
    order = torch.randperm(size, generator=generator)
    return order.roll(1)[order.argsort()]


def random_orders(spec: Spec, groups: Iterable[Group], generator: torch.Generator) -> dict[str, Tensor]:
    """Random permutations of some groups that keep to their blocks, and those that they bring to tied groups.

    Args:
        spec: Groups of the architecture.
        groups: The groups: their units move within blocks, their blocks among each other.
        generator: Source of the permutations.
    """
    chosen = {group.name: group for group in groups}
    blocks: dict[str, Tensor] = {}
    orders = {}
    for group in chosen.values():
        label = group.tied or group.name
        if label not in blocks:
            still = any(other.fixed for other in spec.tied(group))
            blocks[label] = torch.arange(group.blocks) if still else derangement(group.blocks, generator)
        for other in spec.tied(group):
            if other.name in orders or other.fixed or (other.name in chosen and other is not group):
                continue
            size = other.size // other.blocks
            inside = [
                derangement(size, generator) if other is group else torch.arange(size) for _ in range(other.blocks)
            ]
            orders[other.name] = torch.cat(
                [home * size + unit for home, unit in zip(blocks[label].tolist(), inside, strict=True)]
            )
    return orders


@contextmanager
def _watched(network: nn.Module) -> Iterator[None]:
    """Refuse, in the ``with`` statement, what a layer puts out if squares of it could not be summed in float32."""

    def look(name: str, module: nn.Module, result: object) -> None:
        if not isinstance(result, Tensor) or not result.is_floating_point() or not result.numel():
            return
        most = float(result.abs().max())
        if not most <= LARGEST_OUTPUT:
            weights = [float(one.abs().max()) for one in module.parameters(recurse=False) if one.numel()]
            held = f"; its parameters reach {max(weights):.1e}" if weights else ""
            raise MergeError(
                f"layer {name!r} puts out {most:.1e} on random pictures; allowed: up to {LARGEST_OUTPUT:.0e}, squares "
                f"of which float32 can sum{held}."
            )

    leaves = ((name, module) for name, module in network.named_modules() if not any(module.children()))
    hooks = [
        module.register_forward_hook(lambda module, _, result, name=name: look(name, module, result))
        for name, module in leaves
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def group_differences(
    network: nn.Module, spec: Spec, seed: int = 0, tolerance: float | None = None
) -> dict[str, float]:
    """Permute the groups at random, with what is tied to them, and measure what that does to the logits.

    All groups are permuted at once, each by a permutation of its own that moves all of its units: what one of them
    breaks no other one mends, but for chance, so that logits which stay as they are prove every group. Where they do
    not, each group is permuted alone, to find which it is.

    Args:
        network: In eval mode; left unchanged.
        spec: Its spec.
        seed: Seed of the permutations and of the random pictures (drawn on the CPU).
        tolerance: Change up to which the logits stay as they are; None to permute each group alone in any case.

    Returns:
        For every permutation group, max |Δlogit| over two random pictures, relative to max |logit|: that of all groups
        together, or its own.

    Raises:
        MergeError: If the network answers the same to both pictures, or a layer puts out more than ``LARGEST_OUTPUT``
            or what is not finite; the message names it.
    """
    generator = torch.Generator().manual_seed(seed)
    state = dict(network.state_dict())
    pictures = torch.randn(2, *spec.picture, generator=generator).to(next(network.parameters()).device)
    with _watched(network), forgotten(network):
        before = functional_call(network, state, (pictures,))
    if torch.equal(before[0], before[1]):
        raise MergeError("it gives all pictures the same logits; was it, and its last layer, trained?")

    def difference(*groups: Group) -> float:
        moved = permute_state(state, spec, random_orders(spec, groups, generator))
        with forgotten(network):
            return _change(before, functional_call(network, moved, (pictures,)))

    if tolerance is None:
        return {group.name: difference(group) for group in spec.free}
    together = difference(*spec.free)
    if not together <= tolerance:  # is it the rounding of a deep network?
        together = min(together, _exact_change(network, spec, pictures, generator))
    if together <= tolerance:
        return {group.name: together for group in spec.free}
    return {group.name: difference(group) for group in spec.free}


def _change(before: Tensor, after: Tensor) -> float:
    """The largest change of the logits, relative to the largest."""
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-12))


def _exact_change(network: nn.Module, spec: Spec, pictures: Tensor, generator: torch.Generator) -> float:
    """What permuting all groups at once does in float64; infinity where the network does not run in it."""
    if pictures.device.type == "mps":  # has no float64
        return math.inf
    exact = copy.deepcopy(network).double()
    moved = permute_state(exact.state_dict(), spec, random_orders(spec, spec.free, generator))
    try:
        with forgotten(exact):
            before = exact(pictures.double())
        with forgotten(exact):
            after = functional_call(exact, moved, (pictures.double(),))
    except RuntimeError:  # code that says float32
        return math.inf
    return _change(before, after)


def check_equivalence(network: nn.Module, spec: Spec, *, seed: int = 0, tolerance: float = 1e-3) -> dict[str, float]:
    """Prove on a real network that every group of its spec may be permuted.

    Args:
        network: In eval mode; left unchanged.
        spec: Its spec.
        seed: Seed of the permutations and pictures.
        tolerance: Largest relative difference of the logits that passes.

    Returns:
        For every permutation group, the relative difference of the logits that permuting all of them at random made.

    Raises:
        MergeError: Where a difference is above the tolerance, the message naming the group; see also
            :func:`group_differences`.
    """
    differences = group_differences(network, spec, seed, tolerance)
    worst = max(differences, key=lambda name: differences[name], default=None)
    broken = [name for name, value in differences.items() if not value <= tolerance]
    if broken or worst is None:
        found = (
            f"permuting group {broken[0]!r} changes the logits by {differences[broken[0]]:.2g}" if broken else "none"
        )
        raise MergeError(f"the traced groups do not hold on this source: {found} relative; allowed: {tolerance:g}.")
    return differences
