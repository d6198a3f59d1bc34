"""What several modules ask of their trainer, and tell it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from torch import nn

from project.errors import ConfigurationError
from project.models import LabelSpace


@dataclass(frozen=True)
class FitBytes:
    """About what a fit writes.

    Args:
        weights: Bytes of a checkpoint's weights.
        optimizer: Bytes that it holds of the optimizer beside them.
        student: Bytes of the student that is written in the end.
    """

    weights: int
    optimizer: int = 0
    student: int = 0


@runtime_checkable
class Writes(Protocol):
    """A module that knows how much it is going to write before there is a network."""

    def writes(self) -> FitBytes:
        """Estimate it."""


def optimizer_bytes(make: Callable[[list[nn.Parameter]], Any], parameters: Sequence[nn.Parameter]) -> int:
    """Measure what an optimizer keeps once it has taken a step, as a checkpoint holds it.

    Args:
        make: Makes it.
        parameters: Of the shapes at hand, without values: on the device ``meta``.

    Returns:
        Bytes; 0 where it takes no step without values, as one that searches along lines.
    """
    if not parameters:
        return 0
    try:
        optimizer = make(list(parameters))
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return sum(tensor.nbytes for state in optimizer.state.values() for tensor in _tensors(state))
    except Exception:  # whatever an optimizer of anybody's makes of values that are not there
        return 0


def _tensors(state: Any) -> list[torch.Tensor]:
    return [value for value in state.values() if isinstance(value, torch.Tensor)]


def data_labels(module: LightningModule) -> LabelSpace:
    """Read the label space of the data that the module's trainer was given.

    Raises:
        ConfigurationError: If there is no data module, or one without label space.
    """
    data = getattr(module.trainer, "datamodule", None)
    labels = getattr(data, "label_space", None)
    if not isinstance(labels, LabelSpace):
        raise ConfigurationError("data must be a DomainDataModule, which says what the domains and their classes are.")
    return labels
