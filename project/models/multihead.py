"""Networks with several heads, and the gate that tells which of them a picture is for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from project.errors import ConfigurationError, one_of, whole
from project.models import heads
from project.models.heads import Joint, Prediction
from project.models.labels import LabelSpace
from project.models.probe import fit_probe


class MultiHead(nn.Module, ABC):
    """Heads side by side, with or without a gate.

    Args:
        labels: What the logits mean.

    Attributes:
        gate: Tells the heads apart by what they read, (batch, features) to (batch, heads) before the softmax; None
            where it was not learnt.
        own_heads: Heads of domains beside the one that all share, side by side, (batch, features) to (batch, domains ·
            classes); None where there are none, and heads of different classes are in the network itself.
        own_domains: Domains that have one of these.
        guesses: Whether the gate's guess between them answers where nobody names the domain, not the shared head.
    """

    gate: nn.Linear | None
    own_heads: nn.Linear | None
    own_domains: tuple[str, ...] = ()
    guesses = False
    by_name = False
    """Whether it answers otherwise where the domain is named, though its domains share one head."""

    def __init__(self, labels: LabelSpace) -> None:
        super().__init__()
        self.labels = labels
        self.gate = None
        self.own_heads = None

    @abstractmethod
    def outputs(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, columns of the label space), and what the heads read (batch, features)."""

    def answer(self, pictures: Tensor, head: str) -> Tensor:
        """Logits where the head that is asked is known: (batch, columns of the label space), its own among them.

        Args:
            pictures: Shape (batch, 3, height, width).
            head: A domain.
        """
        if head in self.own_domains:
            return self.told(self.outputs(pictures)[1])[:, self.own_domains.index(head)]
        logits: Tensor = self(pictures)
        return logits

    def told(self, features: Tensor) -> Tensor:
        """Logits of the domains' own heads, (batch, domains, classes), from what heads read."""
        assert self.own_heads is not None
        logits: Tensor = self.own_heads(features)
        return logits.view(len(logits), len(self.own_domains), -1)

    def guessed(self, features: Tensor) -> Tensor:
        """Probabilities of classes, (batch, classes), by the gate's guess between the domains' own heads."""
        assert self.gate is not None
        return heads.mixed_over_heads(self.told(features), self.gate(features).softmax(1))

    def set_own_heads(self, domains: tuple[str, ...], weights: Tensor, guesses: bool) -> None:
        """Take heads of domains, shape (domains, classes, features + 1), the constants as a last column.

        Args:
            domains: Their names.
            weights: The heads.
            guesses: Whether the gate's guess between them answers where nobody names the domain.
        """
        flat = weights.flatten(0, 1)
        self.own_domains, self.guesses = domains, guesses
        self.own_heads = self._linear(flat[:, :-1], flat[:, -1])

    def fit_gate(self, features: Sequence[Tensor]) -> None:
        """Learn the gate from pictures whose domain is known, and nothing else: see :func:`fit_probe`.

        What it takes for granted is that pictures to come are as often of each head as these.

        Args:
            features: What the heads read on some pictures of each head, in their order, each (pictures, features).
        """
        origins = torch.cat([torch.full((len(part),), index) for index, part in enumerate(features)])
        found = fit_probe(torch.cat(list(features)), origins, len(features))
        self.set_gate(found.weight, found.bias)

    def set_gate(self, weight: Tensor, bias: Tensor) -> None:
        """Take a gate (heads, features) and its bias (heads,)."""
        self.gate = self._linear(weight, bias)

    def _linear(self, weight: Tensor, bias: Tensor) -> nn.Linear:
        """A layer with these values, beside the network's own."""
        with torch.device("meta"):  # no random numbers are drawn
            blank = nn.Linear(weight.shape[1], weight.shape[0]).eval()
        layer = blank.to_empty(device=next(self.parameters()).device)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer

    def default_joint(self) -> Joint:
        """How heads are weighed where nobody says: by the gate, where there is one that is of use, else by logits."""
        if self.gate is None or (self.own_domains and not self.guesses):
            return "logits"
        return "gate"

    def shares(self, pictures: Tensor, joint: Joint | None = None) -> tuple[Tensor, Tensor]:
        """Logits, and probabilities of all classes of all heads, in one run; see :meth:`probabilities`."""
        logits, features = self.outputs(pictures)
        if self.own_domains and (joint or self.default_joint()) == "gate":
            return logits, self.guessed(features)
        gated = None if self.gate is None else self.gate(features).softmax(1)
        return logits, heads.probabilities(logits, self.labels, heads.JOINT, joint or self.default_joint(), gated)

    @torch.no_grad()
    def probabilities(self, pictures: Tensor, head: str = heads.JOINT, joint: Joint | None = None) -> Tensor:
        """Probabilities of the classes of one head, or of all classes of all heads.

        Args:
            pictures: Shape (batch, 3, height, width), normalised as the network expects.
            head: A domain, ``joint``, or the name that answers give to the one head of all domains.
            joint: How heads are weighed under ``joint``, see :func:`project.models.heads.head_weights`; default: by
                the gate, where there is one, else by their logits.

        Returns:
            Shape (batch, classes of the head), or (batch, columns of the label space); rows sum to 1.

        Raises:
            ConfigurationError: If there is no such head, or no such way, or pictures is not a batch.
        """
        head = heads.known_head(head, self.labels)
        if pictures.dim() != 4:
            raise ConfigurationError(
                f"pictures is of shape {tuple(pictures.shape)}; allowed: (batch, channels, height, width), one picture "
                f"as picture[None]."
            )
        if joint is not None:
            one_of(Joint, joint=joint)
        return (
            self.shares(pictures, joint)[1]
            if head == heads.JOINT
            else heads.probabilities(self.answer(pictures, head), self.labels, head)
        )

    def predict(
        self, pictures: Tensor, head: str = heads.JOINT, joint: Joint | None = None, top: int = 1
    ) -> list[list[Prediction]]:
        """The ``top`` most likely classes of every picture, the likeliest first; see :meth:`probabilities`.

        Raises:
            ConfigurationError: If none are asked for, there is no such head or way, or pictures is not a batch.
        """
        whole(1, top=top)
        head = heads.known_head(head, self.labels)
        shares = self.probabilities(pictures, head, joint)
        return heads.most_likely(shares, heads.column_labels(self.labels, head), top)
