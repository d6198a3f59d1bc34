"""From a file of weights to a network that runs: whose code builds it, and whether its tensors are the file's."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from project.errors import CheckpointError, ConfigurationError
from project.models.architecture import Architecture, architectures, others
from project.models.custom import Maker, count_logits, dotted_path, find_maker, make
from project.models.reading.config import Said
from project.models.reading.files import Weights, bare_names, read_weights
from project.models.reading.folder import description_named
from project.models.reading.kin import kin
from project.models.recognise import architecture_of, candidate, recognise
from project.models.strict import check_strictly, differences, load_strictly, summary
from project.models.zoo import TIMM, is_name, plain_name

LARGER, ROOM = 16, 4096
"""How many times a file's own numbers and tensors what is built of its description may have, and how many beside: what
is built anew counts again, and a student may hold less than the network that it was."""
Named = Architecture | str | Maker | nn.Module
"""How a user names an architecture: by name, by the code that builds it, or by a network to copy."""


def name_of(architecture: Named) -> str:
    """The name, or the dotted path, of what a user names an architecture by; nothing is imported.

    Raises:
        ConfigurationError: If it has none.
    """
    if isinstance(architecture, nn.Module):
        return architecture_of(architecture).name
    if isinstance(architecture, Architecture):
        return architecture.name
    return plain_name(architecture) if isinstance(architecture, str) else dotted_path(architecture)


def load_network(
    path: str | Path, architecture: Named | None = None, arguments: Mapping[str, Any] | None = None
) -> tuple[nn.Module, Weights]:
    """Read a file of weights and build the network that they belong to.

    Args:
        path: File of weights, see :func:`~project.models.reading.files.read_weights`.
        architecture: The network, its name, a dotted path to a class or function that builds it, the class or function
            itself, or a network to copy; by default what the file says, or else what the shapes tell.
        arguments: What to build it with; by default what the file says.

    Returns:
        The network in evaluation mode, and what was read, its architecture filled in. They share no memory.

    Raises:
        CheckpointError: If the file cannot be read, or its tensors are not those of the architecture.
        ConfigurationError: If the name of the architecture is not known, it cannot be built, or the file says that it
            is code of the user's which the user has not named.
    """
    return build_network(read_weights(path), architecture, arguments)


def build_network(
    weights: Weights, architecture: Named | None = None, arguments: Mapping[str, Any] | None = None
) -> tuple[nn.Module, Weights]:
    """Build the network that weights belong to; see :func:`load_network`."""
    if isinstance(architecture, str) and (said := _said_by_folder(architecture)):
        known = weights.preprocessing or said.preprocessing, weights.class_names or said.class_names
        weights = replace(weights, architecture=None, said=said, preprocessing=known[0], class_names=known[1])
        architecture = None
    try:
        network, built = untrained_network(weights, architecture, arguments)
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {weights.remark or error}".rstrip(".") + ".") from error
    weights = weights.fitted(bare_names(network.state_dict()))
    try:
        check_strictly(network, _own_names(network, weights), str(weights.path))  # before memory is taken for it
        network = on_cpu(network)
        load_weights(network, weights)
    except CheckpointError as error:
        if built.custom and not built.arguments:
            raise CheckpointError(f"{str(error).rstrip('.')}; its arguments may be others, give them.") from error
        own = set(bare_names(network.state_dict()))
        if other := weights.remark or kin(name for name in weights.state_dict if name not in own):
            what = other if weights.remark else f"its tensors are named as {other}"
            raise CheckpointError(f"{weights.path} does not fit {built.name}: {what}.") from error
        raise
    return network.eval(), replace(weights, architecture=built)


def _said_by_folder(architecture: str) -> Said | None:
    """What a folder says that a user names as an architecture; None where it is a name."""
    name = plain_name(architecture)
    return description_named(architecture, name.startswith(TIMM) or name in (*architectures(), *others()))


def untrained_network(
    weights: Weights, architecture: Named | None = None, arguments: Mapping[str, Any] | None = None
) -> tuple[nn.Module, Architecture]:
    """Build the network that weights belong to, but for its values.

    What a file says never decides which code runs: where it names a dotted path, the user must name the same one, or
    hand over the class, the function or a network.

    Args:
        weights: What was read of a file.
        architecture: As the user names it, see :func:`load_network`. An :class:`Architecture` with a dotted path is a
            description, which may stem from a file, and not enough.
        arguments: What to build it with.

    Returns:
        The network in eval mode, on the meta device where its code is torchvision's or ours; and what it is.

    Raises:
        CheckpointError: If neither file nor user says which network it is, and the shapes do not tell.
        ConfigurationError: If it cannot be built, or is code that the user has not named.
    """
    known, said = weights.architecture, weights.said
    if architecture is None and known is None and said is not None:
        if said.obstacle:
            raise CheckpointError(said.obstacle)
        if said.name is not None:
            architecture, arguments = said.name, {**(said.arguments or {}), **(arguments or {})} or None
    if isinstance(architecture, nn.Module):
        if arguments is not None:
            raise ConfigurationError(f"arguments is {dict(arguments)}, but architecture is a network, built already.")
        return _copied(architecture, known)
    if isinstance(architecture, str) and is_name(architecture):
        if plain_name(architecture) not in architectures():
            given = {name: value for name, value in (arguments or {}).items() if name != "num_classes"}
            weights = weights.fitted(bare_names(Architecture(architecture, 1, arguments=given).tensors()), told=False)
        try:
            found = candidate(architecture, weights.state_dict, arguments)
        except CheckpointError as error:
            other = kin(weights.state_dict)
            raise CheckpointError(
                f"its tensors are named as {other}"
                if other
                else f"it is no {architecture}: {str(error).partition(';')[0]}"
            ) from error
    elif architecture is None or isinstance(architecture, Architecture):
        found = architecture or known or _told(weights)
        if arguments is not None:
            raise ConfigurationError(f"arguments is {dict(arguments)}; name the architecture that takes them, too.")
        if found.custom:
            raise ConfigurationError(unnamed(weights, found.name))
    else:
        return _made(architecture, arguments, known, weights)
    with (
        sized_like(weights.state_dict),
        torch.device("meta"),
    ):  # no random numbers are drawn, so a seed means the same with and without loading
        return found.build().eval(), found


def _told(weights: Weights) -> Architecture:
    """The architecture that the shapes of a file's tensors tell."""
    try:
        return recognise(weights.state_dict)
    except CheckpointError as error:
        if weights.said is not None and weights.said.remark:
            raise CheckpointError(weights.said.remark) from error
        raise


