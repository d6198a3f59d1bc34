"""Training routers, and nothing else, so that predictions on unlabelled pictures become certain."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from project.errors import MergeError
from project.methods.base import Problem
from project.methods.curves import ALL
from project.models import LabelSpace
from project.student import MixtureStudent, World, batch_statistics

Curves = dict[str, dict[str, dict[int, float]]]


def prediction_entropy(logits: Tensor, labels: LabelSpace, domain: str) -> Tensor:
    """− Σ p log p of the class probabilities on pictures of a domain, shape (pictures,).

    It is that of the domain's own head; of pictures of no domain with a head, the mean over the heads.

    Args:
        logits: Shape (pictures, columns of the label space).
        labels: What the columns mean.
        domain: Where the pictures come from.
    """
    known = labels.mode == "shared" or domain in labels.domains
    heads = [labels.columns(domain)] if known else list(labels.heads.values())
    parts = [logits[:, columns].float().log_softmax(1) for columns in heads]
    return torch.stack([-(part.exp() * part).sum(1) for part in parts]).mean(0)


def train_routers(
    student: MixtureStudent, problem: Problem, *, steps: int, rate: float, batch: int, seed: int
) -> Curves:
    """Minimise the mean prediction entropy on the calibration pictures by Adam.

    Batch norms use the statistics of the batch, in which all domains are mixed, as re-estimation is going to find them:
    with older ones a router could make predictions certain by making them large.

    Args:
        student: Its routers are trained in place.
        problem: With pictures.
        steps: Of Adam.
        rate: Its learning rate.
        batch: Pictures of each domain in a step and process.
        seed: Of the choice of pictures.

    Returns:
        ``prediction entropy`` of all layers together, and ``own gate``, of the source that owns a picture's domain, of
        each block under the name of its first layer: mean over the pictures of each step, before it.
    """
    if problem.pictures is None:
        raise MergeError("routers are trained on the calibration pictures; keep them.")
    parameters = [one for router in student.routers for one in router.parameters()]
    names = [next(iter(block.layers)) for block in student.blocks]
    curves: Curves = {"prediction entropy": {ALL: {}}, "own gate": {name: {} for name in names}}
    optimizer, generator = torch.optim.Adam(parameters, lr=rate), torch.Generator().manual_seed(seed)
    with _trainable(student, parameters), batch_statistics(student.network), _noted(student) as gates:
        for step in tqdm(range(steps), desc="training routers", unit="step", leave=False, disable=None):
            gates.clear()
            drawn = {domain: _drawn(batches, batch, generator) for domain, batches in problem.pictures.items()}
            logits = student(torch.cat(list(drawn.values())))
            entropies, own = _measured(logits, drawn, gates, problem)
            total = torch.cat(entropies).sum()
            found = [total.detach(), total.new_tensor(float(len(logits))), own]
            entropy, seen, own, *gradients = _summed([*found, *torch.autograd.grad(total, parameters)], problem.world)
            curves["prediction entropy"][ALL][step] = float(entropy / seen)
            for name, (gate, owned) in zip(names, own.tolist(), strict=True):
                if owned:
                    curves["own gate"][name][step] = gate / owned
            for one, gradient in zip(parameters, gradients, strict=True):
                one.grad = gradient / seen
            optimizer.step()
    return curves


def _drawn(batches: Sequence[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Some pictures of one of the batches."""
    one = batches[int(torch.randint(len(batches), (), generator=generator))]
    return one[torch.randperm(len(one), generator=generator)[:count].to(one.device)]


def _measured(
    logits: Tensor, drawn: Mapping[str, Tensor], gates: Sequence[Tensor], problem: Problem
) -> tuple[list[Tensor], Tensor]:
    """The entropies of each domain's predictions; for every block, what the owners' gates sum to, and of how many.

    Returns:
        Tensors (pictures of the domain,), and one of shape (blocks, 2).
    """
    ends = list(accumulate(map(len, drawn.values()), initial=0))
    places = {domain: slice(*edges) for domain, edges in zip(drawn, pairwise(ends), strict=True)}
    entropies = [prediction_entropy(logits[place], problem.labels, domain) for domain, place in places.items()]
    owned = [(place, problem.owners[domain]) for domain, place in places.items() if domain in problem.owners]
    own = logits.new_zeros(len(gates), 2)
    for block, found in zip(own, gates, strict=True):
        for place, owner in owned:
            block += torch.stack([found[place, owner].detach().sum(), block.new_tensor(place.stop - place.start)])
    return entropies, own


def _summed(tensors: Sequence[Tensor], world: World) -> list[Tensor]:
    """Tensors summed over all processes."""
    whole = torch.cat([one.flatten() for one in tensors])
    world.reduce(whole)
    parts = torch.split_with_sizes(whole, [one.numel() for one in tensors])
    return [part.view_as(one) for part, one in zip(parts, tensors, strict=True)]


@contextmanager
def _trainable(student: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """While open, gradients reach these parameters of the student and no others."""
    before = [(one, one.requires_grad) for one in student.parameters()]
    student.requires_grad_(False)
    for one in parameters:
        one.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for one, needed in before:
            one.requires_grad_(needed)
            one.grad = None


@contextmanager
def _noted(student: MixtureStudent) -> Iterator[list[Tensor]]:
    """A list to which, while open, every router adds its gates."""
    found: list[Tensor] = []
    handles = [
        router.register_forward_hook(lambda module, inputs, gates: found.append(cast(Tensor, gates)))
        for router in student.routers
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
