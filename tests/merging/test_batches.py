"""Batches that a user's own loop hands to a merge."""

from typing import Any

import pytest
import torch
from helpers import PICTURE, random_network

import project
from project.data.given import GivenPictures
from project.errors import ConfigurationError
from project.merging.passes import read_batch
from project.methods import Fisher

PICTURES, LABELS = torch.zeros(4, *PICTURE), torch.tensor([0, 1, 0, 1])


def test_what_a_batch_may_hold() -> None:
    assert read_batch({}, ()) == {}
    found = read_batch({"art": PICTURES, "birds": [PICTURES, LABELS], "cars": None}, ("art", "birds", "cars"))
    assert set(found) == {"art", "birds"}
    assert found["art"][1] is None
    assert found["birds"][1] is LABELS
    assert read_batch({"art": (PICTURES, LABELS)}, ["art"], labelled=True)["art"][0] is PICTURES


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (PICTURES, "must map domains to pictures"),
        ([PICTURES, LABELS], "must map domains to pictures"),
        ({"dogs": PICTURES}, "holds pictures of 'dogs'; allowed: art, birds"),
        ({"art": "pictures"}, "holds a str for 'art'"),
        ({"art": [PICTURES]}, "holds a list for 'art'"),
        ({"art": (PICTURES, LABELS, LABELS)}, "holds a tuple for 'art'"),
        ({"art": (PICTURES, [0, 1, 0, 1])}, "holds a tuple for 'art'"),
        ({"art": PICTURES}, "4 pictures of 'art' without labels, but a method reads the class of each"),
        ({"art": (PICTURES, LABELS[:3])}, r"'art' with labels of shape \(3,\)"),
        ({"art": (PICTURES, LABELS.float())}, r"'art' with labels of shape \(4,\), torch.float32"),
    ],
)
def test_what_it_may_not(batch: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        read_batch(batch, ("art", "birds"), labelled=True)


def test_a_merge_that_reads_labels_refuses_the_first_batch_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from ``trainer.validate(module, datamodule.calibration_dataloader())``, where nobody asked for labels."""
    sources = [random_network(0, seed) for seed in range(2)]
    given = {domain: [(PICTURES, LABELS)] for domain in ("art", "birds")}
    monkeypatch.setattr(GivenPictures, "calibration_batches", lambda *_: iter([dict.fromkeys(given, PICTURES)]))
    with pytest.raises(ConfigurationError, match=r"without labels.*calibration_dataloader\(module.labelled\)"):
        project.merge(sources, given, method=Fisher(classes="labels"), base="mean", progress=False)
