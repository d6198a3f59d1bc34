"""What files and folders are that hold no weights, or not in a form that is read, and what to do with them."""

from collections.abc import Collection
from pathlib import Path

CONVERT = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt"
STARTS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file it stands for; fetch that: git lfs pull"),
    (b"<!doctype html", "a web page, not weights: what was downloaded is a page about the file, or an error"),
    (b"<html", "a web page, not weights: what was downloaded is a page about the file, or an error"),
    (b"<?xml", "an XML page, not weights: what was downloaded may be an error of the server"),
    (b"\x1f\x8b", "compressed by gzip; unpack it: gunzip --keep {path}"),
    (b"BZh", "compressed by bzip2; unpack it: bunzip2 --keep {path}"),
    (b"\xfd7zXZ", "compressed by xz; unpack it: unxz --keep {path}"),
    (b"(\xb5/\xfd", "compressed by zstd; unpack it: unzstd {path}"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them; only files of PyTorch and safetensors are read"),
    (b"\x93NUMPY", "an array of numpy; only files of PyTorch and safetensors are read"),
)
"""First bytes, whatever their case, and what a file that begins so is."""


def file_that_is_none(start: bytes) -> str | None:
    """What a file is that begins so, and what to do, with ``{path}`` for its path; None if nothing is known of it.

    Args:
        start: Its first bytes.
    """
    begins = start.lstrip().lower()
    return next((what for words, what in STARTS if begins.startswith(words.lower())), None)


def folder_that_is_none(path: Path) -> str | None:
    """What a folder is that holds weights in another form than files that are read, and what to do; None if nothing.

    Args:
        path: The folder.
    """
    if (path / "zero_to_fp32.py").is_file():
        return f"a checkpoint of DeepSpeed, in pieces; put them together: cd {path} && python zero_to_fp32.py . weights"
    if (path / "meta.pt").is_file() and (path / ".metadata").is_file():
        return (
            "a distributed checkpoint of Lightning, in pieces; put them together: "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    if (path / ".metadata").is_file():
        return f"a distributed checkpoint, in pieces; put them together: {CONVERT.format(path=path)}"
    if any(path.glob("*.index.json")):
        return "a model in several files (its index names them); save its state dict into one"
    return None


def archive_that_is_none(records: Collection[str], path: Path) -> str:
    """What a zip archive without weights is, and what to do, as a sentence.

    Args:
        records: Names of its parts.
        path: The archive.
    """
    if any(name.endswith("/constants.pkl") for name in records):
        return (
            f'{path} is a program of TorchScript, not weights alone; take them out: python -c "import torch; '
            f"torch.save(torch.jit.load('{path}').state_dict(), 'weights.pt')\"."
        )
    if any(name.endswith("archive_format") for name in records):
        return (
            f'{path} is a program of torch.export, not weights alone; take them out: python -c "import torch; '
            f"torch.save(torch.export.load('{path}').state_dict, 'weights.pt')\"."
        )
    held = ", ".join(list(records)[:3]) or "nothing"
    return f"{path} is a zip archive that torch did not write (in it: {held}); unpack it: unzip {path}."
