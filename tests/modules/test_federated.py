"""Rounds of federated averaging against a plain loop."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import close
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy

from project.cli import main
from project.data import ClientDataModule, DomainDataModule, Shapes
from project.errors import CheckpointError, ConfigurationError
from project.models import Architecture, load_network
from project.models.scope import fused_scope, layer_weights, scope_of
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
    made = {"architecture": "resnet8", "optimizer": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9)}
    return FederatedModule(**made | options)


class Seen(Callback):
    """The clients as they are at the end of a round, before the next one begins."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.clients = {name: deepcopy(client) for name, client in pl_module.clients.items()}


def batches(given: ClientDataModule) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    batch, _, _ = next(iter(given.train_dataloader()))
    return batch


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[FederatedModule, Trainer]:
    found, its_trainer = module(), trainer()
    its_trainer.fit(found, datamodule=data(folder, clients=2, alpha=1.0))
    return found, its_trainer


@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_rounds_are_those_of_a_plain_loop(strength: float, folder: Path) -> None:
    """With the penalty's gradient written out, and its target fused from the last round's clients."""
    given = data(folder, clients=2, alpha=1.0)
    found = module(scope=WeightScope(strength) if strength else None)
    trainer().fit(found, datamodule=given)
    pairs = list(batches(given).values())
    torch.manual_seed(0)
    server = Architecture("resnet8", 12).build()
    counts = [len(y) for _, y in pairs]
    assert len(set(counts)) > 1, "clients of one size would not tell whether they are weighed"
    shares = [count / sum(counts) for count in counts]
    targets = {name: scope_of(one) for name, one in layer_weights(server).items()}
    for _ in range(2):
        clients = []
        for x, y in pairs:
            client = deepcopy(server).train()
            optimizer = torch.optim.SGD(client.parameters(), lr=RATE, momentum=0.9)
            cross_entropy(client(x), y).backward()
            for name, weights in layer_weights(client).items():
                (mean, std), (aim, wide) = scope_of(weights), targets[name]
                values = weights.detach()
                pull = ((mean - aim) / wide**2 + (values - mean) * (wide**-2 - std**-2)) / values.numel()
                weights.grad.add_(pull, alpha=strength)  # type: ignore[union-attr]
            optimizer.step()
            clients.append(client)
        states = [client.state_dict() for client in clients]
        server.load_state_dict(
            {
                name: sum(share * one[name] for share, one in zip(shares, states, strict=True))
                if tensor.is_floating_point()
                else states[0][name]
                for name, tensor in server.state_dict().items()
            }
        )
        layers = [layer_weights(client) for client in clients]
        targets = {name: fused_scope([one[name] for one in layers], shares=shares) for name in targets}
    for name, tensor in found.network.state_dict().items():
        assert close(tensor.double(), server.state_dict()[name].double(), 1e-3), name


def test_what_is_logged(trained: tuple[FederatedModule, Trainer]) -> None:
    names = set(trained[1].callback_metrics)
    assert {"train/loss", "train/loss/clipart-0", "train/loss/sketch-1", "round/scope gap", "val/accuracy"} <= names


def test_the_scope_gap_is_that_of_the_clients(folder: Path) -> None:
    """Of a network whose clients part by more than float32 rounds a divergence."""
    found, seen, given = module(architecture="resnet20"), Seen(), data(folder, clients=2, alpha=1.0)
    its_trainer = trainer(1, callbacks=[seen])
    its_trainer.fit(found, datamodule=given)
    counts = [len(y) for _, y in batches(given).values()]
    layers = [layer_weights(client) for client in seen.clients.values()]
    expected = 0.0
    for name in layers[0]:
        fused = fused_scope([one[name] for one in layers], shares=[count / sum(counts) for count in counts])
        expected += sum(float(kl_divergence(Normal(*scope_of(one[name])), Normal(*fused))) for one in layers)
    assert float(its_trainer.callback_metrics["round/scope gap"]) == pytest.approx(expected / len(layers), rel=1e-2)


def test_the_server_is_validated_after_its_round(folder: Path) -> None:
    found, its_trainer = module(), trainer(1)
    its_trainer.fit(found, datamodule=data(folder))
    told = its_trainer.callback_metrics["val/loss"]
    again = trainer().validate(found, datamodule=data(folder), verbose=False)[0]["val/loss"]
    assert float(told) == pytest.approx(again, rel=1e-4)


def test_clients_are_pulled_towards_the_scopes_of_the_last_round(folder: Path) -> None:
    found, seen, given = module(scope=WeightScope(1.0, fusion="pooled")), Seen(), data(folder, clients=2, alpha=1.0)
    trainer(2, callbacks=[seen]).fit(found, datamodule=given)
    counts = [len(y) for _, y in batches(given).values()]
    shares = [count / sum(counts) for count in counts]
    layers = [layer_weights(client) for client in seen.clients.values()]
    for name, scope in found.scope_targets.items():
        assert scope == pytest.approx(fused_scope([one[name] for one in layers], "pooled", shares))


