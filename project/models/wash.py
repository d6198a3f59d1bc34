"""Weight shuffling (WASH, arXiv 2405.17517): networks that are trained side by side swap some of their weights.

At every step, of each tensor of layer l of L, entries are drawn with chance p · (1 − l / (L − 1)), or p everywhere; at
an entry that was drawn, the N networks' values are permuted among them. The mean of the networks, and the sum of their
squared distances from it, are the same after as before.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil, sqrt
from typing import Literal

import torch
from torch import Tensor, distributed, nn

Schedule = Literal["falling", "constant"]
Copy = Mapping[str, Tensor]
"""Name -> tensor of one network, all of one kind of number."""


@dataclass(frozen=True)
class Draw:
    """What moves in one tensor.

    Args:
        places: Entries of the flat tensor, int64, (k,), ascending.
        orders: For each of them and every network, whose value it gets: int64, (k, networks), rows permutations.
    """

    places: Tensor
    orders: Tensor


def shuffle_chances(network: nn.Module, chance: float, schedule: Schedule = "falling") -> dict[str, float]:
    """The chance of an entry of each trained tensor to be drawn.

    Depth is counted in modules that hold trained parameters, in the order in which the network lists them.

    Args:
        network: Whose parameters are trained; buffers are never shuffled.
        chance: p, that of the first layer.
        schedule: ``falling`` to 0 at the last layer, or ``constant``.

    Returns:
        Name of a parameter -> chance.

    """
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    last = max(1, len(layers) - 1)
    falls = {layer: 1 - number / last if schedule == "falling" else 1.0 for number, layer in enumerate(layers)}
    return {name: chance * falls[name.rpartition(".")[0]] for name in names}


def draw(sizes: Mapping[str, int], chances: Mapping[str, float], networks: int, seed: int) -> dict[str, Draw]:
    """Draw what moves in one step, in time that grows with what moves.

    Args:
        sizes: Name of a tensor -> how many entries it has.
        chances: From :func:`shuffle_chances`.
        networks: How many there are.
        seed: Of the step; all processes draw the same of it.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = {}
    for name, size in sizes.items():
        places = _bernoulli(size, chances[name], generator)
        orders = torch.rand(len(places), networks, generator=generator).argsort(1)
        draws[name] = Draw(places, orders)
    return draws


def shuffle(copies: Sequence[Copy], draws: Mapping[str, Draw]) -> None:
    """Shuffle networks of one process in place.

    Args:
        copies: The networks' tensors, contiguous; those of their optimizers may be shuffled alike.
        draws: From :func:`draw`.
    """
    for name, drawn in draws.items():
        flat = [copy[name].detach().view(-1) for copy in copies]
        places, orders = drawn.places.to(flat[0].device), drawn.orders.to(flat[0].device)
        values = torch.stack([tensor[places] for tensor in flat], 1).gather(1, orders)
        for tensor, value in zip(flat, values.unbind(1), strict=True):
            tensor[places] = value


def exchange(copy: Copy, draws: Mapping[str, Draw]) -> int:
    """Shuffle networks that have a process each, in place; only what moves to another process is sent.

    Args:
        copy: The tensors of this process's network, contiguous.
        draws: The same in all processes.

    Returns:
        How many numbers this process has sent.
    """
    rank, size = distributed.get_rank(), distributed.get_world_size()
    flat = {name: copy[name].detach().view(-1) for name in draws}
    like = next(iter(flat.values()))
    sent = [
        [flat[name][places.to(like.device)] for name, places in _moving(draws, rank, other)] for other in range(size)
    ]
    wanted = [list(_moving(draws, other, rank)) for other in range(size)]
    counts = [sum(len(places) for _, places in parts) for parts in wanted]
    outgoing = [torch.cat([like.new_empty(0), *parts]) for parts in sent]
    received = like.new_empty(sum(counts))
    distributed.all_to_all_single(received, torch.cat(outgoing), counts, [len(part) for part in outgoing])
    arrived = 0
    for name, places in chain.from_iterable(wanted):
        flat[name][places.to(like.device)] = received[arrived : arrived + len(places)]
        arrived += len(places)
    return sum(map(len, outgoing))


def _moving(draws: Mapping[str, Draw], source: int, target: int) -> Iterator[tuple[str, Tensor]]:
    """The places whose values go from one network to another one."""
    if source != target:
        for name, drawn in draws.items():
            yield name, drawn.places[drawn.orders[:, target] == source]


def _bernoulli(size: int, chance: float, generator: torch.Generator) -> Tensor:
    """Entries each of which is drawn with a chance: between them lie gaps of a geometric distribution."""
    if chance <= 0:
        return torch.empty(0, dtype=torch.int64)
    if chance >= 1:
        return torch.arange(size)
    places, reached = [], -1
    while reached < size:
        expected = (size - reached) * chance
        gaps = torch.empty(ceil(expected + 4 * sqrt(expected)) + 4, dtype=torch.float64)
        part = reached + gaps.geometric_(chance, generator=generator).cumsum(0)
        places.append(part)
        reached = int(part[-1].clamp(max=size))
    drawn = torch.cat(places)
    return drawn[drawn < size].to(torch.int64)
