"""Merging inside Lightning's validation loop."""

from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from project.callbacks.strategy import check_strategy
from project.modules import MergeModule
from project.runtime import World
from project.runtime.phases import PhaseClock


class MergeCallback(Callback):
    """Turns two passes of ``validate`` over calibration pictures into students.

    In the first pass, or the first few where the memory asks for it, the sources run and their moments are gathered,
    summed over processes, and every method fits its students from them. In the last the students' batch norms are
    re-estimated. It works in ``trainer.merge`` and in
    plain calls::

        merge_module.prepare(datamodule)
        trainer = Trainer(callbacks=[callback])
        while not callback.finished:
            trainer.validate(merge_module, dataloaders=datamodule.calibration_dataloader())

    Args:
        renormalise: Whether to re-estimate batch norm: averaged units vary less than their sources, so that the
            statistics of the sources no longer hold.
    """

    def __init__(self, renormalise: bool = True) -> None:
        self.renormalise = renormalise
        self.reset()

    def reset(self) -> None:
        """Forget the last merge."""
        self.passes = 0
        self.fitted = False
        self.finished = False
        self.clock = PhaseClock()
        self.variances: dict[str, dict[str, dict[str, float]]] = {}
        self._open = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse trainers that would lose the students or convert the sources."""
        check_strategy(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the taps, or open the batch norms."""
        if not self._ours(trainer, pl_module):
            return
        assert isinstance(pl_module, MergeModule)
        if not self.fitted:
            self._open.enter_context(self.clock.phase("gather"))
            world = World.current()
            pl_module.start_gathering(world)
        else:
            self.variances["before"] = pl_module.variances()
            self._open.enter_context(self.clock.phase("re-estimate"))
            self._open.enter_context(pl_module.reestimation(World.current().reduce))

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
        gathering = pl_module.gathering if isinstance(pl_module, MergeModule) else None
        collector = gathering.collector if gathering is not None else None
        if collector is not None and trainer.progress_bar_callback is not None:
            seen = float(sum(collector.held.pictures.values()))
            pl_module.log("pictures", seen, prog_bar=True, logger=False, batch_size=1, rank_zero_only=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over processes and fit, or close the batch norms."""
        if not self._ours(trainer, pl_module):
            return
        assert isinstance(pl_module, MergeModule)
        if not self.fitted:
            world = World.current()
            gathered = pl_module.stop_gathering(world)
            self.passes += 1
            self._open.close()
            if not gathered:
                return
            with self.clock.phase("fit"):
                pl_module.fit_students(world)
                for merged in pl_module.merged:
                    for tensor in merged.student.state_dict().values():
                        world.broadcast(tensor, 0)  # machines may differ in the last bit
            self.fitted = True
            self.finished = not (self.renormalise and pl_module.unsettled)
        else:
            self._open.close()
            self.variances["after"] = pl_module.variances()
            self.finished = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was; told of the error, what is open gives up instead of summing over processes."""
        self._open.__exit__(type(exception), exception, exception.__traceback__)
        self._release(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def _release(self, pl_module: LightningModule) -> None:
        self._open.close()
        if isinstance(pl_module, MergeModule):
            pl_module.drop_gathering()

    def _ours(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        validating = trainer.state.fn == "validate" and not trainer.sanity_checking
        return validating and isinstance(pl_module, MergeModule) and not self.finished
