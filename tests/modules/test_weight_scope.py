"""Fine-tuning towards weight scopes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import resnet
from test_fine_tune import Data, module, trainer

from project.errors import CheckpointError, ConfigurationError
from project.models.scope import fused_scope, layer_weights, scope_divergence, scope_of
from project.modules import FineTuneModule, WeightScope


def fitted(scope: WeightScope | None, **options: Any) -> FineTuneModule:
    torch.manual_seed(0)
    found = module(scope=scope, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05), **options)
    trainer(max_epochs=8).fit(found, datamodule=Data())
    return found


def drifts(trained: FineTuneModule) -> dict[str, float]:
    """How far each layer's weights are from where they are pulled to."""
    weights = layer_weights(trained.network)
    return {n: float(scope_divergence(weights[n], one).detach()) for n, one in trained.scope_targets.items()}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two networks whose weights spread unlike each other and unlike fresh ones."""
    for seed, factor in ((1, 1.5), (2, 3.0)):
        network = resnet("resnet8", seed)
        state = {name: value * factor if value.dim() > 1 else value for name, value in network.state_dict().items()}
        torch.save(state, tmp_path / f"{seed}.pth")
    return [tmp_path / "1.pth", tmp_path / "2.pth"]


def test_training_ends_nearer_to_the_target_than_without(files: list[Path]) -> None:
    scope = WeightScope(10.0, tuple(files), "pooled")
    pulled, free = fitted(scope), fitted(None)
    targets = scope.targets(pulled.network)
    networks = [torch.load(file, weights_only=True) for file in files]
    for name, target in targets.items():
        assert target == pytest.approx(fused_scope([one[name] for one in networks], "pooled"))
    free.scope_targets = targets
    far = drifts(free)
    assert all(near < far[name] for name, near in drifts(pulled).items())


def test_by_default_weights_are_held_where_they_start() -> None:
    loose, held = fitted(WeightScope(1e-9)), fitted(WeightScope(10.0))
    assert loose.scope_targets == held.scope_targets, "both start alike"
    assert sum(drifts(held).values()) < sum(drifts(loose).values())


def test_the_loss_that_is_told_is_the_cross_entropy(files: list[Path]) -> None:
    told = []
    for scope in (None, WeightScope(3.0, (files[1],))):
        torch.manual_seed(0)
        found, its_trainer = module(scope=scope), trainer(fast_dev_run=True)
        its_trainer.fit(found, datamodule=Data())
        told.append(its_trainer.callback_metrics)
    assert float(told[1]["train/loss"]) == pytest.approx(float(told[0]["train/loss"]))
    assert float(told[1]["train/scope"]) > 1
    assert "train/scope" not in told[0]


def test_a_fit_that_is_taken_up_again_keeps_its_target(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, its_trainer = module(scope=WeightScope(1.0)), trainer()
    its_trainer.fit(first, datamodule=Data())
    its_trainer.save_checkpoint(tmp_path / "last.ckpt")
    again, later = module(scope=WeightScope(1.0)), trainer(max_epochs=2)
    later.fit(again, datamodule=Data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.scope_targets == first.scope_targets
    assert again.scope_targets["conv1.weight"] != scope_of(again.network.conv1.weight)
    loaded = FineTuneModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert loaded.scope is None


def test_frozen_parts_have_no_target() -> None:
    targets = fitted(WeightScope(1.0), freeze=("conv1", "layer1")).scope_targets
    assert targets
    assert not [name for name in targets if name.startswith(("conv1", "layer1"))]


def test_what_cannot_be_a_target_is_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"strength is 0; allowed: above 0\."):
        WeightScope(0)
    with pytest.raises(ConfigurationError, match="fusion is 'median'"):
        WeightScope(fusion="median")  # type: ignore[arg-type]
    network = resnet("resnet8", 0)
    state = torch.load(files[0], weights_only=True)
    torch.save({name: one for name, one in state.items() if name != "layer2.0.conv1.weight"}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth, which lacks layer2\.0\.conv1\.weight"):
        WeightScope(1.0, (files[0], tmp_path / "other.pth")).targets(network)
    torch.save(resnet("resnet8", 0, width=2).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(
        CheckpointError, match=r"wide\.pth, whose layer1\.0\.conv1\.weight is of shape \(32, 32, 3, 3\), but"
    ):
        WeightScope(1.0, (files[0], tmp_path / "wide.pth")).targets(network)
    with pytest.raises(ConfigurationError, match="no convolution or linear layer is trained"):
        WeightScope().targets(resnet("resnet8", 0).requires_grad_(False))
    torch.nn.init.zeros_(network.fc.weight)
    with pytest.raises(ConfigurationError, match=r"all weights of fc\.weight are 0"):
        WeightScope().targets(network)
