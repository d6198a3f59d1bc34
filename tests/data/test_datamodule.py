"""What the trainer gets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader

from project.data import DomainDataModule, ImageFolders
from project.data.sharding import Shuffled
from project.errors import ConfigurationError, DataError

Make = Callable[..., ImageFolders]
EQUAL = {"art": {"cat": 10, "dog": 20}, "photo": {"cat": 12, "dog": 8}}
UNEQUAL = {"art": {"cat": 10, "dog": 20}, "birds": {"auk": 6, "owl": 6, "tit": 6}}


def module(sets: ImageFolders, **options: Any) -> DomainDataModule:
    settings = {"image_size": 8, "batch_size": 7, "calibration": 9} | options
    return DomainDataModule(sets, **settings)


def test_training_goes_over_all_domains_once(folders: Make) -> None:
    data = module(folders(EQUAL))
    batches = list(data.train_dataloader())
    pictures, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    samples = [sample for name in data.domain_names for sample in data.samples(name, "train")]
    assert pictures.shape == (len(samples), 3, 8, 8)
    assert pictures.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert sorted(labels.tolist()) == sorted(label for _, label in samples)


def test_training_labels_are_columns_where_the_classes_differ(folders: Make) -> None:
    data = module(folders(UNEQUAL), label_space="different")
    assert data.label_space.width == 5
    labels = torch.cat([labels for _, labels in data.train_dataloader()])
    assert set(labels.tolist()) == set(range(5))
    offset = data.label_space.columns("birds").start
    assert (labels >= offset).sum() == len(data.samples("birds", "train"))


@pytest.mark.parametrize("use", ["validation", "test"])
def test_evaluation_has_a_loader_a_domain_with_labels_of_its_own(folders: Make, use: str) -> None:
    data = module(folders(UNEQUAL), label_space="different")
    loaders = data.val_dataloader() if use == "validation" else data.test_dataloader()
    for name, loader in zip(data.domain_names, loaders, strict=True):
        labels = torch.cat([labels for _, labels in loader]).tolist()
        assert labels == [label for _, label in data.samples(name, use)]  # type: ignore[arg-type]
        assert set(labels) == set(range(len(data.label_space.classes[name])))


def test_prediction_names_its_pictures(folders: Make) -> None:
    data = module(folders(EQUAL))
    for name, loader in zip(data.domain_names, data.predict_dataloader(), strict=True):
        paths = [path for _, batch in loader for path in batch]
        assert paths == [str(path) for path, _ in data.samples(name, "test")]


def test_evaluation_is_the_same_every_time(folders: Make) -> None:
    data = module(folders(EQUAL))
    for loader in data.val_dataloader():
        first, second = (torch.cat([pictures for pictures, _ in loader]) for _ in range(2))
        assert torch.equal(first, second)


def test_shuffling_and_augmentation_repeat_with_the_seed(folders: Make) -> None:
    data = module(folders(EQUAL))
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(torch.cat([pictures for pictures, _ in data.train_dataloader()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def epoch(loader: DataLoader[Any], number: int) -> list[Any]:
    """The pictures and labels of an epoch, which Lightning has announced."""
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_shows_the_same_whatever_came_before_it(workers: int, folders: Make) -> None:
    """And whoever loads it."""
    sets = folders(EQUAL)
    alone = module(sets).train_dataloader()
    whole = [epoch(alone, number) for number in range(3)]
    assert not torch.equal(whole[0][0], whole[1][0])
    loader = module(sets, num_workers=workers).train_dataloader()
    for number in (0, 1, 2) if workers else (2,):
        before = torch.get_rng_state()
        assert all(map(torch.equal, epoch(loader, number), whole[number]))
        assert torch.equal(torch.get_rng_state(), before), "nothing was drawn from torch's generator"


def test_every_view_of_an_epoch_is_another(folders: Make) -> None:
    loader = module(folders(EQUAL)).train_dataloader()
    orders = [epoch(loader, 0), epoch(loader, 1)]
    rows = [{tuple(picture.flatten().tolist()) for picture in pictures} for pictures, _ in orders]
    assert not rows[0] & rows[1]
    plain = module(folders(EQUAL), augment=False).train_dataloader()
    shown = [{tuple(picture.flatten().tolist()) for picture in epoch(plain, number)[0]} for number in (0, 1)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_an_order_evenly(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    items = list("abcdefghijk")
    whole = list(Shuffled(items, 5))
    assert sorted(whole) == list(range(len(items)))
    shares = []
    for rank in range(size):
        monkeypatch.setattr("project.data.sharding._place", lambda rank=rank: (rank, size))
        sampler = Shuffled(items, 5)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    assert len({len(share) for share in shares}) == 1
    assert set().union(*shares) == set(whole)
    dealt = [index for parts in zip(*shares, strict=True) for index in parts]
    assert dealt[: len(items)] == whole


def test_rounds_within_an_epoch_differ_and_repeat() -> None:
    """A loader that comes round again before the others are through; Lightning announces the first epoch late."""
    late, early = Shuffled(range(20), 5, epoch=3), Shuffled(range(20), 5)
    first = list(late)
    late.set_epoch(3)
    second = list(late)
    early.set_epoch(3)
    assert [list(early), list(early)] == [first, second]
    assert [index % 20 for index in first] != [index % 20 for index in second]
    late.set_epoch(4)
    assert list(late) not in (first, second)


def test_no_batch_of_one_picture_in_training(folders: Make) -> None:
    data = module(folders({"art": {"cat": 8, "dog": 7}}, test_fraction=0.0), validation_fraction=0.0, batch_size=7)
    assert [len(labels) for _, labels in data.train_dataloader()] == [7, 7]
    assert data.val_dataloader() == []


def test_domains_are_chosen_and_ordered(folders: Make) -> None:
    assert module(folders(EQUAL), domains=["photo", "art"]).domain_names == ("photo", "art")
    with pytest.raises(ConfigurationError, match=r"domains is \['oil'\]; allowed: .*art, photo"):
        module(folders(EQUAL), domains=["oil"]).setup("fit")


def test_classes_that_differ_need_the_different_label_space(folders: Make) -> None:
    with pytest.raises(ConfigurationError, match=r"only in art: cat, dog; only in birds: auk, owl, tit"):
        module(folders(UNEQUAL)).read()


def test_a_domain_in_two_sets_is_refused(folders: Make) -> None:
    sets = folders(EQUAL)
    with pytest.raises(ConfigurationError, match="domain art twice"):
        DomainDataModule([sets, sets], image_size=8).read()


def test_unreadable_pictures(folders: Make, tmp_path: Path) -> None:
    sets = folders(EQUAL)
    (tmp_path / "folders/art/dog/bad.png").write_text("no picture")
    options = {"validation_fraction": 0.5, "calibration": "all"}

    def loaders(data: DomainDataModule) -> list[Any]:
        return [data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]

    with pytest.raises(DataError, match=r"bad\.png"):
        loaders(module(sets, **options))
    with pytest.warns(UserWarning, match=r"bad\.png"):
        kept = loaders(module(sets, on_error="skip", **options))
    assert sum(len(labels) for loader in kept for _, labels in loader) == 50


def test_a_use_without_pictures_is_told(folders: Make) -> None:
    data = module(folders(EQUAL, test_fraction=0.0))
    with pytest.raises(DataError, match="Domain art has no test pictures"):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": []}, r"sets is \[\]"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"calibration": 0}, "calibration is 0; allowed: 'all', 'public', 'none', or a number"),
        ({"calibration": True}, "calibration is True"),
        ({"calibration": "some"}, "calibration is 'some'"),
        ({"calibration": "public"}, "calibration is 'public', but public is null"),
        ({"calibration_views": 0}, "calibration_views is 0"),
        ({"public_pictures": 0}, "public_pictures is 0"),
        ({"calibration_batch_size": 0}, "calibration_batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"crop": "left"}, "crop is 'left'"),
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": None}, "image_size is missing"),
        ({"std": (0.0, 1.0, 1.0)}, "std is"),
        ({"mean": (0.0, 1.0)}, "mean is"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DomainDataModule(**{"sets": ImageFolders("data"), "image_size": 8} | options)


@pytest.mark.parametrize("listed", [False, True])
def test_it_is_made_from_a_configuration(listed: bool) -> None:
    one = {"class_path": "project.data.Shapes", "init_args": {"root": "somewhere", "domains": ["photo"]}}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DomainDataModule, "data")
    made = parser.instantiate(parser.parse_object({"data": {"sets": [one] if listed else one, "image_size": 8}})).data
    assert made.sets[0].root == Path("somewhere")
    assert made.sets[0].domains == ["photo"]
