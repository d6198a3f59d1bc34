"""Checks of the trainer that a merge runs in: its strategy and its precision."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from project.errors import ConfigurationError

MERGE_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_strategy_name(name: object) -> None:
    """Refuse by its name a strategy that splits networks, before Lightning asks for what it needs in vain.

    Args:
        name: As the command has it; a strategy that is built already passes, see :func:`check_strategy`.

    Raises:
        ConfigurationError: If it splits networks.
    """
    if isinstance(name, str) and name.startswith(("fsdp", "deepspeed")):
        raise ConfigurationError(
            f"trainer.strategy is {name!r}, but a merge needs every layer whole on each device; allowed: 'auto' and "
            f"'ddp'."
        )


def check_strategy(trainer: Trainer) -> None:
    """Refuse trainers in which no sound student could be made; before any work.

    Args:
        trainer: As built.

    Raises:
        ConfigurationError: If it splits networks, loses what validation changes, or converts weights.
    """
    strategy = trainer.strategy
    launcher = getattr(strategy, "_start_method", None)
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy) or isinstance(strategy, DeepSpeedStrategy):
        raise ConfigurationError(
            f"strategy is {type(strategy).__name__}, but a merge needs every layer whole on each device; "
            f"allowed: 'auto' and 'ddp'."
        )
    if isinstance(strategy, DDPStrategy) and launcher in ("spawn", "fork", "forkserver"):
        raise ConfigurationError(
            f"strategy starts processes by {launcher!r}, which discards what validation changes; use 'ddp'."
        )
    if trainer.precision not in MERGE_PRECISIONS:
        raise ConfigurationError(
            f"precision is {trainer.precision!r}, which converts the sources' weights themselves; "
            f"allowed for a merge: {', '.join(map(repr, MERGE_PRECISIONS))}."
        )
