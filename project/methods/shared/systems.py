"""Linear systems Σ Cᵢ θ = Σ Cᵢ θᵢ of MaTS, one for each tensor, as operators that are never written out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from project.methods.shared.aligned import Space
from project.moments import Classes
from project.symmetry import Layer


class System(ABC):
    """The system of one tensor; its solution minimises E(θ) = Σ ‖θ − θᵢ‖² in the norms of the Cᵢ.

    Around the mean m of the sources, with C = Σ Cᵢ and p = Σ Cᵢ (θᵢ − m),

        E(m + y) = E(m) − 2 ⟨y, p⟩ + ⟨y, C y⟩ = E(m) − ⟨y, p + r⟩, where r = p − C y is the residual,

    so that each Cᵢ is needed once, and C alone from then on.

    Args:
        name: Of the tensor.
        sources: θᵢ, float64, all of one shape: a layer's weights as a matrix (outputs, inputs · taps), those of a
            grouped convolution as one for each block.
        damping: Added to the diagonal of every Cᵢ, relative to the mean of their diagonals.

    Attributes:
        mean: m.
        centred: p.
        settled: Whether all sources agree, which solves it whatever the Cᵢ.
    """

    def __init__(self, name: str, sources: Sequence[Tensor], damping: float) -> None:
        self.name, self._damping = name, damping
        self.mean = torch.stack(list(sources)).mean(0)
        self.settled = all(torch.equal(source, sources[0]) for source in sources[1:])
        self.centred = torch.zeros_like(self.mean)
        self._spread = self._distance = 0.0  # Σ ⟨gap, Cᵢ gap⟩ before damping, and Σ ‖gap‖²: together E(m)
        for index, source in enumerate(sources):
            gap = source - self.mean
            image = self._apply_one(index, gap)
            self.centred += image
            self._spread += float((gap * image).sum())
            self._distance += float(gap.square().sum())
        self._count = len(sources)

    @abstractmethod
    def _apply_one(self, source: int, gap: Tensor) -> Tensor:
        """Compute Cᵢ (θᵢ − m), before damping; called for one source after the other, each once."""

    @abstractmethod
    def _apply(self, values: Tensor) -> Tensor:
        """Compute C X, before damping."""

    @abstractmethod
    def _diagonal(self) -> Tensor:
        """Compute the diagonal of C, before damping; may have to be expanded to the tensor's shape."""

    @cached_property
    def shift(self) -> float:
        """What damping adds to the diagonal of C."""
        return self._damping * float(self._diagonal().mean()) if self._damping else 0.0

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal of C."""
        return (self._diagonal() + self.shift).expand_as(self.mean)

    def apply(self, values: Tensor) -> Tensor:
        """Compute C X."""
        image = self._apply(values)
        return image + self.shift * values if self.shift else image

    @cached_property
    def right(self) -> Tensor:
        """Σ Cᵢ θᵢ."""
        return self.centred + self.apply(self.mean)

    def residual(self, values: Tensor) -> Tensor:
        """Compute Σ Cᵢ (θᵢ − X): exactly p where X is the mean."""
        gap = self.mean - values
        return self.centred + self.apply(gap) if gap.any() else self.centred.clone()

    @cached_property
    def scale(self) -> float:
        """Σ ⟨θᵢ, Cᵢ θᵢ⟩: the energy of a network of zeros."""
        return self.energy(torch.zeros_like(self.mean), self.right)

    def energy(self, values: Tensor, residual: Tensor | None = None) -> float:
        """Compute E(X).

        Args:
            values: X.
            residual: Σ Cᵢ (θᵢ − X), where the caller has it.
        """
        at_mean = self._spread + self.shift / self._count * self._distance
        if residual is None:
            residual = self.residual(values)
        return max(0.0, at_mean - float(((values - self.mean) * (self.centred + residual)).sum()))

    def loss(self, values: Tensor, residual: Tensor | None = None) -> float:
        """Compute the energy over that of zeros."""
        return self.energy(values, residual) / max(self.scale, 1e-300)


class Elementwise(System):
    """Cᵢ is diagonal.

    Args:
        name: Of the tensor.
        sources: θᵢ.
        weights: The diagonals, in the shape of θᵢ.
        damping: See :class:`System`.
    """

    def __init__(self, name: str, sources: Sequence[Tensor], weights: Sequence[Tensor], damping: float = 0.0) -> None:
        self._weights = weights
        self.total = torch.stack(list(weights)).sum(0)
        super().__init__(name, sources, damping)

    def _apply_one(self, source: int, gap: Tensor) -> Tensor:
        return self._weights[source] * gap

    def _apply(self, values: Tensor) -> Tensor:
        return self.total * values

    def _diagonal(self) -> Tensor:
        return self.total


class Gram(System):
    """Cᵢ X = X Aᵢ: all outputs alike, inputs by their second moment. The sum is held, each Aᵢ only while it is added.

    Args:
        name: Of the tensor.
        sources: θᵢ, shape (…, outputs, inputs).
        inputs: Aᵢ, shape (…, inputs, inputs).
        damping: See :class:`System`.

    Attributes:
        total: Σ Aᵢ, before damping.
    """

    def __init__(self, name: str, sources: Sequence[Tensor], inputs: Iterable[Tensor], damping: float = 0.0) -> None:
        self._inputs = iter(inputs)
        self.total: Tensor
        super().__init__(name, sources, damping)

    @classmethod
    def of(cls, space: Space, layer: Layer, *, off_diagonal: float, damping: float = 0.0) -> "Gram":
        """Make the system of a layer."""
        inputs = (shrunk(space.gram(layer, index), off_diagonal) for index in range(len(space.sources)))
        return cls(layer.name, matrices(space, layer), inputs, damping)

    def _apply_one(self, source: int, gap: Tensor) -> Tensor:
        moment = next(self._inputs)
        self.total = self.total + moment if source else moment
        return gap @ moment

    def _apply(self, values: Tensor) -> Tensor:
        return values @ self.total

    def _diagonal(self) -> Tensor:
        return diagonals(self.total)[..., None, :]


class Kronecker(System):
    """Cᵢ X = Gᵢ X Aᵢ: K-FAC's block of the Fisher information (arXiv 1503.05671; convolutions 1602.01407).

    Args:
        name: Of the tensor.
        sources: θᵢ, shape (…, outputs, inputs).
        inputs: Aᵢ, shape (…, inputs, inputs).
        outputs: Gᵢ, shape (…, outputs, outputs).
        damping: See :class:`System`.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[Tensor],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        damping: float = 0.0,
    ) -> None:
        self._sides = list(zip(outputs, inputs, strict=True))
        super().__init__(name, sources, damping)

    @classmethod
    def of(
        cls, space: Space, layer: Layer, classes: Classes, *, off_diagonal: float, damping: float = 0.0
    ) -> "Kronecker":
        """Make the system of a layer, from gradients of these classes."""
        count = range(len(space.sources))
        inputs = [shrunk(space.gram(layer, index), off_diagonal) for index in count]
        outputs = [shrunk(space.factor(layer, index, classes), off_diagonal) for index in count]
        return cls(layer.name, matrices(space, layer), inputs, outputs, damping)

    def _apply_one(self, source: int, gap: Tensor) -> Tensor:
        outputs, inputs = self._sides[source]
        return outputs @ gap @ inputs

    def _apply(self, values: Tensor) -> Tensor:
        total = torch.zeros_like(values)
        for outputs, inputs in self._sides:
            total += outputs @ values @ inputs
        return total

    def _diagonal(self) -> Tensor:
        sides = [diagonals(outputs)[..., :, None] * diagonals(inputs)[..., None, :] for outputs, inputs in self._sides]
        return torch.stack(sides).sum(0)


def shrunk(moment: Tensor, off_diagonal: float) -> Tensor:
    """Compute λ C + (1 − λ) diag C, in place."""
    if off_diagonal == 1:
        return moment
    diagonal = diagonals(moment).clone()
    moment *= off_diagonal
    diagonals(moment).copy_(diagonal)
    return moment


def matrices(space: Space, layer: Layer) -> list[Tensor]:
    """Collect a layer's weights in every source, shape (outputs, inputs · taps), or such a matrix for each block."""
    weights = (source[f"{layer.name}.weight"].flatten(1) for source in space.sources)
    return [weight if layer.blocks == 1 else torch.unflatten(weight, 0, (layer.blocks, -1)) for weight in weights]


def merged_layers(space: Space) -> list[Layer]:
    """List all layers but heads of different label spaces, which stay the sources' own."""
    return [layer for layer in space.problem.spec.layers if f"{layer.name}.weight" in space.names]


def diagonals(moment: Tensor) -> Tensor:
    """View the diagonal of a matrix, or of each of a batch: shape (…, rows)."""
    return moment.diagonal(dim1=-2, dim2=-1)
