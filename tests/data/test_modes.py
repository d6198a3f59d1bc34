"""Which pictures calibrate, in every mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from project.data import DomainDataModule, ImageFolders, PictureFolder, Shapes
from project.data.calibration import calibration_samples
from project.data.domain import Sample
from project.errors import ConfigurationError, DataError

Make = Callable[..., ImageFolders]
COUNTS = {"art": {"cat": 10, "dog": 20}, "photo": {"cat": 12, "dog": 8}, "oil": {"cat": 9, "dog": 9}}


def listed(*counts: int) -> dict[str, list[Sample]]:
    """Domain d<i> with so many pictures, in two classes."""
    return {f"d{i}": [(Path(f"{i}/{j}.png"), j % 2) for j in range(count)] for i, count in enumerate(counts)}


@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_draw_is_part_of_a_larger(seed: int) -> None:
    train = listed(40, 25)
    draws = {k: calibration_samples(k, train, None, None, seed) for k in (1, 2, 4, 16, 64)}
    for domain, samples in train.items():
        for k, draw in draws.items():
            assert len(set(draw[domain])) == len(draw[domain]) == min(k, len(samples))
            assert set(draw[domain]) <= set(samples)
            assert draw[domain] == draws[64][domain][:k]
        assert draws[64] == calibration_samples("all", train, None, None, seed)
    others = calibration_samples(16, train, None, None, seed + 1)
    assert others != draws[16]


def test_further_views_repeat_and_leave_the_first_as_they_are(folders: Make) -> None:
    sets, options = folders(COUNTS), {"image_size": 8, "calibration": 5, "calibration_batch_size": 5}
    plain, *_ = (batch["art"] for batch in DomainDataModule(sets, **options).calibration_dataloader())  # type: ignore[arg-type]
    data = DomainDataModule(sets, calibration_views=3, **options)  # type: ignore[arg-type]
    assert data.calibration_counts() == {"art": 15, "oil": 15, "photo": 15}
    torch.manual_seed(0)
    first = [batch["art"] for batch in data.calibration_dataloader()]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = [data.calibration_dataloader().loaders["art"].dataset[index] for index in range(15)]
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from torch's generator"
    assert torch.equal(torch.cat(first), torch.stack(second))
    assert torch.equal(first[0], plain)
    assert not torch.equal(first[1], plain)
    assert not torch.equal(first[1], first[2])


def test_labels_come_where_they_are_asked_for(folders: Make) -> None:
    data = DomainDataModule(folders(COUNTS), image_size=8, calibration=5, calibration_views=2, calibration_batch_size=4)
    plain = [batch for batch in data.calibration_dataloader()]
    labelled = [batch for batch in data.calibration_dataloader(labelled=True)]
    for domain in data.domain_names:
        expected = 2 * [label for _, label in data.samples(domain, "calibration")]
        assert torch.cat([batch[domain][1] for batch in labelled if batch[domain] is not None]).tolist() == expected
        for one, other in zip(plain, labelled, strict=True):
            assert one[domain] is None if other[domain] is None else torch.equal(one[domain], other[domain][0])


def test_no_pictures_at_all(folders: Make) -> None:
    data = DomainDataModule(folders(COUNTS), image_size=8, calibration="none")
    assert data.calibration_domains == ()
    assert list(data.calibration_dataloader()) == [{}]


@pytest.mark.parametrize(("wanted", "count"), [(5, 5), (None, 14), (1000, 14)])
def test_public_pictures_are_of_no_domain_that_is_merged(folders: Make, wanted: int | None, count: int) -> None:
    sets = folders(COUNTS)
    public = ImageFolders(sets.root, ["oil"])
    options: dict[str, Any] = {
        "image_size": 8,
        "calibration": "public",
        "public": public,
        "public_pictures": wanted,
        "calibration_views": 1,
    }
    data = DomainDataModule(sets, domains=["art", "photo"], **options)
    assert data.domain_names == ("art", "photo")
    assert data.calibration_counts() == {"public": count}
    samples = data.samples("public", "calibration")
    assert set(samples) <= set(public.read()[0].train)
    (batch,) = (batch for batch in data.calibration_dataloader())
    assert batch["public"].shape == (count, 3, 8, 8)
    with pytest.raises(ConfigurationError, match="public holds domain art, which is to be merged"):
        DomainDataModule(sets, **(options | {"public": sets})).calibration_counts()
    (sets.root / "art").rename(sets.root / "public")
    with pytest.raises(ConfigurationError, match="a domain to be merged has this name"):
        DomainDataModule(sets, domains=["public", "photo"], **options).calibration_counts()


def test_public_pictures_in_a_folder_of_any_structure(folders: Make, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    for path in ("a.png", "deep/er/b.png", "deep/c.png"):
        (loose / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(loose / path)
    (loose / "notes.txt").write_text("no picture")
    data = DomainDataModule(folders(COUNTS), image_size=8, calibration="public", public=PictureFolder(loose))
    assert sorted(path.name for path, _ in data.samples("public", "calibration")) == ["a.png", "b.png", "c.png"]
    with pytest.raises(DataError, match="elsewhere is not there"):
        PictureFolder(tmp_path / "elsewhere").read()


def test_public_pictures_are_rendered_where_they_are_missing(tmp_path: Path) -> None:
    options: dict[str, Any] = {"size": 8, "train_per_class": 1, "test_per_class": 1}
    sets = Shapes(tmp_path, domains=["clipart"], **options)
    for calibration in (1, "public"):
        data = DomainDataModule(
            sets, image_size=8, calibration=calibration, public=Shapes(tmp_path, domains=["photo"], **options)
        )
        data.prepare_data()
        assert (tmp_path / "photo").exists() == (calibration == "public")
    assert len(data.samples("public", "calibration")) == 12
    assert data.calibration_counts() == {"public": 12}


def test_few_pictures_are_shown_again_and_again(
    folders: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each domain up to one number of views; those of a domain that has more are shown once."""
    monkeypatch.setattr("project.data.calibration.ENOUGH", 7)
    caplog.set_level("INFO", "project")
    sets = folders({"art": {"cat": 3, "dog": 2}, "oil": {"cat": 4, "dog": 4}}, test_fraction=0.2)
    data = DomainDataModule(sets, image_size=8, validation_fraction=0.0, calibration="all")
    pictures = {domain: len(data.samples(domain, "calibration")) for domain in data.domain_names}
    assert pictures == {"art": 3, "oil": 5}
    views = {"art": 2, "oil": 1}
    assert data.calibration_counts() == {domain: views[domain] * pictures[domain] for domain in pictures}
    assert data.calibration_pictures() == pictures
    for domain in pictures:
        shown = torch.cat([batch[domain] for batch in data.calibration_dataloader() if batch[domain] is not None])
        assert len(shown) == views[domain] * pictures[domain]
    data.check_pictures()
    told = [record.getMessage() for record in caplog.records if "calibration_views" in record.getMessage()]
    assert [text.split(" are shown")[0] for text in told] == [f"the {pictures['art']} calibration pictures of art"]
    assert DomainDataModule(sets, image_size=8, calibration_views=1, calibration=2).calibration_counts()["art"] == 2


@pytest.mark.parametrize("value", ["all", "public", "none", "16", "1"])
def test_the_command_line_knows_every_mode(value: str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(DomainDataModule, "data")
    public = "--data.public={class_path: project.data.PictureFolder, init_args: {root: x}}"
    sets = "--data.sets={class_path: project.data.ImageFolders, init_args: {root: x}}"
    parsed = parser.parse_args([sets, public, "--data.image_size", "8", "--data.calibration", value])
    assert parsed.data.calibration == (int(value) if value.isdecimal() else value)
    built = parser.instantiate(parsed).data
    assert built.calibration == parsed.data.calibration
