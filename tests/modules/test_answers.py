"""Counts of answers against loops over pictures."""

from itertools import combinations

import torch

from project.modules.answers import PAIRS, BothRight, Confusions


def test_confusions_are_what_a_loop_finds_in_any_batches() -> None:
    torch.manual_seed(0)
    told, labels = torch.randint(6, (300,)), torch.randint(6, (300,))
    metric = Confusions(6)
    for start, end in ((0, 7), (7, 7), (7, 300)):
        metric.update(told[start:end], labels[start:end])
    expected = dict.fromkeys(((a, b) for a in range(6) for b in range(6) if a != b), 0)
    for label, answer in zip(labels.tolist(), told.tolist(), strict=True):
        if label != answer:
            expected[label, answer] += 1
    found = metric.compute()
    assert {(label, answer): count for label, answer, count in found} == {k: n for k, n in expected.items() if n}
    counts = [count for _, _, count in found]
    assert counts == sorted(counts, reverse=True)


def test_of_many_classes_the_most_frequent_confusions_are_told() -> None:
    metric, classes = Confusions(60), torch.arange(60)
    labels, told = (grid.flatten() for grid in torch.meshgrid(classes, classes, indexing="ij"))
    metric.update(told, labels)
    metric.update(torch.tensor([3, 3, 5]), torch.tensor([7, 7, 9]))
    found = metric.compute()
    assert len(found) == PAIRS < 60 * 59
    assert found[:2] == [(7, 3, 3), (9, 5, 2)]


def test_pairs_of_networks_are_what_a_loop_finds() -> None:
    torch.manual_seed(1)
    right = torch.rand(4, 90) < torch.tensor([0.2, 0.5, 0.9, 0.0])[:, None]
    metric = BothRight(4)
    for start, end in ((0, 1), (1, 60), (60, 90)):
        metric.update(right[:, start:end])
    found = metric.compute()
    for one, other in combinations(range(4), 2):
        pairs = zip(right[one].tolist(), right[other].tolist(), strict=True)
        assert found[one][other] == found[other][one] == sum(a and b for a, b in pairs)
    assert [found[one][one] for one in range(4)] == right.sum(1).tolist()
