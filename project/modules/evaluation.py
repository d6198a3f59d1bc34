"""Scoring any number of networks on every domain, all through one path, and asking one of them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from project.errors import ConfigurationError
from project.models import DomainScores, JointScores, LabelSpace, heads
from project.models.heads import Joint
from project.modules.classes import check_classes
from project.modules.contenders import Contender, load_contenders
from project.modules.sources import SourceFile
from project.report.results import text_table, write_csv

OWN = "own"


class EvaluationModule(LightningModule):
    """Scores networks on every domain of the data: sources, students, any of them side by side.

    ``test`` and ``validate`` log ``<name>/<domain>/accuracy`` of every network, and of one with a head for every domain
    ``<name>/joint_accuracy``, where its class must be right among those of all heads, and ``<name>/head_accuracy``,
    where it must be one of the picture's domain; ``predict`` gives the classes that the first network sees.

    Args:
        networks: Files: students, checkpoints of FineTuneModule, state dicts or safetensors; a state dict may say its
            domains.
        head: What ``predict`` answers with: ``own``: the head of each picture's own domain; the name of a domain: its
            head, whatever the picture; ``joint``: all classes of all heads.
        joint: How heads are weighed where none is named; default: by a student's gate, else by their logits.
            ``gate``: the softmax of each, weighed by a classifier of the domain that the merge has learnt from
            unlabelled pictures; ``logits``: one softmax over all their logits side by side; ``uniform``: the softmax of
            each, all heads alike; ``confidence``: the softmax of each, heads weighed by 1 - entropy / log(classes).
    """

    def __init__(self, networks: Sequence[SourceFile | Path] = (), head: str = OWN, joint: Joint | None = None) -> None:
        super().__init__()
        if not networks:
            raise ConfigurationError("networks is empty; at least one file of a network is needed.")
        if joint is not None:
            heads.check_joint(joint)
        self.files = [network if isinstance(network, SourceFile) else SourceFile(Path(network)) for network in networks]
        self.head, self.joint = head, joint
        self._contenders: list[Contender] = []

    def setup(self, stage: str) -> None:
        """Load the networks and take the classes from the data."""
        labels = data_labels(self)
        if not self._contenders:
            self.enter(load_contenders(self.files, labels))
        for contender in self._contenders:
            check_classes(contender.name, contender.labels, labels)
            given = self.trainer.datamodule.preprocessing  # type: ignore[attr-defined]
            if contender.preprocessing not in (None, given):
                rank_zero_warn(f"{contender.name} was made for {contender.preprocessing}, but data gives {given}.")
        if stage == "predict":
            self._check_head(labels.domains)
        else:
            for contender in self._contenders:
                if contender.chooses(labels.domains):
                    contender.joint(self.joint)  # refuses a gate that is not there

    def enter(self, contenders: Sequence[Contender]) -> None:
        """Score these networks from now on."""
        self._contenders = list(contenders)
        self.scored = nn.ModuleList(contender.network for contender in contenders)  # so that they move along

    def reset_scores(self) -> None:
        """Forget all batches."""
        labels = data_labels(self)
        self.domains = labels.domains
        self.known = [[domain for domain in self.domains if one.knows(domain)] for one in self._contenders]
        self.scores = nn.ModuleList(DomainScores(labels, tuple(known)) for known in self.known).to(self.device)
        self.joint_scores = nn.ModuleDict(
            {str(i): JointScores(one.labels, self.domains) for i, one in enumerate(self._contenders)
             if one.chooses(self.domains)}
        ).to(self.device)  # fmt: skip

    def on_test_start(self) -> None:
        """Forget the last round, and leave the printing to :meth:`on_test_end`."""
        self.trainer.test_loop.verbose = False
        self.reset_scores()

    def on_validation_start(self) -> None:
        """Forget the last round."""
        self.reset_scores()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score pictures of one domain by their classes (batch,), indices within that domain."""
        self._score(batch, dataloader_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score pictures of one domain by their classes (batch,), indices within that domain."""
        self._score(batch, dataloader_idx)

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Classes that the first network sees in pictures of one domain.

        Returns:
            ``domain``; ``paths`` of the pictures; ``probabilities`` (batch, columns); ``columns``, the head and the
            class behind each.
        """
        pictures, paths = batch
        contender, domain = self._contenders[0], data_labels(self).domains[dataloader_idx]
        head = contender.head_of(domain) if self.head == OWN else self.head
        if head == heads.JOINT:
            shares = contender.shares(pictures, self.joint)[1]
        else:
            shares = heads.probabilities(contender.network(pictures), contender.labels, head)
        return {
            "domain": domain,
            "paths": paths,
            "probabilities": shares,
            "columns": heads.column_labels(contender.labels, head),
        }

    def on_test_epoch_end(self) -> None:
        """Log accuracies."""
        self._log("test")

    def on_test_end(self) -> None:
        """Print the accuracies side by side, and write them to the run's folder as ``scores.csv``."""
        found, joint = self.accuracies(), self.joint_accuracies()
        if not self.trainer.is_global_zero:
            return
        rows = []
        for name, one in found.items():
            cells = {**{domain: one.get(domain) for domain in self.domains}, "mean": sum(one.values()) / len(one)}
            if joint:
                cells |= {"joint": None, "right head": None, **joint.get(name, {})}
            rows.append({"network": name, **{k: None if v is None else round(v, 1) for k, v in cells.items()}})
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        write_csv(rows, folder / "scores.csv")
        sys.stdout.write(f"\n{text_table(rows)}\n\nScores: {folder / 'scores.csv'}\n")

    def on_validation_epoch_end(self) -> None:
        """Log accuracies."""
        self._log("val")

    def accuracies(self) -> dict[str, dict[str, float]]:
        """Network -> domain -> accuracy in percent, over all batches and processes; call it in every process."""
        found: dict[str, dict[str, float]] = {}
        for contender, known, scores in zip(self._contenders, self.known, self.scores, strict=True):
            values = scores.compute()  # type: ignore[operator]
            found[contender.name] = {domain: 100 * float(values[f"{domain}/accuracy"]) for domain in known}
        return found

    def joint_accuracies(self) -> dict[str, dict[str, float]]:
        """How often networks are right where nobody says which head to use; call it in every process.

        Returns:
            Network -> ``joint``: accuracy among the classes of all heads; ``right head``: how often the class is one of
            the picture's domain. In percent, means over the domains; networks without a head for each are left out.
        """
        found = {}
        for index, scores in self.joint_scores.items():
            values = scores.compute()  # type: ignore[operator]
            name = self._contenders[int(index)].name
            found[name] = {"joint": 100 * float(values["joint"]), "right head": 100 * float(values["head"])}
        return found

    def _check_head(self, domains: Sequence[str]) -> None:
        """Refuse what the first network cannot be asked, before any picture is read."""
        contender = self._contenders[0]
        heads.check_head(self.head, contender.labels, OWN)
        if self.head == heads.JOINT:
            contender.joint(self.joint)
        unknown = [domain for domain in domains if not contender.knows(domain)]
        if self.head == OWN and unknown:
            raise ConfigurationError(
                f"head is {OWN!r}, but network {contender.name} has no head for {', '.join(unknown)}; "
                f"allowed: {', '.join((heads.JOINT, *contender.labels.domains))}."
            )

    def _score(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> None:
        pictures, labels = batch
        domain = self.domains[dataloader_idx]
        for index, (contender, known) in enumerate(zip(self._contenders, self.known, strict=True)):
            if domain not in known:
                continue
            if str(index) in self.joint_scores:
                logits, shares = contender.shares(pictures, self.joint)
                self.joint_scores[str(index)].update(dataloader_idx, shares, labels)  # type: ignore[operator]
            else:
                logits = contender.network(pictures)
            own = logits[:, contender.labels.columns(domain)]
            self.scores[index].update(known.index(domain), own, labels, cross_entropy(own, labels))  # type: ignore[operator]

    def _log(self, stage: str) -> None:
        # Equal in all processes; the flag says so to Lightning.
        for name, accuracies in self.accuracies().items():
            values = {f"{stage}/{name}/{domain}/accuracy": value / 100 for domain, value in accuracies.items()}
            self.log_dict(values, sync_dist=True)
        for name, found in self.joint_accuracies().items():
            values = {
                f"{stage}/{name}/joint/accuracy": found["joint"],
                f"{stage}/{name}/joint/head": found["right head"],
            }
            self.log_dict({key: value / 100 for key, value in values.items()}, sync_dist=True)


def data_labels(module: LightningModule) -> LabelSpace:
    """The label space of the data that the module's trainer was given.

    Raises:
        ConfigurationError: If there is no data module, or one without label space.
    """
    data = getattr(module.trainer, "datamodule", None)
    labels = getattr(data, "label_space", None)
    if not isinstance(labels, LabelSpace):
        raise ConfigurationError("data must be a DomainDataModule, which says what the domains and their classes are.")
    return labels
