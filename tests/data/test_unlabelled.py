"""Training batches without labels: all domains in each, the merge's own pictures, in a new order every epoch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from project.data import ImageFolders, UnlabelledDataModule
from project.errors import ConfigurationError

Make = Callable[..., ImageFolders]
pytestmark = [
    # Lightning 2.6's own use of torch's pytrees, in every CombinedLoader.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]

EXACT = True  # see tests/conftest.py


def batches(data: UnlabelledDataModule) -> list[dict[str, Tensor]]:
    return [batch for batch, _, _ in iter(data.train_dataloader())]


def rows(pictures: Tensor) -> set[tuple[float, ...]]:
    return {tuple(picture.flatten().tolist()) for picture in pictures}


@pytest.fixture
def data(folders: Make) -> UnlabelledDataModule:
    sets = folders({"art": {"cat": 10, "dog": 20}, "photo": {"cat": 6, "dog": 4}}, test_fraction=0.2)
    return UnlabelledDataModule(sets, image_size=8, calibration=10, calibration_batch_size=4, augment=False)


def test_every_batch_has_every_domain(data: UnlabelledDataModule) -> None:
    found = batches(data)
    assert data.calibration_counts() == {"art": 10, "photo": 6}
    assert [{name: len(x) for name, x in batch.items()} for batch in found] == [
        {"art": 4, "photo": 4},
        {"art": 4, "photo": 2},
        {"art": 2, "photo": 4},
    ]


def test_they_are_the_pictures_of_the_merge_in_another_order(data: UnlabelledDataModule) -> None:
    merged = [batch for batch in data.calibration_dataloader()]
    loader = data.train_dataloader()
    epochs = [[batch for batch, _, _ in iter(loader)] for _ in range(2)]
    for name in data.domain_names:
        expected = torch.cat([batch[name] for batch in merged if batch[name] is not None])
        first, second = (torch.cat([batch[name] for batch in epoch]) for epoch in epochs)
        assert rows(first) == rows(second) == rows(expected)
        assert not torch.equal(first, second)


def test_pictures_are_mirrored_by_lot(data: UnlabelledDataModule) -> None:
    plain = {name: rows(torch.cat([batch[name] for batch in batches(data)])) for name in data.domain_names}
    data.augment = True
    torch.manual_seed(0)
    loader = data.train_dataloader()
    for name in data.domain_names:
        found = torch.cat([batch[name] for _ in range(3) for batch, _, _ in iter(loader)])
        whole = [tuple(x.flatten().tolist()) in plain[name] for x in found]
        mirrored = [tuple(x.flip(2).flatten().tolist()) in plain[name] for x in found]
        assert all(a != b for a, b in zip(whole, mirrored, strict=True))
        assert any(whole)
        assert any(mirrored)


def test_without_pictures_there_is_nothing_to_train_on(data: UnlabelledDataModule) -> None:
    data.calibration = "none"
    with pytest.raises(ConfigurationError, match="calibration is 'none', which leaves nothing to train on"):
        data.train_dataloader()
