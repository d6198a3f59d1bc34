"""What the server of federated rounds makes of its clients."""

from project.modules.fusion.actor_critic import ActorCriticFusion
from project.modules.fusion.attacks import Attack, attacked
from project.modules.fusion.base import ProxyScore, Round, ServerFusion, State, WeightedMean, is_finite, weighted_mean
from project.modules.fusion.merged import MergedClients
from project.modules.fusion.robust import Median, TrimmedMean
from project.modules.fusion.search import SearchedMean

__all__ = [
    "ActorCriticFusion", "Attack", "Median", "MergedClients", "ProxyScore", "Round", "SearchedMean", "ServerFusion",
    "State", "TrimmedMean", "WeightedMean", "attacked", "is_finite", "weighted_mean",
]  # fmt: skip
