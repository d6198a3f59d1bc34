"""Learning coefficients of task vectors, or a mask of them, in training epochs on unlabelled pictures."""

import time
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn, optim
from tqdm import tqdm

from project.allocation import Budget, stored_bytes
from project.data import UnlabelledDataModule
from project.errors import ConfigurationError, one_of
from project.merging import SourceFile
from project.merging.calibration import Gathering
from project.merging.lineage import lineage
from project.merging.preparation import go_together, prepare, prove
from project.merging.settings import Settings
from project.merging.sources import as_files, read_sources
from project.methods import Evidence, Merged, PictureCounts, Problem
from project.methods.shared import Learned
from project.methods.shared.aligned import Space
from project.methods.shared.arithmetic import write
from project.methods.shared.blend import Blend
from project.methods.shared.entropy import Objective, entropies
from project.models import DomainScores, read_weights
from project.modules.common import FitBytes
from project.moments import PICTURES, Lockstep, Statistics
from project.runtime import World, free_bytes
from project.student import Source, Student, renormalise, save_student, student_entries

PRECISIONS = ("32-true", "bf16-mixed")


class CoefficientModule(LightningModule):
    """Learns what a method such as AdaMerging learns, as ``pleas merge`` does, but in training epochs.

    Batches map domains to pictures, as UnlabelledDataModule's do; no label is trained on, and no test picture is seen.
    Parameters are the method's coefficients or logits alone: base and sources stay as they are. The trainer says how
    many steps there are and the data how large a batch is and in which order pictures come, so that the method's own
    ``steps`` and ``batch`` play no part, nor its ``seed`` in drawing pictures. Several processes sum their gradients,
    so that all have the same coefficients; batch norms normalise by a batch of all of them together.

    Every checkpoint is a student file, its batch norms re-estimated on the calibration pictures; the last state is
    also written to ``students/<method>-1.00.safetensors`` in the run's folder, for ``pleas test``, or to be merged
    again.

    Logged are ``train/entropy``, ``train/entropy/<domain>``, and means of what is learned, such as
    ``train/coefficient/<source>``. Where the data hold pictures out: ``val/loss``, the mean entropy on those, and
    ``val/accuracy`` and ``val/<domain>/accuracy``, the only figures for which labels are read.

    Args:
        sources: Two or more files, each with the domains it was trained on where the file does not say.
        base: What the sources were fine-tuned from: a file, torchvision's name of weights such as IMAGENET1K_V1, or
            ``mean``, the mean of the sources.
        method: AdaMerging or Concrete. Where it aligns by ``activations`` or ``both``, a pass over the calibration
            pictures before the fit gathers what that needs.
        without_source: Domains of the data that no source was trained on, for shared classes.
        tolerance: Largest relative change of the logits that permuting a group of a source may make.

    Raises:
        ConfigurationError: If an argument has an impossible value.
    """

    def __init__(
        self,
        sources: Sequence[SourceFile | Path],
        base: str,
        method: Learned,
        without_source: Sequence[str] = (),
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__()
        self.files, self.method = as_files(sources), method
        self.settings = Settings([method], [Budget(1.0)], tolerance, list(without_source), base)
        self.automatic_optimization = False  # gradients are summed over processes as in a merge, by the same code
        self.blend: Blend | None = None
        self.objective: Objective | None = None
        self.problem: Problem | None = None
        self.world = World()
        self.loaded: list[Source] = []
        self.earlier_seconds = 0.0
        self._renormalised: tuple[int, Student] | None = None

    def setup(self, stage: str) -> None:
        """Load sources and base, and see that they and the data go together."""
        if stage != "fit":
            raise ConfigurationError("model is CoefficientModule, which is fitted; score the student that it writes.")
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, UnlabelledDataModule):
            raise ConfigurationError(f"data is {type(data).__name__}; use UnlabelledDataModule to learn coefficients.")
        one_of(PRECISIONS, precision=self.trainer.precision)
        if self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ConfigurationError("trainer.max_epochs is -1; set it, or max_steps: the method must know its steps.")
        if self.problem is None:
            self._prepare(data)
        self.scores = DomainScores(data.label_space)

    def _prepare(self, data: UnlabelledDataModule) -> None:
        """Settle what is learned, and where it starts."""
        loaded = go_together(self.files, read_sources(self.files), self.settings, data.picture)
        pictures = PictureCounts(data.calibration_counts(), data.calibration_batch_size, self.trainer.world_size)
        self.problem, self.loaded, *_ = prepare(loaded, self.settings, data, pictures)
        prove(self.loaded, loaded.spec, self.settings.tolerance, data)
        self.world, base = World.current(), loaded.base
        networks = nn.ModuleList([*self.problem.sources, *([base] if isinstance(base, nn.Module) else [])])
        statistics = Statistics()
        if needs := self.method.needs - {PICTURES}:
            networks.to(self._exact_device)
            statistics = self._gathered(data, needs)
        space = Space.of(self.problem, Evidence(statistics), self.world, self.method.align)
        student = self.problem.start(space.maps)
        self.blend = self.method.blend(space, student)
        networks.to("cpu")  # what is fitted holds what it needs of them
        # The student is not registered, so that the trainer sees the parameters that are learned and no others.
        self.objective = Objective(student, data.calibration_domains, self.method.norms)

    @property
    def _exact_device(self) -> torch.device:
        """That of the fit, or the CPU where that has no float64, in which moments are summed."""
        device = self.trainer.strategy.root_device
        return torch.device("cpu") if device.type == "mps" else device

    @torch.no_grad()
    def _gathered(self, data: UnlabelledDataModule, needs: Collection[str]) -> Statistics:
        """What the sources do on all calibration pictures."""
        problem, device = self._problem, self._exact_device
        sources = Lockstep(problem.sources).requires_grad_(False)
        gathering = Gathering(problem.spec, sources, needs, data.calibration_domains, problem.owners, problem.columns)
        gathering.begin(lambda moments: [list(moments)], device)
        batches = tqdm(data.calibration_dataloader(), desc="gathering", unit="batch", leave=False, disable=None)
        for number, batch in enumerate(batches):
            seen = {domain: (pictures.to(device), None) for domain, pictures in batch.items() if pictures is not None}
            gathering.gather(number, seen)
        gathering.end(self.world.reduce, self.world.rank == 0)
        assert gathering.statistics is not None
        return gathering.statistics

    def writes(self) -> FitBytes:
        """Estimate what the fit writes: students of a source's size."""
        size = stored_bytes(read_weights(self.files[0].path).state_dict)
        return FitBytes(size, student=size)

    def configure_optimizers(self) -> optim.Optimizer:
        """The method's own optimizer."""
        self.total = int(self.trainer.estimated_stepping_batches)
        return self.method.optimizer(self._blend)

    def on_fit_start(self) -> None:
        """Bring the student to where the parameters are."""
        self._objective.student.to(self.device)
        self._objective.world = World.current()

    def on_train_start(self) -> None:
        """Time is counted from here."""
        self.started = time.perf_counter()

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Learn from pictures (batch, 3, height, width) of every domain."""
        if not isinstance(batch, Mapping):
            raise ConfigurationError("training batches must map domains to pictures; use UnlabelledDataModule as data.")
        optimizer: Any = self.optimizers()
        step, blend = self.global_step, self._blend
        told = self.method.step(blend, self._objective, batch, step, self.total, optimizer.step)
        self.log("train/entropy", sum(told.values()) / len(told), prog_bar=True)
        self.log_dict({f"train/entropy/{domain}": value for domain, value in told.items()})
        for quantity, values in self.method.summary(blend, self._problem.source_names).items():
            self.log_dict({f"train/{quantity}/{name}": value for name, value in values.items()})

    def on_validation_epoch_start(self) -> None:
        """Put together what was learned, and forget the last round."""
        self.scores.reset()
        self._student()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score on pictures of one domain, by their classes (batch,), indices within that domain."""
        pictures, labels = batch
        student, domain = self._student(), tuple(self.scores.classes)[dataloader_idx]
        logits = student(pictures)[:, student.labels.columns(domain)]
        self.scores.update(dataloader_idx, logits, labels, entropies(logits).mean())

    def on_validation_epoch_end(self) -> None:
        """Log entropy and accuracies, which are the same in all processes already; sync_dist only says so."""
        self.log_dict({f"val/{name}": value for name, value in self.scores.compute().items()}, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint a student file, from which the fit can go on too."""
        student = self._finished()
        checkpoint["learned"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = student.network.state_dict()
        checkpoint.update(student_entries(student))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from what was learned, and go on counting seconds.

        Raises:
            ConfigurationError: If the sources' units are matched in another way now: masks would lie on other units.
        """
        maps, kept = self._objective.student.group_maps, checkpoint["unit_maps"]
        differing = [name for name, units in maps.items() if not torch.equal(units.members, kept[name].cpu())]
        if differing:
            raise ConfigurationError(
                f"ckpt_path is a fit in which units of {len(differing)} groups, {differing[0]} first, are matched in "
                f"another way than now; give it the same sources, pictures and number of processes, or start anew."
            )
        checkpoint["state_dict"] = checkpoint["learned"]
        self.earlier_seconds = checkpoint["lineage"]["fitted"]["seconds"]

    def on_train_end(self) -> None:
        """Write the student."""
        student = self._finished()
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        path = folder / "students" / f"{Merged(self.method.name, Budget(1.0), student).name}.safetensors"
        if self.trainer.is_global_zero:
            save_student(student, path)
            rank_zero_info(f"Student: {path}")

    @torch.no_grad()
    def _student(self) -> Student:
        """The student of what has been learned so far, its batch norms re-estimated; all processes must ask."""
        if self._renormalised is None or self._renormalised[0] != self.global_step:
            student = deepcopy(self._objective.student)
            write(student, self.method.merged(self._blend))
            loader, world = self.trainer.datamodule.calibration_dataloader(), World.current()  # type: ignore[attr-defined]
            room = free_bytes(self.device, world.size) // 2
            renormalise(student, lambda: map(self._moved, loader), world, room)
            self._renormalised = self.global_step, student
        return self._renormalised[1]

    def _moved(self, batch: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        """A batch of calibration pictures, on this module's device."""
        return {domain: None if part is None else part.to(self.device) for domain, part in batch.items()}

    def _finished(self) -> Student:
        """The same, which also says where it comes from."""
        student, blend, problem = self._student(), self._blend, self._problem
        learned = self.method.plain(blend, problem.source_names)
        merged = Merged(self.method.name, Budget(1.0), student, learned=learned)
        fitted = {
            "steps": self.global_step,
            "seconds": round(self.earlier_seconds + time.perf_counter() - self.started, 1),
            "batch": self.trainer.datamodule.calibration_batch_size,  # type: ignore[attr-defined]
        }
        known = lineage(self.method, merged, self.loaded, problem.owners, self.settings.base)
        student.lineage = {**known, "fitted": fitted}
        return student

    @property
    def _blend(self) -> Blend:
        assert self.blend is not None
        return self.blend

    @property
    def _objective(self) -> Objective:
        assert self.objective is not None
        return self.objective

    @property
    def _problem(self) -> Problem:
        assert self.problem is not None
        return self.problem
