"""Files as others write them: whatever lies around the tensors, they are found."""

import argparse
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from project.errors import CheckpointError, ConfigurationError
from project.models import Architecture, load_network, read_weights
from project.student import load_source

Tensors = dict[str, Tensor]
ARCHITECTURE = Architecture("resnet8", 5)
OTHERS = {"criterion.weight": torch.ones(5), "train_acc.confmat": torch.zeros(5, 5, dtype=torch.int64)}


def network(seed: int = 0, architecture: Architecture = ARCHITECTURE) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture.build().eval()


def prefixed(prefix: str, state: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in state.items()}


def in_parts(state: Tensors, part: str) -> Tensors:
    """As torch.compile and FSDP name what stands in the middle."""
    return {re.sub(r"(layer\d)\.", rf"\1.{part}.", name): tensor for name, tensor in state.items()}


def averaged(state: Tensors) -> Tensors:
    return {"n_averaged": torch.tensor(7), **prefixed("module.", state)}


class Learner:
    """Holds a network, as fastai's does."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.dls, self.loss_func, self.lr = model, ["pictures"], nn.CrossEntropyLoss(), 0.1


FORMS: dict[str, Callable[[Tensors, nn.Module], Any]] = {
    "torchvision's script": lambda t, _: {
        "model": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
        "args": argparse.Namespace(lr=0.1),
    },
    "timm's script": lambda t, _: {"arch": "resnet8", "state_dict": t, "metric": 0.5, "args": argparse.Namespace()},
    "Lightning": lambda t, _: {"state_dict": {**prefixed("net.", t), **OTHERS}, "hyper_parameters": {"lr": 0.1}},
    "Lightning, deep": lambda t, _: {"state_dict": {**OTHERS, **prefixed("model.backbone.net.", t)}},
    "kuangliu": lambda t, _: {"net": prefixed("module.", t), "acc": 91.0, "epoch": 3},
    "model_state_dict": lambda t, _: {"model_state_dict": t},
    "weights": lambda t, _: {"weights": t, "epoch": 1},
    "model_state": lambda t, _: {"model_state": t, "best": 0.5},
    "averaged": lambda t, _: averaged(t),
    "averaged, in a mapping": lambda t, _: {"model_ema": averaged(t)},
    "compiled in parts": lambda t, _: in_parts(t, "_orig_mod"),
    "sharded": lambda t, _: in_parts(prefixed("_fsdp_wrapped_module.", t), "_checkpoint_wrapped_module"),
    "deepspeed": lambda t, _: {"module": prefixed("_forward_module.", t)},
    "module": lambda _, n: n,
    "module in a mapping": lambda _, n: {"model": n, "epoch": 3},
    "parallel module": lambda _, n: {"net": nn.DataParallel(n)},
    "an object that holds a module": lambda _, n: Learner(n),
    "deep mappings": lambda t, _: {"checkpoint": {"network": {"weights": t}}, "epoch": 2},
    "trunk and head apart": lambda t, _: {
        "encoder": {name: one for name, one in t.items() if not name.startswith("fc.")},
        "classifier": {name.removeprefix("fc."): one for name, one in t.items() if name.startswith("fc.")},
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_tensors_are_found_whatever_lies_around_them(form: str, tmp_path: Path) -> None:
    made = network()
    torch.save(FORMS[form](made.state_dict(), made), tmp_path / "w.pt")
    loaded, weights = load_network(tmp_path / "w.pt")
    assert weights.architecture == ARCHITECTURE
    for name, tensor in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_what_is_passed_over_is_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {"state_dict": {**prefixed("net.", network().state_dict()), **OTHERS}, "args": argparse.Namespace()}
    torch.save(content, tmp_path / "w.pt")
    with caplog.at_level(logging.INFO, logger="project"):
        read_weights(tmp_path / "w.pt")
    (line,) = [record.message for record in caplog.records if "w.pt" in record.message]
    for word in ("state_dict.net", "criterion.weight", "train_acc.confmat", "argparse.Namespace"):
        assert word in line


PAIRS: dict[str, Callable[[Tensors, Tensors], Any]] = {
    "torchvision": lambda raw, ema: {"model": raw, "model_ema": averaged(ema)},
    "timm": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
    "Lightning": lambda raw, ema: {
        "state_dict": prefixed("net.", ema), "current_model_state": prefixed("net.", raw),
    },
    "in one": lambda raw, ema: {"state_dict": prefixed("model.", raw) | prefixed("ema_model.module.", ema)},
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_of_two_sets_the_averaged_one_is_taken_unless_the_other_is_asked_for(
    pair: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, ema = network(0).state_dict(), network(1).state_dict()
    torch.save(PAIRS[pair](raw, ema), tmp_path / "w.pt")
    with caplog.at_level(logging.INFO, logger="project"):
        assert torch.equal(read_weights(tmp_path / "w.pt").state_dict["fc.weight"], ema["fc.weight"])
    assert "averaged weights are taken; weights: raw takes the others" in caplog.text
    assert torch.equal(read_weights(tmp_path / "w.pt", "ema").state_dict["fc.weight"], ema["fc.weight"])
    source = load_source(tmp_path / "w.pt", which="raw")
    assert torch.equal(source.network.state_dict()["fc.weight"], raw["fc.weight"])


def test_sets_that_are_not_there_are_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "raw.pt")
    torch.save(AveragedModel(network()).state_dict(), tmp_path / "ema.pt")
    with pytest.raises(CheckpointError, match=r"weights is 'ema', but .*raw.pt holds none that are averaged"):
        read_weights(tmp_path / "raw.pt", "ema")
    with pytest.raises(CheckpointError, match=r"weights is 'raw', but .*ema.pt holds averaged ones alone"):
        read_weights(tmp_path / "ema.pt", "raw")
    with pytest.raises(ConfigurationError, match="weights is 'best'"):
        read_weights(tmp_path / "raw.pt", "best")  # type: ignore[arg-type]


class Wrapped(nn.Module):
    """The user's own, whose parts are called as wrappers are."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.module(x))
        return logits


