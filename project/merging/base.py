"""The network that sources were fine-tuned from."""

from dataclasses import replace
from os.path import exists
from pathlib import Path

from torch import nn

from project.errors import HUB_NAMES, LOCAL_FOLDER, ConfigurationError
from project.models import pretrained, written_out
from project.student import Source, common_spec, load_source


def load_base(base: str, like: Source, picture: tuple[int, int, int]) -> nn.Module:
    """Load the base of a merge.

    Args:
        base: A file, a folder that holds one (on the Hub, too), or torchvision's name of weights.
        like: A source: the architecture that it must have, but for the number of its logits.
        picture: Shape of the pictures.

    Returns:
        The network, in eval mode.

    Raises:
        ConfigurationError: If it is neither a file nor such weights, or of another architecture.
        CheckpointError: If it cannot be read or downloaded.
    """
    if exists(base) or base.startswith((*HUB_NAMES, LOCAL_FOLDER)):
        base_source = load_source(base, None, like.architecture.name, like.architecture.arguments)
    else:
        try:
            network = pretrained(replace(like.architecture, num_classes=1000), base)
        except ConfigurationError as error:
            raise ConfigurationError(f"base is {base!r}, which is no file, and as a name: {error}") from error
        base_source = replace(like, network=written_out(network.eval()), path=Path(base))
    try:
        common_spec([like, base_source], picture)
    except ConfigurationError as error:
        raise ConfigurationError(f"base is {base!r}, which does not go with the sources: {error}") from error
    return base_source.network
