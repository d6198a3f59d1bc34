"""Networks by a library and its name for them, such as ``timm/resnet50d``: built at random, nothing is fetched."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from project.errors import ConfigurationError, nearest
from project.models.custom import last_layer, make

TIMM, TORCHVISION = "timm/", "torchvision/"
INSTALL = "pip install 'pleas-lightning[timm]'"
EPSILON = "epsilon"
"""An argument of ours: name of a module -> epsilon of all layer norms in it. timm has its own, other writers theirs."""
FETCHING = frozenset({
    "cache_dir", "checkpoint_path", "device", "dtype", "exportable", "features_only", "model_name", "no_jit",
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "scriptable",
})  # fmt: skip
"""Arguments of ``timm.create_model`` that fetch, read files, or make other than a classifier: nobody may give them."""


def is_name(text: str) -> bool:
    """Whether a text names a network of a library or of ours, and no code of the user's."""
    return "." not in text or text.startswith((TIMM, TORCHVISION))


def plain_name(name: str) -> str:
    """The name of a network as descriptions keep it: torchvision's without the library, timm's without a tag."""
    if name.startswith(TIMM):
        return name.partition(".")[0]
    return name.removeprefix(TORCHVISION)


def check_timm(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what no network of timm is called, and arguments that would do more than build one; timm is not imported.

    Raises:
        ConfigurationError: With the name, or the argument.
    """
    short = name.removeprefix(TIMM)
    if not short.isidentifier():
        raise ConfigurationError(f"architecture is {name!r}; allowed behind {TIMM!r}: a name of timm's.")
    for taken in sorted(FETCHING & arguments.keys()):
        raise ConfigurationError(f"arguments holds {taken!r}, which {name} does not take: its weights are the file's.")
    epsilons = arguments.get(EPSILON, {})
    if not isinstance(epsilons, Mapping) or not all(
        type(value) in (int, float) and 0 < value < 1 for value in epsilons.values()
    ):
        raise ConfigurationError(
            f"arguments holds {EPSILON} {epsilons!r}; allowed: name of a module -> a number between 0 and 1."
        )


def timm_library(name: str) -> Any:
    """Import timm.

    Args:
        name: Of the network for which it is needed.

    Raises:
        ConfigurationError: If it is not installed, or has no such network.
    """
    try:
        library = import_module("timm")
    except ImportError as error:
        raise ConfigurationError(f"architecture is {name!r}, which needs timm: {INSTALL} ({error}).") from error
    short = name.removeprefix(TIMM)
    if not library.is_model(short):
        raise ConfigurationError(
            f"architecture is {name!r}, but timm {library.__version__} has none of that name"
            f"{nearest(short, library.list_models())}; timm.list_models() names all."
        )
    return library


def build_timm(name: str, num_classes: int, arguments: Mapping[str, Any], shapes: bool = False) -> nn.Module:
    """Build a network of timm, randomly initialised; the state of random numbers stays as it is.

    Args:
        name: Such as ``timm/resnet50d``.
        num_classes: Number of logits.
        arguments: Keyword arguments of ``timm.create_model``, and perhaps :data:`EPSILON`.
        shapes: Whether names and shapes of its tensors are all that is needed; else it is built on the CPU, as buffers
            that no file holds must have their values.

    Raises:
        ConfigurationError: If timm is not there, has none of that name, or does not take the arguments.
    """
    library = timm_library(name)
    epsilons = arguments.get(EPSILON, {})
    given = {
        "model_name": name.removeprefix(TIMM), "pretrained": False, "num_classes": num_classes,
        **{key: value for key, value in arguments.items() if key != EPSILON},
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        if shapes:
            try:
                with torch.device("meta"):
                    return make(library.create_model, given, f"architecture {name!r}")
            except ConfigurationError:  # some compute with values while they are built
                pass
        with torch.device("cpu"):
            network = make(library.create_model, given, f"architecture {name!r}")
    for place, epsilon in epsilons.items():
        for module in _below(network, place, name):
            if isinstance(module, nn.LayerNorm):
                module.eps = epsilon
    return network


def timm_defaults(name: str) -> dict[str, Any] | None:
    """What timm says of the pictures and the head of a network, its ``pretrained_cfg``.

    Args:
        name: Such as ``timm/resnet50d``, perhaps with a tag behind.

    Returns:
        The settings; empty where timm has none of that name, None where it is not installed.
    """
    try:
        library = import_module("timm")
    except ImportError:
        return None
    full = name.removeprefix(TIMM)
    if not library.is_model(full.partition(".")[0]):
        return {}
    try:
        found = library.models.get_pretrained_cfg(full)
    except RuntimeError:  # a tag that this release does not know
        found = library.models.get_pretrained_cfg(full.partition(".")[0])
    return {} if found is None else dict(found.to_dict())


def head_of_timm(name: str, network: nn.Module) -> str:
    """Name of the layer that makes the logits of a network of timm, the first where it has several.

    Args:
        name: Such as ``timm/resnet50d``.
        network: As it was built.
    """
    found = (timm_defaults(name) or {}).get("classifier")
    found = found[0] if isinstance(found, list | tuple) and found else found
    try:
        if isinstance(network.get_submodule(str(found)), nn.Linear | nn.Conv2d):
            return str(found)
    except AttributeError:  # it is called otherwise
        pass
    return last_layer(network)


def _below(network: nn.Module, place: str, name: str) -> list[nn.Module]:
    try:
        return list(network.get_submodule(place).modules())
    except AttributeError as error:
        raise ConfigurationError(f"arguments holds {EPSILON} of {place!r}, which {name} does not have.") from error
