"""Networks of the user's own code: which name, class or network builds them, and that no file does."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import close, pictures, randomised, run
from safetensors.torch import save_file
from torch import Tensor, nn

from project.errors import CheckpointError, ConfigurationError
from project.models import Architecture, Description, architecture_of, architectures, load_network
from project.models.architecture import IMAGENET_NETS, others
from project.models.cifar import CifarResNet
from project.models.custom import count_logits, dotted_path, find_maker, last_layer, make
from project.runtime.saving import atomic_save


class Net(nn.Module):
    """Registers its head first, and all its tensors stand below ``model``."""

    def __init__(self, width: int = 4, classes: int = 3, depth: list[int] | tuple[int, ...] = ()) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"head": nn.Linear(width, classes), "stem": nn.Conv2d(3, width, 3)})
        self.register_buffer("shift", torch.tensor(0.5), persistent=False)
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model["head"](torch.relu(self.model["stem"](x)).mean((2, 3)))
        return logits + self.shift

    class Inner(nn.Sequential):
        """A class inside a class."""

        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(12, 2))


def build_net(width: int = 4) -> nn.Module:
    return Net(width)


def no_net() -> int:
    return 3


def fails() -> nn.Module:
    raise RuntimeError("no such\nthing")


HERE = "test_custom"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    network = randomised(Net(width=5), 1)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    return network, tmp_path / "net.pth"


# ---- descriptions ----------------------------------------------------------------------------------------------------


def test_a_description_is_plain_and_names_without_importing() -> None:
    given = Architecture("nowhere.at.All", 3, arguments={"width": 2, "shape": (1, 2)})
    assert given.custom
    assert given.arguments == {"width": 2, "shape": [1, 2]}
    assert Description.from_entries(Description(given).to_entries()).architecture == given
    assert hash(given) == hash(Architecture("nowhere.at.All", 3, arguments={"width": 2, "shape": [1, 2]}))
    assert given != Architecture("nowhere.at.All", 3)
    with pytest.raises(ConfigurationError, match=r"nowhere.at.All is code that nobody has named"):
        given.build()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arguments": {"norm": nn.BatchNorm2d}}, "arguments holds 'norm', a type; allowed: numbers"),
        ({"stem": "small"}, "stem is 'small'"),
        ({"width": 2}, "width is 2"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_impossible_descriptions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Architecture(**{"name": "a.Net", "num_classes": 3, **values})


def test_torchvisions_builders_take_arguments(tmp_path: Path) -> None:
    network = Architecture("mobilenet_v2", 3, arguments={"width_mult": 0.25}).build()
    torch.save(network.state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"features.0.0.weight is 8×3×3×3 instead of 32×3×3×3"):
        load_network(tmp_path / "net.pth", "mobilenet_v2")
    _, weights = load_network(tmp_path / "net.pth", "mobilenet_v2", {"width_mult": 0.25, "num_classes": 3})
    assert weights.architecture == Architecture("mobilenet_v2", 3, arguments={"width_mult": 0.25})
    for arguments, message in (
        ({"side": 3}, "architecture 'mobilenet_v2' cannot be built with .*'side': 3"),
        ({"weights": "DEFAULT"}, "arguments holds 'weights'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            load_network(tmp_path / "net.pth", "mobilenet_v2", arguments)
    with pytest.raises(ConfigurationError, match="resnet20 takes none; allowed: width"):
        Architecture("resnet20", 3, arguments={"depth": 2})


# ---- code that the user names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [f"{HERE}.Net", Net, "instance", f"{HERE}.build_net", build_net])
def test_a_file_is_read_by_what_the_user_names(saved: tuple[nn.Module, Path], named: Any) -> None:
    network, path = saved
    arguments = None if named == "instance" else {"width": 5}
    found, weights = load_network(path, Net(5) if named == "instance" else named, arguments)
    assert torch.equal(run(found, pictures(2, 0)), run(network, pictures(2, 0)))
    assert not any(module.training for module in found.modules())
    assert weights.architecture is not None
    name = f"{HERE}.{'build_net' if 'build_net' in str(named) else 'Net'}"
    assert (weights.architecture.name, weights.architecture.num_classes) == (name, 3)
    assert weights.architecture.arguments == arguments


def test_a_network_to_copy_stays_as_it_is(saved: tuple[nn.Module, Path]) -> None:
    template = randomised(Net(5), 7).train().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in template.state_dict().items()}
    found, _ = load_network(saved[1], template)
    assert template.training
    assert not any(parameter.requires_grad for parameter in template.parameters())
    assert all(parameter.requires_grad for parameter in found.parameters())
    for name, tensor in template.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert not torch.equal(found.state_dict()[name], tensor)


def test_a_network_without_memory_is_a_template_too(saved: tuple[nn.Module, Path]) -> None:
    with torch.device("meta"):
        template = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    filled = randomised(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), 3)
    torch.save(filled.state_dict(), saved[1])
    found, _ = load_network(saved[1], template)
    assert torch.equal(run(found, torch.ones(1, 12)), run(filled, torch.ones(1, 12)))


def test_building_draws_no_random_numbers(saved: tuple[nn.Module, Path]) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_network(saved[1], f"{HERE}.Net", {"width": 5})
    assert torch.equal(torch.rand(1), expected)


def test_files_are_checked_strictly(saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"net.pth does not fit .*model.head.weight is 3×5 instead of 3×4"):
        load_network(saved[1], f"{HERE}.Net", {"width": 4})
    with pytest.raises(CheckpointError, match="its arguments may be others, give them"):
        load_network(saved[1], Net)


@pytest.mark.parametrize(
    ("named", "arguments", "message"),
    [
        ("nowhere.Net", None, "architecture is 'nowhere.Net', but 'nowhere' cannot be imported: No module named"),
        (f"{HERE}.nothing", None, f"architecture is '{HERE}.nothing', which names no class or function"),
        (f"{HERE}.HERE", None, "which names no class or function"),
        (f"{HERE}.no_net", None, f"architecture '{HERE}.no_net' makes a int and no nn.Module"),
        (fails, None, r"cannot be built with {}: RuntimeError\('no such"),
        (Net, {"breadth": 2}, r"cannot be built with {'breadth': 2}: .*unexpected keyword argument 'breadth'"),
        (3, None, "architecture is 3; allowed: a name, a dotted path, a class"),
        ("resnet21", None, "architecture is 'resnet21'"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_sentence(
    saved: tuple[nn.Module, Path], named: Any, arguments: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_network(saved[1], named, arguments)
    assert "\n" not in str(caught.value)


def test_modules_of_the_current_directory_are_found(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [one for one in sys.path if one])
    (inside / "beside_me.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(2, 2)\n")
    (inside / "broken_one.py").write_text("1 / 0\n")
    before = list(sys.path)
    maker = find_maker("beside_me.net")
    assert maker is not None
    assert isinstance(make(maker, {}, "it"), nn.Linear)
    assert sys.path == before
    with pytest.raises(ConfigurationError, match="'broken_one' cannot be imported: ZeroDivisionError"):
        find_maker("broken_one.net")


def test_classes_inside_classes_have_dotted_paths() -> None:
    assert dotted_path(Net.Inner) == f"{HERE}.Net.Inner"
    assert find_maker(dotted_path(Net.Inner())) is Net.Inner


def test_logits_are_those_of_the_layer_that_runs_last() -> None:
    assert count_logits(Net(width=7, classes=3)) == 3
    with pytest.raises(ConfigurationError, match="Flatten has no linear layer"):
        count_logits(nn.Flatten())


# ---- code that a file names ------------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module whose import leaves a trace, and a file of weights that names it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trapped", raising=False)
    trace = tmp_path / "trace"
    (tmp_path / "trapped.py").write_text(
        f"import pathlib\nfrom test_custom import Net\n\npathlib.Path({str(trace)!r}).touch()\n"
    )
    described = Description(Architecture("trapped.Net", 3, arguments={"width": 5})).to_entries()
    atomic_save({"state_dict": Net(5).state_dict(), **described}, tmp_path / "net.ckpt")
    return trace


@pytest.mark.parametrize(
    "architecture", [None, Architecture("trapped.Net", 3), Architecture("trapped.Net", 3, arguments={"width": 5})]
)
def test_a_file_never_chooses_code(trap: Path, architecture: Architecture | None) -> None:
    path = trap.with_name("net.ckpt")
    with pytest.raises(ConfigurationError) as caught:
        load_network(path, architecture)
    assert not trap.exists()
    assert str(caught.value) == (
        f"{path} is a network of trapped.Net, code of yours that a file may not choose: name it, "
        f"architecture='trapped.Net' (in YAML: {{path: {path}, architecture: trapped.Net}})."
    )
    _, weights = load_network(path, "trapped.Net")
    assert trap.exists()
    assert weights.architecture == Architecture("trapped.Net", 3, arguments={"width": 5})


def test_other_code_than_the_files_is_refused_but_a_network_is_taken(trap: Path) -> None:
    path = trap.with_name("net.ckpt")
    with pytest.raises(ConfigurationError, match=f"is of trapped.Net, but architecture is {HERE}.Net; if that is"):
        load_network(path, Net, {"width": 5})
    _, weights = load_network(path, Net(5))
    assert weights.architecture == Architecture(f"{HERE}.Net", 3)
    assert not trap.exists()


# ---- networks in memory ----------------------------------------------------------------------------------------------

FEW = ("resnet18", "resnet20", "densenet121", "vgg11_bn", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5")


@pytest.mark.parametrize(
    "name", [one if one in FEW else pytest.param(one, marks=pytest.mark.slow) for one in (*architectures(), *others())]
)
def test_named_networks_are_recognised_in_memory(name: str) -> None:
    with torch.device("meta"):
        network = Architecture(name, 7).build()
    assert architecture_of(network) == Architecture(name, 7)


@pytest.mark.parametrize(
    "given", [Architecture("resnet18", 3, "small"), Architecture("resnet20", 3, width=2), Architecture("resnet18", 3)]
)
def test_a_build_of_that_name_gives_the_same_logits(given: Architecture) -> None:
    network = randomised(given.build(), 0)
    found = architecture_of(network.train())
    assert found == given
    assert network.training
    twin = found.build()
    twin.load_state_dict(network.state_dict())
    assert close(run(twin.eval(), pictures(2, 0, (3, 64, 64))), run(network.eval(), pictures(2, 0, (3, 64, 64))))


def changed(change: Callable[[Any], Any]) -> nn.Module:
    network = Architecture("resnet18", 3).build()
    return change(network) or network


class OwnResNet(CifarResNet):
    """Of the same tensors, and another class."""


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net.layer2[0].conv1, "stride", (1, 1)),
        lambda net: setattr(net.bn1, "eps", 1e-3),
        lambda net: setattr(net, "relu", nn.GELU()),
        lambda net: setattr(net, "forward", lambda x: x),
        lambda net: setattr(net.layer1[0], "stride", 2),
        lambda net: net.fc.register_forward_hook(lambda *_: None) and None,
        lambda net: OwnResNet(3, 3),
    ],
    ids=["stride", "eps", "activation", "method", "setting", "hook", "class"],
)
def test_what_only_looks_like_a_name_is_none(change: Callable[[Any], Any]) -> None:
    network = changed(change)
    found = architecture_of(network)
    assert found == Architecture(dotted_path(network), 3)
    assert found.name not in (*architectures(), *others())
    assert found.name not in IMAGENET_NETS


@pytest.mark.parametrize("name", ["densenet121", "squeezenet1_1"])
def test_heads_are_found_whatever_the_order_of_a_files_tensors(name: str, tmp_path: Path) -> None:
    """Files in safetensors have an order of their own, and some heads are convolutions."""
    save_file(Architecture(name, 7).build().state_dict(), tmp_path / "net.safetensors")
    assert load_network(tmp_path / "net.safetensors", name)[1].architecture == Architecture(name, 7)


class Derived(nn.Linear):
    """A linear layer of a class of its own, as libraries have them."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def test_the_last_layer_may_be_of_a_derived_class() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Derived(8, 5))
    assert last_layer(network) == "3"
    assert count_logits(network) == 5
