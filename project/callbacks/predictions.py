"""Writing predictions to a table."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from project.errors import whole
from project.models.heads import most_likely
from project.report.results import csv_text, write_csv
from project.runtime.space import check_space


class PredictionTable(BasePredictionWriter):
    r"""Writes what ``predict`` finds as CSV: domain, picture, rank, head, class and probability.

    Classes of one name in two heads stay apart, told by the column ``head``. Each process writes its own file:
    ``predictions.csv`` in the run's folder, ``predictions-1.csv`` and so on. Bytes of a file's name that are not UTF-8
    are written as ``\xe9``.

    Args:
        top: How many classes of every picture, the likeliest first, one row each.
    """

    def __init__(self, top: int = 1) -> None:
        super().__init__("batch")
        whole(1, top=top)
        self.top = top
        self._rows: list[dict[str, str | float]] = []
        self._seen = 0  # batches
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask for the run's folder, as all processes must, and clear it of the answers of another run.

        Processes without pictures never come to the end of the loop.
        """
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        if stage == "predict" and trainer.global_rank == 0:
            for path in self._folder.glob("predictions*.csv"):
                path.unlink()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep a batch's rows."""
        classes = most_likely(prediction["probabilities"], prediction["columns"], self.top)
        for path, ranks in zip(map(as_written, prediction["paths"]), classes, strict=True):
            for rank, (head, name, probability) in enumerate(ranks, 1):
                shown = round(probability, 4)
                row = {"domain": prediction["domain"], "picture": path, "rank": rank, "head": head, "class": name}
                self._rows.append({**row, "probability": shown})
        if not self._seen:  # how much all batches take, the first one tells
            each = len(csv_text(self._rows).encode())
            check_space({self._path(trainer): each * int(sum(trainer.num_predict_batches))})
        self._seen += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table; a process that had no picture writes none."""
        if not self._rows:
            return
        path = self._path(trainer)
        write_csv(self._rows, path)
        self._rows, self._seen = [], 0
        sys.stdout.write(f"Predictions: {path}\n")

    def _path(self, trainer: Trainer) -> Path:
        """This process's file."""
        rank = trainer.global_rank
        return self._folder / ("predictions.csv" if rank == 0 else f"predictions-{rank}.csv")


def as_written(path: str) -> str:
    r"""A path as a table in UTF-8 can hold it: a name may be of any bytes, of which others stand as ``\xe9``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
