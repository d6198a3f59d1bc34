"""Calibration pictures reach a validation step each once, in one process and in two."""

import re
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import started
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, distributed

from project.data import DomainDataModule, Domains, ImageFolders
from project.data.checking import PictureCheck
from project.data.sharding import EachOnce
from project.errors import ConfigurationError, DataError

WAIT = timedelta(minutes=2)
Draw = Callable[..., Path]
Make = Callable[..., ImageFolders]
pytestmark = [
    # Lightning 2.6's own use of torch's pytrees, in every CombinedLoader.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    # Loading in this process is what the test wants, on however many cores.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


class Recorder(LightningModule):
    """Keeps the batches it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Mapping[str, Tensor | None]] = []

    def validation_step(self, batch: Mapping[str, Tensor | None], batch_idx: int) -> None:
        assert batch_idx == len(self.seen)
        self.seen.append(batch)


def pictures(batches: list[Mapping[str, Tensor | None]], domain: str) -> Tensor:
    return torch.cat([batch[domain] for batch in batches if batch[domain] is not None])


@pytest.fixture
def data(folders: Make) -> DomainDataModule:
    sets = folders({"art": {"cat": 10, "dog": 20}, "photo": {"cat": 6, "dog": 4}}, test_fraction=0.2)
    return DomainDataModule(sets, image_size=8, calibration=17, calibration_views=1, calibration_batch_size=4)


def test_a_validation_step_sees_all_domains_at_once(data: DomainDataModule, tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    module = Recorder()
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
    trainer.validate(module, dataloaders=data.calibration_dataloader(), verbose=False)
    sizes = [{name: len(x) if x is not None else 0 for name, x in batch.items()} for batch in module.seen]
    assert sizes == [{"art": 4, "photo": n} for n in (4, 2, 0, 0)] + [{"art": 1, "photo": 0}]
    for name in data.domain_names:
        seen = pictures(module.seen, name)
        assert len(torch.unique(seen.flatten(1), dim=0)) == len(seen) == len(data.samples(name, "calibration"))


def test_the_order_is_one_of_the_seed(data: DomainDataModule) -> None:
    first, second = ([batch for batch in data.calibration_dataloader()] for _ in range(2))
    assert torch.equal(pictures(first, "art"), pictures(second, "art"))
    labels = [label for _, label in data.samples("art", "calibration")]
    assert labels != sorted(labels)


def test_no_test_or_validation_picture_is_used(data: DomainDataModule) -> None:
    for name in data.domain_names:
        used = set(data.samples(name, "calibration"))
        assert used <= set(data.samples(name, "train"))
        assert not used & {*data.samples(name, "test"), *data.samples(name, "validation")}


def share(rank: int, folder: Path) -> None:
    """In one of two processes: deal out seven items, and check pictures of which the second cannot be read."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2, timeout=WAIT
    )
    sampler = EachOnce(range(7))
    with warnings.catch_warnings(action="ignore"):
        kept = PictureCheck("skip").readable([(folder / f"{index}.png", index) for index in range(3)])
    torch.save((list(sampler), len(sampler), [label for _, label in kept]), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.ddp
def test_two_processes_share_without_repeating_and_agree_on_what_is_readable(draw: Draw, tmp_path: Path) -> None:
    draw("0.png")
    draw("2.png")
    other = started(share, 1, tmp_path)
    share(0, tmp_path)
    other.join()
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert shares == [([0, 2, 4, 6], 4, [0, 2]), ([1, 3, 5], 3, [0, 2])]
    assert list(EachOnce(range(3))) == [0, 1, 2]


def test_pictures_are_checked_before_long_work_drawn_or_not(folders: Make) -> None:
    sets = folders({"art": {"cat": 12, "dog": 12}})
    data = Domains(sets, image_size=8, calibration=1)
    drawn = {path for use in ("calibration", "test") for path, _ in data.samples("art", use)}
    spoilt = next(path for path, _ in data.samples("art", "train") if path not in drawn)
    spoilt.write_text("no picture")
    with pytest.raises(DataError, match=rf"1 of 24 pictures cannot be read: {re.escape(str(spoilt))}"):
        Domains(sets, image_size=8, calibration=1).check_pictures()
    Domains(sets, image_size=8, calibration=1, check="used").check_pictures()
    with pytest.warns(UserWarning, match="1 of 24 pictures cannot be read") as told:
        Domains(sets, image_size=8, calibration="all", on_error="skip").check_pictures()
    assert len(told) == 1
    with pytest.raises(ConfigurationError, match=r"check is 'all'; allowed: 'listed', 'used'"):
        Domains(sets, image_size=8, check="all")  # type: ignore[arg-type]


def test_classes_of_one_picture_are_told_apart_from_no_share(folders: Make) -> None:
    data = Domains(folders({"art": {"cat": 1, "dog": 1}}), image_size=8)
    with pytest.raises(DataError, match=r"art has no test pictures: each of its classes has one picture, which trains"):
        data.check_pictures()
    data = Domains(folders({"oil": {"cat": 9, "dog": 9}}, domains=["oil"], test_fraction=0.0), image_size=8)
    with pytest.raises(DataError, match=r"oil has no test pictures: no share of its pictures is set aside for that"):
        data.check_pictures()
