"""The trainer with one more verb."""

import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from scipy.optimize import linear_sum_assignment

from project.allocation import executed_macs, separated, stored_bytes
from project.callbacks import MergeCallback, check_strategy, ended_by, named
from project.data import DomainDataModule
from project.errors import ConfigurationError
from project.methods import Merged
from project.modules import GateModule, MergeModule, ProbeModule, ScoringModule
from project.modules.scored import ScoredNetwork
from project.report import (
    Results,
    Row,
    accuracy_figure,
    connectivity,
    connectivity_figure,
    write_fits,
    write_results,
    write_variances,
)
from project.runtime.progress import FOLDER as PROGRESS
from project.student import Student, batch_norms, save_student


class MergeTrainer(Trainer):
    """Lightning's Trainer, which can also merge."""

    callbacks: list[Callback]  # Lightning sets it without declaring it

    def merge(
        self, model: LightningModule, datamodule: LightningDataModule | None = None, probe: bool = False
    ) -> Results:
        """Merge fine-tuned networks into one, at every budget asked for.

        Gathers statistics in one pass over the calibration pictures, or as many as the memory asks for, fits all
        students, re-estimates their batch norm where there are such pictures, scores sources, references and students
        on the test pictures, and writes the students and every number to the run's folder. What it has finished lies
        in ``progress`` there until it is done, so that a merge which is killed goes on when it is started again. Data
        that are missing are rendered or downloaded once a node, by its first process, while the others wait, however
        the processes were started.

        Args:
            model: A MergeModule with the sources, methods and budgets.
            datamodule: A DomainDataModule with the domains.
            probe: Whether to report, beside the heads' accuracy, that of a linear classifier for each domain, fitted
                with the labels of the training pictures to what the head of each source and student reads. Nothing
                else here reads labels to fit, and the students stay as they are.

        Returns:
            The table that was printed.
        """
        if not isinstance(model, MergeModule):
            raise ConfigurationError(f"model is {type(model).__name__}; merge needs a MergeModule.")
        if not isinstance(datamodule, DomainDataModule):
            raise ConfigurationError(f"data is {type(datamodule).__name__}; merge needs a DomainDataModule.")
        check_strategy(self)
        callback = self._merge_callback()
        with ended_by(signal.SIGTERM, self):
            return self._merge(model, datamodule, callback, probe)

    def _merge(self, model: MergeModule, datamodule: DomainDataModule, callback: MergeCallback, probe: bool) -> Results:
        folder = writable(Path(self.log_dir or self.default_root_dir))
        model.read(datamodule.preprocessing)
        self._prepare_data(datamodule)
        check_shares(datamodule.calibration_counts(), self.world_size)
        device = self.strategy.root_device
        sharing = self.num_devices if device.type == "cpu" else 1
        model.prepare(datamodule, folder, device, self.world_size, sharing, self.precision)
        if probe:
            for domain in datamodule.domain_names:  # an unreadable picture is found now and not after the fit
                datamodule.samples(domain, "train")
        self.datamodule = datamodule  # the passes below get loaders, and scoring asks for the classes behind them
        (folder / PROGRESS).mkdir(parents=True, exist_ok=True)  # from now on, this run can be taken up again
        while not callback.fitted:
            passes = callback.passes
            self._calibrate(model, datamodule)
            if callback.passes == passes:
                raise ConfigurationError("no calibration batch was run (limit_val_batches?); nothing could be fitted.")
        before = {}
        if not callback.finished:
            with callback.clock.phase("test before re-estimation"):
                before = self._score(model.unsettled_networks(), datamodule).accuracies()
            self._calibrate(model, datamodule)
        assert model.problem is not None
        if model.problem.labels.mode == "different":
            with callback.clock.phase("gate"):
                gates = GateModule([model.ensemble, *(merged.student for merged in model.merged)])
                with named(self, "learning gates"):
                    self.validate(gates, dataloaders=datamodule.calibration_dataloader(), verbose=False)
        with callback.clock.phase("test"):
            scored = self._score(model.scored_networks(), datamodule)
            after, others = scored.accuracies(), scored.joint_accuracies()
        warn_of_swapped_domains(model, after)
        if probe:
            with callback.clock.phase("probe"):
                others = self._probe(model, datamodule, others)
        results = collect(model, datamodule, callback, before, after, others)
        if self.is_global_zero:
            self._write(folder, model, callback, results)
            sys.stdout.write(f"\n{results.text()}\n\nStudents, results and logs: {folder}\n")
        self.strategy.barrier("merge")
        shutil.rmtree(folder / PROGRESS, ignore_errors=True)  # by every process, should each have a disk of its own
        return results

    def _prepare_data(self, datamodule: DomainDataModule) -> None:
        """Let the first process of each node render or download, as Lightning does before a fit; the others wait.

        Processes that Lightning starts itself, at the first pass, come when this one is done.
        """
        self.datamodule = datamodule  # the passes get loaders, and scoring asks for the classes behind them
        environment = getattr(self.strategy, "cluster_environment", None)
        if environment is not None and not isinstance(environment, LightningEnvironment):
            self.strategy.setup_environment()  # they all run already, and can only wait for each other once connected
        self._data_connector.prepare_data()

    def _calibrate(self, model: MergeModule, datamodule: DomainDataModule) -> None:
        gathering = not model.merged
        if gathering and not model.looks:
            loader: Any = datamodule.no_pictures()
        else:
            loader = datamodule.calibration_dataloader(labelled=gathering and model.labelled)
        with named(self, "gathering" if gathering else "re-estimating batch norm"):
            self.validate(model, dataloaders=loader, verbose=False)

    def _merge_callback(self) -> MergeCallback:
        """The one MergeCallback, added where there is none."""
        found = [callback for callback in self.callbacks if isinstance(callback, MergeCallback)]
        if len(found) > 1:
            raise ConfigurationError(f"callbacks holds {len(found)} MergeCallbacks; one is allowed.")
        if not found:
            found = [MergeCallback()]
            self.callbacks.insert(0, found[0])
        found[0].reset()
        return found[0]

    def _score(self, scored_networks: Sequence[ScoredNetwork], datamodule: DomainDataModule) -> ScoringModule:
        """The module that holds their scores."""
        module = ScoringModule(scored_networks)
        with named(self, "scoring"):
            self.test(module, dataloaders=datamodule.test_dataloader(), verbose=False)
        return module

    def _probe(
        self, model: MergeModule, datamodule: DomainDataModule, others: Mapping[str, Mapping[str, float]]
    ) -> dict[str, dict[str, float]]:
        """What was found, and the accuracies of linear probes."""
        assert model.problem is not None
        module = ProbeModule(model.trunks, model.problem.spec.head.name, datamodule.label_space)
        with named(self, "fitting probes"):
            self.validate(module, dataloaders=datamodule.probe_dataloader(), verbose=False)
        with named(self, "scoring probes"):
            self.test(module, dataloaders=datamodule.test_dataloader(), verbose=False)
        found = {name: dict(figures) for name, figures in others.items()}
        for name, one in module.accuracies().items():
            probed = {f"probe {domain}": accuracy for domain, accuracy in one.items()}
            found[name] = {**found.get(name, {}), **probed, "probe mean": sum(one.values()) / len(one)}
        return found

    def _write(self, folder: Path, model: MergeModule, callback: MergeCallback, results: Results) -> None:
        for suffix in ("safetensors", "ckpt"):
            for stale in (folder / "students").glob(f"*.{suffix}"):
                stale.unlink()  # of an earlier run that this one was told to overwrite
        for merged in model.merged:
            save_student(merged.student, folder / "students" / f"{merged.name}.safetensors")
        results.write(folder)
        accuracy_figure(results.rows).savefig(folder / "accuracy.png", dpi=150)
        if paths := results.details.get("connectivity"):
            connectivity_figure(paths).savefig(folder / "connectivity.png", dpi=150)
        loggers = [logger for logger in self.loggers if isinstance(logger, TensorBoardLogger)]
        for logger in loggers:
            write_fits(logger.experiment, model.merged, model.layer_names)
            write_variances(logger.experiment, callback.variances)
            write_results(logger.experiment, results)
            logger.experiment.flush()


