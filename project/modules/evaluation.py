"""Scoring any number of networks on every domain, all through one path."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from project.errors import ConfigurationError
from project.models import Description, DomainScores, LabelSpace, Preprocessing, build_network, read_weights
from project.report.results import text_table, write_csv
from project.student import build_student, is_student


@dataclass(frozen=True, eq=False)
class Contender:
    """A network to be scored.

    Args:
        name: Name in tables and logs.
        network: Takes pictures, returns logits.
        labels: What its columns mean; domains that it has no head for are not scored.
        preprocessing: What its pictures must go through, where that is known.
    """

    name: str
    network: nn.Module
    labels: LabelSpace
    preprocessing: Preprocessing | None = None

    def knows(self, domain: str) -> bool:
        """Whether it has a head for a domain."""
        return self.labels.mode == "shared" or domain in self.labels.domains


class EvaluationModule(LightningModule):
    """Scores networks on every domain of the data: sources, students, any of them side by side.

    ``test`` and ``validate`` log ``<name>/<domain>/accuracy`` of every network; ``predict`` gives the classes that the
    first network sees.

    Args:
        networks: Files: students, checkpoints of FineTuneModule, state dicts or safetensors.
    """

    def __init__(self, networks: Sequence[Path] = ()) -> None:
        super().__init__()
        if not networks:
            raise ConfigurationError("networks is empty; at least one file of a network is needed.")
        self.paths = [Path(path) for path in networks]
        self._contenders: list[Contender] = []

    def setup(self, stage: str) -> None:
        """Load the networks and take the classes from the data."""
        labels = data_labels(self)
        if not self._contenders:
            names = distinct_names(self.paths)
            self.enter([load_contender(path, name, labels) for path, name in zip(self.paths, names, strict=True)])
        for contender in self._contenders:
            check_classes(contender.name, contender.labels, labels)
            given = self.trainer.datamodule.preprocessing  # type: ignore[attr-defined]
            if contender.preprocessing not in (None, given):
                rank_zero_warn(f"{contender.name} was made for {contender.preprocessing}, but data gives {given}.")

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

    def on_test_start(self) -> None:
        """Forget the last round."""
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
            ``paths``; ``probabilities`` (batch, classes of the domain); ``predicted``, names of classes.
        """
        pictures, paths = batch
        contender, domain = self._contenders[0], data_labels(self).domains[dataloader_idx]
        if not contender.knows(domain):
            raise ConfigurationError(f"network {contender.name} has no head for domain {domain!r}.")
        probabilities = contender.network(pictures)[:, contender.labels.columns(domain)].softmax(1)
        names = data_labels(self).classes[domain]
        return {
            "paths": paths,
            "domain": domain,
            "probabilities": probabilities,
            "predicted": [names[index] for index in probabilities.argmax(1).tolist()],
        }

    def on_test_epoch_end(self) -> None:
        """Log accuracies."""
        self._log("test")

    def on_test_end(self) -> None:
        """Print the accuracies side by side, and write them to the run's folder as ``scores.csv``."""
        found = self.accuracies()
        if not self.trainer.is_global_zero:
            return
        rows = [
            {"network": name, **{d: round(one[d], 1) if d in one else None for d in self.domains},
             "mean": round(sum(one.values()) / len(one), 1)}
            for name, one in found.items()
        ]  # fmt: skip
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

    def _score(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> None:
        pictures, labels = batch
        domain = self.domains[dataloader_idx]
        for contender, known, scores in zip(self._contenders, self.known, self.scores, strict=True):
            if domain in known:
                logits = contender.network(pictures)[:, contender.labels.columns(domain)]
                scores.update(known.index(domain), logits, labels, cross_entropy(logits, labels))  # type: ignore[operator]

    def _log(self, stage: str) -> None:
        for name, accuracies in self.accuracies().items():
            values = {f"{stage}/{name}/{domain}/accuracy": value / 100 for domain, value in accuracies.items()}
            self.log_dict(values, sync_dist=True)  # equal in all processes; the flag says so to Lightning


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


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The files' stems, with as many of their folders before them as it takes to tell them apart.

    Raises:
        ConfigurationError: If a file stands twice.
    """
    for path in paths:
        if list(paths).count(path) > 1:
            raise ConfigurationError(f"networks holds {path} twice; each network is scored once.")
    parts = [path.absolute().with_suffix("").parts[1:] for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigurationError(f"networks holds {paths[0]} and others that differ by their suffix alone; rename them.")


def load_contender(path: Path, name: str, labels: LabelSpace) -> Contender:
    """A network from any file; without classes of its own, it takes the data's."""
    weights = read_weights(path)
    if is_student(weights):
        student = build_student(weights)
        return Contender(name, student, student.labels, student.preprocessing)
    network, weights = build_network(weights)
    return Contender(name, network, own_labels(weights, labels, str(path)), weights.preprocessing)


def own_labels(description: Description, labels: LabelSpace, origin: str) -> LabelSpace:
    """What a network's columns mean: what its file says, else the data's classes where their number is the same."""
    width = description.architecture.num_classes if description.architecture else 0
    if description.label_space is not None:
        known = description.label_space
        if labels.mode == "different" and known.mode == "shared" and len(known.domains) == 1:
            return LabelSpace(known.classes, "different")  # one domain: its only head is its own
        return known
    if labels.mode == "shared" and width == labels.width:
        return labels
    raise ConfigurationError(f"{origin} has {width} logits and says nothing of classes; the data have {labels.width}.")


def check_classes(name: str, known: LabelSpace, labels: LabelSpace) -> None:
    """Refuse a network whose classes are not the data's.

    Raises:
        ConfigurationError: With the classes that differ.
    """
    for domain in labels.domains:
        mine = next(iter(known.classes.values())) if known.mode == "shared" else known.classes.get(domain)
        theirs = labels.classes[domain]
        if mine is None or mine == theirs:
            continue
        extra, lacking = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
        what = f"only the network has: {', '.join(extra) or '–'}; only the data have: {', '.join(lacking) or '–'}"
        raise ConfigurationError(
            f"{name} was trained on {len(mine)} classes that are not the {len(theirs)} of domain {domain} "
            f"({what if extra or lacking else 'the same ones in another order'})."
        )