@pytest.mark.parametrize("around", ["", "net.", "model.net."])
def test_a_named_network_is_found_by_its_own_names(around: str, tmp_path: Path) -> None:
    made = Wrapped()
    torch.save({"state_dict": {**prefixed(around, made.state_dict()), **OTHERS}}, tmp_path / "w.pt")
    loaded, _ = load_network(tmp_path / "w.pt", Wrapped)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize("pair", PAIRS)
def test_of_a_named_network_the_averaged_set_is_taken_too(pair: str, tmp_path: Path) -> None:
    raw, ema = (Wrapped().state_dict() for _ in range(2))
    torch.save(PAIRS[pair](raw, ema), tmp_path / "w.pt")
    for which, expected in ((None, ema), ("ema", ema), ("raw", raw)):
        found = load_source(tmp_path / "w.pt", None, Wrapped, which=which).network.state_dict()  # type: ignore[arg-type]
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_torchvisions_other_networks_are_found_by_name(tmp_path: Path) -> None:
    made = network(0, Architecture("squeezenet1_1", 3))
    torch.save({"state_dict": {**prefixed("net.", made.state_dict()), **OTHERS}}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="VGG, DenseNet"):
        load_network(tmp_path / "w.pt")
    loaded, weights = load_network(tmp_path / "w.pt", "squeezenet1_1")
    assert weights.architecture == Architecture("squeezenet1_1", 3)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in made.state_dict().items())


HEADED = {
    "dropout": lambda width: nn.Sequential(nn.Dropout(), nn.Linear(width, 5)),
    "two layers": lambda width: nn.Sequential(nn.Linear(width, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 5)),
    "no bias": lambda width: nn.Linear(width, 5, bias=False),
    "two without bias": lambda width: nn.Sequential(nn.Linear(width, 7, False), nn.ReLU(), nn.Linear(7, 5, False)),
}


