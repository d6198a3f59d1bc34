"""Weight scope (WSA, arXiv 2408.12237): how a layer's weights spread, and how far that is from how they should.

Weights of a layer are nearly normally distributed; their mean μ and standard deviation σ are the layer's scope.
Networks whose scopes differ count differently in an average, layer by layer, which is what training towards one scope
prevents. It does not prevent that the average of unlike networks spreads less than each of them. Scopes do not depend
on the order of units, so that they go with any alignment, and align nothing by themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from project.errors import ConfigurationError, one_of

Fusion = Literal["variances", "pooled", "average"]


class Scope(NamedTuple):
    """How a layer's weights spread.

    Args:
        mean: Their mean μ.
        std: Their standard deviation σ.
    """

    mean: float
    std: float


def layer_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of convolutions and linear layers, by parameter name; not their biases, and nothing of norms."""
    layers = ((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear))
    return {f"{name}.weight".lstrip("."): module.weight for name, module in layers}


def scope_of(weights: Tensor) -> Scope:
    """Of one layer's weights."""
    weights = weights.detach().double()
    return Scope(float(weights.mean()), float(weights.std(correction=0)))


def fused_scope(layers: Sequence[Tensor], fusion: Fusion = "variances", shares: Sequence[float] | None = None) -> Scope:
    """One scope for a layer of several networks; its mean is the mean of their means.

    Args:
        layers: The layer's weights in each of them, for ``average`` of one shape.
        fusion: Where its variance comes from: ``variances``, the mean of their variances; ``pooled``, all their
            weights together; ``average``, the average of the networks, whose weights spread less where the networks
            differ.
        shares: What each network counts for, with a sum of 1; default: all the same.

    Raises:
        ConfigurationError: If there is no such fusion.
    """
    one_of(Fusion, fusion=fusion)
    counts = list(shares) if shares is not None else [1 / len(layers)] * len(layers)
    if fusion == "average":
        return scope_of(sum((share * one.double() for share, one in zip(counts[1:], layers[1:], strict=True)),
                            counts[0] * layers[0].double()))  # fmt: skip
    scopes = [scope_of(one) for one in layers]
    mean = sum(share * one.mean for share, one in zip(counts, scopes, strict=True))
    variance = sum(share * one.std**2 for share, one in zip(counts, scopes, strict=True))
    if fusion == "pooled":
        variance += sum(share * (one.mean - mean) ** 2 for share, one in zip(counts, scopes, strict=True))
    return Scope(mean, variance**0.5)


def scope_divergence(weights: Tensor, target: Scope) -> Tensor:
    """D_KL(N(μ, σ²) ‖ N(μ̃, σ̃²)) = log(σ̃/σ) + (σ² + (μ − μ̃)²) / (2 σ̃²) − ½, of a layer's weights and their target."""
    weights = weights.float()
    mean, variance = weights.mean(), weights.var(correction=0)
    wanted = target.std**2
    ratio = variance / wanted
    return 0.5 * (ratio + (mean - target.mean).square() / wanted - ratio.log() - 1)


def check_scopes(scopes: Mapping[str, Scope], where: str) -> None:
    """Refuse layers whose weights are all alike: no other scope is at a finite distance from theirs.

    Args:
        scopes: layer -> its scope.
        where: What holds the layers, for the message.

    Raises:
        ConfigurationError: With the layer.
    """
    for name, one in scopes.items():
        if not one.std > 0:
            raise ConfigurationError(f"{where}: all weights of {name} are {one.mean:g}, so they have no scope.")
