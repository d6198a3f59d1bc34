"""Folders on the Hugging Face Hub, fetched only where a user names one; of what is there, nothing is run."""

import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path

from project.errors import HUB_NAMES, CheckpointError, ConfigurationError
from project.models.reading.config import CONFIG, PROCESSOR
from project.runtime import tell

INSTALL = "pip install 'pleas-lightning[hub]'"
NAME = re.compile(r"(?P<folder>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def on_hub(path: str | Path) -> bool:
    """Whether a user names a folder on the Hub, by ``hf-hub:`` before its name."""
    return str(path).startswith(HUB_NAMES)


def hub_name(path: str | Path) -> str | None:
    """Name of the folder on the Hub that a file in the cache of huggingface_hub is of; None where it lies elsewhere.

    Args:
        path: The file.
    """
    parts = Path(path).parts
    cached = [one for one, below in pairwise(parts) if below == "snapshots"]
    match = re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", cached[-1]) if cached else None
    return f"{match[1]}/{match[2]}" if match else None


def fetched_config(named: str | Path) -> Path:
    """The config.json of a folder on the Hub, in the cache of huggingface_hub, and beside it what is said of pictures.

    Args:
        named: Such as ``hf-hub:timm/resnet18.a1_in1k``, perhaps with ``@`` and a revision behind.

    Raises:
        ConfigurationError: If it is no such name, or huggingface_hub is not installed.
        CheckpointError: If it cannot be fetched.
    """
    return _fetched(named, (CONFIG,), (PROCESSOR,))


def fetched_weights(named: str | Path) -> Path:
    """The file of weights of a folder on the Hub, in the cache of huggingface_hub, its descriptions beside it.

    Args:
        named: See :func:`fetched_config`.

    Raises:
        ConfigurationError: See :func:`fetched_config`.
        CheckpointError: See :func:`fetched_config`.
    """
    return _fetched(named, WEIGHTS, (CONFIG, PROCESSOR))


def _fetched(named: str | Path, one_of: tuple[str, ...], beside: tuple[str, ...]) -> Path:
    """The first of some files that is there; others come along where they are there, too."""
    match = NAME.fullmatch(str(named).partition(":")[2])
    if match is None:
        raise ConfigurationError(f"{named} is no name on the Hub; allowed: hf-hub:OWNER/NAME, perhaps with @REVISION.")
    try:
        library = import_module("huggingface_hub")
        errors = import_module("huggingface_hub.errors")
    except ImportError as error:
        raise ConfigurationError(
            f"{named} lies on the Hub, which needs huggingface_hub: {INSTALL} ({error})."
        ) from error

    def fetch(file: str) -> Path:
        return Path(library.hf_hub_download(match["folder"], file, revision=match["revision"]))

    try:
        for file in beside:
            try:
                fetch(file)
            except errors.LocalEntryNotFoundError:
                tell(f"{named}: whether it has {file} is not known here, as there is no way to the Hub")
            except errors.EntryNotFoundError:
                continue
        for file in one_of[:-1]:
            try:
                return fetch(file)
            except errors.LocalEntryNotFoundError:  # a kind of the next
                raise
            except errors.EntryNotFoundError:
                continue
        return fetch(one_of[-1])
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{named} is not in the cache of huggingface_hub, and cannot be fetched: there is no way to the Hub; fetch "
            f"its folder where there is one, and name that: local-dir:FOLDER."
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{named} holds none of {', '.join(one_of)}.") from error
    except Exception as error:  # of its own and of whatever fetches
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(f"{named} cannot be fetched: {reason}.") from error
