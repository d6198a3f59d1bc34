"""Which file of a folder holds the weights."""

import os
from pathlib import Path

from project.errors import CheckpointError
from project.models.reading.foreign import folder_that_is_none

USUAL = (
    "checkpoints/best.ckpt", "best.ckpt", "model.safetensors", "pytorch_model.bin", "model_best.pth.tar",
    "checkpoints/last.ckpt",
)  # fmt: skip
"""What tools leave behind, the best first: Lightning, Hugging Face's Hub, timm's training script."""

SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".tar"})


def weights_file(path: Path) -> Path:
    """The file of weights that a path means: itself, or in a folder the one of a usual name, or the only one.

    Args:
        path: A file or a folder; one that is not there is left for whoever reads it to tell.

    Raises:
        CheckpointError: If a folder holds none, or several of which none has a usual name.
    """
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
