"""``pleas check``: the permutation groups of a network, and the proof that they hold on it; what its norms say."""

import sys
from collections.abc import Sequence
from os.path import isdir, isfile
from pathlib import Path
from typing import Any, get_args

import torch
import torchvision
from torch import nn

from project.data import Domains, ImageFolders
from project.entrance import check_network_word
from project.errors import HUB_NAMES, LOCAL_FOLDER, ConfigurationError, at_least, nearest, whole
from project.merging.audit import Finding, findings_of
from project.merging.judging import PICTURES
from project.merging.prepared import agreed_preprocessing, sized
from project.merging.sources import SourceFile, settle_domains
from project.models import Architecture, written_out
from project.models.custom import Maker, find_maker, make
from project.models.labels import LabelMode
from project.models.preprocessing import LARGEST_SIDE, Channels
from project.models.zoo import TIMM, plain_name
from project.parser import OneSentenceParser, keyword_arguments
from project.report.check import CheckReport, check_network
from project.student import load_source

PREPARED = ("image_size", "mean", "std", "channels")


def command_parser() -> OneSentenceParser:
    """The parser of the arguments after ``check``."""
    parser = OneSentenceParser(
        prog="pleas check",
        description="Show the permutation groups of a network, and prove that they hold on it. Of sources with "
        "--pictures: whether their batch norms see what they saw in training, read as they are and in other ways.",
    )
    parser.add_argument(
        "sources", nargs="*", help="Files of weights, or folders that hold one, to be held against --pictures."
    )
    parser.add_argument("--pictures", type=Path, help="Their pictures, as FOLDER/<domain>/<class>/<picture>.")
    parser.add_argument("--domains", nargs="+", help="Which of its domains, in the sources' order; default: all.")
    for name, what in (("mean", "Mean"), ("std", "Standard deviation")):
        parser.add_argument(f"--{name}", type=float, nargs=3, help=f"{what} of the pictures' red, green and blue.")
    parser.add_argument("--channels", choices=get_args(Channels), help="Order in which the sources read colours.")
    parser.add_argument(
        "--model",
        help="A torchvision name, timm/NAME, a dotted path to a class or function that builds the network, a file of "
        "weights, a folder that holds one, or hf-hub:OWNER/NAME.",
    )
    parser.add_argument("--model-args", default="{}", help="Keyword arguments of the network, as JSON.")
    parser.add_argument("--architecture", help="What the network of a file is: a name, or a dotted path to your code.")
    parser.add_argument(
        "--image-size",
        type=int,
        help="Height and width of the pictures; default: 224, with --pictures what the sources' files say.",
    )
    parser.add_argument("--tolerance", type=float, default=1e-3, help="Largest change that passes.")
    return parser


def run_command(args: Sequence[str]) -> None:
    """The command; prints a table.

    Args:
        args: Arguments after ``check``.

    Raises:
        ConfigurationError: If there is no such network, or it cannot be built from the arguments.
        TraceError: If its groups cannot be derived, or do not hold.
    """
    parser = command_parser()
    given = parser.parse_args(list(args))
    keywords = keyword_arguments(given.model_args, "model-args")
    prepared = {name: getattr(given, name) for name in PREPARED if getattr(given, name) is not None}
    if given.sources or given.pictures is not None:
        if given.model is not None or not given.sources or given.pictures is None:
            raise ConfigurationError(
                f"check holds sources {' '.join(given.sources) or '–'}, --pictures {given.pictures or '–'} and --model "
                f"{given.model or '–'}; allowed: sources with their --pictures, or a --model alone."
            )
        files = [
            SourceFile(Path(path), architecture=given.architecture, arguments=keywords or None)
            for path in given.sources
        ]
        findings = check_sources(files, given.pictures, given.domains, prepared)
        sys.stdout.write("\n\n".join("\n".join(finding.table()) for finding in findings) + "\n")
        return
    if given.model is None:
        parser.error("the following arguments are required: model")
    if idle := [name for name in ("mean", "std", "channels") if name in prepared] + ["domains"] * bool(given.domains):
        raise ConfigurationError(f"--{idle[0]} is given, which changes nothing without sources and their --pictures.")
    size = 224 if given.image_size is None else given.image_size
    sys.stdout.write(f"{check_model(given.model, keywords, size, given.tolerance, given.architecture)}\n")


