"""Counts by confidence against a loop over pictures."""

import torch

from project.modules.reliability import BINS, Reliability


def test_bins_hold_what_a_loop_finds_in_any_batches() -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(200, 5), torch.randint(5, (200,))
    expected = {"pictures": [0] * BINS, "right": [0] * BINS}
    sums = [0.0] * BINS
    for row, label in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True):
        place = min(int(max(row) * BINS), BINS - 1)
        expected["pictures"][place] += 1
        expected["right"][place] += row.index(max(row)) == label
        sums[place] += max(row)
    metric = Reliability()
    for start, end in ((0, 3), (3, 150), (150, 200)):
        metric.update(logits[start:end], labels[start:end])
    found = metric.compute()
    assert {name: found[name] for name in expected} == expected
    for count, mean, total in zip(found["pictures"], found["confidence"], sums, strict=True):
        assert abs(mean * count - total) < 1e-3
        assert count or not mean


def test_certainty_has_the_last_bin() -> None:
    metric = Reliability()
    metric.update(torch.tensor([[99.0, -99.0]]), torch.tensor([0]))
    assert metric.compute()["pictures"] == [0] * (BINS - 1) + [1]


def test_mixed_precision_does_not_round_the_sums() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(500, 5), torch.randint(5, (500,))
    plain, mixed = Reliability(), Reliability()
    plain.update(logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed.update(logits, labels)
    assert torch.allclose(plain.confidences, mixed.confidences, rtol=1e-5)
