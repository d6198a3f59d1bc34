"""What a run is refused for once its model and trainer are built, and errors of others' in one sentence."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import lightning
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from project.callbacks import LAST, check_last, restoring
from project.errors import CheckpointError, ConfigurationError, PleasError
from project.modules import EvaluationModule, FineTuneModule

SCORING = ("validate", "test", "predict")
LIGHTNINGS = (ValueError, TypeError, RuntimeError)
"""What Lightning raises of its users' options, beside its own exceptions."""


def check_start(
    subcommand: str, checkpoint: str | Path | None, model: LightningModule, trainer: Trainer, folder: Path
) -> None:
    """Refuse to score random weights, and a checkpoint that there is not or that plays no part.

    Args:
        subcommand: What is about to be done.
        checkpoint: What it goes on from or scores; None for nothing.
        model: The module.
        trainer: The trainer.
        folder: The run's.

    Raises:
        ConfigurationError: If model and checkpoint do not go together, or there is no such architecture.
        CheckpointError: If there is no last checkpoint.
    """
    if isinstance(model, FineTuneModule):
        model.check_architecture()
    if checkpoint is None:
        if subcommand in SCORING and isinstance(model, FineTuneModule) and model.untrained:
            raise ConfigurationError(
                f"model is {type(model).__name__}, whose weights are random; allowed: with --ckpt_path FILE, or "
                f"EvaluationModule, to whose networks the file belongs."
            )
        return
    if isinstance(model, EvaluationModule):
        raise ConfigurationError(
            f"ckpt_path is {checkpoint}, but model is EvaluationModule, which scores the files of its networks; name "
            f"the checkpoint as one of them."
        )
    if str(checkpoint) == LAST:
        check_last(trainer, folder, subcommand == "fit")


def check_processes(trainer: Trainer) -> None:
    """Refuse processes that torchrun or SLURM has started beyond those that the trainer knows of, and the reverse.

    Each of the former would take itself for the only one and write over the others; for the latter it waits for ever.

    Raises:
        ValueError: Of Lightning, with both numbers, or with what is missing.
    """
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            environment().validate_settings(trainer.num_devices, trainer.num_nodes)
            return
    if trainer.num_nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"num_nodes is {trainer.num_nodes}, but nothing says where the others are; start it by torchrun or srun, "
            f"or set MASTER_ADDR."
        )


@contextmanager
def in_one_sentence(checkpoint: str | Path | None) -> Iterator[None]:
    """While open, turn what Lightning raises of the trainer's options or a checkpoint into errors of ours.

    Args:
        checkpoint: What the run goes on from.

    Raises:
        CheckpointError: If the checkpoint does not go with model or trainer.
        ConfigurationError: If options of the trainer do not go together.
    """
    try:
        yield
    except CheckpointError as error:  # of an entry, by those who do not know the file
        if checkpoint is None or not restoring(error) or str(checkpoint) in str(error):
            raise
        raise CheckpointError(f"ckpt_path is {checkpoint}: {error}") from error
    except (PleasError, MisconfigurationException):
        raise
    except Exception as error:
        told = " ".join(str(error).split()) or repr(error)
        if checkpoint is not None and restoring(error):
            raise CheckpointError(f"ckpt_path is {checkpoint}, which does not go with model and trainer: {told}") from (
                error
            )
        if isinstance(error, LIGHTNINGS) and _raised_by_lightning(error):
            raise ConfigurationError(f"trainer: {told}") from error
        raise


def _raised_by_lightning(error: Exception) -> bool:
    """Whether Lightning itself raises an error, of what its user has said, and nothing that it has called."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(Path(lightning.__file__).parent)
