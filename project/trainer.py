"""The trainer with one more verb."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from project.callbacks import MergeCallback
from project.data import DomainDataModule
from project.errors import ConfigurationError
from project.methods import Merged
from project.modules import MergeModule
from project.report import Results, Row, accuracy_figure, write_fits, write_results, write_variances
from project.student import executed_macs, save_student


class MergeTrainer(Trainer):
    """Lightning's Trainer, which can also merge."""

    callbacks: list[Callback]  # Lightning sets it without declaring it

    def merge(self, model: LightningModule, datamodule: LightningDataModule | None = None) -> Results:
        """Merge fine-tuned networks into one, at every budget asked for.

        Gathers statistics in one pass over the calibration pictures, fits all students, re-estimates their batch norm,
        scores sources, references and students on the test pictures, and writes the students and every number to
        the run's folder.

        Args:
            model: A MergeModule with the sources, methods and budgets.
            datamodule: A DomainDataModule with the domains.

        Returns:
            The table that was printed.
        """
        if not isinstance(model, MergeModule):
            raise ConfigurationError(f"model is a {type(model).__name__}; merge needs a MergeModule.")
        if not isinstance(datamodule, DomainDataModule):
            raise ConfigurationError(f"data is a {type(datamodule).__name__}; merge needs a DomainDataModule.")
        callback = self._merge_callback()
        folder = writable(Path(self.log_dir or self.default_root_dir))
        self._prepare_data(datamodule)
        model.prepare(datamodule)
        self.datamodule = datamodule  # passes below get loaders, and the module asks for the classes behind them
        while not callback.fitted:
            self.validate(model, dataloaders=datamodule.calibration_dataloader(), verbose=False)
        before = {}
        if not callback.finished:
            with callback.clock.phase("test before re-estimation"):
                model.enter_unsettled()
                before = self._score(model, datamodule)
        while not callback.finished:
            self.validate(model, dataloaders=datamodule.calibration_dataloader(), verbose=False)
        with callback.clock.phase("test"):
            model.enter_all()
            after = self._score(model, datamodule)
        results = collect(model, callback, before, after)
        if self.is_global_zero:
            self._write(folder, model, callback, results)
            sys.stdout.write(f"\n{results.text()}\n\nStudents, results and logs: {folder}\n")
        self.strategy.barrier("merge")
        return results

    def _prepare_data(self, datamodule: DomainDataModule) -> None:
        """Render or download, in one process; the others wait."""
        if self.is_global_zero:
            datamodule.prepare_data()
        self.strategy.barrier("prepare_data")

    def _merge_callback(self) -> MergeCallback:
        """The one MergeCallback, added where there is none."""
        found = [callback for callback in self.callbacks if isinstance(callback, MergeCallback)]
        if len(found) > 1:
            raise MisconfigurationException(f"callbacks holds {len(found)} MergeCallbacks; one is allowed.")
        if not found:
            found = [MergeCallback()]
            self.callbacks.insert(0, found[0])
        return found[0]

    def _score(self, model: MergeModule, datamodule: DomainDataModule) -> dict[str, dict[str, float]]:
        self.test(model, dataloaders=datamodule.test_dataloader(), verbose=False)
        return model.accuracies()

    def _write(self, folder: Path, model: MergeModule, callback: MergeCallback, results: Results) -> None:
        for merged in model.merged:
            save_student(merged.student, folder / "students" / f"{merged.name}.ckpt")
        results.write(folder)
        accuracy_figure(results.rows).savefig(folder / "accuracy.png", dpi=150)
        loggers = [logger for logger in self.loggers if isinstance(logger, TensorBoardLogger)]
        for logger in loggers:
            write_fits(logger.experiment, model.merged)
            write_variances(logger.experiment, callback.variances)
            write_results(logger.experiment, results)
            logger.experiment.flush()


def writable(folder: Path) -> Path:
    """The folder, made where missing.

    Raises:
        ConfigurationError: If it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(f"the run's folder {folder} cannot be written to ({error.strerror}).") from error
    return folder


def collect(
    model: MergeModule,
    callback: MergeCallback,
    before: dict[str, dict[str, float]],
    after: dict[str, dict[str, float]],
) -> Results:
    """Put together what a merge found."""
    problem = model.problem
    assert problem is not None
    unit, picture, count = problem.unit, problem.spec.picture, len(problem.sources)
    rows = []
    for source in model.loaded:
        executed = executed_macs(source.network, picture) / unit
        rows.append(
            Row(source.name, "source", None, executed, executed, _parameters(source.network), after[source.name])
        )
    parameters = sum(_parameters(source) for source in problem.sources)
    rows.append(Row("ensemble", "reference", None, float(count), float(count), parameters, after["ensemble"]))
    rows += [_student_row(merged, model, before.get(merged.name, {}), after[merged.name]) for merged in model.merged]
    details = {
        "layers": {merged.name: merged.layers for merged in model.merged if merged.layers},
        "matches": {merged.name: merged.matches for merged in model.merged if merged.matches},
        "variances": callback.variances,
        "equivalence": model.equivalence,
        "macs_of_one_source": unit,
    }
    return Results(rows, list(problem.labels.domains), callback.clock.rows(), details)


def _student_row(merged: Merged, model: MergeModule, before: dict[str, float], after: dict[str, float]) -> Row:
    problem = model.problem
    assert problem is not None
    student = merged.student
    student.lineage = lineage(merged, model)
    left = [fit["residual_after"] for fit in merged.layers.values()]
    return Row(
        merged.name,
        "student",
        merged.budget,
        problem.macs(student.maps) / problem.unit,
        executed_macs(student, problem.spec.picture) / problem.unit,
        _parameters(student),
        after,
        before,
        sum(left) / len(left) if left else None,
    )


def lineage(merged: Merged, model: MergeModule) -> dict[str, Any]:
    """Where a student comes from, as plain values for its file."""
    method = next(method for method in model.methods if method.name == merged.method)
    options = {k: v for k, v in vars(method).items() if isinstance(v, str | int | float | bool)}
    return {
        "method": merged.method,
        "options": options,
        "budget": merged.budget,
        "sources": [
            {"name": source.name, "sha256": source.sha256, "architecture": asdict(source.architecture)}
            for source in model.loaded
        ],
        "versions": {"torch": str(torch.__version__), "lightning": str(lightning.__version__)},
    }


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
