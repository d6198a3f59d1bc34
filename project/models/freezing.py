"""Keeping parts of a network as they are while the rest is trained."""

from collections.abc import Iterable

from torch import nn

from project.errors import ConfigurationError


def freeze(network: nn.Module, names: Iterable[str]) -> None:
    """Take the gradient from all parameters of the named parts; batch norms still need evaluation mode to stand still.

    Args:
        network: The network.
        names: Names of its parts, such as ``conv1`` or ``layer1.0``; all below a part goes with it.

    Raises:
        ConfigurationError: If there is no part of that name.
    """
    parts = dict(network.named_modules())
    parts.pop("")  # the network itself
    for name in names:
        if name not in parts:
            children = ", ".join(child for child, _ in network.named_children())
            raise ConfigurationError(f"freeze holds {name!r}; allowed: {children}, or parts of them by dotted name.")
        parts[name].requires_grad_(False)
