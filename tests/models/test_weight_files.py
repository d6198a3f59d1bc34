import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from project.errors import CheckpointError
from project.models import Architecture, LabelSpace, Preprocessing, Weights, read_weights

Tensors = dict[str, Tensor]

ARCHITECTURE = Architecture("resnet20", 2)
ENTRY = {
    "architecture": {"name": "resnet20", "num_classes": 2, "stem": "small", "width": 1},
    "classes": {"photo": ["cat", "dog"]},
    "label_mode": "shared",
    "preprocessing": {"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
}


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return ARCHITECTURE.build().state_dict()


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_described(weights: Weights) -> None:
    assert weights.architecture == ARCHITECTURE
    assert weights.label_space == LabelSpace({"photo": ("cat", "dog")})
    assert weights.preprocessing == Preprocessing(32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert (weights.domains, weights.classes) == (("photo",), ("cat", "dog"))


@pytest.mark.parametrize(
    "wrap",
    [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"model": t}],
    ids=["bare", "state_dict", "model"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_files(tmp_path: Path, tensors: Tensors, wrap: Callable[[Tensors], Any], zipped: bool) -> None:
    path = tmp_path / "weights.anything"
    torch.save(wrap(tensors), path, _use_new_zipfile_serialization=zipped)
    weights = read_weights(str(path))
    assert_same(weights.state_dict, tensors)
    assert weights.path == path
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.architecture is weights.label_space is weights.preprocessing is weights.classes is None


def test_lightning_checkpoint_with_description(tmp_path: Path, tensors: Tensors) -> None:
    path = tmp_path / "last.ckpt"
    state_dict = {f"network.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"state_dict": state_dict, "hyper_parameters": {"lr": 0.1}, "pleas": ENTRY}, path)
    weights = read_weights(path)
    assert_same(weights.state_dict, tensors)
    assert_described(weights)


def test_safetensors_with_description(tmp_path: Path, tensors: Tensors) -> None:
    path = tmp_path / "model.bin"
    save_file(tensors, path, metadata={"pleas": json.dumps(ENTRY)})
    weights = read_weights(path)
    assert_same({name: weights.state_dict[name] for name in tensors}, tensors)
    assert_described(weights)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_safetensors_are_told_whatever_the_length_of_their_header(
    tmp_path: Path, tensors: Tensors, suffix: str
) -> None:
    """One length in 32 begins with the byte that a pickle begins with."""
    path, firsts = tmp_path / f"weights.{suffix}", set()
    for length in range(0, 256, 8):
        save_file(tensors, path, metadata={"pleas": json.dumps({"preprocessing": {"image_size": 8}}) + " " * length})
        firsts.add(path.read_bytes()[0])
        assert read_weights(path).preprocessing == Preprocessing(8)
    assert 0x80 in firsts


def test_entries_of_other_tools_are_passed_over(tmp_path: Path, tensors: Tensors) -> None:
    torch.save({"state_dict": tensors, "architecture": "ResNet", "classes": ["cat", "dog"]}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").architecture is None


@pytest.mark.parametrize("prefix", ["module.", "model.", "network.", "_orig_mod.", "model.module.", "model.model."])
def test_prefix_of_all_tensors_is_taken_off(tmp_path: Path, tensors: Tensors, prefix: str) -> None:
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "w.pt")
    assert_same(read_weights(tmp_path / "w.pt").state_dict, tensors)


def test_prefix_of_some_tensors_stays(tmp_path: Path) -> None:
    mixed = {"model.fc.weight": torch.ones(2, 2), "loss.module.weight": torch.ones(2)}
    torch.save(mixed, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt").state_dict
    assert_same(found, {"model.fc.weight": mixed["model.fc.weight"], "loss.weight": mixed["loss.module.weight"]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_tensors_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(
        {"fc.weight": torch.tensor([0.5, -2]).to(dtype), "bn.num_batches_tracked": torch.tensor(3)}, tmp_path / "w"
    )
    found = read_weights(tmp_path / "w").state_dict
    assert torch.equal(found["fc.weight"], torch.tensor([0.5, -2]))
    assert found["fc.weight"].dtype == torch.float32
    assert found["bn.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_not_finite_are_refused_by_name(tmp_path: Path, tensors: Tensors, value: float) -> None:
    broken = {name: tensor.clone() for name, tensor in tensors.items()}
    broken["layer2.1.bn1.running_var"][3] = value
    torch.save(broken, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w.pt holds values in 'layer2.1.bn1.running_var' that are not finite"):
        read_weights(tmp_path / "w.pt")


def test_not_there_or_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing.pt is not there"):
        read_weights(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="is a folder without weights"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"epoch,accuracy\n1,0.5\n", b"\x89PNG\r\n\x1a\n" + bytes(64), b'{"weights": [1, 2]}']
)
def test_files_of_another_kind(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a file of weights"):
        read_weights(path)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_truncated_files(tmp_path: Path, tensors: Tensors, kind: str, share: float) -> None:
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"weights": torch.ones(1), "epoch": 3}, "its entry 'epoch' is a int"),
        ({"state_dict": {"a": torch.ones(1)}, "pleas": "resnet18"}, "The entry 'pleas' cannot be read"),
        (
            {"state_dict": {"a": torch.ones(1)}, "pleas": {"classes": {"photo": ["cat"]}}},
            "cannot be read: 'label_mode'",
        ),
    ],
)
def test_contents_of_another_kind(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "w.pt")


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, plain: bool) -> None:
    """What it would run is passed over; see test_inert.py."""
    trace, path = tmp_path / "trace", tmp_path / "w.pt"
    content = {"state_dict": {"a": torch.ones(1)}, "hyper_parameters": Malicious(trace)}
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    assert_same(read_weights(path).state_dict, {"a": torch.ones(1)})
    assert not trace.exists()
