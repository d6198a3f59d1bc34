"""Probabilities of one head and of all heads, against their formulas."""

import math

import numpy as np
import pytest
import torch
from helpers import make_problem, merge_case, pictures, random_network

from project.errors import ConfigurationError
from project.methods import Ensemble, Permutation
from project.models import LabelSpace
from project.models.heads import Joint, column_labels, head_weights, most_likely, probabilities

JOINTS: tuple[Joint, ...] = (  # what needs no gate
    "logits",
    "uniform",
    "confidence",
)
LABELS = LabelSpace({"art": ("cat", "dog"), "birds": ("auk", "cat", "owl"), "one": ("only",)}, "different")
SHARED = LabelSpace({"art": ("cat", "dog", "eel"), "birds": ("cat", "dog", "eel")})


def some_logits(seed: int, columns: int = 6) -> torch.Tensor:
    return 3 * torch.randn(20, columns, generator=torch.Generator().manual_seed(seed))


def reference(logits: np.ndarray, joint: str) -> list[float]:
    """The joint distribution of one picture by its formula, a class at a time."""
    heads = [logits[:2], logits[2:5], logits[5:]]
    exps = [[math.exp(z) for z in head] for head in heads]
    shares = [[e / sum(head) for e in head] for head in exps]
    if joint == "logits":
        weights = [sum(head) for head in exps]
    elif joint == "uniform":
        weights = [1.0, 1.0, 1.0]
    else:
        weights = [1 + sum(p * math.log(p) for p in head) / math.log(len(head)) for head in shares[:2]] + [1e-6]
    return [w / sum(weights) * p for w, head in zip(weights, shares, strict=True) for p in head]


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("seed", range(3))
def test_joint_distributions_follow_their_formulas(joint: Joint, seed: int) -> None:
    logits = some_logits(seed)
    found = probabilities(logits.double(), LABELS, joint=joint)
    expected = [reference(row, joint) for row in logits.double().numpy()]
    assert np.allclose(found.numpy(), expected, atol=1e-9)
    assert torch.allclose(found.sum(1), torch.ones(20).double())
    weights = head_weights(logits.double(), LABELS, joint)
    parts = [found[:, columns].sum(1) for columns in LABELS.heads.values()]
    assert torch.allclose(torch.stack(parts, 1), weights)


def test_logits_side_by_side_are_one_softmax() -> None:
    logits = some_logits(5)
    assert torch.allclose(probabilities(logits, LABELS, joint="logits"), logits.softmax(1))


@pytest.mark.parametrize("joint", JOINTS)
def test_extreme_logits_stay_probabilities(joint: Joint) -> None:
    logits = torch.tensor([[1e4, -1e4, 0, 0, 0, -1e4], [0.0] * 6, [-1e4] * 6])
    found = probabilities(logits, LABELS, joint=joint)
    assert bool(found.isfinite().all())
    assert torch.allclose(found.sum(1), torch.ones(3))


def test_a_head_that_sees_nothing_has_no_say() -> None:
    logits = torch.tensor([[0.0, 0.0, 5.0, 0.0, 0.0, 9.0]])
    weights = head_weights(logits, LABELS, "confidence")[0]
    assert weights[1] > 0.99


@pytest.mark.parametrize("joint", JOINTS)
def test_one_head_is_its_own_joint_distribution(joint: Joint) -> None:
    logits = some_logits(1, 3)
    for head in ("art", "birds", "joint"):
        assert torch.allclose(probabilities(logits, SHARED, head, joint), logits.softmax(1), atol=1e-6)
    assert column_labels(SHARED) == [("art+birds", name) for name in ("cat", "dog", "eel")]


@pytest.mark.parametrize("labels", [LABELS, SHARED])
def test_named_heads_are_softmax_over_their_columns(labels: LabelSpace) -> None:
    logits = some_logits(2, labels.width)
    for domain in labels.domains:
        found = probabilities(logits, labels, domain)
        assert torch.equal(found, logits[:, labels.columns(domain)].softmax(1))
        assert [name for _, name in column_labels(labels, domain)] == list(labels.classes[domain])


