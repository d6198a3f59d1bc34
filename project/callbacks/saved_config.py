"""The configuration of a run beside what it writes."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from project.runtime import atomic_text


class AtomicConfig(SaveConfigCallback):
    """Writes ``config.yaml`` to the run's folder, whole or not at all; Lightning's own would leave half of it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it once; all processes must ask for the folder, and the first writes."""
        if self.already_saved:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero:
            atomic_text(self.parser.dump(self.config, skip_none=False), folder / self.config_filename)
        self.already_saved = bool(trainer.strategy.broadcast(True))
