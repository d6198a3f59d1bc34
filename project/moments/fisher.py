"""Second moments of gradients of log p(class | picture): the Fisher information of a source, diagonal or by layers.

Which class the gradient is of, ``classes`` says:

- ``labels``: the picture's own label, the empirical Fisher; the only one that reads labels.
- ``sampled``: one that is drawn from the source's own probabilities, by the picture itself: the same whatever batch or
  process it comes in.
- ``exact``: each in turn, weighed by its probability; as many backward passes as there are classes.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from project.errors import MergeError
from project.moments.blocks import VectorMoment
from project.moments.moment import Sums

Classes = Literal["labels", "sampled", "exact"]
DIAGONAL, FACTORS = "diagonal", "factors"
GRADIENT_CHUNK_BYTES = 256 * 2**20  # gradients of single pictures held at once


def fisher_need(what: str, classes: Classes) -> str:
    """The need for one kind of Fisher information.

    Args:
        what: ``diagonal``: the mean square of every parameter's gradient; ``factors``: for every layer, the second
            moment of the gradient with respect to its output.
        classes: Which classes' gradients.
    """
    return f"{what} of {classes}"


def fisher_kinds(needs: Collection[str]) -> dict[Classes, set[str]]:
    """What is needed of each kind of classes."""
    kinds: dict[Classes, set[str]] = {
        classes: {what for what in (DIAGONAL, FACTORS) if fisher_need(what, classes) in needs}
        for classes in get_args(Classes)
    }
    return {classes: wanted for classes, wanted in kinds.items() if wanted}


def needs_gradients(needs: Collection[str]) -> bool:
    """Whether any Fisher information is needed."""
    return bool(fisher_kinds(needs))


class SquareMoment(Sums):
    """The sum over pictures of one parameter's squared gradient.

    Args:
        shape: Of the parameter.
        device: Where the total lives.
    """

    def __init__(self, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        super().__init__([shape], device)

    def update(self, squares: Tensor, pictures: int) -> None:
        """Add pictures.

        Args:
            squares: Their squared gradients, added up.
            pictures: How many they count for.
        """
        self._totals[0] += squares
        self.count += pictures

    def mean(self) -> Tensor:
        """The mean over pictures, float64, in the parameter's shape."""
        return self.totals[0] / max(1, self.count)

    def _flush(self) -> None:
        """Nothing waits."""


class FisherCollector:
    """Adds the gradients of pictures to moments.

    Args:
        classes: Which classes' gradients.
        sources: The sources, in eval mode.
        columns: domain -> columns of its owner's logits that are its head; all of them where it is not named.
        squares: parameter -> (source, domain) -> where its squared gradients go.
        factors: layer -> (source, domain) -> where the gradients of its output go, each position a sample.
    """

    def __init__(
        self,
        classes: Classes,
        sources: Sequence[nn.Module],
        columns: Mapping[str, slice],
        squares: Mapping[str, Mapping[tuple[int, str], SquareMoment]],
        factors: Mapping[str, Mapping[tuple[int, str], VectorMoment]],
    ) -> None:
        self.classes, self.sources, self.columns = classes, sources, columns
        self.squares, self.factors = squares, factors

    @torch.inference_mode(False)
    def gather(self, domain: str, pictures: Tensor, labels: Tensor | None = None) -> None:
        """Add pictures of a domain.

        Args:
            domain: Its name.
            pictures: Shape (batch, channels, height, width).
            labels: Classes among the domain's own, shape (batch,).

        Raises:
            MergeError: Where labels are needed and missing.
        """
        if self.classes == "labels" and labels is None:
            raise MergeError(
                "classes is 'labels', but the calibration batches hold none; pass "
                "calibration_dataloader(labelled=True), or use 'sampled'."
            )
        pictures = pictures.clone().float()  # what was made under inference mode has no gradients
        labels = None if labels is None else labels.clone()
        with torch.autocast(pictures.device.type, enabled=False), torch.enable_grad():
            for source, network in enumerate(self.sources):
                key = (source, domain)
                squares = {name: table[key] for name, table in self.squares.items() if key in table}
                factors = {name: table[key] for name, table in self.factors.items() if key in table}
                if not squares and not factors:
                    continue
                columns = self.columns.get(domain, slice(None))
                with torch.no_grad():
                    logits = network(pictures)[:, columns]
                weights = self._weights(logits, pictures, labels)
                if squares:
                    _add_squares(squares, network, pictures, weights, columns)
                if factors:
                    _add_factors(factors, network, pictures, weights, columns)

    def _weights(self, logits: Tensor, pictures: Tensor, labels: Tensor | None) -> Tensor:
        """What log p of each class counts for, shape (rounds, batch, classes): the square root of its probability."""
        shares = logits.softmax(1)
        if self.classes == "exact":
            return torch.diag_embed(shares.sqrt()).movedim(1, 0)
        if self.classes == "sampled":
            labels = (shares.double().cumsum(1) < drawn(pictures)[:, None]).sum(1).clamp(max=logits.shape[1] - 1)
        assert labels is not None
        return torch.nn.functional.one_hot(labels, logits.shape[1]).to(logits)[None]


