"""The trainer with one more verb."""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL.Image import Image
from scipy.optimize import linear_sum_assignment

from project.callbacks import MergeCallback, check_strategy, ended_by, named
from project.data import DomainDataModule
from project.data.opening import open_picture
from project.errors import ConfigurationError, PleasError, at_least, whole
from project.merging.engine import Engine
from project.merging.settings import Place
from project.modules import MergeModule, ProbeModule, ScoringModule
from project.modules.examples import Paths
from project.report import (
    Results,
    accuracy_figure,
    connectivity_figure,
    write_correlations,
    write_fits,
    write_results,
    write_variances,
)
from project.report.collect import collect
from project.runtime import World, atomic_file, tell, warn
from project.runtime.allocator import held_tight
from project.runtime.progress import taken_up_again
from project.runtime.saving import check_writable
from project.runtime.space import writing
from project.student import save_student

STUDENTS = "students"


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
        self._check_passes()
        self._one_callback()
        with ended_by(signal.SIGTERM, self), held_tight(model.settings.memory is not None):
            return self._merge(model, datamodule, probe)

    def _merge(self, model: MergeModule, datamodule: DomainDataModule, probe: bool) -> Results:
        folder = Path(self.log_dir or self.default_root_dir)
        check_writable(folder, f"run is {folder}")
        model.read(datamodule.picture)
        self._prepare_data(datamodule)
        check_shares(datamodule.calibration_counts(), self.world_size)
        each = self.world_size * datamodule.calibration_batch_size
        self._check_passes(max((ceil(count / each) for count in datamodule.calibration_counts().values()), default=1))
        device = self.strategy.root_device
        sharing = self.num_devices if device.type == "cpu" else 1
        students, beside = folder / STUDENTS, self.num_devices
        largest = max(len(datamodule.samples(domain, "test")) for domain in datamodule.domain_names)
        together = min(datamodule.batch_size, largest)
        place = Place(folder, device, self.world_size, sharing, self.precision, students, beside, together)
        model.prepare(datamodule, place)
        if probe:
            for domain in datamodule.domain_names:  # an unreadable picture is found now and not after the fit
                datamodule.samples(domain, "train")
        with taken_up_again(folder):
            return self._run_merge(model, datamodule, probe, folder)

    def _run_merge(self, model: MergeModule, datamodule: DomainDataModule, probe: bool, folder: Path) -> Results:
        """The merge itself, all that it needs being known to go together."""
        engine = model.engine
        before: dict[str, dict[str, float]] = {}
        while not engine.finished:
            if engine.phase == "re-estimate" and not before:
                with engine.clock.phase("test before re-estimation"):
                    before = self._score(model.scoring(model.unsettled_networks()), datamodule).accuracies()
            self._calibrate(model, datamodule)
        with engine.clock.phase("test"):
            scored = self._score(model.scoring(model.scored_networks()), datamodule)
            scored.warn_of_orders()
            after, others = scored.accuracies(), scored.joint_accuracies()
        names = [source.name for source in engine.sources]
        warn_of_swapped_domains(engine.problem.owners, names, after)
        tell_of_better_sources(names, [merged.name for merged in engine.merged], after)
        if probe:
            with engine.clock.phase("probe"):
                others = self._probe(model, datamodule, others)
        results = collect(engine, datamodule.skipped, before, after, others, scored.tallies())
        tests = {domain: datamodule.samples(domain, "test") for domain in datamodule.domain_names}
        examples = scored.examples.paths(tests, self.global_rank, self.world_size)
        with World.current().together("could not write the students and results"), writing(folder):
            if self.is_global_zero:
                self._write(folder, engine, results)
                _report(folder, examples, partial(open_picture, preprocessing=datamodule.preprocessing))
        if self.is_global_zero:
            sys.stdout.write(f"\n{results.text()}\n\nStudents, results and logs: {folder}\n")
        self.strategy.barrier("merge")
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

    def _check_passes(self, batches: int = 0) -> None:
        """Refuse to look at part of the calibration pictures, of which there are so many batches.

        Raises:
            ConfigurationError: With the option of the trainer that says so.
        """
        limits = {name: getattr(self, name) for name in ("fast_dev_run", "overfit_batches", "limit_val_batches")}
        few = limits["limit_val_batches"]
        if self.limit_test_batches == 0:
            raise ConfigurationError("trainer.limit_test_batches is 0, which leaves nothing to score the students on.")
        cut = [name for name in ("fast_dev_run", "overfit_batches") if limits[name]]
        if cut or few == 0 or (few < 1 if isinstance(few, float) else few < batches):
            name = cut[0] if cut else "limit_val_batches"
            raise ConfigurationError(
                f"trainer.{name} is {limits[name]}, but a merge looks at all its calibration pictures; make them fewer "
                f"by data.calibration."
            )

    def _calibrate(self, model: MergeModule, datamodule: DomainDataModule) -> None:
        """Drive the next pass of the merge."""
        engine, ended = model.engine, model.engine.ended
        batches = datamodule.calibration_dataloader(engine.labelled) if engine.looks else datamodule.no_pictures()
        with named(self, engine.words):
            self.validate(model, dataloaders=batches, verbose=False)
        if engine.ended == ended:
            raise ConfigurationError("no calibration batch was run (limit_val_batches?); nothing could be fitted.")

    def _one_callback(self) -> None:
        """See that there is one MergeCallback, adding it where there is none."""
        callbacks = [callback for callback in self.callbacks if isinstance(callback, MergeCallback)]
        if len(callbacks) > 1:
            raise ConfigurationError(f"callbacks holds {len(callbacks)} MergeCallbacks; one is allowed.")
        if not callbacks:
            self.callbacks.insert(0, MergeCallback())

    def _score(self, module: ScoringModule, datamodule: DomainDataModule) -> ScoringModule:
        """The module, with the scores that it holds then."""
        with named(self, "scoring"):
            self.test(module, dataloaders=datamodule.test_dataloader(), verbose=False)
        return module

    def _probe(
        self, model: MergeModule, datamodule: DomainDataModule, others: Mapping[str, Mapping[str, float]]
    ) -> dict[str, dict[str, float]]:
        """What was found, and the accuracies of linear probes."""
        module = ProbeModule(model.trunks, model.engine.problem.spec.head.name, datamodule.label_space)
        with named(self, "fitting probes"):
            self.validate(module, dataloaders=datamodule.probe_dataloader(), verbose=False)
        with named(self, "scoring probes"):
            self.test(module, dataloaders=datamodule.test_dataloader(), verbose=False)
        figures = {name: dict(values) for name, values in others.items()}
        for name, accuracies in module.accuracies().items():
            probed = {f"probe {domain}": accuracy for domain, accuracy in accuracies.items()}
            mean = sum(accuracies.values()) / len(accuracies)
            figures[name] = {**figures.get(name, {}), **probed, "probe mean": mean}
        return figures

    def _write(self, folder: Path, engine: Engine, results: Results) -> None:
        for suffix in ("safetensors", "ckpt"):
            for stale in (folder / STUDENTS).glob(f"*.{suffix}"):
                stale.unlink()  # of an earlier run that this one was told to overwrite
        for merged in engine.merged:
            save_student(merged.student, folder / STUDENTS / f"{merged.name}.safetensors")
        results.write(folder)
        _draw(accuracy_figure(results.rows, results.measure), folder / "accuracy.png")
        if paths := results.details.get("connectivity"):
            _draw(connectivity_figure(paths), folder / "connectivity.png")
        loggers = [logger for logger in self.loggers if isinstance(logger, TensorBoardLogger)]
        for logger in loggers:
            write_fits(logger.experiment, engine.merged, [layer.name for layer in engine.problem.spec.layers])
            if statistics := engine.gathering.statistics:
                names = [source.name for source in engine.sources]
                write_correlations(logger.experiment, statistics, engine.problem.spec, engine.merged, names)
            write_variances(logger.experiment, engine.variances)
            write_results(logger.experiment, results)
            logger.experiment.flush()


