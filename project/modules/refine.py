"""Refining a merged student after its fit: a short distillation from its own sources, without labels."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn, optim

from project.data import DomainDataModule, UnlabelledDataModule
from project.errors import ConfigurationError, share
from project.fit import Distillation
from project.fit.distil import check_loss_weights
from project.merging.classes import check_classes
from project.merging.prepared import warn_of_preprocessing
from project.models import DomainScores
from project.modules.checks import check_optimizer, made_optimizer
from project.modules.common import FitBytes, data_labels, optimizer_bytes
from project.student import Student, load_student, original_owners, original_sources, save_student, student_entries


class RefineModule(LightningModule):
    """Trains a student so that on every domain it does what the source that owns the domain does.

    It starts from a student that ``pleas merge`` wrote and needs the files of its sources, which are known by their
    hashes. Batches map domains to pictures, as UnlabelledDataModule's do; no label is trained on. Batch norm keeps the
    statistics that the merge set, while its scale and shift are trained. Every checkpoint is a student file; the last
    state is also written to ``students/<name>-refined.safetensors`` in the run's folder, for ``pleas test``, or to be
    merged again.

    Logged are ``train/loss`` and its parts ``train/logits`` and ``train/features/<group>``. Where the data hold
    pictures out: ``val/loss``, the same loss on those, and ``val/accuracy`` and ``val/<domain>/accuracy``, the only
    figures for which labels are read.

    Args:
        student: File of the student to start from.
        sources: Files of all its sources, in any order.
        features: Weight of the features: the mean over groups of Σ(student − source)² / Σ source².
        logits: Weight of the logits: T² · KL(source ‖ student) of the class probabilities at temperature T.
        temperature: T, above 0.
        optimizer: Makes the optimizer from the parameters. By default AdamW without weight decay.
        warmup: Share of the steps over which the learning rate rises from 0, before it falls along a cosine to 0.
        architecture: For a network of your own: the dotted path that the student's file names.

    Raises:
        ConfigurationError: If an argument has an impossible value.
    """

    def __init__(
        self,
        student: Path,
        sources: Sequence[Path],
        features: float = 1.0,
        logits: float = 1.0,
        temperature: float = 2.0,
        # jsonargparse passes what two optimizers share on to the one named instead: AdamW's decay would harm SGD
        optimizer: OptimizerCallable = lambda parameters: optim.AdamW(parameters, lr=3e-5, weight_decay=0.0),
        warmup: float = 0.1,
        architecture: str | None = None,
    ) -> None:
        super().__init__()
        check_loss_weights(features, logits, temperature)
        share(none=True, whole=False, warmup=warmup)
        check_optimizer(optimizer)
        self.path, self.source_paths = Path(student), [Path(source) for source in sources]
        self.options = {"features": features, "logits": logits, "temperature": temperature}
        self.optimizer, self.warmup, self.architecture = optimizer, warmup, architecture
        self.distillation: Distillation | None = None
        self.earlier_seconds = 0.0

    @property
    def student(self) -> Student:
        """The student as it is now."""
        assert self.distillation is not None
        return self.distillation.student

    def setup(self, stage: str) -> None:
        """Load student and sources, and refuse data that do not go with them."""
        labels = data_labels(self)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and isinstance(data, DomainDataModule) and not isinstance(data, UnlabelledDataModule):
            raise ConfigurationError(f"data is {type(data).__name__}; use UnlabelledDataModule to refine a student.")
        if self.distillation is None:
            student = load_student(self.path, self.architecture)
            if not student.plain:
                raise ConfigurationError(
                    f"student is {self.path}, which is not one network for all pictures; refine another."
                )
            if student.gate is not None:
                rank_zero_info(f"the gate of {self.path} was learnt on its trunk as it is; refined, it has none")
                student.gate, student.own_heads, student.own_domains = None, None, ()
            sources = original_sources(student, self.source_paths, self.architecture)
            for source in sources:
                source.network.requires_grad_(False)
            networks, owners = [source.network for source in sources], original_owners(student)
            self.distillation = Distillation(student, networks, owners, **self.options)
            self.lineage: dict[str, Any] = student.lineage
            self.network = student.network  # alone registered, so that checkpoints hold a student's tensors and no more
            self.network.train()  # until training starts, as Lightning warns of anything else
        check_classes(str(self.path), self.student.labels, labels)
        for domain in labels.domains:
            self.student.labels.columns(domain)  # refuses a domain without a head
            if domain not in self.distillation.owners:
                rank_zero_warn(f"domain {domain!r} has no source: its pictures follow the mean of all sources.")
        warn_of_preprocessing(str(self.path), self.student.preprocessing, data.preprocessing)
        self.domains, self.scores = labels.domains, DomainScores(labels)

    def writes(self) -> FitBytes:
        """Estimate what the fit writes, from the size of the student's file."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        parameters = [nn.Parameter(torch.empty(size // 4, device="meta"))]
        return FitBytes(size, optimizer_bytes(self.optimizer, parameters), size)

    def configure_optimizers(self) -> Any:
        """Make the optimizer of all the student's parameters, its learning rate rising and falling over the run."""
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ConfigurationError("trainer.max_epochs is -1; set it, or max_steps: the learning rate falls over it.")
        optimizer = made_optimizer(self.optimizer, list(self.network.parameters()))
        schedule = optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(min(1.0, step / total), self.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Move the sources, which are not registered, to the student's device."""
        assert self.distillation is not None
        self.distillation.to(self.device)

    def on_train_start(self) -> None:
        """Leave batch norm its statistics, and start the clock."""
        self.network.eval()
        self.started = time.perf_counter()

    def training_step(self, batch: Mapping[str, Tensor | None], batch_idx: int) -> Tensor:
        """Compute the loss on a batch, domain -> pictures (batch, 3, height, width)."""
        assert self.distillation is not None
        if not isinstance(batch, Mapping):
            raise ConfigurationError("training batches must map domains to pictures; use UnlabelledDataModule as data.")
        losses = self.distillation({domain: pictures for domain, pictures in batch.items() if pictures is not None})
        self.log("train/loss", losses.total, prog_bar=True)
        self.log_dict({"train/logits": losses.logits, **{f"train/features/{g}": e for g, e in losses.features.items()}})
        return losses.total

    def on_validation_epoch_start(self) -> None:
        """Reset the scores."""
        self.scores.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compute the loss on pictures of one domain, and score by their classes (batch,), indices in that domain."""
        assert self.distillation is not None
        pictures, labels = batch
        domain = self.domains[dataloader_idx]
        losses = self.distillation({domain: pictures})
        self.scores.update(dataloader_idx, losses.outputs[domain], labels, losses.total)

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracies, which are the same in all processes already; sync_dist only says so to Lightning."""
        self.log_dict({f"val/{name}": value for name, value in self.scores.compute().items()}, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint a student file."""
        self.student.lineage = self._extended_lineage()
        checkpoint.update(student_entries(self.student))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting seconds where an interrupted run stopped."""
        self.earlier_seconds = checkpoint["lineage"]["refined"][-1]["seconds"]

    def on_train_end(self) -> None:
        """Write the student."""
        self.student.lineage = self._extended_lineage()
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        path = folder / "students" / f"{self.path.stem}-refined.safetensors"
        if self.trainer.is_global_zero:
            save_student(self.student, path)
            rank_zero_info(f"Refined student: {path}")

    def _extended_lineage(self) -> dict[str, Any]:
        """Extend the student's lineage by this run, as plain values."""
        seconds = self.earlier_seconds + time.perf_counter() - self.started
        (optimizer,) = self.trainer.optimizers
        run = {
            "steps": self.trainer.global_step,
            "seconds": round(seconds, 1),
            **self.options,
            "optimizer": type(optimizer).__name__,
            "lr": optimizer.param_groups[0]["initial_lr"],
            "warmup": self.warmup,
        }
        return {**self.lineage, "refined": [*self.lineage.get("refined", []), run]}


def warmup_cosine(done: float, warmup: float) -> float:
    """Compute the factor on the learning rate: up from 0 in a line, then down to 0 along half a cosine.

    Args:
        done: Share of the run that is over, from 0 to 1.
        warmup: Share of the run over which it rises, below 1.
    """
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
