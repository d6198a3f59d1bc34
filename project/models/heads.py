"""From the logits of heads that stand side by side to probabilities: of one head, or of all classes of all heads."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from project.errors import ConfigurationError, one_of
from project.models.labels import JOINT as JOINT
from project.models.labels import LabelSpace

Joint = Literal["gate", "logits", "uniform", "confidence"]
"""How the heads are weighed where nobody says which one to use, see :func:`head_weights`."""

MIN_CERTAINTY = 1e-6


class Prediction(NamedTuple):
    """A class that a network sees in a picture.

    Args:
        head: Head that the class belongs to; classes of one name in two heads stay two classes.
        name: Name of the class.
        probability: Its share, over the classes of the head, or of all heads.
    """

    head: str
    name: str
    probability: float


def known_head(head: str, labels: LabelSpace, *others: str) -> str:
    """A head that a network has.

    Args:
        head: A domain, ``joint``, or the name that answers give to the one head of all domains.
        labels: What the network's columns mean.
        others: Words that are allowed too.

    Returns:
        The head, ``joint`` for the one of all domains.

    Raises:
        ConfigurationError: With what is allowed.
    """
    allowed = (*others, JOINT, *labels.domains)
    if head in allowed:
        return head
    if head in labels.heads:
        return JOINT
    raise ConfigurationError(f"head is {head!r}; allowed: {', '.join(allowed)}.")


def column_labels(labels: LabelSpace, head: str = JOINT) -> list[tuple[str, str]]:
    """Head and class behind each column of :func:`probabilities`."""
    return [
        (name, label)
        for name, columns in labels.heads.items()
        for label in labels.classes[name if labels.mode == "different" else labels.domains[0]]
        if head == JOINT or columns == labels.columns(head)
    ]


def head_weights(logits: Tensor, labels: LabelSpace, joint: Joint, gated: Tensor | None = None) -> Tensor:
    """How much each head has to say on each picture: p(h | x) in p(h, c | x) = p(h | x) · p(c | h, x).

    Heads that were trained apart say nothing of each other's pictures, so that what their logits are worth beside each
    other's is either learnt or assumed. With z_h the logits of head h, p_h = softmax(z_h), C_h its number of classes
    and H the entropy:

    - ``gate``: learnt from which domain the calibration pictures come from, never from their classes: a linear
      classifier of the domain on what the heads read, as in mixtures of experts (Jacobs et al., Neural Computation
      1991); see :class:`project.models.multihead.MultiHead`.
    - ``logits``: w_h ∝ Σ_c exp(z_hc), which makes the joint distribution one softmax over all logits side by side. The
      logarithm of the sum is the negative free energy, by which classifiers tell their own pictures from foreign ones
      (Liu et al., Energy-based Out-of-distribution Detection, arXiv 2010.03759). It takes the heads' scales and offsets
      at their word, which is right for heads that were trained together.
    - ``uniform``: w_h = 1 / heads, the softmax of every head for itself. The largest of them wins, as in the code of
      ZipIt (arXiv 2305.03053) for several heads; heads of few classes have larger probabilities by chance alone.
    - ``confidence``: w_h ∝ 1 - H(p_h) / log C_h, so that a head that sees nothing has no say, however many its
      classes; a head of one class never has more than the least.

    Args:
        logits: Shape (batch, columns of the label space).
        labels: What the columns mean.
        joint: Which of the four.
        gated: What the gate says, shape (batch, heads), rows sum to 1; for ``gate`` alone.

    Returns:
        Shape (batch, heads), rows sum to 1.

    Raises:
        ConfigurationError: If there is no such way, or no gate for it.
    """
    one_of(Joint, joint=joint)
    parts = [logits[:, columns] for columns in labels.heads.values()]
    if joint == "gate":
        if gated is None:
            raise ConfigurationError("joint is 'gate', but the network has none; allowed: the other ways.")
        return gated
    if joint == "logits":
        return torch.stack([part.logsumexp(1) for part in parts], 1).softmax(1)
    if joint == "uniform":
        return logits.new_full((len(logits), len(parts)), 1 / len(parts))
    certain = torch.stack([_certainty(part) for part in parts], 1).clamp(min=MIN_CERTAINTY)
    return certain / certain.sum(1, keepdim=True)


def probabilities(
    logits: Tensor, labels: LabelSpace, head: str = JOINT, joint: Joint = "logits", gated: Tensor | None = None
) -> Tensor:
    """Probabilities of the classes of one head, or of all classes of all heads: p(h, c) = w_h · softmax(z_h)_c.

    Args:
        logits: Shape (batch, columns of the label space).
        labels: What the columns mean.
        head: As :func:`known_head` has it.
        joint: How heads are weighed under ``joint``, see :func:`head_weights`.
        gated: What the gate says, shape (batch, heads); for ``gate`` alone.

    Returns:
        Shape (batch, classes of the head), or (batch, columns of the label space); rows sum to 1.

    Raises:
        ConfigurationError: If there is no such head, or no such way.
    """
    head = known_head(head, labels)
    if head != JOINT:
        return logits[:, labels.columns(head)].softmax(1)
    parts = zip(labels.heads.values(), head_weights(logits, labels, joint, gated).unbind(1), strict=True)
    return torch.cat([weight[:, None] * logits[:, columns].softmax(1) for columns, weight in parts], 1)


def mixed_over_heads(logits: Tensor, weights: Tensor) -> Tensor:
    """Probabilities of classes that all heads have: Σ_h w_h · softmax(z_h).

    Args:
        logits: Shape (batch, heads, classes).
        weights: How much each head has to say, shape (batch, heads), rows sum to 1.

    Returns:
        Shape (batch, classes); rows sum to 1.
    """
    return (weights[:, :, None] * logits.softmax(2)).sum(1)


def most_likely(shares: Tensor, columns: Sequence[tuple[str, str]], top: int = 1) -> list[list[Prediction]]:
    """The most likely classes of every picture, the likeliest first.

    Args:
        shares: Probabilities, shape (batch, columns).
        columns: Head and class behind each column.
        top: How many; all where there are fewer.
    """
    values, indices = shares.topk(min(top, len(columns)), 1)
    return [
        [Prediction(columns[index][0], columns[index][1], value) for value, index in zip(row, found, strict=True)]
        for row, found in zip(values.tolist(), indices.tolist(), strict=True)
    ]


def _certainty(logits: Tensor) -> Tensor:
    """1 - H(p) / log C of every picture, from 0 (all classes alike) to 1; 0 for a head of one class."""
    if logits.shape[1] == 1:
        return logits.new_zeros(len(logits))
    entropy: Tensor = torch.special.entr(logits.softmax(1)).sum(1)
    return 1 - entropy / math.log(logits.shape[1])
