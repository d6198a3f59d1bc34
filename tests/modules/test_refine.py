"""Refining: what is written, what stays as it was, and what is refused."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DOMAINS, make_problem, random_map, resnet, same_state
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from project.data import DomainDataModule, Shapes
from project.errors import CheckpointError, ConfigurationError
from project.models import Architecture, LabelSpace, Preprocessing
from project.models.reading.files import file_hash
from project.modules import RefineModule
from project.modules.refine import warmup_cosine
from project.student import Student, load_source, load_student, save_student

SHAPE = (3, 16, 16)
CLASSES = {"shared": (4, 4, 4), "different": (2, 4, 3)}
pytestmark = [
    # The loaders here are lists in memory.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


class Data(LightningDataModule):
    """Noise of two domains."""

    def __init__(self, labels: LabelSpace) -> None:
        super().__init__()
        self.label_space = labels
        self.preprocessing = Preprocessing(16)

    def noise(self, seed: int) -> Tensor:
        return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(seed))

    def train_dataloader(self) -> DataLoader:
        steps = [{d: self.noise(10 * i + k) for k, d in enumerate(self.label_space.domains)} for i in range(3)]
        return DataLoader(steps, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> list[DataLoader]:
        labels = [torch.arange(4) % len(names) for names in self.label_space.classes.values()]
        return [DataLoader([(self.noise(90 + k), y)], batch_size=None) for k, y in enumerate(labels)]  # type: ignore[arg-type, list-item]


class Place:
    """A student in a file, its sources in files, and the data."""

    def __init__(self, folder: Path, count: int, mode: str) -> None:
        self.sources = [folder / f"source{s}.ckpt" for s in range(count)]
        networks = [resnet("resnet8", s, CLASSES[mode][s]) for s in range(count)]
        for network, path in zip(networks, self.sources, strict=True):
            torch.save(network.state_dict(), path)
        self.architectures = [Architecture("resnet8", classes) for classes in CLASSES[mode][:count]]
        problem = make_problem(networks, mode, shape=SHAPE, batches=[], architecture=self.architectures[0])
        free = {g.name: random_map(g.size, count, i) for i, g in enumerate(problem.spec.free)}
        self.made = problem.start({**problem.fixed, **free})
        self.made.preprocessing = Preprocessing(16)
        self.made.lineage = {"method": "pleas", "sources": [self.entry(s) for s in range(count)]}
        self.student = folder / "pleas-1.50.ckpt"
        save_student(self.made, self.student)
        self.data = Data(problem.labels)
        self.folder = folder

    def entry(self, source: int) -> dict[str, Any]:
        return {
            "name": f"source{source}",
            "sha256": file_hash(self.sources[source]),
            "architecture": vars(self.architectures[source]),
            "domains": [DOMAINS[source]],
        }

    def module(self, **options: Any) -> RefineModule:
        sources = options.pop("sources", self.sources)
        return RefineModule(options.pop("student", self.student), sources, **options)

    def trainer(self, **options: Any) -> Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        default = {"accelerator": "cpu", "max_epochs": 2, "enable_checkpointing": False, "log_every_n_steps": 1}
        return Trainer(default_root_dir=self.folder, **quiet | default | options)  # type: ignore[arg-type]

    @property
    def refined(self) -> Student:
        return load_student(self.folder / "students" / "pleas-1.50-refined.safetensors")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, 2, "shared")


@pytest.mark.parametrize(("count", "mode"), [(2, "shared"), pytest.param(3, "different", marks=pytest.mark.slow)])
def test_a_refined_student_is_a_student(tmp_path: Path, count: int, mode: str) -> None:
    place = Place(tmp_path, count, mode)
    module, trainer = place.module(sources=place.sources[::-1]), place.trainer()  # the order of the files is free
    trainer.fit(module, datamodule=place.data)
    found = place.refined
    assert same_state(found.network.state_dict(), module.network.state_dict())
    assert {name: units.members.tolist() for name, units in found.maps.items()} == {
        name: units.members.tolist() for name, units in place.made.maps.items()
    }
    (run,) = found.lineage["refined"]  # type: ignore[misc]
    assert run["steps"] == 6
    assert run["seconds"] > 0
    assert {**found.lineage, "refined": None} == {**place.made.lineage, "refined": None}
    metrics = {f"val/{domain}/accuracy" for domain in found.labels.domains} | {"val/loss", "val/accuracy"}
    groups = {f"train/features/{group.name}" for group in found.spec.free}
    assert metrics | groups | {"train/loss", "train/logits"} == set(trainer.callback_metrics)
    assert load_source(tmp_path / "students" / "pleas-1.50-refined.safetensors").logits == found.labels.width


def test_weights_move_while_statistics_and_sources_stay(place: Place) -> None:
    module = place.module()
    trainer = place.trainer(num_sanity_val_steps=0)
    before = [file_hash(path) for path in place.sources]
    trainer.fit(module, datamodule=place.data)
    start, end = place.made.network.state_dict(), place.refined.network.state_dict()
    for name, tensor in start.items():
        stays = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(tensor, end[name]) == stays, name
    assert module.distillation is not None
    for graph, path in zip(module.distillation.sources, place.sources, strict=True):
        assert same_state(dict(sorted(graph.state_dict().items())), dict(sorted(torch.load(path).items())))
    assert [file_hash(path) for path in place.sources] == before


def test_the_loss_falls(place: Place) -> None:
    losses = []
    for epochs in (1, 6):
        trainer = place.trainer(max_epochs=epochs)
        trainer.fit(place.module(optimizer=lambda p: torch.optim.Adam(p, lr=1e-3)), datamodule=place.data)
        losses.append(float(trainer.callback_metrics["train/loss"]))
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.slow
def test_checkpoints_are_students_and_an_interrupted_run_goes_on(place: Place, tmp_path: Path) -> None:
    place.trainer().fit(place.module(), datamodule=place.data)
    whole = place.refined.network.state_dict()
    interrupted = place.trainer()
    module = place.module()
    module.on_train_epoch_end = lambda: interrupted.save_checkpoint(tmp_path / f"{module.current_epoch}.ckpt")  # type: ignore[method-assign]
    interrupted.fit(module, datamodule=place.data)
    half = load_student(tmp_path / "0.ckpt")
    (run,) = half.lineage["refined"]  # type: ignore[misc]
    assert run["steps"] == 3
    assert not same_state(half.network.state_dict(), whole)
    place.trainer().fit(place.module(), datamodule=place.data, ckpt_path=tmp_path / "0.ckpt", weights_only=True)
    assert same_state(place.refined.network.state_dict(), whole)
    (resumed,) = place.refined.lineage["refined"]  # type: ignore[misc]
    assert resumed["steps"] == 6
    assert resumed["seconds"] >= run["seconds"]


@pytest.mark.slow
def test_a_student_can_be_refined_again(place: Place, tmp_path: Path) -> None:
    place.trainer(max_epochs=1).fit(place.module(), datamodule=place.data)
    (tmp_path / "students" / "pleas-1.50-refined.safetensors").rename(tmp_path / "again.safetensors")
    place.trainer(max_epochs=1).fit(place.module(student=tmp_path / "again.safetensors"), datamodule=place.data)
    found = load_student(tmp_path / "students" / "again-refined.safetensors")
    assert len(found.lineage["refined"]) == 2  # type: ignore[arg-type]


def test_only_its_own_sources_will_do(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other.ckpt"
    torch.save(resnet("resnet8", 9, 4).state_dict(), other)
    with pytest.raises(ConfigurationError, match=r"sources holds .*other\.ckpt .*not made of; it was made of source0"):
        place.trainer().fit(place.module(sources=[place.sources[0], other]), datamodule=place.data)
    with pytest.raises(ConfigurationError, match="sources lacks the files of source1"):
        place.trainer().fit(place.module(sources=place.sources[:1]), datamodule=place.data)
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt is not there"):
        place.trainer().fit(place.module(sources=[tmp_path / "nowhere.ckpt"]), datamodule=place.data)


def test_a_student_must_say_what_it_was_made_of(place: Place) -> None:
    silent = copy.copy(place.made)
    silent.lineage = {"sources": [{"name": "a", "sha256": "0"}]}
    save_student(silent, place.student)
    with pytest.raises(CheckpointError, match="does not say which sources it was made of"):
        place.trainer().fit(place.module(), datamodule=place.data)


def test_data_must_map_domains_to_pictures(place: Place) -> None:
    place.data.train_dataloader = lambda: DataLoader(torch.randn(2, *SHAPE))  # type: ignore[method-assign, arg-type]
    with pytest.raises(ConfigurationError, match="must map domains to pictures; use UnlabelledDataModule"):
        place.trainer().fit(place.module(), datamodule=place.data)


def test_labelled_batches_are_refused_before_anything_is_loaded(place: Place) -> None:
    place.student.unlink()
    data = DomainDataModule(
        Shapes(place.student.parent / "data", size=8, train_per_class=2, test_per_class=1), image_size=8
    )
    with pytest.raises(ConfigurationError, match="data is DomainDataModule; use UnlabelledDataModule"):
        place.trainer().fit(place.module(), datamodule=data)


def test_the_schedule_needs_an_end(place: Place) -> None:
    with pytest.raises(ConfigurationError, match=r"max_epochs is -1"):
        place.trainer(max_epochs=-1).fit(place.module(), datamodule=place.data)


def test_domains_without_source_are_told(tmp_path: Path) -> None:
    place = Place(tmp_path, 2, "shared")
    place.data.label_space = LabelSpace({"photo": place.data.label_space.classes[DOMAINS[0]]})
    with pytest.warns(UserWarning, match="domain 'photo' has no source"):
        place.trainer(max_epochs=1).fit(place.module(), datamodule=place.data)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"warmup": 1.0}, "warmup is 1.0; allowed: 0 or more, below 1"), ({"temperature": -1.0}, "temperature is -1.0")],
)
def test_impossible_values_are_told_at_once(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RefineModule(Path("student.ckpt"), [Path("source.ckpt")], **options)


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    assert [warmup_cosine(done, 0.2) for done in (0.0, 0.1, 0.2)] == pytest.approx([0.0, 0.5, 1.0])
    for done in (0.4, 0.6, 0.8, 1.0):
        assert warmup_cosine(done, 0.2) == pytest.approx(math.cos(math.pi / 2 * (done - 0.2) / 0.8) ** 2)
    assert warmup_cosine(0.0, 0.0) == 1.0
