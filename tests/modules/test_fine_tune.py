from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, ReduceLROnPlateau
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import ReduceLROnPlateau as PlainReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from project.errors import CheckpointError, ConfigurationError
from project.models import Architecture, LabelSpace, Preprocessing, load_network, read_weights
from project.models.labels import LabelMode
from project.modules.fine_tune import FineTuneModule

pytestmark = [
    # Lightning 2.6 itself calls what torch 2.15 deprecates, https://github.com/Lightning-AI/pytorch-lightning/issues
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # the test machine may have more cores than the in-process loaders here use
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]

LABELS = LabelSpace({"real.photo": ("cat", "dog"), "sketch": ("car", "bus", "van")}, "different")


class Pictures(Dataset):
    """Random pictures, each with what comes second in its batch."""

    def __init__(self, seconds: list[Any]) -> None:
        self.seconds = seconds
        self.pictures = torch.randn(len(seconds), 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.pictures[index], self.seconds[index]


class Data(LightningDataModule):
    """Two domains of two and three classes."""

    preprocessing = Preprocessing(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))

    def __init__(self, label_space: LabelSpace = LABELS) -> None:
        super().__init__()
        self.label_space = label_space
        self.domain_names = label_space.domains

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Pictures([i % self.label_space.width for i in range(8)]), batch_size=4)

    def val_dataloader(self) -> list[DataLoader]:
        sets = [Pictures([i % len(names) for i in range(6)]) for names in self.label_space.classes.values()]
        return [DataLoader(pictures, batch_size=4) for pictures in sets]

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> list[DataLoader]:
        return [DataLoader(Pictures([f"{name}/{i}.png" for i in range(3)]), batch_size=2) for name in self.domain_names]


def trainer(**options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    default = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False}
    return Trainer(**quiet | default | options)


def module(**options: Any) -> FineTuneModule:
    return FineTuneModule(**{"architecture": "resnet8"} | options)


@pytest.fixture(scope="module")
def fitted() -> tuple[FineTuneModule, Trainer]:
    """A module after one epoch, and its trainer."""
    seed_everything(0, verbose=False)
    fitted, its_trainer = module(optimizer=lambda parameters: SGD(parameters, lr=0.1)), trainer()
    its_trainer.fit(fitted, datamodule=Data())
    return fitted, its_trainer


@pytest.fixture
def checkpoint(fitted: tuple[FineTuneModule, Trainer], tmp_path: Path) -> Path:
    fitted[1].save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_names_that_monitors_may_watch(fitted: tuple[FineTuneModule, Trainer]) -> None:
    assert set(fitted[1].callback_metrics) == {
        "train/loss",
        "val/loss",
        "val/accuracy",
        "val/real.photo/accuracy",
        "val/sketch/accuracy",
    }


@pytest.mark.parametrize("mode", ["shared", "different"])
def test_one_domain(mode: LabelMode) -> None:
    found = trainer(fast_dev_run=True)
    found.fit(module(), datamodule=Data(LabelSpace({"photo": ("cat", "dog")}, mode)))
    assert {"val/accuracy", "val/photo/accuracy"} <= set(found.callback_metrics)


def test_scores_are_those_of_the_domains_own_columns(fitted: tuple[FineTuneModule, Trainer]) -> None:
    found = trainer().test(fitted[0], datamodule=Data(), verbose=False)[0]
    network = fitted[0].network.eval()
    for loader, (domain, names) in zip(Data().test_dataloader(), LABELS.classes.items(), strict=True):
        pictures, labels = loader.dataset.pictures, torch.tensor(loader.dataset.seconds)
        right = network(pictures)[:, LABELS.columns(domain)].argmax(1) == labels
        assert found[f"test/{domain}/accuracy"] == pytest.approx(right.float().mean().item())
        for index, name in enumerate(names):
            expected = right[labels == index].float().mean().item()
            assert found[f"test/{domain}/per_class/{name}"] == pytest.approx(expected)
    assert found["test/accuracy"] == pytest.approx(
        (found["test/real.photo/accuracy"] + found["test/sketch/accuracy"]) / 2
    )
    assert "test/loss" in found


