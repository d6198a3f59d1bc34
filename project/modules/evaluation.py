"""Scoring networks from their files, and asking one of them."""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from project.data import UnsortedDataModule
from project.errors import ConfigurationError, one_of
from project.merging import SourceFile
from project.merging.classes import check_classes
from project.merging.prepared import warn_of_preprocessing
from project.models import heads
from project.models.heads import Joint
from project.models.labels import OWN
from project.modules.common import data_labels
from project.modules.scored import load_scored_networks
from project.modules.scoring import ScoringModule
from project.report.results import text_table, write_csv


class EvaluationModule(ScoringModule):
    """Scores networks from their files on every domain of the data: sources, students, any of them side by side.

    ``test`` prints a table and writes ``scores.csv``; it and ``validate`` log ``<stage>/<name>/<domain>/accuracy``
    of every network, and of one with a head for every domain ``<stage>/<name>/joint/accuracy``, where its class must be
    right among those of all heads, and ``<stage>/<name>/joint/head``, where it must be one of the picture's domain.
    ``predict`` gives the classes that the first network sees, in a folder of any pictures too (UnsortedDataModule).

    Args:
        networks: Files: students, checkpoints of FineTuneModule, state dicts or safetensors; a state dict may say its
            domains.
        head: What ``predict`` answers with: ``own``: the head of each picture's own domain, where that is known, else
            ``joint``; the name of a domain: its head, whatever the picture; ``joint``: all classes of all heads.
        joint: How heads are weighed where none is named; default: by a student's gate, else by their logits. Of a
            student with heads of domains beside a shared one, ``gate`` is its guess between them, all others the shared
            one; default: whichever agreed with the sources on more of its calibration pictures.
            ``gate``: the softmax of each, weighed by a classifier of the domain that the merge has learnt from
            unlabelled pictures; ``logits``: one softmax over all their logits side by side; ``uniform``: the softmax of
            each, all heads alike; ``confidence``: the softmax of each, heads weighed by 1 - entropy / log(classes).
    """

    def __init__(self, networks: Sequence[SourceFile | Path] = (), head: str = OWN, joint: Joint | None = None) -> None:
        if not networks:
            raise ConfigurationError("networks is empty; at least one file of a network is needed.")
        if joint is not None:
            one_of(Joint, joint=joint)
        super().__init__((), joint)
        self.files = [network if isinstance(network, SourceFile) else SourceFile(Path(network)) for network in networks]
        self.head = head

    def setup(self, stage: str) -> None:
        """Load the networks and take the classes from the data, where these know any."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, UnsortedDataModule):
            self._prepare_unsorted(data, stage)
            return
        labels = data_labels(self)
        if not self.scored_networks:
            self.enter(load_scored_networks(self.files, labels))
        for file, scored in zip(self.files, self.scored_networks, strict=True):
            check_classes(str(file.path), scored.labels, labels)
            preprocessing = self.trainer.datamodule.preprocessing  # type: ignore[attr-defined]
            warn_of_preprocessing(scored.name, scored.preprocessing, preprocessing)
        if stage == "predict":
            self._check_asked(labels.domains)
        else:
            for scored in self.scored_networks:
                if scored.chooses(labels.domains):
                    scored.joint(self.joint)  # refuses a gate that is not there

    def on_test_start(self) -> None:
        """Forget the last round, and leave the printing to :meth:`on_test_end`."""
        super().on_test_start()
        self.trainer.test_loop.verbose = False

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Predict by the first network the classes of pictures of one domain.

        Args:
            batch: Pictures (batch, 3, height, width) and their paths.
            batch_idx: Plays no part.
            dataloader_idx: Index of the domain.

        Returns:
            ``domain``, empty where nobody knows it; ``paths`` of the pictures; ``probabilities`` (batch, columns);
            ``columns``, the head and the class behind each.
        """
        pictures, paths = batch
        scored, domain, head = self.scored_networks[0], self._domain(dataloader_idx), self.head
        if head == OWN:
            head = scored.head_of(domain) if domain else heads.JOINT
        if head == heads.JOINT:
            shares = scored.shares(pictures, self.joint)[1]
        else:
            shares = heads.probabilities(scored.answer(pictures, head), scored.labels, head)
        return {
            "domain": domain,
            "paths": paths,
            "probabilities": shares,
            "columns": heads.column_labels(scored.labels, head),
        }

    def _domain(self, loader: int) -> str:
        """Name the domain of a loader's pictures; empty where nobody knows it."""
        data = getattr(self.trainer, "datamodule", None)
        return "" if isinstance(data, UnsortedDataModule) else data_labels(self).domains[loader]

    def on_test_end(self) -> None:
        """Print the accuracies side by side, and write them to the run's folder as ``scores.csv``."""
        accuracies, joint = self.accuracies(), self.joint_accuracies()
        self.warn_of_orders()
        if not self.trainer.is_global_zero:
            return
        rows = []
        for name, by_domain in accuracies.items():
            cells = {domain: by_domain.get(domain) for domain in self.domains}
            cells["mean"] = sum(by_domain.values()) / len(by_domain)
            cells |= {**dict.fromkeys(chain(*joint.values())), **joint.get(name, {})}
            rows.append({"network": name, **{k: None if v is None else round(v, 1) for k, v in cells.items()}})
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        write_csv(rows, folder / "scores.csv")
        sys.stdout.write(f"\n{text_table(rows)}\n\nScores: {folder / 'scores.csv'}\n")

    def _prepare_unsorted(self, data: UnsortedDataModule, stage: str) -> None:
        """Load the networks, and let the first say how pictures are prepared."""
        if stage != "predict":
            raise ConfigurationError(
                f"data is {type(data).__name__}, which has no labels; allowed: with predict alone."
            )
        if not self.scored_networks:
            self.enter(load_scored_networks(self.files, None))
        first = self.scored_networks[0]
        data.suit(first.name, first.preprocessing)
        self._check_asked()

    def _check_asked(self, domains: Sequence[str] = ()) -> None:
        """Refuse what the first network cannot be asked, of these domains or none, before any picture is read."""
        scored = self.scored_networks[0]
        if len(self.scored_networks) > 1:
            rank_zero_warn(f"the first of {len(self.scored_networks)} networks answers alone: {scored.name}.")
        self.head = heads.known_head(self.head, scored.labels, OWN)
        several = len(scored.labels.heads) > 1 or self.head in scored.own_domains
        if self.head in scored.labels.domains and not several and len(scored.labels.domains) > 1:
            rank_zero_warn(f"head is {self.head!r}, but network {scored.name} has one head for all its domains.")
        if self.head == heads.JOINT or (self.head == OWN and not domains):
            scored.joint(self.joint)
        unknown = [domain for domain in domains if not scored.knows(domain)]
        if self.head == OWN and unknown:
            raise ConfigurationError(
                f"head is {OWN!r}, but network {scored.name} has no head for {', '.join(unknown)}; "
                f"allowed: {', '.join((heads.JOINT, *scored.labels.domains))}."
            )
