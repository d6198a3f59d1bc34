"""Networks to be scored or asked, whatever file they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from project.errors import ConfigurationError
from project.merging import SourceFile
from project.merging.classes import column_order, own_labels
from project.models import LabelSpace, MultiHead, Preprocessing, build_network, heads, read_weights
from project.models.heads import JOINT, Joint
from project.student import build_student, is_student


@dataclass(frozen=True, eq=False)
class ScoredNetwork:
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
        """Tell whether it has a head for a domain."""
        return self.labels.mode == "shared" or domain in self.labels.domains

    def head_of(self, domain: str) -> str:
        """Name the head for a domain that it knows; one head for all is the joint distribution of one."""
        named = isinstance(self.network, MultiHead) and (self.network.by_name or domain in self.network.own_domains)
        return JOINT if self.labels.mode == "shared" and not named else domain

    @property
    def own_domains(self) -> tuple[str, ...]:
        """Domains that have a head beside the one that all share."""
        return self.network.own_domains if isinstance(self.network, MultiHead) else ()

    def in_all_ways(self, pictures: Tensor, domain: str) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the shared head, those of a domain's own, and probabilities where it is guessed; in one run.

        Args:
            pictures: Shape (batch, 3, height, width).
            domain: Theirs; where it has no head of its own, the shared one answers.
        """
        assert isinstance(self.network, MultiHead)
        logits, features = self.network.outputs(pictures)
        own = self.own_domains
        told = self.network.told(features)[:, own.index(domain)] if domain in own else logits
        return logits, told, self.network.guessed(features)

    def joint(self, asked: Joint | None) -> Joint:
        """Settle how its heads are weighed: as asked, else by its gate, where it has one, else by their logits.

        Raises:
            ConfigurationError: If it has no gate, but is asked to use it.
        """
        usual = self.network.default_joint() if isinstance(self.network, MultiHead) else "logits"
        if asked == "gate" and getattr(self.network, "gate", None) is None:
            raise ConfigurationError(
                f"joint is 'gate', but network {self.name} has none; allowed: 'logits', 'uniform', 'confidence'."
            )
        return asked or usual

    def shares(self, pictures: Tensor, asked: Joint | None) -> tuple[Tensor, Tensor]:
        """Compute the logits, and the probabilities of all classes of all heads, in one run.

        Args:
            pictures: Shape (batch, 3, height, width).
            asked: How heads are weighed, see :meth:`joint`.

        Returns:
            Both of shape (batch, columns of the label space).
        """
        if isinstance(self.network, MultiHead):
            return self.network.shares(pictures, self.joint(asked))
        logits = self.network(pictures)
        return logits, heads.probabilities(logits, self.labels, joint=self.joint(asked))

    def answer(self, pictures: Tensor, domain: str) -> Tensor:
        """Compute the logits where the pictures' domain is known; columns of other heads may mean nothing."""
        if isinstance(self.network, MultiHead):
            return self.network.answer(pictures, domain)
        logits: Tensor = self.network(pictures)
        return logits

    def chooses(self, domains: Sequence[str]) -> bool:
        """Tell whether it has several heads, one for each of these domains among them."""
        return len(self.labels.heads) > 1 and all(map(self.knows, domains))


class Reordered(nn.Module):
    """A network with its columns in another order.

    Args:
        network: Takes pictures, returns logits.
        order: For each column, that of the network.
    """

    def __init__(self, network: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("order", torch.tensor(list(order)))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of pictures."""
        logits: Tensor = self.network(pictures)[:, self.order]
        return logits


def load_scored_networks(files: Sequence[SourceFile], labels: LabelSpace | None) -> list[ScoredNetwork]:
    """Load networks from any files; one that says nothing of its classes takes the data's, where these are known.

    Raises:
        PleasError: If a file cannot be read, or its classes are not known.
    """
    stems = distinct_names([file.path for file in files])
    names = [file.name or stem for file, stem in zip(files, stems, strict=True)]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"networks have the names {', '.join(names)}; give each a name of its own.")
    return [_load(file, name, labels) for file, name in zip(files, names, strict=True)]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name files by their stems, with as many of their folders before them as it takes to tell them apart.

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


def _load(file: SourceFile, name: str, labels: LabelSpace | None) -> ScoredNetwork:
    if file.head:
        raise ConfigurationError(f"head of {file.path} is 'none', which leaves no classes to score or to answer with.")
    weights = read_weights(file.path, file.weights)
    if is_student(weights):
        student = build_student(weights, file.architecture, file.arguments)
        known = own_labels(weights, labels, str(file.path), file.domains)
        return ScoredNetwork(name, student, known, student.preprocessing)
    network, weights = build_network(weights, file.architecture, file.arguments)
    known = own_labels(weights, labels, str(file.path), file.domains)
    if labels is not None and set(known.domains) <= set(labels.domains):
        order = column_order(weights, labels, known.domains, str(file.path), known.width)
        if order is not None and order != sorted(order):
            network = Reordered(network, order).eval()
            known = LabelSpace({domain: labels.classes[domain] for domain in known.domains}, known.mode)
    return ScoredNetwork(name, network, known, weights.preprocessing)