@pytest.mark.parametrize("name", ["fc", "classifier", "linear", "head", "heads.head"])
@pytest.mark.parametrize("head", HEADED)
def test_heads_of_other_kinds_are_read_and_described(head: str, name: str, tmp_path: Path) -> None:
    made = network()
    made.fc = HEADED[head](64)
    made.eval()
    torch.save({re.sub("^fc", name, key): one for key, one in made.state_dict().items()}, tmp_path / "w.pt")
    loaded, weights = load_network(tmp_path / "w.pt")
    pictures = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(loaded(pictures), made(pictures), atol=1e-6, rtol=0)
    assert weights.architecture is not None
    assert weights.architecture.build().state_dict().keys() == loaded.state_dict().keys()
    assert (weights.architecture.hidden, weights.architecture.head_bias) == (
        7 if "two" in head else 0, "bias" not in head,
    )  # fmt: skip


def test_what_stands_between_two_layers_is_assumed_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = network()
    made.fc = HEADED["two layers"](64)
    torch.save(made.state_dict(), tmp_path / "w.pt")
    with caplog.at_level(logging.INFO, logger="project"):
        read_weights(tmp_path / "w.pt")
    assert "assumed, since files do not tell: ReLU between the two layers" in caplog.text


def headless(state: Tensors) -> Tensors:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


SELF_SUPERVISED: dict[str, Callable[[Tensors], Any]] = {
    "MoCo": lambda t: {"state_dict": prefixed("module.encoder_q.", t) | prefixed("module.encoder_k.", t)},
    "SimSiam": lambda t: {"state_dict": prefixed("module.encoder.", t) | {"module.predictor.0.weight": torch.ones(4)}},
    "SwAV": lambda t: prefixed("module.", headless(t)) | {"module.prototypes.weight": torch.ones(9, 64)},
    "DINO": lambda t: {"teacher": prefixed("backbone.", headless(t)) | {"head.last_layer.weight_g": torch.ones(4, 1)}},
    "Barlow Twins": lambda t: {
        "model": prefixed("module.backbone.", headless(t)) | {"module.projector.0.weight": torch.ones(4, 64)},
    },
    "no head for classes": headless,
}  # fmt: skip


@pytest.mark.parametrize("method", SELF_SUPERVISED)
def test_trunks_without_a_head_are_refused_as_what_they_are(method: str, tmp_path: Path) -> None:
    torch.save(SELF_SUPERVISED[method](network().state_dict()), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w.pt: it holds the trunk of a resnet8 and no head.*") as caught:
        load_network(tmp_path / "w.pt")
    assert method in str(caught.value)


def test_heads_that_are_not_read_are_named(tmp_path: Path) -> None:
    made = network()
    made.fc = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 5))
    torch.save(made.state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"the trunk of a resnet8, and beside it fc \(7 tensors\)"):
        load_network(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"layer1.0.se.weight": torch.ones(16, 16)},
        lambda state: state | {"attention.weight": torch.ones(3, 3)},
        lambda state: state | {"classifier.weight": torch.ones(3, 5)},
    ],
    ids=["in a block", "beside", "on top"],
)
def test_networks_with_more_to_them_are_not_taken_for_known_ones(
    change: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    torch.save(change(network().state_dict()), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"layer|conv1|trunk"):
        load_network(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("blocks.0.attn.qkv.weight", "timm's ViT"),
        ("stages.0.blocks.0.conv_dw.weight", "timm's ConvNeXt"),
        ("conv_stem.weight", "timm's EfficientNet"),
        ("vit.encoder.layer.0.layernorm_before.weight", "transformers' ViT"),
        ("convnext.encoder.stages.0.layers.0.dwconv.weight", "transformers' ConvNext"),
        ("backbone.layers.0.ln1.weight", "mmpretrain's ViT"),
        ("features.0.weight", "torchvision's VGG"),
    ],
)
@pytest.mark.parametrize("named", [None, "resnet18"])
def test_names_of_other_writers_are_told(name: str, writer: str, named: str | None, tmp_path: Path) -> None:
    torch.save({name: torch.rand(4, 4), "head.weight": torch.rand(2, 4)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=re.escape(f"named as those of {writer}")) as caught:
        load_network(tmp_path / "w.pt", named)
    assert "more" not in str(caught.value)


def test_who_has_said_what_it_is_is_not_asked_to(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.rand(4, 4)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="it is no resnet18") as caught:
        load_network(tmp_path / "w.pt", "resnet18")
    assert "say so" not in str(caught.value)
    with pytest.raises(CheckpointError, match="say so"):
        load_network(tmp_path / "w.pt")
