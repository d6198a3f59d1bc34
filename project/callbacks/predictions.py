"""Writing predictions to a table."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

COLUMNS = ("domain", "path", "predicted", "probability")


class PredictionTable(BasePredictionWriter):
    """Writes what ``predict`` finds as CSV: domain, path, class and its probability, one row a picture.

    Each process writes its own file: ``predictions.csv`` in the run's folder, ``predictions-1.csv`` and so on.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._rows: list[tuple[str, str, str, float]] = []

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
        best = prediction["probabilities"].max(1).values.tolist()
        for path, name, probability in zip(prediction["paths"], prediction["predicted"], best, strict=True):
            self._rows.append((prediction["domain"], path, name, round(probability, 4)))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        name = "predictions.csv" if trainer.global_rank == 0 else f"predictions-{trainer.global_rank}.csv"
        path = Path(trainer.log_dir or trainer.default_root_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(self._rows)
        self._rows = []
        sys.stdout.write(f"Predictions: {path}\n")
