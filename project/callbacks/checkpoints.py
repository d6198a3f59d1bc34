"""Checkpoints that appear whole or not at all, wherever temporary files lie, and that choose no code."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from traceback import walk_tb
from typing import Any

import lightning
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.connectors import checkpoint_connector
from torch import Tensor, optim

from project.errors import CheckpointError, ConfigurationError
from project.models import read_checkpoint
from project.models.reading.archive import read_content
from project.models.reading.files import kind_of
from project.models.reading.sound import sound_state
from project.runtime import atomic_save

SCORED = {"state_dict": Mapping, "pytorch-lightning_version": str}
"""What Lightning reads of a checkpoint to score its weights, and what each entry is."""
RESUMED = {"epoch": int, "global_step": int, "loops": Mapping, "optimizer_states": list, "lr_schedulers": list}
"""What it reads beside them to go on with a fit."""
COUNTED = ("ready", "started", "processed", "completed")
"""What its loops count of each step."""
LAST = "last"
OPTIMIZERS, LIGHTNING = Path(optim.__file__).parent, Path(lightning.__file__).parent


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; Lightning copies from the folder for temporary files.

    What it reads is taken for a stranger's.

    A process that is killed while such a copy goes on, on another disk, leaves a broken ``last.ckpt`` behind.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint to a local file; elsewhere as Lightning does."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            atomic_save(checkpoint, Path(path).expanduser())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a local checkpoint without importing or calling anything that it names.

        Args:
            path: The file.
            map_location: Plays no part: its tensors come on the CPU, from where whoever takes them moves them.
            weights_only: Plays no part: objects are never imported.

        Raises:
            CheckpointError: If it is no checkpoint; see :func:`~project.models.read_checkpoint`.
        """
        if "://" in str(path):
            raise ConfigurationError(f"ckpt_path is {path}; allowed: a file on this machine, so download it first.")
        return read_checkpoint(Path(path).expanduser())


def write_atomically(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints by AtomicCheckpointIO, unless a plugin or the strategy has a way of its own.

    What Lightning's AsyncCheckpointIO wraps is Lightning's own.

    Args:
        trainer: As built.
    """
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()


def check_checkpoint(path: Path, fitting: bool) -> None:
    """Refuse a file that no fit wrote, before anything is built; of its tensors only the shapes are read.

    Args:
        path: What the user named as ``ckpt_path``.
        fitting: Whether a fit is to go on from it, which takes more than weights.

    Raises:
        CheckpointError: With what the file is.
    """
    wanted = "a checkpoint that a fit wrote" + (", its optimizer with it, or 'last'" if fitting else "")
    try:
        read = read_content(path.expanduser())
        content = read.tree
    except CheckpointError as error:
        raise CheckpointError(f"ckpt_path: {str(error).rstrip('.')}; allowed: {wanted}.") from error
    needed = SCORED | (RESUMED if fitting else {})
    held = content if isinstance(content, Mapping) else {}
    if lacking := [name for name, kind in needed.items() if not isinstance(held.get(name), kind)]:
        what = "holds weights alone" if set(lacking) & {*SCORED, "optimizer_states"} else f"lacks {lacking[0]!r}"
        raise CheckpointError(f"ckpt_path is {path}, which {what}; allowed: {wanted}.")
    for name, value in _counts(held["loops"]) if fitting else ():
        if type(value) is not int or value < 0:
            raise CheckpointError(f"ckpt_path is {path}, whose {name} is {value!r}; allowed: a number, at least 0.")

    states = dict(_states(held["optimizer_states"], path)) if fitting else {}
    tensors = {name: read.plain(value) for name, value in (held["state_dict"] | states).items()}
    sound_state({name: one for name, one in tensors.items() if isinstance(one, Tensor)}, str(path), CheckpointError)


def _states(optimizers: Sequence[Any], path: Path) -> Iterator[tuple[str, Any]]:
    """What optimizers remember of each parameter: name -> what stands there, as it lies in the file.

    Raises:
        CheckpointError: If it is of a form that no optimizer writes; the message names what.
    """
    for number, optimizer in enumerate(optimizers):
        name = f"optimizer_states.{number}"
        states = _mapping(_mapping(optimizer, name, path).get("state", {}), f"{name}.state", path)
        for key, state in states.items():
            for what, value in _mapping(state, f"{name}.state.{key}", path).items():
                full = f"{name}.state.{key}.{what}"
                if isinstance(value, str):
                    raise CheckpointError(f"ckpt_path is {path}, whose {full} is a word; allowed: tensors and numbers.")
                yield full, value


def _mapping(value: object, name: str, path: Path) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"ckpt_path is {path}, whose {name} is {kind_of(value)}; allowed: a mapping.")
    return value


def _counts(loops: Mapping[Any, Any], prefix: str = "loops") -> Iterator[tuple[str, Any]]:
    """How often a fit has come to each step, as Lightning counts it: name -> what stands there."""
    for key, value in loops.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            yield from _counts(value, name)
        elif key in COUNTED:
            yield name, value


def check_last(trainer: Trainer, folder: Path, fitting: bool) -> None:
    """Refuse to look for a last checkpoint where there is none, but for a fit that has not written any yet.

    Args:
        trainer: Whose callbacks may have written one.
        folder: The run's.
        fitting: Whether a fit is to go on from it: one that was ended before its first checkpoint begins anew.

    Raises:
        CheckpointError: With the checkpoints that there are.
    """
    callbacks = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    if any(callback._find_last_checkpoints(trainer) for callback in callbacks):
        return
    found = sorted(path for part in ("checkpoints", "students") for path in (folder / part).glob("*"))
    if found or not fitting:
        others = f", but {', '.join(map(str, found[:3]))}" if found else ""
        raise CheckpointError(
            f"ckpt_path is 'last', but {folder} holds no checkpoint of that name{others}; allowed: a FILE, or 'last' "
            f"where a ModelCheckpoint with save_last wrote one."
        )


def restoring(error: Exception) -> bool:
    """Whether an error came up while Lightning took a checkpoint up again, or in the step of an optimizer itself.

    An optimizer takes what a checkpoint says that it remembers as it is, and fails where it first needs it.
    """
    files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    if checkpoint_connector.__file__ in files:
        return True
    stepping = [number for number, file in enumerate(files) if Path(file).is_relative_to(OPTIMIZERS)]
    return bool(stepping) and not any(Path(file).is_relative_to(LIGHTNING) for file in files[stepping[-1] :])
