"""Linear probes of several networks: a comparison that, unlike everything else here, uses labels."""

from collections.abc import Mapping

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from project.models import DomainScores, LabelSpace
from project.models.probe import Probe, fit_probe, run_with_features
from project.runtime import World


class ProbeModule(LightningModule):
    """Fits a linear classifier for every domain to what the heads of frozen networks read, and scores it.

    ``validate`` fits, on one loader of labelled pictures a domain; ``test`` scores. The networks are left as they are;
    the features of all pictures are kept in memory until the classifiers are fitted.

    Args:
        networks: Name -> network, in eval mode.
        head: Name of the networks' head.
        labels: The domains in the order of the loaders, and their classes.
    """

    def __init__(self, networks: Mapping[str, nn.Module], head: str, labels: LabelSpace) -> None:
        super().__init__()
        self.names = list(networks)
        self.networks = nn.ModuleList(networks.values())
        self.head, self.labels = head, labels
        self.probes: list[list[Probe]] = []

    def on_validation_start(self) -> None:
        """Reset the features."""
        domains = range(len(self.labels.domains))
        self._features: list[list[list[Tensor]]] = [[[] for _ in self.networks] for _ in domains]
        self._labels: list[list[Tensor]] = [[] for _ in domains]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep what the heads read on pictures of one domain, with their classes (batch,) within that domain."""
        pictures, labels = batch
        self._labels[dataloader_idx].append(labels)
        for kept, network in zip(self._features[dataloader_idx], self.networks, strict=True):
            kept.append(run_with_features(network, self.head, pictures)[1].float())

    def on_validation_epoch_end(self) -> None:
        """Fit the classifiers, in every process alike."""
        self.probes, world = [], World.current()
        for kept, numbers, names in zip(self._features, self._labels, self.labels.classes.values(), strict=True):
            labels = world.gather_rows(numbers)
            features = (world.gather_rows(batches) for batches in kept)
            self.probes.append([fit_probe(rows, labels, len(names)) for rows in features])
        self._features, self._labels = [], []

    def on_test_start(self) -> None:
        """Reset the scores."""
        self.scores = nn.ModuleList(DomainScores(self.labels) for _ in self.networks).to(self.device)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score pictures of one domain by their classes (batch,), indices within that domain."""
        pictures, labels = batch
        for probe, network, scores in zip(self.probes[dataloader_idx], self.networks, self.scores, strict=True):
            logits = probe(run_with_features(network, self.head, pictures)[1].float())
            scores.update(dataloader_idx, logits, labels, cross_entropy(logits, labels))  # type: ignore[operator]

    def accuracies(self) -> dict[str, dict[str, float]]:
        """Compute the accuracies of the classifiers; call it in every process.

        Returns:
            Network -> domain -> accuracy in percent.
        """
        accuracies = {}
        for name, scores in zip(self.names, self.scores, strict=True):
            values = scores.compute()  # type: ignore[operator]
            accuracies[name] = {domain: 100 * float(values[f"{domain}/accuracy"]) for domain in self.labels.domains}
        return accuracies
