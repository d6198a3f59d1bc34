"""What the server of federated rounds makes of its clients: one interface, and federated averaging."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
"""Name -> tensor, batch norm statistics included."""


class ProxyScore(NamedTuple):
    """How a network does on the pictures that the server holds itself.

    Args:
        loss: Mean cross-entropy over the domains.
        accuracy: Mean top-1 over the domains, from 0 to 1.
    """

    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Round:
    """What the server has at the end of a round. All values of all clients are finite.

    Args:
        number: Of the round, from 0.
        server: The network that the round began with.
        clients: What each client made of it, at least one.
        names: What each client is called.
        samples: How many pictures each has trained on.
        score: Scores a network on the server's own labelled pictures, those of validation.
        pictures: Loads these, without their labels: batches (batch, 3, height, width).
        network: Makes a network of a state, in eval mode.
    """

    number: int
    server: State
    clients: Sequence[State]
    names: Sequence[str]
    samples: Sequence[int]
    score: Callable[[State], ProxyScore]
    pictures: Callable[[], Sequence[Tensor]]
    network: Callable[[State], nn.Module]

    @property
    def shares(self) -> list[float]:
        """The clients' shares of the pictures, with a sum of 1."""
        total = sum(self.samples)
        return [count / total for count in self.samples]

    def updates(self) -> Tensor:
        """What each client has added to the server's weights: float64, shape (clients, values of all float tensors)."""
        names = [name for name, tensor in self.server.items() if tensor.is_floating_point()]
        start = torch.cat([self.server[name].double().flatten() for name in names])
        return torch.stack(
            [torch.cat([client[n].double().flatten() for n in names]) - start for client in self.clients]
        )


class ServerFusion(ABC):
    """A way to make the server's next network of the clients'."""

    @abstractmethod
    def fuse(self, given: Round) -> dict[str, Tensor]:
        """Make the server's next network.

        Args:
            given: The round.

        Returns:
            Its state, of the server's names, shapes and types.
        """

    def state(self) -> dict[str, Any]:
        """What it has learned so far, plain values and tensors for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # most have none
        """Take up what an earlier run has learned.

        Args:
            state: From :meth:`state`.
        """


class WeightedMean(ServerFusion):
    """Federated averaging (arXiv 1602.05629): Σ nₖ θₖ / Σ nₖ, for nₖ pictures that client k trained on."""

    def fuse(self, given: Round) -> dict[str, Tensor]:
        """Take the mean by numbers of pictures."""
        return weighted_mean(given.clients, given.shares)


def weighted_mean(states: Sequence[State], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of networks, tensor by tensor, added up in float64; counters are the first one's.

    Args:
        states: Networks of one architecture.
        shares: What each counts for, with a sum of 1.
    """
    return by_tensor(states, lambda tensors: sum(share * one for share, one in zip(shares, tensors, strict=True)))


def by_tensor(states: Sequence[State], combine: Callable[[list[Tensor]], Any]) -> dict[str, Tensor]:
    """Combine networks, tensor by tensor, in float64; what holds no floating-point numbers is the first one's.

    Args:
        states: Networks of one architecture.
        combine: Makes one tensor of those of all, float64.
    """
    return {
        name: combine([state[name].double() for state in states]).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in states[0].items()
    }


def is_finite(state: State) -> bool:
    """Whether all values of a network are numbers, and none is infinite.

    Args:
        state: Of the network.
    """
    return all(bool(tensor.isfinite().all()) for tensor in state.values() if tensor.is_floating_point())
