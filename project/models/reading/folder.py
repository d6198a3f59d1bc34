"""Which file of a folder holds the weights."""

import os
from pathlib import Path

from project.errors import LOCAL_FOLDER, CheckpointError
from project.models.reading.config import BESIDE, CONFIG, Said, said_by
from project.models.reading.foreign import folder_that_is_none
from project.models.reading.hub import fetched_config, fetched_weights, on_hub

USUAL = (
    "checkpoints/best.ckpt", "best.ckpt", "model.safetensors", "pytorch_model.bin", "model_best.pth.tar",
    "checkpoints/last.ckpt",
)  # fmt: skip
"""What tools leave behind, the best first: Lightning, Hugging Face's Hub, timm's training script."""

SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".tar"})


def weights_file(path: Path) -> Path:
    """The file of weights that a path means: itself, or in a folder the one of a usual name, or the only one.

    Args:
        path: A file or a folder, ``local-dir:`` before it or not; one that is not there is left for whoever reads it to
            tell. Or ``hf-hub:`` and the name of a folder on the Hugging Face Hub, which is fetched then.

    Raises:
        CheckpointError: If a folder holds none, or several of which none has a usual name, or cannot be fetched.
        ConfigurationError: If what fetches it is not installed.
    """
    if on_hub(path):
        return fetched_weights(path)
    path = Path(str(path).removeprefix(LOCAL_FOLDER))
    if not os.path.isdir(path):  # whatever the path: this one never raises
        return path
    if what := folder_that_is_none(path):
        raise CheckpointError(f"{path} is {what}.")
    for name in USUAL:
        if (path / name).is_file():
            return path / name
    try:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    except OSError as error:
        raise CheckpointError(f"{path} is a folder that cannot be read: {error.strerror}.") from error
    if len(files) == 1:
        return files[0]
    if not files:
        raise CheckpointError(f"{path} is a folder without weights; allowed: {', '.join(sorted(SUFFIXES))} in it.")
    listed = ", ".join(file.name for file in files[:5]) + (" …" if len(files) > 5 else "")
    raise CheckpointError(f"{path} is a folder with {len(files)} files of weights ({listed}); name one of them.")


def name_of_place(path: Path) -> str:
    """What to call the network of a path: its file's name without the suffix, or its folder's where files have one.

    Args:
        path: As a user names it, see :func:`weights_file`.
    """
    if on_hub(path):
        return str(path).partition(":")[2].partition("@")[0].rpartition("/")[2]
    plain = Path(str(path).removeprefix(LOCAL_FOLDER))
    if os.path.isdir(plain):
        return plain.absolute().name
    return plain.absolute().parent.name if plain.name in BESIDE else plain.stem


def description_named(architecture: str, known: bool) -> Said | None:
    """What the config.json says that a user names as an architecture, by its folder or the folder's name on the Hub.

    Args:
        architecture: ``local-dir:`` or ``hf-hub:`` and a folder, or the folder alone.
        known: Whether it is the name of a network; then no folder is looked for.

    Returns:
        What it says; None where it names no folder with a config.json.

    Raises:
        CheckpointError: If the folder cannot be fetched, or its description not be read, or it says no network.
        ConfigurationError: If what fetches it is not installed.
    """
    if on_hub(architecture):
        config = fetched_config(architecture)
    else:
        config = Path(architecture.removeprefix(LOCAL_FOLDER)) / CONFIG
        if not architecture.startswith(LOCAL_FOLDER) and (known or not os.path.isfile(config)):
            return None
    said = said_by(config)
    if said is None or not (said.name or said.obstacle or said.remark):
        raise CheckpointError(
            f"architecture is {architecture}, but {config} says no network of timm's or transformers'."
        )
    return said
