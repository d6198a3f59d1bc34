"""Networks whose columns stand in another order."""

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from project.symmetry import Spec
from project.symmetry.permute import permute_tensors


def with_columns(network: nn.Module, order: Sequence[int], spec: Spec) -> nn.Module:
    """A network whose logits are another's in another order: the rows of what makes them are moved.

    Args:
        network: Left as it is; the result shares all tensors with it that are not moved.
        order: For each column of the result, that of the network.
        spec: Its spec, or that of a network that differs from it in the number of logits alone.
    """
    group = spec.output
    tensors = {name: tensor.detach() for name, tensor in chain(network.named_parameters(), network.named_buffers())}
    names = {axis.tensor for axis in group.axes}
    held = {name: tensor for name, tensor in tensors.items() if name in names}
    moved = permute_tensors(held, spec, {group.name: torch.tensor(list(order))})
    kept: dict[int, Tensor] = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    result = copy.deepcopy(network, {**kept})
    for name, tensor in moved.items():
        place, _, last = name.rpartition(".")
        module = result.get_submodule(place)
        if last in module._parameters:
            module._parameters[last] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[last] = tensor
    return result
