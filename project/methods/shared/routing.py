"""Training routers, and nothing else, so that predictions on unlabelled pictures become certain."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from project.methods.problem import Problem
from project.methods.shared.curves import ALL
from project.methods.shared.entropy import Draws, check_finite, entropies
from project.runtime import World
from project.student import MixtureStudent, own_statistics

Curves = dict[str, dict[str, dict[int, float]]]


def train_routers(
    student: MixtureStudent,
    problem: Problem,
    pictures: Mapping[str, Sequence[Tensor]],
    world: World,
    *,
    steps: int,
    rate: float,
    batch: int,
    seed: int,
) -> Curves:
    """Minimise the entropy on the calibration pictures, the mean of the domains' means, by Adam.

    Batch norms use the statistics of the batch, in which all domains are mixed, as re-estimation is going to find them:
    with older ones a router could make predictions certain by making them large. A batch that several processes share
    is one batch.

    Args:
        student: Its routers are trained in place.
        problem: The sources.
        pictures: domain -> this process' batches.
        world: The processes that share the pictures.
        steps: Of Adam.
        rate: Its learning rate.
        batch: Pictures of each domain in a step, over all processes.
        seed: Of the order of the pictures.

    Returns:
        ``entropy`` of all layers together, and ``own gate``, the mean over a step's pictures of the gate of the source
        that owns their domain, of each block under the name of its first layer: of each step, before it.

    Raises:
        MergeError: If the entropy, or its gradient, is not finite.
    """
    draws = Draws(pictures, batch, seed, world)
    parameters = [parameter for router in student.routers for parameter in router.parameters()]
    names = [next(iter(block.layers)) for block in student.blocks]
    curves: Curves = {"entropy": {ALL: {}}, "own gate": {name: {} for name in names}}
    optimizer = torch.optim.Adam(parameters, lr=rate)
    with _trainable(student, parameters), own_statistics(student.network, world=world), _noted(student) as gates:
        for step in tqdm(range(steps), desc="training routers", unit="step", leave=False, disable=None):
            gates.clear()
            drawn = next(draws)
            logits = student(torch.cat(list(drawn.values())))
            uncertain, own = _measured(logits, drawn, gates, problem)
            counts = uncertain.new_tensor([len(pictures) for pictures in drawn.values()])
            world.reduce(counts)
            total = (uncertain / counts).mean()
            tensors = [total.detach(), own, *torch.autograd.grad(total, parameters)]
            entropy, own, *gradients = _summed(tensors, world)
            check_finite(entropy, *gradients)
            curves["entropy"][ALL][step] = float(entropy)
            for name, (gate, owned) in zip(names, own.tolist(), strict=True):
                if owned:
                    curves["own gate"][name][step] = gate / owned
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    return curves


def _measured(
    logits: Tensor, drawn: Mapping[str, Tensor], gates: Sequence[Tensor], problem: Problem
) -> tuple[Tensor, Tensor]:
    """Sum the entropies of every domain, and for every block what the owners' gates sum to, and of how many.

    Returns:
        Shapes (domains,) and (blocks, 2).
    """
    ends = list(accumulate(map(len, drawn.values()), initial=0))
    places = {domain: slice(*edges) for domain, edges in zip(drawn, pairwise(ends), strict=True)}
    sums = [entropies(logits[place, problem.labels.columns(domain)]).sum() for domain, place in places.items()]
    owned = [(place, problem.owners[domain]) for domain, place in places.items() if domain in problem.owners]
    own = logits.new_zeros(len(gates), 2)
    for block, gate in zip(own, gates, strict=True):
        for place, owner in owned:
            block += torch.stack([gate[place, owner].detach().sum(), block.new_tensor(place.stop - place.start)])
    return torch.stack(sums), own


def _summed(tensors: Sequence[Tensor], world: World) -> list[Tensor]:
    """Sum tensors over all processes."""
    whole = torch.cat([tensor.flatten() for tensor in tensors])
    world.reduce(whole)
    parts = torch.split_with_sizes(whole, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


@contextmanager
def _trainable(student: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let gradients reach these parameters of the student and no others, while open."""
    before = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    student.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)
            parameter.grad = None


@contextmanager
def _noted(student: MixtureStudent) -> Iterator[list[Tensor]]:
    """Collect the gates of every router in a list, while open."""
    noted: list[Tensor] = []
    handles = [
        router.register_forward_hook(lambda module, inputs, gates: noted.append(cast(Tensor, gates)))
        for router in student.routers
    ]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()