def _report(folder: Path, examples: Paths, opener: Callable[[Path], Image]) -> None:
    """Write the report; all else that the run was for is written by then, and no mistake in a page may fail it."""
    from project.report import page  # what no other command and no other process needs

    try:
        page.write_examples(folder, page.read_merge(folder), examples, opener)
        page.write_report(folder)
    except PleasError:
        raise
    except Exception as error:
        for name in (page.REPORT, page.EXAMPLES):
            (folder / name).unlink(missing_ok=True)  # an earlier run's
        warn(f"{page.REPORT} could not be written ({error!r}); everything else was.")


def _draw(figure: Figure, path: Path) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)


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


COUNTS = {
    "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0, "max_epochs": -1,
    "max_steps": -1, "min_epochs": 0, "min_steps": 0, "num_nodes": 1, "num_sanity_val_steps": -1,
}  # fmt: skip
"""Options of the trainer that count something, and the least of each."""
WORK = {
    "fit": ("limit_train_batches", "max_epochs", "max_steps"),
    "validate": ("limit_val_batches",),
    "test": ("limit_test_batches",),
    "predict": ("limit_predict_batches",),
    "merge": ("limit_test_batches",),
}
"""Subcommand -> options of the trainer that leave it nothing to do where they are 0."""


def check_options(subcommand: str, options: Mapping[str, Any]) -> None:
    """Refuse options of the trainer that Lightning takes and fails at later, or with which nothing would be done.

    Args:
        subcommand: What the trainer is to do.
        options: The options, by name.

    Raises:
        ConfigurationError: With the option, its value and what is allowed.
    """
    for name, least in COUNTS.items():
        if options.get(name) is not None:
            whole(least, **{f"trainer.{name}": options[name]})
    if options.get("gradient_clip_val") is not None:
        at_least(0, **{"trainer.gradient_clip_val": options["gradient_clip_val"]})
    if options.get("val_check_interval") == 0:
        raise ConfigurationError("trainer.val_check_interval is 0; allowed: above 0.")
    for name in WORK[subcommand]:
        if options.get(name) == 0 and not isinstance(options[name], bool):
            raise ConfigurationError(f"trainer.{name} is 0, which leaves {subcommand} nothing to do; allowed: above 0.")


