"""Layers and norms that are another one for every picture: what the sources make of them, weighed by gates.

Gates have the shape (pictures, sources). What depends on the picture alone is multiplied with them once a picture,
whatever the number of positions: a mixed kernel costs N · |W| multiply-accumulates beside the layer's own, and N + 1
convolutions side by side, which do the same, N · |W| at every position. But each picture's kernel is written to memory
and read again, which is what takes time where there are few positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

MAX_KERNEL_WEIGHTS = 2**26
"""Weights of the kernels that are put together at once, one kernel for each picture: 256 MB."""
MAX_SIDE_BY_SIDE = 128
"""Positions × sources up to which convolutions run side by side: about as fast there, and ever faster below."""


@dataclass(frozen=True)
class Operation:
    """Operation of a convolution or linear layer, whatever its widths: linear map, stride, padding and dilation.

    Args:
        linear: Whether it is a linear layer, whose units stand on the last axis; else a convolution.
        stride: Of a convolution, as are the rest.
        padding: Zeros at each side.
        dilation: Places between two taps.
    """

    linear: bool
    stride: tuple[int, ...] = (1, 1)
    padding: str | tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)

    @classmethod
    def of(cls, layer: nn.Module) -> "Operation":
        """Read the operation off an ``nn.Conv2d`` or ``nn.Linear``."""
        if isinstance(layer, nn.Linear):
            return cls(linear=True)
        layer = cast(nn.Conv2d, layer)
        return cls(False, layer.stride, layer.padding, layer.dilation)

    def __call__(self, values: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
        """Apply a weight (outputs, inputs / groups, height, width), or (outputs, inputs) of a linear layer."""
        if self.linear:
            return F.linear(values, weight, bias)
        return F.conv2d(values, weight, bias, self.stride, self.padding, self.dilation, groups)

    def pointwise(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a weight (outputs, inputs) at every position."""
        return F.linear(values, weight, bias) if self.linear else F.conv2d(values, weight[..., None, None], bias)

    def pooled(self, values: Tensor) -> Tensor:
        """Average over positions: (pictures, units)."""
        units_first = values.movedim(-1, 1) if self.linear else values
        return units_first.flatten(2).mean(2) if values.dim() > 2 else values


class LearntRouter(nn.Module):
    """Two linear layers and a rectifier between them on the mean of what a layer reads over its positions (WEMoE).

    Args:
        layer: The plain layer that reads the same; its weights are not taken.
        sources: Number of sources N.
        hidden: Units between the two.
    """

    def __init__(self, layer: nn.Module, sources: int, hidden: int) -> None:
        super().__init__()
        self.operation, self.active = Operation.of(layer), sources
        device = next(layer.parameters()).device
        with torch.device("meta"):  # no random numbers are drawn
            inner, outer = nn.Linear(_inputs(layer), hidden), nn.Linear(hidden, sources)
        self.inner, self.outer = inner.to_empty(device=device), outer.to_empty(device=device)

    @torch.no_grad()
    def reset(self, scale: float, deviation: float, generator: torch.Generator) -> None:
        """Draw weights at random, so small that the gates are near one number whatever the picture.

        Args:
            scale: The number.
            deviation: Of the random weights.
            generator: Source of them, on the CPU.
        """
        for linear, bias in ((self.inner, 0.0), (self.outer, scale)):
            linear.weight.copy_(deviation * torch.randn(linear.weight.shape, generator=generator))
            linear.bias.fill_(bias)

    def forward(self, values: Tensor) -> Tensor:
        """Compute gates, without bounds, (pictures, sources), from what the layer reads."""
        gates: Tensor = self.outer(F.relu(self.inner(self.operation.pooled(values))))
        return gates

    def added(self, positions: int) -> int:
        """Count the multiply-accumulates on one picture."""
        return self.inner.weight.numel() + self.outer.weight.numel()


class ProjectionRouter(nn.Module):
    """Gates for the sources in whose directions a layer's input is longest (SMILE).

    A source's score is ‖Vᵀ x‖, mean over the positions, with V the first right singular vectors of what it adds to the
    layer; the softmax of the ``top`` largest scores are the gates, all others are 0.

    Args:
        layer: The plain layer that reads the same; its weights are not taken.
        sources: Number of sources N.
        rank: Vectors of each source.
        top: Sources that have a gate other than 0 on a picture.
    """

    def __init__(self, layer: nn.Module, sources: int, rank: int, top: int) -> None:
        super().__init__()
        self.operation, self.rank, self.active = Operation.of(layer), rank, top
        shape = (_inputs(layer), *cast(Tensor, layer.weight).shape[2:])
        self.directions = nn.Parameter(_empty(layer, sources * rank, *shape))

    def forward(self, values: Tensor) -> Tensor:
        """Compute gates, (pictures, sources), from what the layer reads; those of a picture sum to 1."""
        projections = self.operation(values, self.directions)
        parts = torch.unflatten(projections, -1 if self.operation.linear else 1, (-1, self.rank))
        scores = self.operation.pooled(parts.norm(dim=-1 if self.operation.linear else 2))
        best, sources = scores.topk(self.active, 1)
        return torch.zeros_like(scores).scatter(1, sources, best.softmax(1).to(scores.dtype))

    def added(self, positions: int) -> int:
        """Count the multiply-accumulates on one picture."""
        return self.directions.numel() * positions


