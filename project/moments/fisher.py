"""Second moments of gradients of log p(class | picture): the Fisher information of a source, diagonal or by layers.

Which class the gradient is of, ``classes`` says:

- ``labels``: the picture's own label, the empirical Fisher; the only one that reads labels.
- ``sampled``: one that is drawn from the source's own probabilities, by the picture itself: the same whatever batch or
  process it comes in.
- ``exact``: each in turn, weighed by its probability; as many backward passes as there are classes.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from project.errors import MergeError
from project.symmetry import Layer

Classes = Literal["labels", "sampled", "exact"]
DIAGONAL, FACTORS = "diagonal", "factors"
CHUNK_BYTES = 256 * 2**20  # gradients of single pictures held at once


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


class FisherMoment:
    """Sums over the pictures of one domain, for one source.

    Args:
        network: The source.
        layers: Layers with a factor.
        wanted: ``diagonal``, ``factors``.

    Attributes:
        pictures: How many.
        squares: parameter -> sum over pictures of its squared gradient, float64.
        factors: layer -> sum over samples of g gᵀ for the gradient g of its output, float64, shape (outputs, outputs).
        samples: layer -> number of samples: pictures times positions.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], wanted: Collection[str]) -> None:
        device = next(network.parameters()).device
        self.pictures = 0
        self.squares: dict[str, Tensor] = {}
        self.factors: dict[str, Tensor] = {}
        self.samples: dict[str, int] = {}
        with torch.inference_mode(False):
            if DIAGONAL in wanted:
                self.squares = {
                    name: torch.zeros(one.shape, dtype=torch.float64, device=device)
                    for name, one in network.named_parameters()
                }
            if FACTORS in wanted:
                for layer in layers:
                    outputs = len(network.get_parameter(f"{layer.name}.weight"))
                    self.factors[layer.name] = torch.zeros(outputs, outputs, dtype=torch.float64, device=device)
                    self.samples[layer.name] = 0

    def add(self, other: "FisherMoment") -> None:
        """Add the sums of other pictures."""
        self.pictures += other.pictures
        for mine, theirs in ((self.squares, other.squares), (self.factors, other.factors)):
            for name, total in mine.items():
                total.add_(theirs[name])
        for name, count in other.samples.items():
            self.samples[name] += count

    def reduce(self, all_reduce: Callable[[Tensor], object]) -> None:
        """Sum over processes, in place.

        Args:
            all_reduce: Sums a tensor over all processes in place.
        """
        for total in (*self.squares.values(), *self.factors.values()):
            all_reduce(total)
        device = next(total.device for total in (*self.squares.values(), *self.factors.values()))
        counts = torch.tensor([self.pictures, *self.samples.values()], device=device)
        all_reduce(counts)
        self.pictures, *samples = counts.tolist()
        self.samples = dict(zip(self.samples, samples, strict=True))


class FisherCollector:
    """Adds the gradients of pictures to moments.

    Args:
        classes: Which classes' gradients.
        sources: The sources, in eval mode.
        layers: Layers with a factor: plain convolutions and linear layers.
        own: The (source, domain) pairs to look at.
        wanted: ``diagonal``, ``factors``.
        columns: domain -> columns of its owner's logits that are its head; all of them where it is not named.
    """

    def __init__(
        self,
        classes: Classes,
        sources: Sequence[nn.Module],
        layers: Sequence[Layer],
        own: Iterable[tuple[int, str]],
        wanted: Collection[str],
        columns: Mapping[str, slice],
    ) -> None:
        self.classes, self.sources, self.layers, self.columns = classes, sources, layers, columns
        self.moments = {(s, domain): FisherMoment(sources[s], layers, wanted) for s, domain in own}

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
            for (source, name), moment in self.moments.items():
                if name == domain:
                    self._add(moment, self.sources[source], self.columns.get(name, slice(None)), pictures, labels)

    def _add(
        self, moment: FisherMoment, network: nn.Module, columns: slice, pictures: Tensor, labels: Tensor | None
    ) -> None:
        with torch.no_grad():
            logits = network(pictures)[:, columns]
        weights = self._weights(logits, pictures, labels)
        moment.pictures += len(pictures)
        if moment.squares:
            _add_squares(moment, network, pictures, weights, columns)
        if moment.factors:
            _add_factors(moment, network, pictures, weights, columns)

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


def _add_squares(moment: FisherMoment, network: nn.Module, pictures: Tensor, weights: Tensor, columns: slice) -> None:
    """Every parameter's squared gradient, picture by picture."""
    parameters = {name: one.detach() for name, one in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def score(values: dict[str, Tensor], picture: Tensor, weight: Tensor) -> Tensor:
        logits: Tensor = functional_call(network, {**buffers, **values}, (picture[None],))
        return (weight * logits[0, columns].log_softmax(0)).sum()

    gradients = vmap(grad(score), in_dims=(None, 0, 0))
    size = 4 * sum(one.numel() for one in parameters.values())
    step = max(1, CHUNK_BYTES // size)
    with warnings.catch_warnings():
        # Group norm and attention go picture by picture: nothing that a user could do about it.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        for weight in weights:
            for some, theirs in zip(torch.split(pictures, step), torch.split(weight, step), strict=True):
                for name, found in gradients(parameters, some, theirs).items():
                    moment.squares[name] += found.square().sum(0)


def _add_factors(moment: FisherMoment, network: nn.Module, pictures: Tensor, weights: Tensor, columns: slice) -> None:
    """The second moment of the gradient of every layer's output, each position a sample."""
    probes: dict[str, Tensor] = {}

    def tap(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            probes[name] = torch.zeros_like(output, requires_grad=True)
            return output + probes[name]  # a later in-place operation changes the sum, and not the probe

        return hook

    handles = [network.get_submodule(name).register_forward_hook(tap(name)) for name in moment.factors]
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
            rows = (torch.zeros_like(probe) if gradient is None else gradient).movedim(dim, 0).flatten(1)
            moment.factors[name] += rows @ rows.mT
            moment.samples[name] += rows.shape[1] if number == 0 else 0
