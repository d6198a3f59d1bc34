"""Layers that a library derives from torch's, or writes as functions of its own tensors, are layers here."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import project
from project.methods import PLeaS
from project.symmetry import Spec, check_equivalence, graph_of, permute_state, random_orders, trace

SHAPE = (3, 11, 13)


class NormAct(nn.BatchNorm2d):
    """A batch norm that activates what it puts out, its forward pass written anew."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__(width, eps=eps)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "maps")
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )  # fmt: skip
        return self.act(self.drop(x))


class Norm2d(nn.LayerNorm):
    """A LayerNorm over the channels of maps, whose constructor takes other arguments than torch's."""

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__(channels, 1e-6, affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class GroupAct(nn.GroupNorm):
    """A GroupNorm and what activates it."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels // size, channels)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class Same(nn.Conv2d):
    """A convolution that pads by the size of what it reads, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        short = [
            max((math.ceil(size / step) - 1) * step + taps - size, 0)
            for size, step, taps in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        ]
        x = F.pad(x, (short[1] // 2, short[1] - short[1] // 2, short[0] // 2, short[0] - short[0] // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Renamed(nn.Conv2d):
    """A convolution with nothing of its own but its arguments."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)


class Apart(nn.Module):
    """A linear layer whose constant is put together from parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8, bias=False)
        self.first, self.last = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.linear(x, weight=self.inner.weight, bias=torch.cat((self.first, self.last)))
        return torch.tanh(x).permute(0, 3, 1, 2)


def network(*body: nn.Module, width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)
    )  # fmt: skip


KINDS: dict[str, Callable[[], nn.Module]] = {
    "norm and activation": lambda: network(NormAct(6, 1e-3), nn.Conv2d(6, 7, 3, bias=False), NormAct(7), width=7),
    "norm of maps": lambda: network(Norm2d(6), nn.Conv2d(6, 7, 3), Norm2d(7, False), width=7),
    "groups and activation": lambda: network(GroupAct(6, 2), nn.Conv2d(6, 8, 3), GroupAct(8, 1), width=8),
    "same padding": lambda: network(Same(6, 7, 3, 2), nn.Tanh(), Same(7, 6, 4, (1, 2), bias=False)),
    "renamed": lambda: network(Renamed(6, 7), nn.Tanh(), Renamed(7, 6)),
    "constant of its own": lambda: network(Apart(), width=8),
}


def made(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    result = KINDS[name]().eval()
    with torch.no_grad():
        for key, tensor in result.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.rand_like(tensor) + (0.5 if key.endswith(("weight", "var")) else -0.5))
    return result


@torch.no_grad()
def permuted(net: nn.Module, spec: Spec, seed: int) -> nn.Module:
    orders = random_orders(spec, spec.free, torch.Generator().manual_seed(seed))
    result = copy.deepcopy(net)
    result.load_state_dict(permute_state(net.state_dict(), spec, orders))
    return result


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_its_groups_hold(name: str) -> None:
    net = made(name)
    spec = trace(net, SHAPE)
    assert list(check_equivalence(net, spec, tolerance=1e-4)) == [group.name for group in spec.free]
    batch = torch.randn(3, *SHAPE)
    assert torch.allclose(permuted(net, spec, 1)(batch), net(batch), atol=1e-5)
    # Every layer and norm of the network is one of the spec.
    own = {key.rpartition(".")[0] for key, _ in net.named_parameters()} - {"2"} | ({"2"} & {n.name for n in spec.norms})
    own = {name for name in own if name and not isinstance(net.get_submodule(name), Apart)}
    assert {layer.name for layer in spec.layers} | {norm.name for norm in spec.norms} >= own


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_the_graph_is_the_network(name: str) -> None:
    """For any number of pictures, with the layers' tensors shared and their activations left in."""
    net = made(name)
    trace(net, SHAPE)
    graph = graph_of(net)
    for count in (1, 4):
        batch = torch.randn(count, *SHAPE)
        assert torch.equal(graph(batch), net(batch))
    for parameter in net.parameters():
        parameter.mul_(0.5)
    assert torch.equal(graph(batch), net(batch))


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_permuted_copy_gives_the_network_back(name: str) -> None:
    net = made(name)
    spec = trace(net, SHAPE)
    pictures = torch.randn(24, *SHAPE)
    given = {"one": pictures[:16], "other": pictures[:16]}
    method = PLeaS(matching="weights")
    student = project.merge([net, permuted(net, spec, 2)], given, method=method, progress=False)
    wanted = net(pictures[16:])
    assert float((student(pictures[16:]) - wanted).abs().max() / wanted.abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["norm and activation", "renamed"])
@torch.no_grad()
def test_what_is_as_torch_has_it_grows(name: str) -> None:
    """At twice the size the student is its sources, whatever the layers' classes."""
    first, second = made(name, 0), made(name, 1)
    pictures = torch.randn(8, *SHAPE)
    given = {"a": pictures, "b": pictures}
    student = project.merge({"a": first, "b": second}, given, budget=2, label_space="different", progress=False)
    assert torch.allclose(student(pictures), torch.cat([first(pictures), second(pictures)], 1), atol=1e-4)


def test_what_pads_for_itself_keeps_its_size() -> None:
    spec = trace(made("same padding"), SHAPE)
    assert "is a Same" in str(spec.groups["2"].rigid)
