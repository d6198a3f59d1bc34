"""Shares of the clients found by trying, on the pictures that the server holds."""

import numpy as np
from torch import Tensor

from project.errors import seeds, whole
from project.modules.fusion.base import Round, ServerFusion, weighted_mean


class SearchedMean(ServerFusion):
    """The weighted mean of the clients that does best on the server's own pictures, of some drawn at random.

    The first that is tried is the mean by numbers of pictures; then each client alone; then shares drawn from a
    Dirichlet distribution of concentration 1, all being as likely. The least loss wins.

    Args:
        evaluations: How many means are tried in a round, each scored on all validation pictures.
        seed: Of what is drawn.

    Raises:
        ConfigurationError: If nothing is to be tried, or the seed is below 0.
    """

    def __init__(self, evaluations: int = 32, seed: int = 0) -> None:
        whole(1, evaluations=evaluations)
        seeds(seed=seed)
        self.evaluations, self.seed = evaluations, seed

    def fuse(self, given: Round) -> dict[str, Tensor]:
        """Try, and take the best."""
        means = (weighted_mean(given.clients, shares) for shares in self.candidates(given))
        return min(means, key=lambda state: given.score(state).loss)

    def candidates(self, given: Round) -> list[list[float]]:
        """The shares that are tried in a round.

        Args:
            given: The round.

        Returns:
            For each try, the share of every client.
        """
        count = len(given.clients)
        drawn = np.random.default_rng([self.seed, given.number]).dirichlet(np.ones(count), self.evaluations)
        tried: list[list[float]] = [given.shares, *np.eye(count).tolist(), *drawn.tolist()]
        return tried[: self.evaluations]
