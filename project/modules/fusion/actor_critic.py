"""The server's fusion learned by reinforcement (FedDRL, arXiv 2307.13716): who is listened to, and for how much.

Of the paper its two stages and their algorithms are known, advantage actor-critic and TD3 (arXiv 1802.09477); states,
rewards and networks are this project's.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from project.data.sharding import seed_of
from project.errors import above, between, seeds, whole
from project.modules.fusion.base import Round, ServerFusion, weighted_mean

FEATURES = 5  # of a client
LARGE = 20.0  # losses and logarithms are cut here: e²⁰ is as good as infinite
HIDDEN = 32
SCALE = 3.0  # of actions: shares of two clients differ by e⁶ at most
EXPLORED = 0.3  # standard deviation of what is added to an action that is tried
NOISE, CLIP, DELAY, TAU = 0.2, 0.5, 2, 0.005  # TD3's own
BATCH, MOST, STEPS = 32, 1000, 16  # transitions a step is taken on; kept at most; steps a round


class ClientNetwork(nn.Module):
    """One number for each client, the same function for all, so that any number of them may come.

    Args:
        features: Numbers that are known of a client.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, clients: Tensor) -> Tensor:
        """Map (clients, features) to (clients,)."""
        found: Tensor = self.layers(clients)[:, 0]
        return found