def test_validation_alone_scores_a_fresh_network() -> None:
    found = trainer().validate(module(), datamodule=Data(), verbose=False)[0]
    assert 0 <= found["val/accuracy"] <= 1
    assert not any("per_class" in name for name in found)


def test_predictions_carry_paths_and_the_domains_classes(fitted: tuple[FineTuneModule, Trainer]) -> None:
    photos, sketches = trainer().predict(fitted[0], datamodule=Data())
    assert [path for batch in sketches for path in batch["paths"]] == [f"sketch/{i}.png" for i in range(3)]
    assert photos[0]["logits"].shape == (2, 2)
    assert sketches[1]["probabilities"].shape == (1, 3)
    names = Data().label_space.classes["sketch"]
    assert sketches[0]["domain"] == "sketch"
    assert sketches[0]["columns"] == [("sketch", name) for name in names]
    assert sketches[0]["probabilities"].sum(1).allclose(torch.ones(2))


def test_checkpoint_holds_plain_values_only(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    entry = content["pleas"]
    assert entry["architecture"] == {
        "name": "resnet8",
        "num_classes": 5,
        "stem": "small",
        "width": 1,
        "arguments": None,
    }
    assert entry["classes"] == {"real.photo": ["cat", "dog"], "sketch": ["car", "bus", "van"]}
    assert entry["label_mode"] == "different"
    assert "optimizer" not in content["hyper_parameters"]  # a lambda
    weights = read_weights(checkpoint)
    assert (weights.label_space, weights.preprocessing) == (LABELS, Data.preprocessing)


def test_checkpoint_loads_without_data(fitted: tuple[FineTuneModule, Trainer], checkpoint: Path) -> None:
    loaded = FineTuneModule.load_from_checkpoint(checkpoint, weights_only=True).eval()
    pictures = torch.randn(2, 3, 16, 16)
    expected = fitted[0].eval()(pictures)
    assert torch.equal(loaded(pictures), expected)
    assert torch.equal(load_network(checkpoint)[0](pictures), expected)
    again = trainer().test(loaded, dataloaders=Data().test_dataloader(), verbose=False)
    assert again == trainer().test(fitted[0], datamodule=Data(), verbose=False)


def test_checkpoint_is_resumed_and_tested(checkpoint: Path) -> None:
    resumed = trainer(max_epochs=2)
    resumed.fit(module(optimizer=lambda p: SGD(p, lr=0.1)), datamodule=Data(), ckpt_path=checkpoint, weights_only=True)
    assert resumed.global_step == 4
    trainer().test(module(), datamodule=Data(), ckpt_path=checkpoint, weights_only=True, verbose=False)


def test_checkpoint_of_another_network_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds a .*resnet8.*, but the module is a .*resnet32"):
        trainer().test(module(architecture="resnet32"), datamodule=Data(), ckpt_path=checkpoint, weights_only=True)


def test_other_classes_are_refused(checkpoint: Path) -> None:
    other = Data(LabelSpace({"real.photo": ("cat", "fox"), "sketch": ("car", "bus", "van")}, "different"))
    with pytest.raises(ConfigurationError, match="differ: at index 1 stand 'dog' and 'fox'"):
        trainer().test(FineTuneModule.load_from_checkpoint(checkpoint, weights_only=True), datamodule=other)
    with pytest.raises(ConfigurationError, match="differ: at index 1 stand 'fox' and 'dog'"):
        trainer().test(module(), datamodule=other, ckpt_path=checkpoint, weights_only=True)


def test_base_gives_the_body_and_a_fitting_head(checkpoint: Path) -> None:
    based = module(base=checkpoint)
    trainer(limit_val_batches=1).validate(based, datamodule=Data(), verbose=False)
    tensors = read_weights(checkpoint).state_dict
    assert torch.equal(based.network.fc.weight, tensors["fc.weight"])
    narrow = module(base=checkpoint)
    trainer(limit_val_batches=1).validate(narrow, datamodule=Data(LabelSpace({"photo": ("cat", "dog")})), verbose=False)
    assert torch.equal(narrow.network.conv1.weight, tensors["conv1.weight"])
    assert narrow.network.fc.weight.shape == (2, 64)


def test_frozen_parts_stay_bit_for_bit(tmp_path: Path) -> None:
    torch.save(Architecture("resnet8", 5).build().state_dict(), tmp_path / "base.pt")
    before = read_weights(tmp_path / "base.pt").state_dict
    frozen = module(base=tmp_path / "base.pt", freeze=("conv1", "bn1", "layer1"), optimizer=lambda p: SGD(p, lr=0.1))
    trainer(max_epochs=2).fit(frozen, datamodule=Data())
    after = frozen.network.state_dict()
    for name, tensor in before.items():
        stays = name.startswith(("conv1.", "bn1.", "layer1."))
        assert torch.equal(after[name], tensor) == stays, name


def test_monitors_work(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max", filename="best")
    stop = EarlyStopping("val/loss", patience=1)
    trainer(callbacks=[best, stop], enable_checkpointing=True).fit(module(), datamodule=Data())
    assert read_weights(best.best_model_path).architecture == Architecture("resnet8", 5)


@pytest.mark.parametrize(
    ("scheduler", "interval", "expected"),
    [
        (lambda o: OneCycleLR(o, 0.1, total_steps=2), "step", {"interval": "step"}),
        (lambda o: ReduceLROnPlateau(o, monitor="val/loss"), "epoch", {"interval": "epoch", "monitor": "val/loss"}),
    ],
)
def test_schedules(scheduler: LRSchedulerCallable, interval: str, expected: Any) -> None:
    scheduled, its_trainer = module(lr_scheduler=scheduler, lr_interval=interval), trainer()
    its_trainer.fit(scheduled, datamodule=Data())
    config = its_trainer.lr_scheduler_configs[0]
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler": PlainReduceLROnPlateau}, "PyTorch's ReduceLROnPlateau"),
        ({"freeze": ("conv1", "bn1", "layer1", "layer2", "layer3", "fc")}, "leaves nothing to train"),
        ({"freeze": ("stem",)}, "freeze holds 'stem'; allowed: conv1"),
        ({"num_classes": 3}, "num_classes is 3, but the data have 5"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        trainer(fast_dev_run=True).fit(module(**options), datamodule=Data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "IMAGENET1K_V1", "base": "w.pt", "architecture": "resnet18"}, "only one of them is allowed"),
        ({"weights": "V9", "architecture": "resnet18"}, "weights is 'V9'; allowed for resnet18"),
        ({"architecture": "resnet19"}, "architecture is 'resnet19'"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
    ],
)
def test_contradictions_are_told_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        module(**options)


def test_data_that_name_no_classes() -> None:
    loaders = Data().val_dataloader()
    with pytest.raises(ConfigurationError, match="num_classes is not given"):
        trainer().validate(module(), loaders)
    with pytest.raises(ConfigurationError, match="no data module that says which classes"):
        trainer().validate(module(num_classes=5), loaders)
    with pytest.raises(ConfigurationError, match="LightningDataModule, which has no label_space"):
        trainer().validate(module(), datamodule=LightningDataModule())


# Lightning 2.6 calls what jsonargparse 5 will drop; hence the pin in pyproject
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_command_line_checkpoint_rebuilds_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pleas"])  # pytest's own arguments are not for LightningCLI
    options = {"logger": False, "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    LightningCLI(
        FineTuneModule,
        Data,
        args=[
            "fit",
            "--model=FineTuneModule",
            "--model.architecture=resnet8",
            "--model.optimizer=SGD",
            "--model.optimizer.lr=0.25",
        ],
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={
            **options,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "callbacks": [ModelCheckpoint(tmp_path, filename="cli")],
        },
    )
    loaded = LightningModule.load_from_checkpoint(tmp_path / "cli.ckpt", weights_only=True)
    assert isinstance(loaded, FineTuneModule)
    optimizer = loaded.optimizer(loaded.parameters())
    assert isinstance(optimizer, SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.25, 0)
