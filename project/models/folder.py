"""Which file of a folder holds the weights."""

from pathlib import Path

from project.errors import CheckpointError

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
    if not path.is_dir():
        return path
    for name in USUAL:
        if (path / name).is_file():
            return path / name
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if len(files) == 1:
        return files[0]
    if not files:
        raise CheckpointError(f"{path} is a folder without weights; allowed: {', '.join(sorted(SUFFIXES))} in it.")
    listed = ", ".join(file.name for file in files[:5]) + (" …" if len(files) > 5 else "")
    raise CheckpointError(f"{path} is a folder with {len(files)} files of weights ({listed}); name one of them.")
