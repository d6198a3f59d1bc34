"""``pleas check``: the permutation groups of a network, and the proof that they hold on it."""

import importlib
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
from project.parser import OneSentenceParser
from project.report import group_table
from project.student import load_source, reestimate
from project.symmetry import Spec, group_differences, trace


def check_parser() -> OneSentenceParser:
    """The parser of the arguments after ``check``."""
    parser = OneSentenceParser(
        prog="pleas check", description="Show the permutation groups of a network, and prove that they hold on it."
    )
    parser.add_argument(
        "--model",
        required=True,
        help="A torchvision name, a dotted path to a class or function that builds the network, or a file of weights.",
    )
    parser.add_argument("--model-args", default="{}", help="Keyword arguments of the network, as JSON.")
    parser.add_argument("--image-size", type=int, default=224, help="Height and width of the pictures.")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="Largest change that passes.")
    return parser


def run_check(args: Sequence[str]) -> None:
    """The command; prints a table.

    Args:
        args: Arguments after ``check``.

    Raises:
        ConfigurationError: If there is no such network, or it cannot be built from the arguments.
        TraceError: If its groups cannot be derived, or do not hold.
    """
    given = check_parser().parse_args(list(args))
    for line in check(given.model, _keywords(given.model_args), given.image_size, given.tolerance):
        sys.stdout.write(line + "\n")


@torch.no_grad()
def check(model: str, model_args: dict[str, Any], image_size: int, tolerance: float = 1e-3) -> list[str]:
    """Trace a network, permute each of its groups, and say what that does.

    Args:
        model: A torchvision name, a dotted path to what builds the network, or a file of weights.
        model_args: What to build it with; nothing for a file.
        image_size: Height and width of the pictures.
        tolerance: Largest change of the logits, relative to the largest logit, that passes.

    Returns:
        Lines of a report.

    Raises:
        ConfigurationError: If there is no such network, or a file comes with arguments.
        TraceError: If its groups cannot be derived, or do not hold.
    """
    torch.manual_seed(0)
    picture = (3, image_size, image_size)
    if Path(model).is_file():
        if model_args:
            raise ConfigurationError(f"model-args is {model_args}, but model {model!r} is a file, which needs none.")
        network = load_source(model).network
        spec = trace(network, picture)
    else:
        network = written_out(build(model, model_args).eval())
        spec = trace(network, picture)
        randomise_constants(network, picture)
    changes = group_differences(network, spec)
    lines = [f"{model}: {len(spec.free)} permutation groups on pictures of {image_size} × {image_size}", ""]
    lines += [*group_table(spec, network, changes), ""]
    broken = [name for name, change in changes.items() if not change <= tolerance]
    if broken or not changes:
        found = f"permuting {broken[0]!r} changes the logits by {changes[broken[0]]:.1e}" if broken else "none found"
        raise TraceError(f"{model}: the traced groups do not hold: {found} (relative); allowed: {tolerance:g}.")
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
    maker: Any = None
    if model in names:
        maker, arguments = torchvision.models.get_model_builder(model), {"weights": None, **arguments}
    elif "." in model:
        module, _, attribute = model.rpartition(".")
        sys.path.insert(0, str(Path.cwd()))  # as python -m does
        try:
            maker = getattr(importlib.import_module(module), attribute, None)
        except ImportError as error:
            raise ConfigurationError(f"model is {model!r}, but {module!r} cannot be imported: {error}.") from error
        finally:
            sys.path.pop(0)
    if not callable(maker):
        like = nearest(model, names) if maker is None else ""
        missing = "" if maker is not None else f"there is none of that name{like}; "
        listed = f"{len(names)} names" if like else f"names: {', '.join(names)}"
        raise ConfigurationError(
            f"model is {model!r}; {missing}allowed: a file of weights, a "
            f"dotted path to a class or function, or one of torchvision's {listed}."
        )
    try:
        network = maker(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"model {model!r} cannot be built with {arguments}: {error}.") from error
    if not isinstance(network, nn.Module):
        raise ConfigurationError(f"model is {model!r}, which makes a {type(network).__name__} and no nn.Module.")
    return network


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
