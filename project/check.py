"""``pleas check``: the permutation groups of a network, and the proof that they hold on it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from project.allocation import unfitted, why_not_larger
from project.errors import ConfigurationError, TraceError, nearest
from project.models import written_out
from project.models.custom import Maker, find_maker, make
from project.parser import CommandParser
from project.report import group_table
from project.student import load_source, reestimate
from project.symmetry import Spec, group_differences, trace


def run_check(args: Sequence[str]) -> None:
    """The command; prints a table.

    Args:
        args: Arguments after ``check``.

    Raises:
        ConfigurationError: If there is no such network, or it cannot be built from the arguments.
        TraceError: If its groups cannot be derived, or do not hold.
    """
    parser = CommandParser("pleas check", description=__doc__.split("``: ")[1].strip().capitalize())
    parser.add_argument(
        "--model",
        required=True,
        help="a torchvision name, a dotted path to a class or function that builds the network, or a file of weights",
    )
    parser.add_argument("--model-args", default="{}", help="keyword arguments of the network, as JSON")
    parser.add_argument("--architecture", help="what the network of a file is: a name, or a dotted path to your code")
    parser.add_argument("--image-size", type=int, default=224, help="height and width of the pictures (default: 224)")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest change that passes (default: 1e-3)")
    given = parser.parse_args(list(args))
    options = _keywords(given.model_args), given.image_size, given.tolerance, given.architecture
    for line in check(given.model, *options):
        sys.stdout.write(line + "\n")


@torch.no_grad()
def check(
    model: str,
    model_args: dict[str, Any],
    image_size: int,
    tolerance: float = 1e-3,
    architecture: str | None = None,
) -> list[str]:
    """Trace a network, permute each of its groups, and say what that does.

    Args:
        model: A torchvision name, a dotted path to what builds the network, or a file of weights.
        model_args: What to build it with.
        image_size: Height and width of the pictures.
        tolerance: Largest change of the logits, relative to the largest logit, that passes.
        architecture: The name or dotted path of what a file's network is; default: what the file says, else what its
            shapes tell.

    Returns:
        Lines of a report.

    Raises:
        ConfigurationError: If there is no such network, or a file comes with arguments but no architecture.
        TraceError: If its groups cannot be derived, or do not hold.
    """
    torch.manual_seed(0)
    if Path(model).is_file():
        if model_args and architecture is None:
            raise ConfigurationError(
                f"model-args is {model_args}, but model {model!r} is a file, which needs none unless architecture is "
                f"named, too."
            )
        return check_network(
            load_source(model, None, architecture, model_args or None).network, model, image_size, tolerance
        )
    if architecture is not None:
        raise ConfigurationError(
            f"architecture is {architecture!r}, but model {model!r} is no file, whose it could be."
        )
    network = written_out(build(model, model_args).eval())
    spec = trace(network, (3, image_size, image_size))
    randomise_constants(network, spec.picture)
    return check_network(network, model, image_size, tolerance, spec)


@torch.no_grad()
def check_network(
    network: nn.Module, title: str, image_size: int, tolerance: float = 1e-3, spec: Spec | None = None
) -> list[str]:
    """Trace a network as it is, permute each of its groups, and say what that does.

    Args:
        network: In eval mode, its attention written out; left unchanged. Units that are all alike prove nothing, see
            :func:`randomise_constants`.
        title: What the report calls it.
        image_size: Height and width of the pictures.
        tolerance: Largest change of the logits, relative to the largest logit, that passes.
        spec: Its spec, where it is traced already.

    Returns:
        Lines of a report.

    Raises:
        TraceError: If its groups cannot be derived, or do not hold.
    """
    spec = spec or trace(network, (3, image_size, image_size))
    changes = group_differences(network, spec)
    lines = [f"{title}: {len(spec.free)} permutation groups on pictures of {image_size} × {image_size}", ""]
    lines += [*group_table(spec, network, changes), ""]
    broken = [name for name, change in changes.items() if not change <= tolerance]
    if broken or not changes:
        found = f"permuting {broken[0]!r} changes the logits by {changes[broken[0]]:.1e}" if broken else "none found"
        raise TraceError(f"{title}: the traced groups do not hold: {found} (relative); allowed: {tolerance:g}.")
    lines.append(f"trace, permute: yes; largest change of the logits (relative): {max(changes.values()):.1e}")
    lines += _merging(spec)
    return lines


def _merging(spec: Spec) -> list[str]:
    """At which budgets such networks can be merged, and what a fit leaves at the sources' mean."""
    reason = why_not_larger(spec)
    lines = ["merge, at any budget: yes" if reason is None else f"merge: yes; above budget 1 only in part, as {reason}"]
    kept, jointly = unfitted(spec), unfitted(spec, joint=True)
    if kept:
        lines.append(f"least squares: all layers; at the sources' mean stay {', '.join(kept)}")
    if jointly != kept:
        lines.append(f"least squares with fit 'joint': at the sources' mean stay {', '.join(jointly)}")
    return lines


def build(model: str, arguments: dict[str, Any]) -> nn.Module:
    """The network that a torchvision name or a dotted path stands for.

    Raises:
        ConfigurationError: If there is none, or it does not take the arguments.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    maker: Maker | None = None
    if model in names:
        maker, arguments = torchvision.models.get_model_builder(model), {"weights": None, **arguments}
    elif "." in model:
        maker = find_maker(model, "model")
    if not callable(maker):
        like = nearest(model, names) if maker is None else ""
        missing = "" if maker is not None else f"there is none of that name{like}; "
        listed = f"{len(names)} names" if like else f"names: {', '.join(names)}"
        raise ConfigurationError(
            f"model is {model!r}; {missing}allowed: a file of weights, a "
            f"dotted path to a class or function, or one of torchvision's {listed}."
        )
    return make(maker, arguments, f"model {model!r}")


def randomise_constants(network: nn.Module, picture: tuple[int, int, int]) -> None:
    """Random values where a fresh network has constants, since units that are all alike would prove nothing.

    Args:
        network: Changed in place: parameters of one value spread around it, batch norms take the statistics of
            random pictures.
        picture: Shape (channels, height, width).
    """
    for parameter in network.parameters():
        if parameter.numel() > 1 and float(parameter.std()) < 1e-3:
            level = float(parameter.mean())
            parameter.copy_(level + 0.2 * torch.randn_like(parameter))
    reestimate(network, [torch.randn(4, *picture)])


def _keywords(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"model-args is {text!r}, which is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"model-args is {text!r}; a JSON object of keyword arguments is allowed.")
    return found