def test_given_targets_stay(folder: Path, tmp_path: Path) -> None:
    network = FineTuneModule("resnet8", num_classes=12).draft.build()
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
    start = Architecture("resnet8", 12).build()
    found = module(freeze=("conv1", "bn1"))
    trainer(2).fit(found, datamodule=data(folder))
    mine = dict(found.network.named_modules())
    for name, tensor in {**start.conv1.state_dict(), **start.bn1.state_dict()}.items():  # type: ignore[union-attr]
        assert torch.equal(tensor, {**mine["conv1"].state_dict(), **mine["bn1"].state_dict()}[name]), name
    assert not torch.equal(mine["layer1"][0].conv1.weight, start.layer1[0].conv1.weight)  # type: ignore[index, union-attr]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_rounds_that_are_taken_up_again_are_the_same(folder: Path, tmp_path: Path) -> None:
    """From the file that ModelCheckpoint writes, which holds neither clients nor what their optimizers remember."""
    whole = module(scope=WeightScope(1.0))
    trainer(2).fit(whole, datamodule=data(folder))
    saving = ModelCheckpoint(tmp_path, filename="round", monitor="val/accuracy")
    trainer(1, callbacks=[saving], enable_checkpointing=True).fit(
        module(scope=WeightScope(1.0)), datamodule=data(folder)
    )
    again = module(scope=WeightScope(1.0))
    saving = ModelCheckpoint(tmp_path, filename="later", monitor="val/accuracy")
    resumed = trainer(2, callbacks=[saving], enable_checkpointing=True)
    resumed.fit(again, datamodule=data(folder), ckpt_path=tmp_path / "round.ckpt", weights_only=True)
    for name, tensor in again.network.state_dict().items():
        assert close(tensor.double(), whole.network.state_dict()[name].double(), 1e-4), name
    saved = torch.load(tmp_path / "round.ckpt", weights_only=True)
    assert not [one for one in saved["optimizer_states"] if one["state"]]
    assert all(name.startswith("network.") for name in saved["state_dict"])
    _, weights = load_network(tmp_path / "round.ckpt")
    assert weights.architecture == Architecture("resnet8", 12)


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
def test_half_a_round_is_not_gone_on_from(folder: Path, tmp_path: Path) -> None:
    small = {"batch_size": 8}
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer(1, callbacks=[saving], enable_checkpointing=True).fit(module(), datamodule=data(folder, **small))
    with pytest.raises(CheckpointError, match="written in the middle of a round"):
        trainer(2).fit(
            module(), datamodule=data(folder, **small), ckpt_path=tmp_path / "step=2.ckpt", weights_only=True
        )


def test_a_round_that_is_cut_short_is_closed(folder: Path) -> None:
    torch.manual_seed(0)
    start = Architecture("resnet8", 12).build()
    found = module()
    trainer(-1, max_steps=2).fit(found, datamodule=data(folder, batch_size=8))
    assert not torch.equal(found.network.conv1.weight, start.conv1.weight)  # type: ignore[union-attr]
    assert not found.pictures


def test_what_cannot_train_in_rounds_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = DomainDataModule(sets(folder), image_size=16, batch_size=16)
    plateau = module(lr_scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, "val/loss"))
    for found, given, options, message in (
        (module(), plain, {}, "data is DomainDataModule; use ClientDataModule"),
        (module(lr_interval="step"), data(folder), {}, "lr_interval is 'step'"),
        (plateau, data(folder), {}, "lr_scheduler is ReduceLROnPlateau"),
        (FineTuneModule("resnet8"), data(folder), {}, "data is ClientDataModule; use FederatedModule"),
        (module(), data(folder), {"gradient_clip_val": 1.0}, "gradient clipping"),
        (module(), data(folder), {"accumulate_grad_batches": 2}, "gradient accumulation"),
    ):
        with pytest.raises((ConfigurationError, MisconfigurationException), match=message):
            trainer(**options).fit(found, datamodule=given)
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(ConfigurationError, match="make 2 processes; FederatedModule trains its clients in one"):
        trainer().fit(module(), datamodule=data(folder))


def test_the_command_trains_in_rounds_and_writes_what_can_be_merged(inside: Path) -> None:
    tiny = Path(__file__).resolve().parent.parent.parent / "configs" / "tiny"
    main(["fit", "--config", str(tiny / "fit_federated.yaml"), "--trainer.enable_progress_bar", "false"])
    source = load_source(inside / "runs" / "tiny" / "federated" / "checkpoints" / "best.ckpt")
    assert source.description.domains == ("clipart", "sketch")
    saved = torch.load(source.path, weights_only=True)
    assert next(iter(saved["scope_targets"])) == "conv1.weight"
    assert not [name for name in saved["state_dict"] if not name.startswith("network.")]
