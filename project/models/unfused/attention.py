"""Multi-head attention written out: one linear layer for queries, keys, values and outputs each, and what lies between.

``nn.MultiheadAttention`` keeps three of its four layers in one tensor and runs them in one call. Written out, they are
layers like any other: they can be matched, resized, fitted and counted.
"""

import re
from collections.abc import Collection, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from project.errors import TraceError
from project.models.unfused.plain_layers import linear
from project.models.unfused.pooled import PooledLayer, PooledSum, whole
from project.models.unfused.projections import projected
from project.models.unfused.standardised import weights_computed

PROJECTIONS = ("query", "key", "value")


class Heads(nn.Module):
    """Every head's values, averaged with the softmax of its queries' products with its keys; has no weights.

    Args:
        width: Units of one head, neighbours on the last axis.
        batch_first: Whether the batch is on axis 0 and positions on axis 1, or the other way round.
        dropout: Share of attention weights that training leaves out.
    """

    def __init__(self, width: int, *, batch_first: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.batch_first, self.dropout = width, batch_first, dropout

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend.

        Args:
            queries: Shape (batch, positions, heads · width).
            keys: Shape (batch, other positions, heads · width).
            values: Of the keys' shape.

        Returns:
            Of the queries' shape.
        """
        axes = (0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3)
        q, k, v = (torch.unflatten(one, -1, (-1, self.width)).permute(axes) for one in (queries, keys, values))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return mixed.permute(0, 2, 1, 3).flatten(2) if self.batch_first else mixed.permute(2, 0, 1, 3).flatten(2)


class Attention(nn.Module):
    """The same function as an ``nn.MultiheadAttention``, with copies of its weights.

    Args:
        fused: The module; without keys of its own (``add_bias_kv``, ``add_zero_attn``).
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        size = fused.embed_dim
        device = fused.out_proj.weight.device
        biases = (None,) * 3 if fused.in_proj_bias is None else fused.in_proj_bias.detach().chunk(3)
        self.query, self.key, self.value = (
            linear(weight, bias, device) for weight, bias in zip(_projections(fused), biases, strict=True)
        )
        self.heads = Heads(size // fused.num_heads, batch_first=fused.batch_first, dropout=fused.dropout)
        self.output = linear(fused.out_proj.weight, cast(Tensor | None, fused.out_proj.bias), device)
        self.train(fused.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend, without masks; arguments and result are those of ``nn.MultiheadAttention``, less its weights.

        Raises:
            TraceError: If there is a mask.
        """
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise TraceError("attention with a mask is unknown here")
        return self.output(self.heads(self.query(query), self.key(key), self.value(value))), None


def _projections(fused: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    if fused.in_proj_weight is not None:
        return fused.in_proj_weight.detach().chunk(3)
    return tuple(cast(Tensor, one).detach() for one in (fused.q_proj_weight, fused.k_proj_weight, fused.v_proj_weight))


def written_out(network: nn.Module) -> nn.Module:
    """The network with what its modules do at once as a layer each: attention, computed weights, fastai's halves.

    Args:
        network: Changed in place.

    Raises:
        TraceError: If one attends to keys of its own.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, PooledLayer):
            written: nn.Module = PooledSum(module)
        elif isinstance(module, nn.MultiheadAttention):
            if module.bias_k is not None or module.add_zero_attn:
                raise TraceError(f"layer {name!r} attends to added keys; unknown here.")
            written = Attention(module)
        else:
            continue
        if not name:
            return written
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, written)
    projected(network)
    weights_computed(network)
    return network


def fused(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a network that is written out, under the names that they had before.

    Args:
        state: Tensors of what :func:`written_out` gave.
        names: Of the tensors of what it was given.

    Returns:
        Names -> tensors; those that were not written out as they are, without those that nothing tells.
    """
    found = dict(state)
    for name in state:
        if name.endswith(".of_mean.weight"):
            inner = name.removesuffix("of_mean.weight")
            own = {one.removeprefix(inner): tensor for one, tensor in state.items() if one.startswith(inner)}
            found |= {inner + one: tensor for one, tensor in whole(own).items()}
    for name in (one for one in names if one not in found):
        stem, _, leaf = name.rpartition(".")
        inner = f"{stem}." if stem else ""
        if match := re.fullmatch(r"in_proj_(weight|bias)", leaf):
            found[name] = torch.cat([state[f"{inner}{one}.{match[1]}"] for one in PROJECTIONS])
        elif match := re.fullmatch(r"([qkv])_proj_weight", leaf):
            found[name] = state[f"{inner}{PROJECTIONS['qkv'.index(match[1])]}.weight"]
        elif parts := [one for one in PROJECTIONS if f"{inner}{one}.{leaf}" in state]:
            found[name] = torch.cat([state[f"{inner}{one}.{leaf}"] for one in parts])
        elif (output := f"{stem.removesuffix('out_proj')}output.{leaf}") in state:
            found[name] = state[output]
    return {name: found[name] for name in names if name in found}