class CriticNetwork(nn.Module):
    """One number for each set of clients, whatever their order: a function of the mean of a function of each.

    Args:
        features: Numbers that are known of a client.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, clients: Tensor, sizes: Sequence[int]) -> Tensor:
        """Map the clients of all sets, one set after the other (clients, features), to (sets,)."""
        means = torch.stack([part.mean(0) for part in self.each(clients).split(list(sizes))])
        found: Tensor = self.all(means)[:, 0]
        return found


@dataclass(frozen=True, eq=False)
class Transition:
    """What was done in a round, and what came of it.

    Args:
        clients: Features of those that were listened to, (clients, features).
        action: For each, a number from -1 to 1.
        reward: Gain of accuracy over the mean of all clients.
        later: Features of the next round's; None while there is none.
    """

    clients: Tensor
    action: Tensor
    reward: float
    later: Tensor | None = None


class ActorCriticFusion(ServerFusion):
    """Filters the clients, then weighs them, by what has paid on the server's own pictures (FedDRL, arXiv 2307.13716).

    Known of a client are its loss and its accuracy on these pictures, the length of its update beside the median of
    all, the cosine between its update and the mean of all, and the logarithm of its number of pictures. An advantage
    actor-critic draws who is listened to; TD3 gives each of these a number aₖ, and its share is softmax(3 aₖ). The
    reward is the gain of accuracy over the mean of all clients by numbers of pictures; to listen to nobody costs 1.
    Of all that was tried in a round, that mean included, the best becomes the server: of equal accuracies, the one of
    least loss.

    What it learns is kept in checkpoints. A random search with as many evaluations is SearchedMean.

    Args:
        evaluations: How many means are scored in a round, each on all validation pictures, beside each client alone.
        learning_rate: Of Adam, for all networks.
        discount: What a reward a round later counts for, from 0 to 1.
        seed: Of networks and of all that is drawn.

    Raises:
        ConfigurationError: If there are fewer than 4 evaluations, or another number is not allowed.
    """

    def __init__(
        self, evaluations: int = 32, learning_rate: float = 1e-2, discount: float = 0.5, seed: int = 0
    ) -> None:
        whole(4, evaluations=evaluations)
        above(0, learning_rate=learning_rate)
        between(0, 1, discount=discount)
        seeds(seed=seed)
        self.evaluations, self.learning_rate, self.discount, self.seed = evaluations, learning_rate, discount, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = nn.ModuleDict(
                {
                    "filter": ClientNetwork(FEATURES),
                    "value": CriticNetwork(FEATURES),
                    "actor": ClientNetwork(FEATURES),
                    "first": CriticNetwork(FEATURES + 1),
                    "second": CriticNetwork(FEATURES + 1),
                }
            )
        self.targets = deepcopy(self.networks)
        self.optimizers = {
            stage: torch.optim.Adam([p for name in names for p in self.networks[name].parameters()], learning_rate)
            for stage, names in {
                "filter": ("filter", "value"), "actor": ("actor",), "critics": ("first", "second"),
            }.items()
        }  # fmt: skip
        self.memory: list[Transition] = []
        self.steps = 0

    def fuse(self, given: Round) -> dict[str, Tensor]:
        """Filter, weigh, learn, and take the best that was tried."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, given.number))
        clients = client_features(given)
        trials = _Trials(given)
        self.memory = [one if one.later is not None else replace(one, later=clients) for one in self.memory]
        kept = self._filter(clients, trials, generator)
        self._weigh(kept, clients[kept], trials, generator)
        for _ in range(STEPS):
            self._learn_weights(generator)
        return trials.best

    def _filter(self, clients: Tensor, trials: "_Trials", generator: torch.Generator) -> list[int]:
        """Draw whom to listen to, several times, learn from what comes of it, and say who did best."""
        best, kept = trials.baseline, list(range(len(clients)))
        masks, rewards = [], []
        for _ in range((self.evaluations - 1) // 2):
            with torch.no_grad():
                chances = self.networks["filter"](clients).sigmoid()
            mask = torch.rand(len(clients), generator=generator) < chances
            masks.append(mask.float())
            if not mask.any():
                rewards.append(-1.0)
                continue
            heard = mask.nonzero()[:, 0].tolist()
            accuracy = trials.accuracy(heard, [trials.given.shares[index] for index in heard])
            rewards.append(accuracy - trials.baseline)
            if accuracy > best:
                best, kept = accuracy, heard
        reward = torch.tensor(rewards)
        value = self.networks["value"](clients, [len(clients)])[0]
        logits = self.networks["filter"](clients).expand(len(masks), -1)
        chance = -binary_cross_entropy_with_logits(logits, torch.stack(masks), reduction="none").sum(1)
        loss = -((reward - value.detach()) * chance).mean() + (reward - value).square().mean()
        _step(self.optimizers["filter"], loss)
        return kept

    def _weigh(self, kept: Sequence[int], clients: Tensor, trials: "_Trials", generator: torch.Generator) -> None:
        """Try shares around those that the actor gives to whom is listened to, and remember what came of it."""
        with torch.no_grad():
            proposed = self.networks["actor"](clients).tanh()
        for number in range(self.evaluations - 1 - (self.evaluations - 1) // 2):
            explored = EXPLORED * torch.randn(len(kept), generator=generator) if number else torch.zeros(len(kept))
            action = (proposed + explored).clamp(-1, 1)
            accuracy = trials.accuracy(kept, (SCALE * action).softmax(0).tolist())
            self.memory.append(Transition(clients, action, accuracy - trials.baseline))
        self.memory = self.memory[-MOST:]

    def _learn_weights(self, generator: torch.Generator) -> None:
        """One step of TD3: critics towards min of the targets' values a round later; the actor, at times, uphill."""
        ready = [one for one in self.memory if one.later is not None]
        if not ready:
            return
        batch = [ready[i] for i in torch.randint(len(ready), (BATCH,), generator=generator).tolist()]
        clients, action = torch.cat([one.clients for one in batch]), torch.cat([one.action for one in batch])
        later = torch.cat([one.later for one in batch if one.later is not None])
        sizes, sizes_later = (
            [len(one.clients) for one in batch],
            [len(one.later) for one in batch if one.later is not None],
        )
        with torch.no_grad():
            noise = (NOISE * torch.randn(len(later), generator=generator)).clamp(-CLIP, CLIP)
            acted = _joined(later, (self.targets["actor"](later).tanh() + noise).clamp(-1, 1))
            values = torch.minimum(*(self.targets[name](acted, sizes_later) for name in ("first", "second")))
            goal = torch.tensor([one.reward for one in batch]) + self.discount * values
        there = _joined(clients, action)
        losses = [(self.networks[name](there, sizes) - goal).square().mean() for name in ("first", "second")]
        _step(self.optimizers["critics"], torch.stack(losses).sum())
        self.steps += 1
        if self.steps % DELAY:
            return
        gains = self.networks["first"](_joined(clients, self.networks["actor"](clients).tanh()), sizes)
        _step(self.optimizers["actor"], -gains.mean())
        with torch.no_grad():
            for name, target in self.targets.named_parameters():
                target.lerp_(self.networks.get_parameter(name), TAU)

    def state(self) -> dict[str, Any]:
        """Networks, optimizers and what is remembered, plain values and tensors for a checkpoint."""
        return {
            "networks": self.networks.state_dict(),
            "targets": self.targets.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "memory": [(one.clients, one.action, one.reward, one.later) for one in self.memory],
            "steps": self.steps,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what an earlier run has learned.

        Args:
            state: From :meth:`state`.
        """
        self.networks.load_state_dict(state["networks"])
        self.targets.load_state_dict(state["targets"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.memory = [Transition(*values) for values in state["memory"]]
        self.steps = state["steps"]


def client_features(given: Round) -> Tensor:
    """What is known of each client: float32, shape (clients, 5).

    Its loss and its accuracy on the server's pictures, both less the mean of all; the logarithm of the length of its
    update over the median length; the cosine between its update and the mean of all; the logarithm of its pictures,
    less the mean.

    Args:
        given: The round; every client is scored once.
    """
    scores = torch.tensor([given.score(client) for client in given.clients])
    updates = given.updates()
    lengths = updates.norm(dim=1)
    cosines = cosine_similarity(updates, updates.mean(0, keepdim=True))
    pictures = torch.tensor(given.samples, dtype=torch.float64).log()
    loss = scores[:, 0].nan_to_num(posinf=LARGE).clamp(max=LARGE)
    tiny = torch.finfo(torch.float64).tiny
    columns = [
        loss - loss.mean(),
        scores[:, 1] - scores[:, 1].mean(),
        ((lengths + tiny) / (lengths.median() + tiny)).log().clamp(-LARGE, LARGE),
        cosines,
        pictures - pictures.mean(),
    ]
    return torch.stack([column.float() for column in columns], 1)


class _Trials:
    """The means that are tried in a round, of which the best is kept.

    Args:
        given: The round; its mean by numbers of pictures is the first trial.
    """

    def __init__(self, given: Round) -> None:
        self.given = given
        self.best = weighted_mean(given.clients, given.shares)
        self.score = given.score(self.best)
        self.baseline = self.score.accuracy

    def accuracy(self, heard: Sequence[int], shares: Sequence[float]) -> float:
        """Try the mean of some clients with some shares, whatever their sum; returns its accuracy."""
        total = sum(shares)
        mean = weighted_mean([self.given.clients[index] for index in heard], [share / total for share in shares])
        score = self.given.score(mean)
        if (-score.accuracy, score.loss) < (-self.score.accuracy, self.score.loss):
            self.best, self.score = mean, score
        return score.accuracy


def _joined(clients: Tensor, action: Tensor) -> Tensor:
    """Features of clients and what is done with each: (clients, features + 1)."""
    return torch.cat([clients, action[:, None]], 1)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
