"""Networks of the user's own code: named by a dotted path, a class or a function, which no file may choose."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import fx, nn

from project.errors import ConfigurationError, PleasError

Maker = Callable[..., nn.Module]
"""A class or function whose result is a network."""


def dotted_path(maker: Maker | nn.Module) -> str:
    """The dotted path of a class or function, or of a network's class.

    Args:
        maker: The class, the function, or a network.

    Raises:
        ConfigurationError: If it has none, as a ``functools.partial`` has.
    """
    code = type(maker) if isinstance(maker, nn.Module) else maker
    module, name = getattr(code, "__module__", None), getattr(code, "__qualname__", None)
    if not callable(code) or not module or not name:
        raise ConfigurationError(
            f"architecture is {maker!r}; allowed: a name, a dotted path, a class or function that builds a network, or "
            f"a network."
        )
    return f"{module}.{name}"


def find_maker(path: str, argument: str = "architecture") -> Maker | None:
    """Import what a dotted path names; for paths that the user has given, and never for one that a file holds.

    Args:
        path: Such as ``mypackage.models.MyNet``; the current directory is looked into first, as ``python -m`` does.
        argument: What the user knows the path by.

    Returns:
        The class or function; None if its module has no such attribute.

    Raises:
        ConfigurationError: If there is no such module, or importing it fails.
    """
    module, _, name = path.rpartition(".")
    with _working_directory():
        try:
            found: Any = _import(module)
        except Exception as error:
            raise ConfigurationError(
                f"{argument} is {path!r}, but {module!r} cannot be imported: {_reason(error)}."
            ) from error
    maker: Maker | None = getattr(found, name, None)
    return maker


def _import(path: str) -> Any:
    """A module, or a class that others are defined in."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        outer, _, name = path.rpartition(".")
        if not outer or error.name not in (path, outer):  # what the module itself imports is not there
            raise
        try:
            return getattr(_import(outer), name)
        except (ModuleNotFoundError, AttributeError):
            raise error from None


def make(maker: Maker, arguments: Mapping[str, Any], what: str) -> nn.Module:
    """Call a class or function that builds a network.

    Args:
        maker: The class or function.
        arguments: Its keyword arguments.
        what: What the user calls it, for messages.

    Raises:
        ConfigurationError: If it fails, or makes something else.
    """
    shown = {name: value for name, value in arguments.items() if name != "weights" or value is not None}
    try:
        with _working_directory():
            network = maker(**arguments)
    except PleasError:  # of what watches how large it becomes
        raise
    except Exception as error:  # whatever the user's code may raise
        raise ConfigurationError(f"{what} cannot be built with {shown}: {_reason(error)}.") from error
    if not isinstance(network, nn.Module):
        raise ConfigurationError(f"{what} makes a {type(network).__name__} and no nn.Module.")
    return network


class _Layers(fx.Tracer):
    """Stops at layers of classes derived from torch's, too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it is one step of the trace."""
        return isinstance(m, nn.Linear | nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def last_layer(network: nn.Module) -> str:
    """Name of the linear layer or convolution that runs last, which makes the logits.

    Where torch.fx cannot tell what runs last, of the last that the network registers.

    Args:
        network: Returns logits.

    Raises:
        ConfigurationError: If it has neither linear layer nor convolution.
    """
    try:
        names = [str(node.target) for node in _Layers().trace(network).nodes if node.op == "call_module"]
    except Exception:  # fx runs the user's code, which may raise anything
        names = [name for name, _ in network.named_modules()]
    layers = [name for name in names if isinstance(network.get_submodule(name), nn.Linear | nn.Conv2d)]
    if not layers:
        raise ConfigurationError(f"{type(network).__name__} has no linear layer and no convolution to make logits.")
    return layers[-1]


def count_logits(network: nn.Module) -> int:
    """Number of logits of a network: rows of its :func:`last_layer`."""
    return cast(nn.Linear | nn.Conv2d, network.get_submodule(last_layer(network))).weight.shape[0]


@contextmanager
def _working_directory() -> Iterator[None]:
    """The current directory as the first place that modules are looked for in."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # the user's code may have changed it
            sys.path.remove(folder)


def _reason(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0].rstrip(".")
    return first if isinstance(error, ImportError | TypeError | ValueError) and first else f"{error!r}"