def runs_side_by_side(positions: int, sources: int) -> bool:
    """Tell whether N sources' layers run side by side, and not as one that is put together for every picture.

    The time of the former grows with positions and sources, that of the latter hardly with either.
    """
    return positions * sources <= MAX_SIDE_BY_SIDE


class BlendedLayer(nn.Module):
    """W(x) = W₀ + Σ gᵢ(x) Wᵢ and its constant, put together for every picture, or applied side by side and weighed.

    Args:
        layer: The plain layer, which becomes W₀: a convolution, grouped or not, or a linear layer.
        sources: Number of sources N.
        positions: Of its output on a picture; where there are few, W₀ … W_N are applied side by side.
    """

    def __init__(self, layer: nn.Module, sources: int, positions: int) -> None:
        super().__init__()
        self.layer, self.operation = layer, Operation.of(layer)
        self.side_by_side = runs_side_by_side(positions, sources)
        self.experts = nn.Parameter(_empty(layer, sources, *cast(Tensor, layer.weight).shape))
        self.constants = nn.Parameter(_empty(layer, sources, len(self.experts[0]))) if _has_bias(layer) else None

    @torch.no_grad()
    def load(self, changes: Sequence[Tensor], constants: Sequence[Tensor]) -> None:
        """Set Wᵢ, each of the weight's shape, and what each source adds to the constant, where there is one."""
        self.experts.copy_(torch.stack(list(changes)))
        if self.constants is not None:
            self.constants.copy_(torch.stack(list(constants)))

    def forward(self, values: Tensor, gates: Tensor) -> Tensor:
        """Apply the layer to values as the plain one reads them, with gates (pictures, sources)."""
        if self.side_by_side or torch.compiler.is_exporting():  # an exported graph takes any number of pictures at once
            return self._weighed(values, gates)
        step = max(1, MAX_KERNEL_WEIGHTS // self.experts[0].numel())
        pieces = zip(torch.split(values, step), torch.split(gates, step), strict=True)
        return torch.cat([self._put_together(part, weights) for part, weights in pieces])

    def _weighed(self, values: Tensor, gates: Tensor) -> Tensor:
        """Add the outputs of Wᵢ, times gᵢ, to those of W₀."""
        outputs: Tensor = self.layer(values)
        for index, expert in enumerate(self.experts):
            constant = None if self.constants is None else self.constants[index]
            gate = gates[:, index].view(-1, *(1,) * (outputs.dim() - 1))
            outputs = outputs + gate * self.operation(values, expert, constant, getattr(self.layer, "groups", 1))
        return outputs

    def _put_together(self, values: Tensor, gates: Tensor) -> Tensor:
        """Apply to each picture its own kernel; the kernels of all these pictures are in memory at once."""
        weight, bias = cast(Tensor, self.layer.weight), cast(Tensor | None, self.layer.bias)
        kernels = torch.addmm(weight.flatten()[None], gates, self.experts.flatten(1))
        biases = None
        if self.constants is not None and bias is not None:
            biases = torch.addmm(bias[None], gates, self.constants)
        count = len(values)
        if self.operation.linear:
            rows = values.flatten(1, -2) if values.dim() > 2 else values[:, None]
            outputs = rows @ kernels.view(count, *weight.shape).mT
            outputs = outputs if biases is None else outputs + biases[:, None]
            return outputs.reshape(*values.shape[:-1], -1)
        kernels = kernels.view(-1, *weight.shape[1:])
        groups = count * cast(nn.Conv2d, self.layer).groups
        constants = None if biases is None else biases.flatten()
        outputs = self.operation(values.flatten(0, 1)[None], kernels, constants, groups)
        return torch.unflatten(outputs[0], 0, (count, -1))

    def added(self, positions: int, active: int) -> int:
        """Count the multiply-accumulates on one picture beside those of the plain layer."""
        if self.side_by_side:
            return self.experts.numel() * positions
        return self.experts.numel() + (0 if self.constants is None else self.constants.numel())


class LowRankLayer(nn.Module):
    """W₀ x + Σ gᵢ(x) Uᵢ Vᵢᵀ x: a kernel to a few units, and from them, at each position, to all.

    Of every source, the pictures alone pass that have a gate for it; all do in an exported graph, which knows none.

    Args:
        layer: The plain layer, which becomes W₀: a convolution in one group, or a linear layer.
        sources: Number of sources N.
        rank: Units between U and V.
    """

    def __init__(self, layer: nn.Module, sources: int, rank: int) -> None:
        super().__init__()
        self.layer, self.operation = layer, Operation.of(layer)
        weight = cast(Tensor, layer.weight)
        self.down = nn.Parameter(_empty(layer, sources, rank, *weight.shape[1:]))
        self.up = nn.Parameter(_empty(layer, sources, len(weight), rank))
        self.constants = nn.Parameter(_empty(layer, sources, len(weight))) if _has_bias(layer) else None

    @torch.no_grad()
    def load(self, factors: Sequence[tuple[Tensor, Tensor]], constants: Sequence[Tensor]) -> None:
        """Set the factors of every source, (outputs, rank) and (rank, inputs · taps), and its constant."""
        for index, (up, down) in enumerate(factors):
            self.up[index].copy_(up)
            self.down[index].copy_(down.reshape(self.down[index].shape))
        if self.constants is not None:
            self.constants.copy_(torch.stack(list(constants)))

    def forward(self, values: Tensor, gates: Tensor) -> Tensor:
        """Apply the layer to values as the plain one reads them, with gates (pictures, sources)."""
        outputs: Tensor = self.layer(values)
        for index in range(len(self.down)):
            if torch.compiler.is_exporting():
                outputs = outputs + self._expert(index, values, gates[:, index]).to(outputs.dtype)
                continue
            chosen = gates[:, index].nonzero()[:, 0]
            if len(chosen):
                weighed = self._expert(index, values[chosen], gates[chosen, index])
                outputs = outputs.index_add(0, chosen, weighed.to(outputs.dtype))
        return outputs

    def _expert(self, index: int, values: Tensor, gates: Tensor) -> Tensor:
        """Compute what one source adds, times its gates (pictures,)."""
        bias = None if self.constants is None else self.constants[index]
        outputs = self.operation.pointwise(self.operation(values, self.down[index]), self.up[index], bias)
        return gates.view(-1, *(1,) * (outputs.dim() - 1)) * outputs

    def added(self, positions: int, active: int) -> int:
        """Count the multiply-accumulates on one picture beside those of the plain layer."""
        return active * positions * (self.down[0].numel() + self.up[0].numel())


class RoutedNorm(nn.Module):
    """Σ gᵢ normᵢ(x), gates summing to 1: scale and shift are the sources', weighed for every picture.

    A batch norm's running statistics are part of its scale and shift; what other norms take from the picture itself is
    the same for all sources.

    Args:
        norm: The plain norm: batch norm, GroupNorm, or a LayerNorm over the units.
        units: Width of the axis that it normalises.
        sources: Number of sources N.
    """

    def __init__(self, norm: nn.Module, units: int, sources: int) -> None:
        super().__init__()
        self.core, self.eps = _without_parameters(norm), cast(float, norm.eps)
        self.last = isinstance(norm, nn.LayerNorm) and not isinstance(norm, LayerNorm2d)
        device = next((tensor.device for tensor in (*norm.parameters(), *norm.buffers())), None)
        self.scales = nn.Parameter(torch.empty(sources, units, device=device))
        self.shifts = nn.Parameter(torch.empty(sources, units, device=device))

    @torch.no_grad()
    def load(self, norms: Sequence[dict[str, Tensor]]) -> None:
        """Set every source's tensors, by name: weight, bias, running_mean, running_var, as far as there are any."""
        for index, state in enumerate(norms):
            tensors = {name: tensor.double() for name, tensor in state.items()}
            scale = tensors.get("weight", torch.ones_like(self.scales[index], dtype=torch.float64))
            shift = tensors.get("bias", torch.zeros_like(scale))
            if isinstance(self.core, nn.Identity):
                scale = scale / (tensors["running_var"] + self.eps).sqrt()
                shift = shift - tensors["running_mean"] * scale
            self.scales[index].copy_(scale)
            self.shifts[index].copy_(shift)

    def forward(self, values: Tensor, gates: Tensor) -> Tensor:
        """Normalise values as the plain norm reads them, with gates (pictures, sources)."""
        between, units = (1,) * (values.dim() - 2), self.scales.shape[1]
        shape = (-1, *between, units) if self.last else (-1, units, *between)
        normalised: Tensor = self.core(values)
        return normalised * (gates @ self.scales).view(shape) + (gates @ self.shifts).view(shape)

    def added(self, positions: int, active: int) -> int:
        """Count the multiply-accumulates on one picture that weigh the sources'; norms themselves count nowhere."""
        return self.scales.numel() + self.shifts.numel()


def _inputs(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else cast(nn.Conv2d, layer).in_channels


def _has_bias(layer: nn.Module) -> bool:
    return layer.bias is not None


def _empty(layer: nn.Module, *shape: int) -> Tensor:
    """Allocate a tensor of a layer's device and dtype, its values not set."""
    return cast(Tensor, layer.weight).detach().new_empty(shape)


def _without_parameters(norm: nn.Module) -> nn.Module:
    """Copy a norm without its scale and shift: the identity, where it has running statistics."""
    if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        plain = type(norm)(norm.num_features, norm.eps, affine=False, track_running_stats=False)
        return nn.Identity() if norm.track_running_stats else plain
    if isinstance(norm, nn.GroupNorm):
        return nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps, affine=False)
    norm = cast(nn.LayerNorm, norm)
    return type(norm)(norm.normalized_shape, norm.eps, elementwise_affine=False)
