"""The configuration of a run beside what it writes, from the moment on that there is something to write."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from project.runtime import atomic_text

LOGS = ("events.out.tfevents.*", "hparams.yaml", "metrics.csv")
"""What loggers make as soon as a trainer begins, whatever comes of it."""


class AtomicConfig(SaveConfigCallback):
    """Writes ``config.yaml`` to the run's folder, whole or not at all, once the first batch is about to be run.

    Whatever is refused before that has left nothing behind, and no earlier run's configuration is lost to it.
    """

    _text = ""
    _path = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out where it goes; all processes must ask, and some may have no batch."""
        if not self._text:
            self._path = Path(trainer.log_dir or trainer.default_root_dir) / self.config_filename
            self._text = self.parser.dump(self.config, skip_none=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it before the first batch."""
        self._write(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it before the first batch."""
        if not trainer.sanity_checking:
            self._write(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it before the first batch."""
        self._write(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it before the first batch."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not self.already_saved and trainer.is_global_zero:
            atomic_text(self._text, self._path)
        self.already_saved = True


@contextmanager
def unmarked(folder: Path, trainer: Trainer) -> Iterator[None]:
    """While open, a run that ends by an error before its first batch takes back what its loggers have made.

    Args:
        folder: The run's.
        trainer: Whose callback of the kind :class:`AtomicConfig` tells whether the run has begun.
    """
    places = {folder, *(Path(one) for logger in trainer.loggers if (one := getattr(logger, "log_dir", None)))}
    before = _logs(places)
    made = {one for place in places for one in (place, *place.parents) if not one.exists()}
    try:
        yield
    except BaseException:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it undeclared
        begun = any(isinstance(callback, AtomicConfig) and callback.already_saved for callback in callbacks)
        if trainer.is_global_zero and not begun:
            for path in _logs(places) - before:
                path.unlink(missing_ok=True)
            for one in sorted(made, key=lambda path: len(path.parts), reverse=True):
                if one.is_dir() and not any(one.iterdir()):
                    one.rmdir()
        raise


def _logs(places: Collection[Path]) -> set[Path]:
    return {path for place in places for pattern in LOGS for path in place.glob(pattern)}
