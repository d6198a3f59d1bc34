"""Merging inside Lightning's validation loop."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from project.callbacks.strategy import check_strategy
from project.merging.engine import Engine
from project.modules import MergeModule


class MergeCallback(Callback):
    """Lets validation over calibration pictures drive the merge of a MergeModule, one ``validate`` a pass.

    In the first pass, or the first few where the memory asks for it, the sources run and their moments are gathered,
    summed over processes, and every method fits its students from them. In the last the students' batch norms are
    re-estimated. It works in ``trainer.merge`` and in plain calls::

        module.prepare(datamodule)
        trainer = Trainer(callbacks=[MergeCallback()])
        while not module.finished:
            trainer.validate(module, dataloaders=datamodule.calibration_dataloader(module.labelled))

    Args:
        renormalise: Whether to re-estimate batch norm: averaged units vary less than their sources, so that the
            statistics of the sources no longer hold.
    """

    def __init__(self, renormalise: bool = True) -> None:
        self.renormalise = renormalise

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse trainers that would lose the students or convert the sources."""
        check_strategy(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a pass."""
        if (engine := self._engine(trainer, pl_module)) is not None:
            engine.renormalise = self.renormalise
            engine.start(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how many pictures the statistics hold."""
        engine = self._engine(trainer, pl_module)
        if engine is not None and engine.seen and trainer.progress_bar_callback is not None:
            seen = float(engine.seen)
            pl_module.log("pictures", seen, prog_bar=True, logger=False, batch_size=1, rank_zero_only=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the pass, and fit where it was the last to gather."""
        if (engine := self._engine(trainer, pl_module)) is not None:
            engine.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave sources and students as they were."""
        if isinstance(pl_module, MergeModule):
            pl_module.abandon(exception)

    def _engine(self, trainer: Trainer, pl_module: LightningModule) -> Engine | None:
        """The merge, if it is one that this loop drives."""
        validating = trainer.state.fn == "validate" and not trainer.sanity_checking
        return pl_module.engine if validating and isinstance(pl_module, MergeModule) else None
