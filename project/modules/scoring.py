"""Scoring any number of networks on every domain, all through one path."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from project.models import DomainScores, JointScores
from project.models.heads import Joint
from project.models.scores import OrderScores, OwnHeadScores
from project.modules.answers import BothRight, Confusions
from project.modules.common import data_labels
from project.modules.examples import Examples
from project.modules.reliability import Reliability
from project.modules.scored import ScoredNetwork
from project.runtime import warn

LOGGED = {"joint": "joint/accuracy", "right head": "joint/head", "told": "told/accuracy", "guessed": "guessed/accuracy"}
"""What is logged under which name, of what networks are right on by heads in other ways than domain by domain."""


class ScoringModule(LightningModule):
    """Scores networks on every domain of the data.

    ``test`` and ``validate`` log ``<stage>/<name>/<domain>/accuracy`` of every network, and of one with a head for
    every domain ``<stage>/<name>/joint/accuracy``, where its class must be right among those of all heads, and
    ``<stage>/<name>/joint/head``, where it must be one of the picture's domain; of one with heads of domains beside the
    shared one ``<stage>/<name>/told/accuracy`` and ``<stage>/<name>/guessed/accuracy``; all as shares.

    Args:
        scored_networks: The networks, in eval mode.
        joint: How heads are weighed; default: by a network's gate, where it has one, else by their logits.
        sources: Domain -> name of the network among them that others are held against, for examples of what they get
            wrong; default: none.
    """

    def __init__(
        self,
        scored_networks: Sequence[ScoredNetwork],
        joint: Joint | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.joint = joint
        self.examples = Examples(sources or {})
        self.enter(scored_networks)

    def enter(self, scored_networks: Sequence[ScoredNetwork]) -> None:
        """Score these networks from now on."""
        self.scored_networks = list(scored_networks)
        self.networks = nn.ModuleList(scored.network for scored in scored_networks)  # so that they move along

    def on_test_start(self) -> None:
        """Reset the scores."""
        self._reset_scores()

    def on_validation_start(self) -> None:
        """Reset the scores."""
        self._reset_scores()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score pictures of one domain by their classes (batch,), indices within that domain."""
        self._score(batch, dataloader_idx)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score pictures of one domain by their classes (batch,), indices within that domain."""
        self._score(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log accuracies."""
        self._log("test")

    def on_validation_epoch_end(self) -> None:
        """Log accuracies."""
        self._log("val")

    def accuracies(self) -> dict[str, dict[str, float]]:
        """Compute accuracies over all batches and processes; call it in every process.

        Returns:
            Network -> domain -> accuracy in percent.
        """
        accuracies: dict[str, dict[str, float]] = {}
        for scored, known, scores in zip(self.scored_networks, self.known, self.scores, strict=True):
            values = scores.compute()  # type: ignore[operator]
            accuracies[scored.name] = {domain: 100 * float(values[f"{domain}/accuracy"]) for domain in known}
        return accuracies

    def joint_accuracies(self) -> dict[str, dict[str, float]]:
        """Compute how often networks are right by heads in other ways than domain by domain; call it in every process.

        Returns:
            Network -> where each domain has classes of its own ``joint``: accuracy among those of all heads, and
            ``right head``: how often the class is one of the picture's domain; where it has a head beside the shared
            one ``told``: accuracy by the head of the picture's domain, and ``guessed``: where the gate guesses it. In
            percent, means over the domains; other networks are left out.
        """
        accuracies = {}
        for index, own in self.own_scores.items():
            name = self.scored_networks[int(index)].name
            accuracies[name] = {key: 100 * float(value) for key, value in own.compute().items()}  # type: ignore[operator]
        for index, scores in self.joint_scores.items():
            values = scores.compute()  # type: ignore[operator]
            name = self.scored_networks[int(index)].name
            accuracies[name] = {"joint": 100 * float(values["joint"]), "right head": 100 * float(values["head"])}
        return accuracies

    def tallies(self) -> dict[str, Any]:
        """Count test pictures and right answers by class, and by confidence; call it in every process.

        Returns:
            ``classes``: domain -> their names; ``pictures``: domain -> how many of each class; ``right``: network ->
            domain -> how many of them it told; ``reliability``: network -> domain -> see :class:`Reliability`;
            ``confusions``: network -> domain -> class -> class that it is taken for -> how often, the most frequent
            ones, see :class:`Confusions`; ``both right``: domain -> network -> one behind it -> how many pictures both
            told rightly.
        """
        found: dict[str, Any] = {"classes": {}, "pictures": {}, "right": {}, "reliability": {}, "confusions": {}}
        for index, (scored, known, scores, sure) in enumerate(
            zip(self.scored_networks, self.known, self.scores, self.reliability, strict=True)
        ):
            found["right"][scored.name], found["reliability"][scored.name] = {}, {}
            found["confusions"][scored.name] = self._confused(index)
            for domain, (right, seen) in scores.tallies().items():  # type: ignore[operator]
                found["classes"][domain] = list(scores.classes[domain])  # type: ignore[index]
                found["pictures"][domain] = seen
                found["right"][scored.name][domain] = right
                found["reliability"][scored.name][domain] = sure[known.index(domain)].compute()  # type: ignore[index]
        found["both right"] = {}
        for domain, metric in zip(self.domains, self.both_right, strict=True):
            names = [one.name for one, known in zip(self.scored_networks, self.known, strict=True) if domain in known]
            if not names:
                continue
            counts = metric.compute()  # type: ignore[operator]
            found["both right"][domain] = {
                name: dict(zip(names[place + 1 :], row[place + 1 :], strict=True))
                for place, (name, row) in enumerate(zip(names, counts, strict=True))
            }
        return found

    def _confused(self, index: int) -> dict[str, dict[str, dict[str, int]]]:
        """What one network takes for what: domain -> class -> class -> how often."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        classes = data_labels(self).classes
        for place, domain in enumerate(self.known[index]):
            names, pairs = classes[domain], found.setdefault(domain, {})
            for label, told, count in self.confusions[index][place].compute():  # type: ignore[index]
                pairs.setdefault(names[label], {})[names[told]] = count
        return found

    def warn_of_orders(self) -> None:
        """Say so where the pictures' labels contradict the order of classes; call it in every process."""
        found: dict[str, list[str]] = {}
        for scored, scores in zip(self.scored_networks, self.order_scores, strict=True):
            for order, (then, now) in scores.better().items():  # type: ignore[operator]
                found.setdefault(order, []).append(f"{scored.name} (right on {then} more, wrong on {now})")
        for order, networks in found.items():
            warn(
                f"the order of classes may be another: with columns in the order {order!r} of their names, these are "
                f"right more often: {', '.join(networks)}; of ImageFolders, class_order: {order} takes it."
            )

    def _reset_scores(self) -> None:
        labels = data_labels(self)
        self.domains = labels.domains
        self.examples.reset()
        self.known = [[domain for domain in self.domains if scored.knows(domain)] for scored in self.scored_networks]
        self.scores = nn.ModuleList(DomainScores(labels, tuple(known)) for known in self.known).to(self.device)
        self.reliability = nn.ModuleList(nn.ModuleList(Reliability() for _ in known) for known in self.known)
        self.reliability.to(self.device)
        self.confusions = nn.ModuleList(
            nn.ModuleList(Confusions(len(labels.classes[domain])) for domain in known) for known in self.known
        ).to(self.device)
        counts = [sum(domain in known for known in self.known) for domain in self.domains]
        self.both_right = nn.ModuleList(map(BothRight, counts)).to(self.device)
        self.order_scores = nn.ModuleList(
            OrderScores({domain: labels.classes[domain] for domain in known}) for known in self.known
        ).to(self.device)
        self.own_scores = nn.ModuleDict(
            {str(i): OwnHeadScores(self.domains) for i, scored in enumerate(self.scored_networks) if scored.own_domains}
        ).to(self.device)
        self.joint_scores = nn.ModuleDict(
            {str(i): JointScores(scored.labels, self.domains) for i, scored in enumerate(self.scored_networks)
             if scored.chooses(self.domains)}
        ).to(self.device)  # fmt: skip

    def _score(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> None:
        pictures, labels = batch
        domain, right, all_right = self.domains[dataloader_idx], {}, list[Tensor]()
        for index, (scored, known) in enumerate(zip(self.scored_networks, self.known, strict=True)):
            if domain not in known:
                continue
            if str(index) in self.joint_scores:
                logits, shares = scored.shares(pictures, self.joint)
                self.joint_scores[str(index)].update(dataloader_idx, shares, labels)  # type: ignore[operator]
            elif str(index) in self.own_scores:
                logits, told, guessed = scored.in_all_ways(pictures, domain)
                self.own_scores[str(index)].update(dataloader_idx, told, guessed, labels)  # type: ignore[operator]
            else:
                logits = scored.answer(pictures, domain)
            own = logits[:, scored.labels.columns(domain)]
            self.scores[index].update(known.index(domain), own, labels, cross_entropy(own, labels))  # type: ignore[operator]
            self.reliability[index][known.index(domain)].update(own, labels)  # type: ignore[index]
            self.order_scores[index].update(known.index(domain), own, labels)  # type: ignore[operator]
            answer = own.argmax(1)
            self.confusions[index][known.index(domain)].update(answer, labels)  # type: ignore[index]
            right[scored.name] = answer == labels
            all_right.append(answer == labels)
        if all_right:
            self.both_right[dataloader_idx].update(torch.stack(all_right))  # type: ignore[operator]
        self.examples.update(domain, labels, right)

    def _log(self, stage: str) -> None:
        # Equal in all processes; the flag says so to Lightning.
        for name, accuracies in self.accuracies().items():
            values = {f"{stage}/{name}/{domain}/accuracy": value / 100 for domain, value in accuracies.items()}
            self.log_dict(values, sync_dist=True)
        for name, joint in self.joint_accuracies().items():
            values = {f"{stage}/{name}/{LOGGED[key]}": value / 100 for key, value in joint.items()}
            self.log_dict(values, sync_dist=True)