def check_sources(
    files: Sequence[SourceFile], pictures: Path, domains: list[str] | None, prepared: dict[str, Any]
) -> list[Finding]:
    """Hold running statistics of sources against what their batch norms see on their own pictures.

    Args:
        files: The sources.
        pictures: Folder of their pictures, as <domain>/<class>/<picture>.
        domains: Which of its domains; None for all.
        prepared: What the pictures are to go through, by the names of :class:`~project.models.Preprocessing`; what is
            not there the files say.

    Returns:
        What was found of each, see :mod:`project.merging.audit`.

    Raises:
        PleasError: If a file or picture cannot be read, or sources and domains do not go together.
    """
    sources = [load_source(file.path, None, file.architecture, file.arguments) for file in files]
    known = {source.origin: source.description.preprocessing for source in sources}
    agreed = {**agreed_preprocessing(known, prepared), **prepared}
    sized(agreed, known)
    folders = ImageFolders(pictures, domains)
    mode: LabelMode = "shared" if len({domain.classes for domain in folders.read()}) == 1 else "different"
    data = Domains(folders, label_space=mode, calibration=PICTURES, validation_fraction=0, **agreed)
    return findings_of(sources, settle_domains(files, sources, data.label_space), data)


@torch.no_grad()
def check_model(
    model: str,
    model_args: dict[str, Any],
    image_size: int,
    tolerance: float = 1e-3,
    architecture: str | None = None,
) -> CheckReport:
    """Trace a network, permute each of its groups, and say what that does.

    Args:
        model: A torchvision name, timm/NAME, a dotted path to what builds the network, a file of weights or a folder.
        model_args: What to build it with.
        image_size: Height and width of the pictures.
        tolerance: Largest change of the logits, relative to the largest logit, that passes.
        architecture: The name or dotted path of what a file's network is; default: what the file says, else what its
            shapes tell.

    Returns:
        The report.

    Raises:
        ConfigurationError: If there is no such network, or a file comes with arguments but no architecture.
        TraceError: If its groups cannot be derived, or do not hold.
    """
    whole(1, LARGEST_SIDE, image_size=image_size)
    at_least(0, tolerance=tolerance)
    torch.manual_seed(0)
    check_network_word(model)
    if _holds_weights(model):
        if model_args and architecture is None:
            raise ConfigurationError(
                f"model-args is {model_args}, but model {model!r} is a file, which needs none unless architecture is "
                f"named, too."
            )
        network = load_source(model, None, architecture, model_args or None).network
        return check_network(network, model, (3, image_size, image_size), tolerance)
    if architecture is not None:
        raise ConfigurationError(
            f"architecture is {architecture!r}, but model {model!r} is no file, whose it could be."
        )
    network = written_out(build(model, model_args).eval())
    return check_network(network, model, (3, image_size, image_size), tolerance, fresh=True)


def build(model: str, arguments: dict[str, Any]) -> nn.Module:
    """The network that a name of torchvision's or timm's or a dotted path stands for.

    Raises:
        ConfigurationError: If there is none, or it does not take the arguments.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    maker: Maker | None = None
    if model.startswith(TIMM):
        return Architecture(model, arguments.get("num_classes", 1000), arguments=_unnumbered(arguments)).build()
    model = plain_name(model)
    if model in names:
        maker, arguments = torchvision.models.get_model_builder(model), {"weights": None, **arguments}
    elif "." in model:
        maker = find_maker(model, "model")
    if not callable(maker):
        like = nearest(model, names) if maker is None else ""
        missing = "" if maker is not None else f"there is none of that name{like}; "
        listed = f"{len(names)} names" if like else f"names: {', '.join(names)}"
        raise ConfigurationError(
            f"model is {model!r}; {missing}allowed: a file of weights, timm/NAME, a "
            f"dotted path to a class or function, or one of torchvision's {listed}."
        )
    return make(maker, arguments, f"model {model!r}")


def _holds_weights(model: str) -> bool:
    """Whether a word names a file of weights, or a folder that holds one."""
    names = torchvision.models.list_models(module=torchvision.models)
    if model.startswith((*HUB_NAMES, LOCAL_FOLDER)):
        return True
    return isfile(model) or (isdir(model) and model not in names)


def _unnumbered(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "num_classes"}
