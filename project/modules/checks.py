"""What a fit would fail at only after it has begun, or that would make its weights no numbers."""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn, optim

from project.errors import ConfigurationError, nearest

MakeOptimizer = Callable[[Iterable[nn.Parameter]], optim.Optimizer]
OTHERS = ("lightning.", "project.")
"""Modules of callbacks that log no figures of their own to the trainer."""


def check_optimizer(make: MakeOptimizer, schedule: Callable[[optim.Optimizer], Any] | None = None) -> None:
    """Refuse an optimizer or schedule that cannot be, by a trial on a single number.

    Args:
        make: Makes the optimizer from parameters; where it needs those of a network, nothing is said.
        schedule: Makes the schedule from the optimizer.

    Raises:
        ConfigurationError: If either cannot be made, the schedule fails at its first step, or a setting is not finite.
    """
    try:
        optimizer = make([nn.Parameter(torch.zeros(1, 1))])
    except ValueError as error:
        raise ConfigurationError(f"optimizer cannot be made: {_told(error)}.") from error
    except Exception:  # of code that looks at the parameters of the network, which are not here yet
        return
    _check_settings(optimizer)
    if schedule is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no step of the optimizer was taken
            made = schedule(optimizer)
            if not isinstance(made, optim.lr_scheduler.ReduceLROnPlateau):
                made.step()
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigurationError(f"lr_scheduler cannot be made: {_told(error)}.") from error
    except Exception:
        return
    _check_settings(optimizer)


def made_optimizer(make: MakeOptimizer, parameters: Sequence[nn.Parameter]) -> optim.Optimizer:
    """Make the optimizer of a network's parameters.

    Raises:
        ConfigurationError: If it does not take them.
    """
    try:
        return make(parameters)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"optimizer cannot be made: {_told(error)}.") from error


def check_watched(callbacks: Sequence[Callback], names: Collection[str]) -> None:
    """Refuse callbacks that watch a figure which nobody logs; they would fail once the first epoch is over.

    Args:
        callbacks: Of the trainer. Where some of them are the user's own, which may log anything, nothing is said.
        names: Of the figures that the module logs.

    Raises:
        ConfigurationError: With the callback, what it watches and what is logged.
    """
    if any(not type(callback).__module__.startswith(OTHERS) for callback in callbacks):
        return
    for callback in callbacks:
        check_monitor(type(callback).__name__, getattr(callback, "monitor", None), names)


def check_monitor(owner: str, monitor: object, names: Collection[str]) -> None:
    """Refuse to watch a figure that nobody logs.

    Args:
        owner: What watches it.
        monitor: Name of the figure; anything else than text is none.
        names: Of the figures that are logged.

    Raises:
        ConfigurationError: See :func:`check_watched`.
    """
    if isinstance(monitor, str) and monitor not in names:
        raise ConfigurationError(
            f"monitor of {owner} is {monitor!r}{nearest(monitor, names)}; allowed: {', '.join(sorted(names))}."
        )


def _check_settings(optimizer: optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for name, value in group.items():
            numbers = value if isinstance(value, list | tuple) and name != "params" else [value]
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ConfigurationError(f"{name} of the optimizer is {value}; allowed: finite numbers.")


def _told(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or repr(error)
