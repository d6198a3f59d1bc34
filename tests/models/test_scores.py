import pytest
import torch
from torch.nn.functional import one_hot

from project.models import DomainScores, LabelSpace

LABELS = LabelSpace({"real.photo": ("cat", "dog"), "sketch": ("car", "bus", "van")}, "different")


def test_scores_over_batches_and_domains() -> None:
    scores = DomainScores(LABELS)
    scores.update(0, one_hot(torch.tensor([0, 0, 1]), 2).float(), torch.tensor([0, 1, 1]), torch.tensor(1.0))
    scores.update(0, one_hot(torch.tensor([0]), 2).float(), torch.tensor([0]), torch.tensor(5.0))
    scores.update(1, one_hot(torch.tensor([0, 2]), 3).float(), torch.tensor([2, 2]), torch.tensor(4.0))
    found = {name: value.item() for name, value in scores.compute().items()}
    assert found == pytest.approx(
        {"real.photo/accuracy": 0.75, "sketch/accuracy": 0.5, "accuracy": 0.625, "loss": (2.0 + 4.0) / 2}
    )


def test_classes_without_pictures_are_left_out() -> None:
    scores = DomainScores(LABELS)
    scores.update(0, one_hot(torch.tensor([0, 0, 1]), 2).float(), torch.tensor([0, 1, 1]), torch.tensor(1.0))
    scores.update(1, one_hot(torch.tensor([0, 2]), 3).float(), torch.tensor([2, 2]), torch.tensor(1.0))
    found = {name: value.item() for name, value in scores.per_class().items()}
    assert found == {"real.photo/per_class/cat": 1, "real.photo/per_class/dog": 0.5, "sketch/per_class/van": 0.5}


def test_reset_forgets_and_nothing_is_saved() -> None:
    scores = DomainScores(LABELS)
    for labels in ([0, 0], [1, 1]):
        scores.reset()
        for domain, width in enumerate((2, 3)):
            logits = one_hot(torch.tensor([1, 1]), width).float()
            scores.update(domain, logits, torch.tensor(labels), torch.tensor(1.0))
    assert scores.compute()["accuracy"] == 1
    assert not scores.state_dict()
