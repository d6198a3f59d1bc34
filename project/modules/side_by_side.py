"""Several networks that are trained in one module, each with an optimizer of its own."""

from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn

from project.errors import ConfigurationError
from project.modules.fine_tune import FineTuneModule


class SideBySide(FineTuneModule):
    """A network that comes of others, which are trained beside it by hand; arguments are those of FineTuneModule."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def optimized_each(self, networks: Iterable[nn.Module]) -> Any:
        """Make an optimizer for every network, and its schedule, as Lightning takes them.

        Args:
            networks: That are trained.

        Raises:
            ConfigurationError: If the schedule goes by a figure.
        """
        configurations = []
        for network in networks:
            optimized = self.optimized([weight for weight in network.parameters() if weight.requires_grad])
            configurations.append(optimized if isinstance(optimized, dict) else {"optimizer": optimized})
        schedules = [
            configuration["lr_scheduler"]["scheduler"]
            for configuration in configurations
            if "lr_scheduler" in configuration
        ]
        if any(isinstance(schedule, ReduceLROnPlateau) for schedule in schedules):
            raise ConfigurationError("lr_scheduler is ReduceLROnPlateau; rounds need one that goes by their number.")
        return [configuration["optimizer"] for configuration in configurations], schedules

    @property
    def own_optimizers(self) -> Sequence[Any]:
        """The optimizer of every network."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    @property
    def own_schedules(self) -> Sequence[Any]:
        """The schedule of every network; none where rates are constant."""
        schedules = self.lr_schedulers()
        return schedules if isinstance(schedules, list) else [] if schedules is None else [schedules]