def writable(folder: Path) -> Path:
    """The folder, if it can be written to or made; nothing is made yet.

    Raises:
        ConfigurationError: If it cannot.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "is no folder" if not there.is_dir() else "does not allow it"
        raise ConfigurationError(f"run is {folder}, which cannot be written to: {there} {what}.")
    return folder


def check_shares(pictures: Mapping[str, int], processes: int) -> None:
    """Refuse to calibrate with so few pictures that a process would have none, and the others wait for it forever.

    Args:
        pictures: Domain -> number of calibration pictures.
        processes: How many share them.

    Raises:
        ConfigurationError: With the domain.
    """
    for domain, count in pictures.items():
        if count < processes:
            raise ConfigurationError(
                f"{domain} has {count} calibration pictures for {processes} processes, each of which needs one; "
                f"take more pictures or fewer devices."
            )


SWAPPED = 10.0
"""Points by which the sources must do better on average to be taken for swapped; a few test pictures make fewer."""


def warn_of_swapped_domains(model: MergeModule, accuracies: Mapping[str, Mapping[str, float]]) -> None:
    """Say so where the sources would score better, taken together, with their domains dealt out in another way."""
    assert model.problem is not None
    owners, names = model.problem.owners, [source.name for source in model.loaded]
    own = [[domain for domain, owner in owners.items() if owner == index] for index in range(len(names))]
    if not all(own) or any(len(accuracies[name]) < len(owners) for name in names):
        return  # heads of their own say which domain is whose
    scores = np.array([[np.mean([accuracies[name][d] for d in domains]) for domains in own] for name in names])
    best = linear_sum_assignment(scores, maximize=True)[1]
    if scores[range(len(names)), best].mean() > np.diag(scores).mean() + SWAPPED:
        better = ", ".join(f"{name} on {'+'.join(own[j])}" for name, j in zip(names, best, strict=True))
        rank_zero_warn(f"the sources do better the other way round ({better}); are sources and domains in one order?")


def collect(
    model: MergeModule,
    datamodule: DomainDataModule,
    callback: MergeCallback,
    before: dict[str, dict[str, float]],
    after: dict[str, dict[str, float]],
    others: Mapping[str, Mapping[str, float]],
) -> Results:
    """Put together what a merge found."""
    problem = model.problem
    assert problem is not None
    unit, picture, count = problem.unit, problem.spec.picture, len(problem.sources)
    rows = []
    for source in model.loaded:
        executed = executed_macs(source.network, picture) / unit
        held, size = _held([source.network])
        rows.append(Row(source.name, "source", None, executed, executed, held, size, after[source.name]))
    held, size = _held(problem.sources)
    rows.append(Row("ensemble", "reference", None, float(count), float(count), held, size, after["ensemble"]))
    rows += [_student_row(merged, model, before.get(merged.name, {}), after[merged.name]) for merged in model.merged]
    points = [(one.learned["path"], after[one.name]) for one in model.merged if "path" in one.learned]
    rows = [replace(row, others=others.get(row.name, {})) for row in rows]
    details = {
        "layers": {merged.name: merged.layers for merged in model.merged if merged.layers},
        "separated": {merged.name: separated(merged.student.group_maps) for merged in model.merged},
        "matches": {merged.name: merged.matches for merged in model.merged if merged.matches},
        "curves": {merged.name: merged.curves for merged in model.merged if merged.curves},
        **({"connectivity": connectivity(points)} if points else {}),
        "variances": callback.variances,
        "equivalence": model.equivalence,
        "lineage": {merged.name: merged.student.lineage for merged in model.merged},
        "calibration": datamodule.calibration_counts(),
        "skipped_pictures": datamodule.skipped,
        "macs_of_one_source": unit,
    }
    return Results(rows, list(problem.labels.domains), callback.clock.rows(), details)


def _student_row(merged: Merged, model: MergeModule, before: dict[str, float], after: dict[str, float]) -> Row:
    problem = model.problem
    assert problem is not None
    student = merged.student
    norms = merged.norms if merged.settled else "re-estimated" if before else _kept_norms(student)
    left = [fit["residual_after"] for fit in merged.layers.values() if "residual_after" in fit]
    return Row(
        merged.name,
        "point" if "path" in merged.learned else "student",
        merged.budget.plain,
        student.macs / problem.unit,
        executed_macs(student, problem.spec.picture) / problem.unit,
        student.held,
        student.bytes,
        after,
        before,
        sum(left) / len(left) if left else None,
        norms=norms,
        seconds=merged.seconds,
    )


def _kept_norms(student: Student) -> str:
    """Where the statistics of batch norms come from that were neither fitted nor re-estimated."""
    merged = batch_norms(student.network, student.exact_norms) or not batch_norms(student.network)
    return "sources' mean" if merged else "sources' own"


def _held(networks: Sequence[torch.nn.Module]) -> tuple[int, int]:
    """Number of parameters, and bytes of parameters and buffers."""
    parameters = sum(parameter.numel() for network in networks for parameter in network.parameters())
    return parameters, sum(stored_bytes(network.state_dict()) for network in networks)
