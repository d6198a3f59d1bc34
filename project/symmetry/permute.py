"""Renaming the units of a network, and the proof that this leaves its function alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from project.errors import MergeError
from project.symmetry.spec import Group, Spec


def permute_axis(tensor: Tensor, dim: int, order: Tensor, taps: int = 1) -> Tensor:
    """Reorder the units on one axis: position i of the result holds what unit ``order[i]`` held."""
    if taps == 1:
        return tensor.index_select(dim, order)
    return torch.unflatten(tensor, dim, (-1, taps)).index_select(dim, order).flatten(dim, dim + 1)


def permute_state(state: Mapping[str, Tensor], spec: Spec, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the units of some groups in a state dict.

    Args:
        state: The tensors; left unchanged.
        spec: Groups of the architecture.
        orders: For each group to rename, a permutation of its units (``order[i]`` is the old name of unit i).

    Returns:
        A new state dict of the same function.
    """
    result = dict(state)
    for name, order in orders.items():
        for axis in spec.groups[name].axes:
            tensor = result[axis.tensor]
            result[axis.tensor] = permute_axis(tensor, axis.dim, order.to(tensor.device), axis.taps)
    return result


def derangement(size: int, generator: torch.Generator) -> Tensor:
    """A random permutation that moves every unit, since one that moves none would prove nothing."""
    order = torch.randperm(size, generator=generator)
    return order.roll(1)[order.argsort()]


@torch.no_grad()
def largest_difference(network: nn.Module, spec: Spec, groups: tuple[Group, ...], generator: torch.Generator) -> float:
    """Permute some groups at random and measure what that does to the logits.

    Args:
        network: In eval mode; left unchanged.
        spec: Its spec.
        groups: Groups to permute at once.
        generator: Source of the permutations and of the random pictures (on the CPU).

    Returns:
        max |Δlogit| over two random pictures, relative to max |logit|.
    """
    state = dict(network.state_dict())
    orders = {group.name: derangement(group.size, generator) for group in groups}
    device = next(network.parameters()).device
    pictures = torch.randn(2, *spec.picture, generator=generator).to(device)
    before = functional_call(network, state, (pictures,))
    after = functional_call(network, permute_state(state, spec, orders), (pictures,))
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-12))


def check_equivalence(network: nn.Module, spec: Spec, *, seed: int = 0, tolerance: float = 1e-3) -> dict[str, float]:
    """Prove on a real network that every group of its spec may be permuted.

    Args:
        network: In eval mode; left unchanged.
        spec: Its spec.
        seed: Seed of the permutations and pictures.
        tolerance: Largest relative difference of the logits that passes.

    Returns:
        For every permutation group, the relative difference of the logits that a random permutation made.

    Raises:
        MergeError: Where a difference is above the tolerance (or not a number); the message names the group.
    """
    generator = torch.Generator().manual_seed(seed)
    differences = {g.name: largest_difference(network, spec, (g,), generator) for g in spec.free}
    worst = max(differences, key=lambda name: differences[name], default=None)
    broken = [name for name, value in differences.items() if not value <= tolerance]
    if broken or worst is None:
        found = (
            f"permuting group {broken[0]!r} changes the logits by {differences[broken[0]]:.2g}" if broken else "none"
        )
        raise MergeError(f"the traced groups do not hold on this source: {found} relative; allowed: {tolerance:g}.")
    return differences
