"""Training towards given weight scopes (WSA, arXiv 2408.12237)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from project.errors import CheckpointError, ConfigurationError, above, one_of
from project.models import read_weights
from project.models.scope import Fusion, Scope, check_scopes, fused_scope, layer_weights, scope_divergence, scope_of


@dataclass(frozen=True)
class WeightScope:
    """A pull of layers' weights towards a scope: strength · Σ over layers of D_KL(scope ‖ target).

    Layers are convolutions and linear ones. Networks that are trained so, from any starts, have weights that spread
    alike; it aligns no units.

    Args:
        strength: What the sum of the layers' divergences counts for beside the cross-entropy. With plain SGD, training
            diverges where the rate times the strength exceeds n σ² of a layer of n weights.
        target: Files of networks of this architecture, but for the number of classes, whose scopes are fused to the
            target; by default the weights that the training starts from. Give all networks that are to be averaged
            the same.
        fusion: How the scopes of several files are fused: ``variances``, ``pooled`` or ``average``, see
            :func:`~project.models.scope.fused_scope`.

    Raises:
        ConfigurationError: If strength is not above 0, or there is no such fusion.
    """

    strength: float = 1.0
    target: tuple[Path, ...] = ()
    fusion: Fusion = "variances"

    def __post_init__(self) -> None:
        """Refuse what cannot be, before any training."""
        above(0, strength=self.strength)
        one_of(Fusion, fusion=self.fusion)

    def targets(self, network: nn.Module) -> dict[str, Scope]:
        """Settle the scope that each layer's weights are pulled towards.

        Args:
            network: As it starts.

        Returns:
            Layer -> scope.

        Raises:
            CheckpointError: If a file lacks a layer, or has one of another shape.
            ConfigurationError: If all weights of a layer are alike, here or in the files.
        """
        weights = {name: weight for name, weight in layer_weights(network).items() if weight.requires_grad}
        if not weights:
            raise ConfigurationError("scope is given, but no convolution or linear layer is trained (freeze).")
        own = {name: scope_of(weight) for name, weight in weights.items()}
        check_scopes(own, "scope of the weights at the start")
        if not self.target:
            return own
        states = [read_weights(path).state_dict for path in self.target]
        for path, state in zip(self.target, states, strict=True):
            if missing := [name for name in own if name not in state]:
                raise CheckpointError(f"target of scope is {path}, which lacks {missing[0]}; is it of this network?")
            if other := [name for name, weight in weights.items() if state[name].shape[1:] != weight.shape[1:]]:
                raise CheckpointError(
                    f"target of scope is {path}, whose {other[0]} is of shape {tuple(state[other[0]].shape)}, but the "
                    f"network's of {tuple(weights[other[0]].shape)}."
                )
            if self.fusion == "average" and any(state[name].shape != states[0][name].shape for name in own):
                raise CheckpointError(f"target of scope is {path}, which has other classes than {self.target[0]}.")
        fused = {name: fused_scope([state[name] for state in states], self.fusion) for name in own}
        check_scopes(fused, f"target of scope, {', '.join(map(str, self.target))}")
        return fused

    def penalty(self, network: nn.Module, targets: Mapping[str, Scope]) -> Tensor:
        """Compute what is added to the loss, a scalar.

        Args:
            network: As it is now.
            targets: From :meth:`targets`.
        """
        weights = layer_weights(network)
        return self.strength * torch.stack([scope_divergence(weights[n], scope) for n, scope in targets.items()]).sum()