def test_classes_of_one_name_stay_apart() -> None:
    columns = column_labels(LABELS)
    assert [column for column in columns if column[1] == "cat"] == [("art", "cat"), ("birds", "cat")]
    (best,) = most_likely(torch.tensor([[0.3, 0.1, 0.2, 0.25, 0.1, 0.05]]), columns, 3)
    assert [(one.head, one.name) for one in best] == [("art", "cat"), ("birds", "cat"), ("birds", "auk")]
    assert [one.probability for one in best] == pytest.approx([0.3, 0.25, 0.2])
    assert len(most_likely(torch.rand(1, 6), columns, 99)[0]) == 6


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="head is 'brids'; allowed: joint, art, birds, one"):
        probabilities(some_logits(0), LABELS, "brids")
    with pytest.raises(ConfigurationError, match="joint is 'sum'; allowed: 'gate', 'logits', 'uniform', 'conf"):
        probabilities(some_logits(0), LABELS, joint="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["shared", "different"])
def test_students_answer_by_head(mode: str) -> None:
    classes = (3, 3, 3) if mode == "shared" else (3, 7, 2)
    sources = [random_network(1, weights, count) for weights, count in enumerate(classes)]
    problem = make_problem(sources, mode)
    (merged,) = merge_case(Permutation("weights"), problem, [3.0])
    student, batch = merged.student, pictures(4, 0)
    with torch.no_grad():
        if mode == "different":
            assert torch.allclose(student.probabilities(batch, "birds"), sources[1](batch).softmax(1), atol=1e-5)
        assert torch.equal(student.probabilities(batch), probabilities(student(batch), problem.labels))
        assert torch.allclose(student.outputs(batch)[0], student(batch))
    with pytest.raises(ConfigurationError, match="top is 0"):
        student.predict(batch, top=0)
    found = student.predict(batch, "birds", top=2)
    assert [len(row) for row in found] == [2] * 4
    assert all(row[0].probability >= row[1].probability for row in found)
    assert {one.name for row in found for one in row} <= set(problem.labels.classes["birds"])
    if mode == "shared":
        assert {one.head for row in found for one in row} == {"art+birds+cars"}
        assert student.predict(batch, "art+birds+cars", top=2) == student.predict(batch, top=2)
    with pytest.raises(ConfigurationError, match=r"pictures is of shape \(3, .*one picture as picture\[None\]"):
        student.predict(batch[0])
    with pytest.raises(ConfigurationError, match="allowed: joint, art, birds, cars"):
        student.predict(None, "trees")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="joint is 'gate', but the network has none"):
        student.predict(batch, joint="gate")


def test_a_gate_tells_the_domains_apart() -> None:
    """What heads read on pictures of three kinds is told apart, whatever the heads' logits say."""
    problem = make_problem([random_network(1, weights, count) for weights, count in enumerate((3, 7, 2))], "different")
    ensemble = Ensemble(problem.sources, problem.labels, problem.spec.head.name).eval()
    kinds = [pictures(30, seed) * scale + offset for seed, (scale, offset) in enumerate(((1, -2), (0.3, 0), (1, 2)))]
    with torch.no_grad():
        ensemble.fit_gate([ensemble.outputs(kind)[1] for kind in kinds])
        for index, seed in enumerate((7, 8, 9)):
            scale, offset = ((1, -2), (0.3, 0), (1, 2))[index]
            batch = pictures(30, seed) * scale + offset
            logits, shares = ensemble.shares(batch)
            columns = list(problem.labels.heads.values())
            weights = torch.stack([shares[:, one].sum(1) for one in columns], 1)
            assert float((weights.argmax(1) == index).float().mean()) > 0.9
            assert torch.allclose(shares.sum(1), torch.ones(30))
            own = shares[:, columns[index]] / weights[:, [index]]
            assert torch.allclose(own, logits[:, columns[index]].softmax(1), atol=1e-4), "p(c | h, x) is the head's"
    assert ensemble.gate is not None
    assert not ensemble.gate.training
