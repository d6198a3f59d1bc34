"""Rounds of federated averaging against a plain loop."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import close
from lightning.pytorch import Trainer
from torch import nn
from torch.nn.functional import cross_entropy

from project.cli import main
from project.data import ClientDataModule, DomainDataModule, Shapes
from project.errors import ConfigurationError
from project.models import load_network
from project.models.scope import fused_scope, layer_weights
from project.modules import FederatedModule, FineTuneModule, WeightScope
from project.student import load_source

RATE = 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes")
    sets(path).prepare()
    return path


def sets(folder: Path) -> Shapes:
    return Shapes(folder, size=16, train_per_class=3, test_per_class=1, domains=["clipart", "sketch"])


def data(folder: Path, **options: Any) -> ClientDataModule:
    """All pictures of a client in one batch, so that their order does not matter."""
    return ClientDataModule(
        sets(folder), **{"image_size": 16, "batch_size": 64, "augment": False, "validation_fraction": 0.34} | options
    )


def trainer(rounds: int = 2, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**quiet | {"accelerator": "cpu", "max_epochs": rounds, "enable_checkpointing": False} | options)


def module(**options: Any) -> FederatedModule:
    torch.manual_seed(0)
    made = {"architecture": "resnet20", "optimizer": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9)}
    return FederatedModule(**made | options)


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[FederatedModule, Trainer]:
    found, its_trainer = module(), trainer()
    its_trainer.fit(found, datamodule=data(folder, clients=2, alpha=1.0))
    return found, its_trainer


def test_rounds_are_those_of_a_plain_loop(trained: tuple[FederatedModule, Trainer], folder: Path) -> None:
    given = data(folder, clients=2, alpha=1.0)
    batches = [batch[name] for batch, _, _ in [next(iter(given.train_dataloader()))] for name in batch]
    torch.manual_seed(0)
    server = trained[0].draft.__class__("resnet20", 12).build()
    counts = [len(y) for _, y in batches]
    assert len(set(counts)) > 1, "clients of one size would not tell whether they are weighed"
    for _ in range(2):
        states = []
        for x, y in batches:
            client = deepcopy(server).train()
            optimizer = torch.optim.SGD(client.parameters(), lr=RATE, momentum=0.9)
            cross_entropy(client(x), y).backward()
            optimizer.step()
            states.append(client.state_dict())
        server.load_state_dict(
            {
                name: sum(c / sum(counts) * one[name] for c, one in zip(counts, states, strict=True))
                if tensor.is_floating_point()
                else states[0][name]
                for name, tensor in server.state_dict().items()
            }
        )
    for name, tensor in trained[0].network.state_dict().items():
        assert close(tensor.double(), server.state_dict()[name].double(), 1e-3), name


def test_what_is_logged(trained: tuple[FederatedModule, Trainer]) -> None:
    names = set(trained[1].callback_metrics)
    assert {"train/loss", "train/loss/clipart-0", "train/loss/sketch-1", "round/scope gap", "val/accuracy"} <= names
    assert float(trained[1].callback_metrics["round/scope gap"]) > 0


def test_the_server_is_validated_after_its_round(folder: Path) -> None:
    found, its_trainer = module(), trainer(1)
    its_trainer.fit(found, datamodule=data(folder))
    told = its_trainer.callback_metrics["val/loss"]
    again = trainer().validate(found, datamodule=data(folder), verbose=False)[0]["val/loss"]
    assert float(told) == pytest.approx(again, rel=1e-4)


def test_clients_are_pulled_towards_the_scopes_of_the_last_round(folder: Path) -> None:
    found = module(scope=WeightScope(1.0, fusion="pooled"))
    trainer(2).fit(found, datamodule=data(folder))
    counts = found.pictures
    shares = [count / sum(counts.values()) for count in counts.values()]
    layers = [layer_weights(client) for client in found.clients.values()]
    for name, scope in found.scope_targets.items():
        assert scope == pytest.approx(fused_scope([one[name] for one in layers], "pooled", shares))


def test_given_targets_stay(folder: Path, tmp_path: Path) -> None:
    network = FineTuneModule("resnet20", num_classes=12).draft.build()
    torch.save(network.state_dict(), tmp_path / "target.pth")
    scope = WeightScope(1.0, (tmp_path / "target.pth",))
    found = module(scope=scope)
    trainer(2).fit(found, datamodule=data(folder))
    assert found.scope_targets == scope.targets(network)


def test_rates_follow_the_rounds(folder: Path) -> None:
    found = module(lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1))
    its_trainer = trainer(3)
    its_trainer.fit(found, datamodule=data(folder))
    assert len(its_trainer.optimizers) == 2
    for optimizer in its_trainer.optimizers:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(RATE * 1e-3)


def test_frozen_parts_are_the_same_in_all_rounds(folder: Path) -> None:
    torch.manual_seed(0)
    start = module().draft.__class__("resnet20", 12).build()
    found = module(freeze=("conv1", "bn1"))
    trainer(2).fit(found, datamodule=data(folder))
    mine = dict(found.network.named_modules())
    for name, tensor in {**mine["conv1"].state_dict(), **mine["bn1"].state_dict()}.items():
        assert tensor.isfinite().all(), name
    assert torch.equal(mine["bn1"].running_mean, start.bn1.running_mean)  # type: ignore[union-attr]
    assert not torch.equal(mine["layer1"][0].conv1.weight, start.layer1[0].conv1.weight)  # type: ignore[index, union-attr]


def test_a_round_that_is_taken_up_again_is_the_same(folder: Path, tmp_path: Path) -> None:
    whole = module(scope=WeightScope(1.0))
    trainer(2).fit(whole, datamodule=data(folder))
    first, its_trainer = module(scope=WeightScope(1.0)), trainer(1)
    its_trainer.fit(first, datamodule=data(folder))
    its_trainer.save_checkpoint(tmp_path / "round.ckpt")
    again = module(scope=WeightScope(1.0))
    trainer(2).fit(again, datamodule=data(folder), ckpt_path=tmp_path / "round.ckpt", weights_only=True)
    for name, tensor in again.network.state_dict().items():
        assert close(tensor.double(), whole.network.state_dict()[name].double(), 1e-4), name
    network, weights = load_network(tmp_path / "round.ckpt")
    assert isinstance(network, nn.Module)
    assert weights.architecture is not None
    assert weights.architecture.name == "resnet20"


def test_what_cannot_train_in_rounds_is_refused(folder: Path) -> None:
    plain = DomainDataModule(sets(folder), image_size=16, batch_size=16)
    for found, given, options, message in (
        (module(), plain, {}, "data is DomainDataModule; use ClientDataModule"),
        (module(lr_interval="step"), data(folder), {}, "lr_interval is 'step'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            trainer(**options).fit(found, datamodule=given)


def test_the_command_trains_in_rounds_and_writes_what_can_be_merged(inside: Path) -> None:
    tiny = Path(__file__).resolve().parent.parent.parent / "configs" / "tiny"
    main(["fit", "--config", str(tiny / "fit_federated.yaml"), "--trainer.enable_progress_bar", "false"])
    source = load_source(inside / "runs" / "tiny" / "federated" / "checkpoints" / "best.ckpt")
    assert source.description.domains == ("clipart", "sketch")
    saved = torch.load(source.path, weights_only=True)
    assert next(iter(saved["scope_targets"])) == "conv1.weight"
    assert not [name for name in saved["state_dict"] if not name.startswith("network.")]
