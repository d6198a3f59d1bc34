"""Linear systems Σ Cᵢ θ = Σ Cᵢ θᵢ of MaTS, one for each tensor, as operators that are never written out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from project.methods.space import Space
from project.moments import Classes
from project.symmetry import Layer


class System(ABC):
    """The system of one tensor; its solution minimises Σ ‖θ − θᵢ‖² in the norms of the Cᵢ.

    Args:
        name: Of the tensor.
        sources: θᵢ, float64, all of one shape: a layer's weights as a matrix (outputs, inputs · taps).
        damping: Added to the diagonal of every Cᵢ, relative to the mean of their diagonals.
    """

    def __init__(self, name: str, sources: Sequence[Tensor], damping: float) -> None:
        self.name, self.sources, self._damping = name, sources, damping

    @abstractmethod
    def _apply(self, source: int, values: Tensor) -> Tensor:
        """Cᵢ X, before damping."""

    @abstractmethod
    def _diagonal(self, source: int) -> Tensor:
        """The diagonal of Cᵢ, before damping; may have to be expanded to the tensor's shape."""

    @cached_property
    def shift(self) -> float:
        """What damping adds to the diagonal of each Cᵢ."""
        if not self._damping:
            return 0.0
        diagonals = [float(self._diagonal(index).mean()) for index in range(len(self.sources))]
        return self._damping * sum(diagonals) / len(diagonals)

    @cached_property
    def mean(self) -> Tensor:
        """The mean of the sources."""
        return torch.stack(list(self.sources)).mean(0)

    @property
    def settled(self) -> bool:
        """Whether all sources agree, which solves it whatever the Cᵢ."""
        return all(torch.equal(one, self.sources[0]) for one in self.sources[1:])

    def apply_one(self, source: int, values: Tensor) -> Tensor:
        """Cᵢ X."""
        found = self._apply(source, values)
        return found + self.shift * values if self.shift else found

    def apply(self, values: Tensor) -> Tensor:
        """Σ Cᵢ X."""
        total = self.apply_one(0, values)
        for index in range(1, len(self.sources)):
            total = total + self.apply_one(index, values)
        return total

    def pull(self, values: Tensor) -> Tensor:
        """Σ Cᵢ (θᵢ − X): the residual, exactly 0 where all sources are X."""
        total = torch.zeros_like(values)
        for index, one in enumerate(self.sources):
            total += self.apply_one(index, one - values)
        return total

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal of Σ Cᵢ."""
        total = torch.zeros_like(self.sources[0])
        for index in range(len(self.sources)):
            total += self._diagonal(index) + self.shift
        return total

    @cached_property
    def right(self) -> Tensor:
        """Σ Cᵢ θᵢ."""
        return self.pull(torch.zeros_like(self.sources[0]))

    @cached_property
    def scale(self) -> float:
        """Σ ⟨θᵢ, Cᵢ θᵢ⟩: the loss of a network of zeros."""
        return sum(float((one * self.apply_one(i, one)).sum()) for i, one in enumerate(self.sources))

    def energy(self, values: Tensor) -> float:
        """Σ ⟨X − θᵢ, Cᵢ (X − θᵢ)⟩."""
        gaps = (values - one for one in self.sources)
        return sum(float((gap * self.apply_one(i, gap)).sum()) for i, gap in enumerate(gaps))

    def loss(self, values: Tensor) -> float:
        """The energy over that of zeros."""
        return self.energy(values) / max(self.scale, 1e-300)


class Elementwise(System):
    """Cᵢ is diagonal.

    Args:
        name: Of the tensor.
        sources: θᵢ.
        weights: The diagonals, in the shape of θᵢ.
        damping: See :class:`System`.
    """

    def __init__(self, name: str, sources: Sequence[Tensor], weights: Sequence[Tensor], damping: float = 0.0) -> None:
        super().__init__(name, sources, damping)
        self.weights = weights

    def _apply(self, source: int, values: Tensor) -> Tensor:
        return self.weights[source] * values

    def _diagonal(self, source: int) -> Tensor:
        return self.weights[source]


class Gram(System):
    """Cᵢ X = X Aᵢ: all outputs alike, inputs by their second moment.

    Args:
        name: Of the tensor.
        sources: θᵢ, shape (outputs, inputs).
        inputs: Aᵢ, shape (inputs, inputs).
        damping: See :class:`System`.
    """

    def __init__(self, name: str, sources: Sequence[Tensor], inputs: Sequence[Tensor], damping: float = 0.0) -> None:
        super().__init__(name, sources, damping)
        self.inputs = inputs

    @classmethod
    def of(cls, space: Space, layer: Layer, *, off_diagonal: float, damping: float = 0.0) -> "Gram":
        """The system of a layer."""
        inputs = [shrunk(space.gram(layer, index), off_diagonal) for index in range(len(space.sources))]
        return cls(layer.name, matrices(space, layer), inputs, damping)

    def total(self) -> Tensor:
        """Σ Aᵢ, before damping."""
        first, *others = self.inputs
        total = first.clone()
        for one in others:
            total += one
        return total

    def _apply(self, source: int, values: Tensor) -> Tensor:
        return values @ self.inputs[source]

    def _diagonal(self, source: int) -> Tensor:
        return self.inputs[source].diagonal()[None, :]


class Kronecker(System):
    """Cᵢ X = Gᵢ X Aᵢ: K-FAC's block of the Fisher information (arXiv 1503.05671; convolutions 1602.01407).

    Args:
        name: Of the tensor.
        sources: θᵢ, shape (outputs, inputs).
        inputs: Aᵢ, shape (inputs, inputs).
        outputs: Gᵢ, shape (outputs, outputs).
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
        super().__init__(name, sources, damping)
        self.inputs, self.outputs = inputs, outputs

    @classmethod
    def of(
        cls, space: Space, layer: Layer, classes: Classes, *, off_diagonal: float, damping: float = 0.0
    ) -> "Kronecker":
        """The system of a layer, from gradients of these classes."""
        count = range(len(space.sources))
        inputs = [shrunk(space.gram(layer, index), off_diagonal) for index in count]
        outputs = [shrunk(space.factor(layer, index, classes), off_diagonal) for index in count]
        return cls(layer.name, matrices(space, layer), inputs, outputs, damping)

    def _apply(self, source: int, values: Tensor) -> Tensor:
        return self.outputs[source] @ values @ self.inputs[source]

    def _diagonal(self, source: int) -> Tensor:
        return self.outputs[source].diagonal()[:, None] * self.inputs[source].diagonal()[None, :]


def shrunk(moment: Tensor, off_diagonal: float) -> Tensor:
    """λ C + (1 − λ) diag C, in place."""
    if off_diagonal == 1:
        return moment
    diagonal = moment.diagonal().clone()
    moment *= off_diagonal
    moment.diagonal().copy_(diagonal)
    return moment


def matrices(space: Space, layer: Layer) -> list[Tensor]:
    """A layer's weights in every source, shape (outputs, inputs · taps)."""
    return [one[f"{layer.name}.weight"].flatten(1) for one in space.sources]


def gram_layers(space: Space) -> list[Layer]:
    """The layers to merge whose inputs have moments: not grouped ones, and no heads of different label spaces."""
    return [layer for layer in space.problem.spec.layers if layer.blocks == 1 and f"{layer.name}.weight" in space.names]
