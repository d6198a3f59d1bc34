"""A device that is not there: tensors that say they live on it, and operations that refuse to mix devices.

Its numbers are kept and computed by the CPU, so that code for accelerators can be held to two promises on a machine
without one: what is made elsewhere stays there until somebody brings it home, and nothing meets a tensor of the wrong
device. Speed, rounding and memory of a real accelerator are another matter: see the tests marked ``gpu``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy")  # torch knows the name, asks no driver for it, and nothing else here uses it
MOVING = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class Away(Tensor):
    """A tensor elsewhere."""

    @staticmethod
    def __new__(cls: type["Away"], inner: Tensor) -> "Away":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"Away({self.inner})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)  # what is saved is read by the CPU

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class Operations(TorchDispatchMode):
    """Operations on tensors elsewhere, and those that make some."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class Values(TorchFunctionMode):
    """Tensors from numbers and back, which torch does without an operation."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and _elsewhere(kwargs.get("device")):
            return Away(function(*args, **{**kwargs, "device": "cpu"}))
        if function is Tensor.new_tensor and isinstance(args[0], Away) and _elsewhere(kwargs.get("device", DEVICE)):
            return Away(args[0].inner.new_tensor(*args[1:], **{**kwargs, "device": "cpu"}))
        if function is Tensor.tolist and isinstance(args[0], Away):
            return args[0].inner.tolist()
        if function is Tensor.__getitem__ and isinstance(args[0], Away):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(torch.tensor(one) if isinstance(one, list) else one for one in places)
            return function(args[0], places)
        return function(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Within it, tensors and modules can be moved to the device that it gives."""
    autocast = torch.autocast

    def switched(_: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu", *args, **kwargs)

    moved = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with pytest.MonkeyPatch.context() as patch, Values(), Operations():
            patch.setattr(torch, "autocast", switched)
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(moved)


@contextmanager
def trained_elsewhere() -> Iterator[torch.device]:
    """Within it, every trainer works on that device."""
    with elsewhere() as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_AcceleratorConnector, "_choose_strategy", lambda _: SingleDeviceStrategy(device))
        patch.setattr(CPUAccelerator, "setup_device", lambda *_: None)
        yield device


def _elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _run(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    away = [one for one in tensors if isinstance(one, Away)]
    home = [one for one in tensors if not isinstance(one, Away)]
    if away and function not in MOVING:
        # As CUDA has it: numbers may come from anywhere, and so may indices of what is elsewhere.
        lost = home[:1] if function in INDEXING and not isinstance(args[0], Away) else []
        if function not in INDEXING:
            lost = [one for one in home if one.dim() > 0]
        if lost:
            shapes = [tuple(one.shape) for one in tensors]
            raise RuntimeError(f"{function}: tensors of shapes {shapes} are on two devices")
    inner = tree_map(lambda one: one.inner if isinstance(one, Away) else one, (args, dict(kwargs)))
    if kwargs.get("device") is not None:
        inner[1]["device"] = torch.device("cpu")
    result = function(*inner[0], **inner[1])
    if function._schema.is_mutable:
        return kwargs.get("out", args[0] if args else None)
    goes = _elsewhere(kwargs["device"]) if kwargs.get("device") is not None else bool(away)
    return tree_map(lambda one: Away(one) if goes and isinstance(one, Tensor) else one, result)
