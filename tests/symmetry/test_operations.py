"""What functions do to units: small networks around one operation each, whose groups must hold."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import project
from project.errors import TraceError
from project.methods import PLeaS
from project.models import written_out
from project.symmetry import check_equivalence, permute_state, random_orders, trace

SHAPE = (3, 12, 12)


class Around(nn.Module):
    """A layer, something, and another layer."""

    def __init__(self, what: Callable[["Around", Tensor], Tensor], width: int = 8, **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.what, self.head = nn.Conv2d(3, 8, 3, 2, 1), what, nn.Linear(width, 5)
        self.parts = nn.ModuleDict(parts)
        self.table = nn.Parameter(torch.ones(9, 2))
        self.places: Tensor
        self.register_buffer("places", torch.arange(36 * 36).remainder(9).view(36, 36))

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        return self.head(self.what(self, torch.tanh(self.first(x))).mean((2, 3)))


class Fused(nn.Module):
    """Attention by functions, queries, keys and values of one layer, with a table of biases or without."""

    def __init__(self, biased: bool, explicit: bool) -> None:
        super().__init__()
        self.biased, self.explicit, self.num_heads = biased, explicit, 2
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        pictures, positions, width = x.shape
        parts = self.qkv(x).reshape(pictures, positions, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        if self.explicit:
            weights = (q * 0.5) @ k.transpose(-2, -1)
            weights = (weights + bias if self.biased else weights).softmax(dim=-1)
            x = weights @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias if self.biased else None)
        return self.proj(x.transpose(1, 2).reshape(pictures, positions, width))


def attended(net: Around, x: Tensor) -> Tensor:
    bias = net.table[net.places.view(-1)].view(36, 36, 2).permute(2, 0, 1).unsqueeze(0)
    y = net.parts["attention"](x.flatten(2).transpose(1, 2), bias)
    return x + y.transpose(1, 2).reshape_as(x)


def response_norm(net: Around, x: Tensor) -> Tensor:
    size = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + x * (size / (size.mean(dim=1, keepdim=True) + 1e-6))


def neighbours(net: Around, x: Tensor) -> Tensor:
    y = net.parts["eca"](x.mean((2, 3)).view(x.shape[0], 1, -1))
    return x * y.view(x.shape[0], -1, 1, 1).sigmoid().expand_as(x)


def split_attention(net: Around, x: Tensor) -> Tensor:
    y = net.parts["wide"](x).reshape(x.shape[0], 2, 8, x.shape[2], x.shape[3])
    return y.sum(dim=1)


def selected(net: Around, x: Tensor) -> Tensor:
    return torch.stack([net.parts["left"](x), net.parts["right"](x)], dim=1).sum(1)


def shortcut(net: Around, x: Tensor) -> Tensor:
    """Option A: the shortcut's units are some of the next stage's, zeros beside them."""
    return net.parts["wide"](x) + F.pad(x, (0, 0, 0, 0, 4, 4))


def twice(net: Around, x: Tensor) -> Tensor:
    """A value stands on an axis twice, another beside it once."""
    return net.parts["root"](torch.cat([x, net.parts["left"](x), x], 1))


def sized(net: Around, x: Tensor) -> Tensor:
    if x.shape[-1] % 4:
        x = F.pad(x, (0, 4 - x.shape[-1] % 4, 0, 4 - x.shape[-2] % 4))
    return F.interpolate(x, size=(int(x.shape[-2] * 1.5), x.shape[-1] // 2))


KINDS: dict[str, Callable[[], Around]] = {
    "attention": lambda: Around(attended, attention=Fused(False, False)),
    "biased attention": lambda: Around(attended, attention=Fused(True, False)),
    "attention of products": lambda: Around(attended, attention=Fused(False, True)),
    "biased attention of products": lambda: Around(attended, attention=Fused(True, True)),
    "response norm": lambda: Around(response_norm),
    "neighbours": lambda: Around(neighbours, eca=nn.Conv1d(1, 1, 3, padding=1, bias=False)),
    "split attention": lambda: Around(split_attention, wide=nn.Conv2d(8, 16, 1, groups=2)),
    "selected": lambda: Around(selected, left=nn.Conv2d(8, 8, 1), right=nn.Conv2d(8, 8, 3, padding=1)),
    "shortcut": lambda: Around(shortcut, 16, wide=nn.Conv2d(8, 16, 1)),
    "twice": lambda: Around(twice, left=nn.Conv2d(8, 6, 1), root=nn.Conv2d(22, 8, 1)),
    "sized": lambda: Around(sized),
}
KEPT = {"neighbours": {"first"}, "split attention": {"parts.wide", "sum_1"}}


@torch.no_grad()
def made(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = KINDS[name]().eval()
    network.table.copy_(torch.randn_like(network.table))
    return written_out(network)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_all_groups_hold(name: str) -> None:
    network = made(name).double()
    spec = trace(network, SHAPE)
    batch = torch.randn(3, *SHAPE, dtype=torch.float64)
    before = network(batch)
    for groups in [[group] for group in spec.free] + [list(spec.free)]:
        other = copy.deepcopy(network)
        orders = random_orders(spec, groups, torch.Generator().manual_seed(1))
        other.load_state_dict(permute_state(network.state_dict(), spec, orders))
        assert torch.allclose(other(batch), before, atol=1e-9), [group.name for group in groups]
    kept = {group.name for group in spec.groups.values() if group.fixed == "order"}
    assert kept == KEPT.get(name, set())
    assert {layer.name for layer in spec.layers} >= {
        key for key, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("name", ["biased attention", "shortcut", "twice", "response norm"])
@torch.no_grad()
def test_a_permuted_copy_gives_the_network_back(name: str) -> None:
    network, pictures = made(name), torch.randn(24, *SHAPE)
    spec = trace(network, SHAPE)
    other = copy.deepcopy(network)
    orders = random_orders(spec, spec.free, torch.Generator().manual_seed(2))
    other.load_state_dict(permute_state(network.state_dict(), spec, orders))
    given = {"one": pictures[:16], "other": pictures[:16]}
    student = project.merge([network, other], given, method=PLeaS(matching="weights"), progress=False)
    wanted = network(pictures[16:])
    assert float((student(pictures[16:]) - wanted).abs().max() / wanted.abs().max()) < 1e-3


def test_units_that_are_added_to_themselves_are_named() -> None:
    """The order of units that a layer adds up in parts cannot be found again; it is kept, and said."""
    spec = trace(made("split attention"), SHAPE)
    assert "adds up some of its units, at symmetry/test_operations.py" in str(spec.groups["parts.wide"].rigid)


def test_a_wrong_group_is_named_after_all_were_permuted_at_once() -> None:
    from dataclasses import replace

    from project.errors import MergeError

    network = made("selected")
    spec = trace(network, SHAPE)
    group = spec.groups["parts.left"]
    wrong = replace(spec, groups={**spec.groups, group.name: replace(group, axes=group.axes[:1])})
    with pytest.raises(MergeError, match=r"group 'parts\.left'"):
        check_equivalence(network, wrong)


class Remembering(nn.Module):
    """A table that is computed of a parameter once, and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
        self.scale, self.cache = nn.Parameter(torch.rand(6, 1, 1) + 0.5), dict[str, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if "scale" not in self.cache:
            self.cache["scale"] = self.scale.square()
        return self.head((self.first(x) * self.cache["scale"]).mean((2, 3)))


@torch.no_grad()
def test_what_modules_remember_is_of_their_own_weights() -> None:
    network, pictures = Remembering().eval(), torch.randn(4, *SHAPE)
    before = network(pictures)
    spec = trace(network, SHAPE)
    check_equivalence(network, spec, tolerance=1e-5)
    assert torch.equal(network(pictures), before)
    other = Remembering().eval()
    student = project.merge([network, other], {"a": pictures, "b": pictures}, method="average", progress=False)
    wanted = (network.scale + other.scale).square() / 4
    student(pictures)
    assert torch.allclose(student.network.cache["scale"], wanted)


def test_softmax_over_units_is_refused() -> None:
    with pytest.raises(TraceError, match="softmax"):
        trace(Around(lambda net, x: x.softmax(1)).eval(), SHAPE)


@torch.no_grad()
def test_weights_that_are_computed_are_written_out() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    network = nn.Sequential(Standardised(3, 6, 3, 2, 1), nn.Tanh(), Standardised(6, 8, 3, groups=2, bias=False)).eval()
    pictures = torch.randn(2, *SHAPE)
    before = network(pictures)
    plain = written_out(network)
    assert {type(module) for module in plain} == {nn.Conv2d, nn.Tanh}
    assert torch.allclose(plain(pictures), before, atol=1e-6)