def tell_of_better_sources(
    sources: Sequence[str], students: Sequence[str], accuracies: Mapping[str, Mapping[str, float]]
) -> None:
    """Say so where students are worse, over all domains, than a source by itself: merging to their size costs that.

    Args:
        sources: Their names.
        students: Their names.
        accuracies: Network -> domain -> accuracy in percent.
    """
    known = max((len(accuracies[name]) for name in students), default=0)
    means = {name: float(np.mean(list(values.values()))) for name, values in accuracies.items() if values}
    able = [name for name in sources if len(accuracies[name]) == known]  # heads of their own know no other domain
    best = max(able, key=lambda name: means[name], default=None)
    if best is None:
        return
    worse = [f"{name} {means[best] - means[name]:.1f}" for name in students if means[name] < means[best]]
    if worse:
        tell(
            f"source {best} alone is right on {means[best]:.1f} % over all domains; points that merging costs against "
            f"that: {', '.join(worse)}"
        )


SWAPPED = 10.0
"""Points by which the sources must do better on average to be taken for swapped; a few test pictures make fewer."""


def warn_of_swapped_domains(
    owners: Mapping[str, int], names: Sequence[str], accuracies: Mapping[str, Mapping[str, float]]
) -> None:
    """Say so where the sources would score better, taken together, with their domains dealt out in another way.

    Args:
        owners: Domain -> index of its source.
        names: Of the sources.
        accuracies: Source -> domain -> accuracy in percent.
    """
    own = [[domain for domain, owner in owners.items() if owner == index] for index in range(len(names))]
    if not all(own) or any(len(accuracies[name]) < len(owners) for name in names):
        return  # heads of their own say which domain is whose
    scores = np.array([[np.mean([accuracies[name][d] for d in domains]) for domains in own] for name in names])
    best = linear_sum_assignment(scores, maximize=True)[1]
    if scores[range(len(names)), best].mean() > np.diag(scores).mean() + SWAPPED:
        better = ", ".join(f"{name} on {'+'.join(own[j])}" for name, j in zip(names, best, strict=True))
        warn(f"the sources do better the other way round ({better}); are sources and domains in one order?")