def built_as(
    network: nn.Module, what: str, architecture: Architecture | str | Maker, arguments: Mapping[str, Any] | None = None
) -> Architecture:
    """The architecture of a network in memory as its user names it, if it is that.

    Args:
        network: Left unchanged.
        what: What messages call it.
        architecture: A name, a dotted path, a class or a function.
        arguments: What it is built with.

    Raises:
        ConfigurationError: If a network that is built so is of another class, or has other tensors.
    """
    state = network.state_dict()
    if isinstance(architecture, str) and is_name(architecture):
        try:
            architecture = candidate(architecture, state, arguments)
        except CheckpointError as error:
            raise ConfigurationError(f"{what} is not {architecture}: {error}") from error
    if isinstance(architecture, Architecture):
        found = architecture
        if found.custom:
            raise ConfigurationError(f"architecture is {found}; name its code: architecture={found.name!r}.")
        with torch.device("meta"):
            built = found.build()
    else:
        with torch.random.fork_rng(devices=[]):
            built, found = build_custom(architecture, arguments)
    if type(built) is not type(network):
        raise ConfigurationError(f"{what} is a {type(network).__name__}, but {found.name} is a {type(built).__name__}.")
    if differing := differences(built.state_dict(), state):
        raise ConfigurationError(f"{what} is not what {_call(found)} builds: {summary(differing)}.")
    return found


def _call(architecture: Architecture) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in (architecture.arguments or {}).items())
    return f"{architecture.name}({given})" if architecture.custom else architecture.name


def load_weights(network: nn.Module, weights: Weights) -> None:
    """Copy all tensors of a file into a network, strictly, under the network's own names.

    Args:
        network: Changed in place. Where all its tensors have a prefix that is taken off when files are read, they get
            it back.
        weights: What was read.

    Raises:
        CheckpointError: If they are not exactly the network's tensors.
    """
    load_strictly(network, _own_names(network, weights), str(weights.path))


