from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import resnet
from safetensors.torch import save_file
from torch import Tensor, nn

import project
from project.errors import CheckpointError, ConfigurationError, PleasError
from project.models import Architecture
from project.models.reading.sound import check_varied, sound_state
from project.student import load_source, source_of

Change = Callable[[dict[str, Tensor]], object]


def tensors(seed: int = 0) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in resnet("resnet20", seed).state_dict().items()}


def put(name: str, value: Callable[[Tensor], Tensor]) -> Change:
    return lambda state: state.update({name: value(state[name])})


def filled(index: tuple[int, ...], value: float, kind: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    def fill(tensor: Tensor) -> Tensor:
        tensor = tensor.to(kind)
        tensor[index] = value
        return tensor

    return fill


CONV, VARIANCE = "layer1.0.conv1.weight", "layer2.0.bn1.running_var"
WRONG: dict[str, tuple[Change, str]] = {
    "sparse": (put(CONV, lambda t: t.to_sparse()), f"'{CONV}', which is sparse"),
    "compressed": (put("fc.weight", lambda t: t.to_sparse_csr()), "'fc.weight', which is sparse"),
    "quantised": (
        put(CONV, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), f"'{CONV}', which is quantised",
    ),
    "complex": (put(CONV, lambda t: t.to(torch.complex64)), f"'{CONV}', which is complex"),
    "meta": (put(CONV, lambda t: t.to("meta")), f"'{CONV}', which is on the meta device, without values"),
    "integer": (put(CONV, lambda t: t.to(torch.int8)), f"'{CONV}' of type int8; allowed: floating numbers"),
    "boolean": (put("fc.bias", lambda t: t > 0), "'fc.bias' of type bool; allowed: floating numbers"),
    "unsigned variance": (put(VARIANCE, lambda t: t.byte()), f"'{VARIANCE}' of type uint8"),
    "negative variance": (
        put(VARIANCE, filled((3,), -0.25)), rf"negative variances in '{VARIANCE}', down to -2\.5e-01",
    ),
    "not a number": (put(CONV, filled((1, 2, 0, 0), torch.nan)), f"values in '{CONV}' that are not finite"),
    "infinite": (put("fc.bias", filled((0,), -torch.inf)), "values in 'fc.bias' that are not finite"),
    "infinite half": (put(CONV, filled((0, 0), torch.inf, torch.float16)), f"values in '{CONV}' that are not finite"),
    "too large for float32": (
        put(CONV, filled((0, 0, 0, 0), -1e300, torch.float64)),
        rf"values in '{CONV}' up to 1\.0e\+300, of which float32 holds none above 3\.4e\+38",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch's, of sparse and quantised tensors
@pytest.mark.parametrize("kind", list(WRONG))
def test_weights_that_cannot_be_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    change, words = WRONG[kind]
    state = tensors()
    change(state)
    for form, path in (("zip", tmp_path / "w.pt"), ("older", tmp_path / "old.pt")):
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
        with pytest.raises(CheckpointError, match=rf"{path.name} holds {words}"):
            load_source(path)
    if kind not in ("sparse", "compressed", "quantised", "complex", "meta"):
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(CheckpointError, match=rf"w.safetensors holds {words}"):
            load_source(tmp_path / "w.safetensors")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sparse", "complex", "negative variance", "not a number", "too large for float32"])
def test_networks_in_memory_are_held_to_the_same(kind: str) -> None:
    change, words = WRONG[kind]
    network, state = resnet("resnet20", 0), tensors()
    change(state)
    for name, module in network.named_modules():
        for leaf in {**module._parameters, **module._buffers}:
            full = f"{name}.{leaf}".lstrip(".")
            if full in state and isinstance(module._parameters.get(leaf), nn.Parameter):
                module._parameters[leaf] = nn.Parameter(state[full], requires_grad=False)
            elif full in state:
                module._buffers[leaf] = state[full]
    with pytest.raises(ConfigurationError, match=rf"mine holds {words}"):
        source_of(network, "mine")


def test_what_is_no_weights_passes(tmp_path: Path) -> None:
    """Counters and indices are whole numbers; empty tensors, wide and narrow ones are weights too."""
    state = {
        "bn.num_batches_tracked": torch.tensor(3), "index": torch.arange(4).view(2, 2), "mask": torch.tensor([True]),
        "bn.running_var": torch.zeros(3), "empty": torch.empty(0, 3), "half": torch.tensor([65504.0]).half(),
        "wide": torch.tensor([1e-300, 3e38], dtype=torch.float64),
    }  # fmt: skip
    found = sound_state(state, "w", CheckpointError)
    assert found["bn.num_batches_tracked"].dtype == torch.int64
    assert found["wide"].dtype == found["half"].dtype == torch.float32
    assert found["bn.running_var"].data_ptr() == state["bn.running_var"].data_ptr(), "no copy where none is needed"


def test_networks_that_hold_one_number_are_refused(tmp_path: Path) -> None:
    for name, change, words in (
        ("zeros", torch.zeros_like, "every layer's weight is 0 throughout"),
        ("halves", lambda t: torch.full_like(t, 0.5), "every layer's weight is 0.5 throughout"),
        ("levels", lambda t: torch.full_like(t, t.flatten()[0].item()), "every layer's weight holds one number"),
    ):
        state = {n: change(t) if t.is_floating_point() else t for n, t in tensors().items()}
        state = {n: t.abs() if n.endswith("running_var") else t for n, t in state.items()}
        torch.save(state, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError, match=rf"{name}.pt was never trained, or its values are lost: {words}"):
            load_source(tmp_path / f"{name}.pt")
        network = resnet("resnet20", 0)
        network.load_state_dict(state)
        with pytest.raises(ConfigurationError, match=words):
            source_of(network, "mine")


def test_fresh_norms_and_zero_heads_are_no_constant_networks() -> None:
    network = Architecture("resnet18", 3).build()
    nn.init.zeros_(network.fc.weight)
    for block in network.layer1:
        nn.init.zeros_(block.bn2.weight)
        nn.init.zeros_(block.conv1.weight)
    check_varied(network.state_dict(), "w", CheckpointError)
    check_varied({"fc.weight": torch.ones(1, 1), "bn.weight": torch.ones(3)}, "w", CheckpointError)  # too few to tell
    check_varied({}, "w", CheckpointError)


def test_outputs_that_no_student_can_follow_are_blamed_on_their_layer(tmp_path: Path) -> None:
    """And not on the groups, or on what is later computed from them."""
    paths = []
    for seed in range(2):
        state = tensors(seed)
        paths.append(tmp_path / f"{seed}.pt")
        torch.save(state, paths[-1])
    images = {"a": torch.randn(4, 3, 16, 16), "b": torch.randn(4, 3, 16, 16)}
    state["layer2.0.conv1.weight"] *= 1e30
    torch.save(state, paths[1])
    words = (
        r"source .*1.pt: layer 'layer2.0.conv1' puts out .* on random pictures; .* its parameters reach \d.\de\+(29|30)"
    )
    with pytest.raises(PleasError, match=words):
        project.merge(paths, images, method="pleas")
    state = tensors(1)
    state["fc.weight"].zero_()
    torch.save(state, paths[1])
    with pytest.raises(PleasError, match=r"source .*1.pt: it gives all pictures the same logits"):
        project.merge(paths, images, method="pleas")
    torch.save(tensors(1), paths[1])
    images["b"] *= 1e25
    with pytest.raises(PleasError, match=r"on the calibration pictures of b is not finite in '.*' \(\w+\)"):
        project.merge(paths, images, method="pleas")
