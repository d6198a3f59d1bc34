"""Heads of the domains beside the one that they share: each follows the source of its domain, on the merged features.

One head for all domains must do on every picture what one of several heads did; on a trunk that is nearly right, that
is what loses. A head costs next to nothing. Each starts from its source's own weights, put on the units in its source's
place: where these are the source's alone, it is the source's head, and stays it.

Which head a picture is for is told, or guessed by a gate, the probabilities of a class adding up over the heads.
Whether the guess is better than the shared head is judged without labels: by how often the answer is the class that a
picture's own source sees, half of the pictures judging what was learnt from the other half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from project.fit.head import HeadView, fit_head
from project.fit.normal_equations import damping
from project.models.heads import mixed_over_heads
from project.models.probe import fit_probe
from project.student import Student
from project.student.start import joint_matrix

STEPS, JUDGING = 500, 50
"""Steps of the search for a head, and for one that only judges."""
RIDGE = 0.05
"""The pull towards the start, where there are as many pictures as unknowns; PLeaS' default."""


@dataclass(frozen=True)
class Lesson:
    """What a domain's pictures say of its head.

    Args:
        source: Number of the source that owns the domain.
        head: The layer that puts out its logits.
        features: What the student's heads read, shape (pictures, features).
        logits: What the source says, shape (pictures, classes).
    """

    source: int
    head: nn.Module
    features: Tensor
    logits: Tensor


def teach_heads(student: Student, lessons: Mapping[str, Lesson]) -> dict[str, float]:
    """Give a student of one head for all domains a head for each, and a gate that guesses which a picture is for.

    Args:
        student: In eval mode; it answers by the heads from now on where the domain is told, and, where that has proven
            better, where it is not.
        lessons: domain -> what its pictures say; two at least.

    Returns:
        ``shared`` and ``guessed``: share of the pictures whose answer is their own source's, by such heads and a gate
        that have not learnt from them.
    """
    starts = [_start(student, lesson) for lesson in lessons.values()]
    features = [lesson.features.double() for lesson in lessons.values()]
    logits = [lesson.logits.double() for lesson in lessons.values()]
    judged = [
        _judged(starts, *([one[half::2] for one in both] for half in (first, 1 - first) for both in (features, logits)))
        for first in range(2)
    ]
    shares = {name: sum(one[name] for one in judged) / 2 for name in ("shared", "guessed")}
    weights = torch.stack([_fitted(start, [x], [t]) for start, x, t in zip(starts, features, logits, strict=True)])
    student.fit_gate(features)
    student.set_own_heads(tuple(lessons), weights, shares["guessed"] > shares["shared"])
    return shares


def _judged(
    starts: Sequence[Tensor],
    features: Sequence[Tensor],
    logits: Sequence[Tensor],
    others: Sequence[Tensor],
    told: Sequence[Tensor],
) -> dict[str, float]:
    """What heads and a gate that learn from some pictures make of others, domain by domain; see :func:`teach_heads`."""
    heads = [_fitted(start, [x], [t], JUDGING) for start, x, t in zip(starts, features, logits, strict=True)]
    shared = _fitted(torch.stack(list(starts)).mean(0), features, logits, JUDGING)
    origins = torch.cat([torch.full((len(part),), number) for number, part in enumerate(features)])
    gate = fit_probe(torch.cat(list(features)), origins, len(features))
    right = dict.fromkeys(("shared", "guessed"), 0.0)
    for x, wanted in zip(others, told, strict=True):
        answers = torch.stack([_answer(head, x) for head in heads], 1)
        guessed = mixed_over_heads(answers, gate(x).softmax(1))
        for name, answer in (("shared", _answer(shared, x)), ("guessed", guessed)):
            right[name] += float((answer.argmax(1) == wanted.argmax(1)).double().mean()) / len(others)
    return right


def _start(student: Student, lesson: Lesson) -> Tensor:
    """The source's own weights on the units in its place, shape (classes, features + 1); float64."""
    layer = student.spec.head
    if student.zipped:  # whose unit maps do not tell which units are whose
        (own,) = joint_matrix(layer, [student.network.get_submodule(layer.name)])
        return own.cpu() if layer.bias else F.pad(own.cpu(), (0, 1))
    (own,) = joint_matrix(layer, [lesson.head])
    members = student.maps[layer.inputs].members[:, lesson.source]
    weights = own[:, : own.shape[1] - layer.bias].cpu().reshape(len(own), -1, layer.taps)
    placed = (weights[:, members.clamp_min(0)] * (members >= 0).view(-1, 1)).flatten(1)
    return torch.cat([placed, own[:, -1:].cpu() if layer.bias else placed.new_zeros(len(placed), 1)], 1)


def _fitted(start: Tensor, features: Sequence[Tensor], logits: Sequence[Tensor], steps: int = STEPS) -> Tensor:
    """The head that comes closest to the sources' probabilities, shape (classes, features + 1)."""
    views = [HeadView(F.pad(x, (0, 1), value=1.0), t) for x, t in zip(features, logits, strict=True)]
    pull = damping(RIDGE, start.shape[1], sum(map(len, features)))
    return fit_head(start, views, damping=pull, constant=True, steps=steps)


def _answer(head: Tensor, features: Tensor) -> Tensor:
    return features @ head[:, :-1].mT + head[:, -1]
