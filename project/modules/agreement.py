"""How well trunks without heads for classes keep the pooled values of their sources."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torchmetrics import MeanMetric

from project.modules.common import data_labels
from project.modules.scored import ScoredNetwork
from project.modules.scoring import ScoringModule


class AgreementModule(ScoringModule):
    """Holds the pooled values that networks give for a domain against those of the source that owns it.

    In place of accuracies stand mean cosines between the two, over the pictures of the domain, in per cent.

    Args:
        scored_networks: The networks, in eval mode; columns of a domain's head are its owner's pooled values.
        owners: Domain -> the source that was trained on it.
    """

    def __init__(self, scored_networks: Sequence[ScoredNetwork], owners: Mapping[str, nn.Module]) -> None:
        super().__init__(scored_networks)
        self.owned = [domain for domain in owners if any(scored.knows(domain) for scored in scored_networks)]
        self.owners = nn.ModuleList(owners[domain] for domain in self.owned)

    def accuracies(self) -> dict[str, dict[str, float]]:
        """Compute mean cosines over all batches and processes; call it in every process.

        Returns:
            Network -> domain -> mean cosine in per cent.
        """
        found: dict[str, dict[str, float]] = {}
        for scored, known, scores in zip(self.scored_networks, self.known, self.scores, strict=True):
            means = [float(metric.compute()) for metric in scores]  # type: ignore[attr-defined]
            found[scored.name] = {domain: 100 * mean for domain, mean in zip(known, means, strict=True)}
        return found

    def joint_accuracies(self) -> dict[str, dict[str, float]]:
        """None: there are no classes to choose among."""
        return {}

    def tallies(self) -> dict[str, Any]:
        """Nothing: there are no classes to count."""
        return {}

    def warn_of_orders(self) -> None:
        """Nothing: there are no classes to stand in another order."""

    def _reset_scores(self) -> None:
        self.domains = data_labels(self).domains
        self.known = [[domain for domain in self.owned if scored.knows(domain)] for scored in self.scored_networks]
        self.scores = nn.ModuleList(nn.ModuleList(MeanMetric() for _ in known) for known in self.known).to(self.device)

    def _score(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> None:
        pictures, domain = batch[0], self.domains[dataloader_idx]
        if domain not in self.owned:
            return
        wanted = self.owners[self.owned.index(domain)](pictures)
        for scored, known, scores in zip(self.scored_networks, self.known, self.scores, strict=True):
            if domain in known:
                given = scored.answer(pictures, domain)[:, scored.labels.columns(domain)]
                scores[known.index(domain)].update(cosine_similarity(given, wanted, dim=1))  # type: ignore[index]