def _own_names(network: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """The tensors of a file under the names that a network gives them."""
    own = list(network.state_dict())
    names = dict(zip(bare_names(own), own, strict=True))
    prefix = own[0].removesuffix(bare_names(own)[0]) if own else ""
    return {names.get(name, prefix + name): tensor for name, tensor in weights.state_dict.items()}


@contextmanager
def sized_like(state_dict: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse to build, in the ``with`` statement, what is far larger than the file whose description asks for it.

    A few bytes can describe a network that no machine holds, or one of so many layers that building it never ends.

    Args:
        state_dict: The tensors of the file.

    Raises:
        CheckpointError: With the number of parameters that the description has led to so far.
    """
    held = sum(tensor.numel() for tensor in state_dict.values())
    most, layers = ROOM + LARGER * held, ROOM + LARGER * len(state_dict)
    built = [0, 0]

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not is_lazy(parameter):
            built[0] += parameter.numel()
            built[1] += 1
        if built[0] > most or built[1] > layers:
            raise CheckpointError(
                f"its description is of a network of more than {built[0]} parameters in {built[1]} tensors, but it "
                f"holds {held} in {len(state_dict)}."
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def on_cpu(network: nn.Module) -> nn.Module:
    """A network with memory behind its tensors, whose values are not set where they had none."""
    if any(tensor.is_meta for tensor in network.state_dict().values()):
        return network.to_empty(device="cpu")
    return network


def unnamed(weights: Weights, name: str) -> str:
    """The sentence for a file whose network is built by code that the user has not named.

    Args:
        weights: What was read of the file.
        name: The dotted path that it holds.
    """
    what = "a student" if "unit_maps" in weights.entries else "a network"
    return (
        f"{weights.path} is {what} of {name}, code of yours that a file may not choose: name it, architecture={name!r} "
        f"(in YAML: {{path: {weights.path}, architecture: {name}}})."
    )


def _copied(network: nn.Module, known: Architecture | None) -> tuple[nn.Module, Architecture]:
    """A copy of the user's network, on the CPU and in float32, unless it has no memory."""
    found = architecture_of(network)
    if known is not None and known.name == found.name:
        found = known
    copied = copy.deepcopy(network).eval().requires_grad_(True).float()
    meta = any(tensor.is_meta for tensor in copied.state_dict().values())
    return copied if meta else copied.cpu(), found


def _made(
    named: str | Maker, arguments: Mapping[str, Any] | None, known: Architecture | None, weights: Weights
) -> tuple[nn.Module, Architecture]:
    """What a dotted path, a class or a function makes, on the CPU; random numbers are drawn aside."""
    name = named if isinstance(named, str) else dotted_path(named)
    if known is not None and known.custom and known.name != name:
        raise ConfigurationError(
            f"{weights.path} is of {known.name}, but architecture is {name}; if that is where it lives now, make a "
            f"network of it and pass that as architecture."
        )
    if arguments is None and known is not None and known.name == name:
        arguments = known.arguments
    with sized_like(weights.state_dict), torch.random.fork_rng(devices=[]):
        network, found = build_custom(named, arguments)
    return network.eval(), found


def build_custom(named: str | Maker, arguments: Mapping[str, Any] | None = None) -> tuple[nn.Module, Architecture]:
    """Build a network by code that the user has named.

    Args:
        named: A dotted path, a class or a function.
        arguments: Its keyword arguments; None where none are known, which builds it without.

    Returns:
        The network, randomly initialised, and its description.

    Raises:
        ConfigurationError: If there is no such code, or it does not make a network of the arguments.
    """
    maker = find_maker(named) if isinstance(named, str) else named
    name = named if isinstance(named, str) else dotted_path(named)
    if not callable(maker):
        raise ConfigurationError(
            f"architecture is {name!r}, which names no class or function; allowed: one that builds a network."
        )
    network = make(maker, arguments or {}, f"architecture {name!r}")
    return network, Architecture(name, count_logits(network), arguments=arguments)