def drawn(pictures: Tensor) -> Tensor:
    """A number from 0 to 1 for each picture, as good as random, that its values alone decide.

    Their bits, multiplied by random numbers and added modulo 2⁶⁴ (multilinear hashing): exact in any order.

    Args:
        pictures: Float32, shape (batch, ...).

    Returns:
        Float64, shape (batch,).
    """
    bits = pictures.contiguous().view(torch.int32).flatten(1).long()
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (bits.shape[1],), generator=generator).to(bits.device)
    mixed = (bits * factors).sum(1)
    return ((mixed >> 11) & (2**53 - 1)).double() / 2**53


def _add_squares(
    moments: Mapping[str, SquareMoment], network: nn.Module, pictures: Tensor, weights: Tensor, columns: slice
) -> None:
    """Every wanted parameter's squared gradient, picture by picture."""
    parameters = {name: one.detach() for name, one in network.named_parameters()}
    wanted = {name: parameters[name] for name in moments}
    others = {**dict(network.named_buffers()), **parameters}

    def score(values: dict[str, Tensor], picture: Tensor, weight: Tensor) -> Tensor:
        logits: Tensor = functional_call(network, {**others, **values}, (picture[None],))
        return (weight * logits[0, columns].log_softmax(0)).sum()

    gradients = vmap(grad(score), in_dims=(None, 0, 0))
    step = chunk(network)  # whatever is wanted, so that it does not depend on what else is gathered
    with warnings.catch_warnings():
        # Group norm and attention go picture by picture: nothing that a user could do about it.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        for number, weight in enumerate(weights):
            for some, theirs in zip(torch.split(pictures, step), torch.split(weight, step), strict=True):
                for name, found in gradients(wanted, some, theirs).items():
                    moments[name].update(found.square().sum(0), len(some) if number == 0 else 0)


def chunk(network: nn.Module) -> int:
    """Of how many pictures the gradients of all parameters are held at once."""
    return max(1, GRADIENT_CHUNK_BYTES // (4 * sum(one.numel() for one in network.parameters())))


def _add_factors(
    moments: Mapping[str, VectorMoment], network: nn.Module, pictures: Tensor, weights: Tensor, columns: slice
) -> None:
    """The gradients of every wanted layer's output, each position a sample."""
    probes: dict[str, Tensor] = {}

    def tap(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            probes[name] = torch.zeros_like(output, requires_grad=True)
            return output + probes[name]  # a later in-place operation changes the sum, and not the probe

        return hook

    handles = [network.get_submodule(name).register_forward_hook(tap(name)) for name in moments]
    try:
        shares = network(pictures)[:, columns].log_softmax(1)
    finally:
        for handle in handles:
            handle.remove()
    for number, weight in enumerate(weights):
        kept = number + 1 < len(weights)
        found = torch.autograd.grad(
            (weight * shares).sum(), list(probes.values()), retain_graph=kept, allow_unused=True
        )
        for (name, probe), gradient in zip(probes.items(), found, strict=True):
            dim = 1 if isinstance(network.get_submodule(name), nn.Conv2d) else -1
            rows = (torch.zeros_like(probe) if gradient is None else gradient).detach().movedim(dim, 0).flatten(1)
            moments[name].update(rows, rows.shape[1] if number == 0 else 0)
