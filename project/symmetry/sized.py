"""Tracing with the sizes of one picture known, for networks whose code branches on them.

torch.fx follows values without sizes: ``if x.shape[-1] % 7`` or ``math.ceil(x.shape[-1] / 2)`` stops it. Here every
value comes with a tensor on the meta device, whose sizes are plain numbers to the code. The number of pictures alone
stays open: sizes that are multiples of it remain values of the graph.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _orig_module_call, _orig_module_getattr

BATCH = 100003  # pictures: prime, and larger than any other size, so that none is taken for a multiple of it
TOLD = ("ndim", "dtype", "is_cuda", "layout", "requires_grad", "is_floating_point")


class Sized(fx.Proxy):
    """A value of the graph, and one like it on the meta device."""

    value: Any = None

    def __getattr__(self, k: str) -> Any:
        """What the code asks of a value: its sizes as numbers, its methods as calls."""
        tracer = cast(SizedTracing, self.tracer)
        if k == "shape":
            return tracer.create_proxy("call_method", "size", (self,), {})
        if k == "device":
            return torch.device("cpu")  # tensors that the code makes there are constants
        if k in TOLD and not callable(told := getattr(self.value, k)):
            return told
        if k in ("T", "mT", "H"):
            return tracer.create_proxy("call_function", getattr, (self, k), {})
        return fx.proxy.Attribute(self, k)

    def __len__(self) -> int:
        """How many parts it has."""
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        """The parts of it."""
        return self.tracer.iter(self)


class SizedTracing(fx.Tracer):
    """A tracer that knows the sizes of all values; mix it into one that knows the leaves.

    Attributes:
        example: Pictures on the meta device, :data:`BATCH` of them.
    """

    example: Tensor

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A value with sizes."""
        return Sized(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As torch.fx does it; remembers how the module is called."""
        self._forward = forward
        return super().call_module(m, forward, args, kwargs)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """A value, or the plain number or shape that it is."""
        forward = getattr(self, "_forward", None)
        proxy = cast(Sized, super().create_proxy(kind, target, args, kwargs, *rest, **more))
        given = fx.node.map_aggregate(args, _like), fx.node.map_aggregate(kwargs, _like)
        with _untraced():
            value = self._computed(kind, target, forward, *given)
        proxy.__dict__["value"] = value
        return self._settled(proxy, [one for one in _proxies((args, kwargs)) if isinstance(one.value, int | float)])

    def _computed(self, kind: str, target: Any, forward: Callable[..., Any] | None, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self.example
        if kind == "get_attr":
            owner, _, leaf = str(target).rpartition(".")
            return _like(getattr(self.root.get_submodule(owner), leaf))
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        call = target if kind == "call_function" else cast(Callable[..., Any], forward)
        return call(*args, **kwargs)

    def _settled(self, proxy: Sized, counts: list[Sized]) -> Any:
        value = proxy.value
        if isinstance(value, torch.Size):
            return tuple(cast(Any, proxy)[place] if _open(size) else size for place, size in enumerate(value))
        if value is None or isinstance(value, bool | str | torch.dtype | torch.device):
            return value
        if isinstance(value, float):
            return proxy if counts else value
        if isinstance(value, int):
            if not _open(value) and counts:
                raise TypeError("the number of pictures enters a size")
            return proxy if _open(value) else value
        return proxy

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a value."""
        count = len(cast(Sized, obj).value)
        if _open(count):
            raise TypeError("the pictures of a batch are gone through one by one")
        return iter([obj[place] for place in range(count)])  # type: ignore[index]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Whether a number is not zero; what is in a tensor is not known."""
        value = cast(Sized, obj).value
        return bool(value) if isinstance(value, int | float) else super().to_bool(obj)


def _open(size: int) -> bool:
    return size > 0 and size % BATCH == 0


def _like(one: Any) -> Any:
    """What stands for an argument on the meta device."""
    if isinstance(one, Sized):
        return one.value
    if isinstance(one, fx.proxy.Attribute):
        return getattr(cast(Sized, one.root).value, one.attr)
    if isinstance(one, torch.device):
        return torch.device("meta")
    return one.to("meta") if isinstance(one, Tensor) else one


def _proxies(arguments: Any) -> list[Sized]:
    found: list[Sized] = []
    fx.node.map_aggregate(arguments, lambda one: found.append(one) if isinstance(one, Sized) else None)
    return found


@contextmanager
def _untraced() -> Iterator[None]:
    """Modules do what they do outside of a tracer, while open."""
    patched = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _orig_module_call, _orig_module_getattr  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = patched  # type: ignore[method-assign]


def takes_pictures_alone(forward: Callable[..., Any]) -> bool:
    """Whether all that a forward method takes beside the pictures may be left out, and there is something."""
    _, _, *others = inspect.signature(forward).parameters.values()
    return bool(others) and all(
        one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in others
    )
