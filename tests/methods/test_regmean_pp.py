"""RegMean++ against a walk with hooks and patches written out, and where it must be RegMean, or the sources."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    DOMAINS,
    PICTURE,
    estimate_case,
    make_problem,
    only,
    permuted_copy,
    pictures,
    random_network,
    traced,
)
from kinds import KINDS, SIDE, kind
from live import peak_bytes
from torch import Tensor, nn

import project
from project.errors import ConfigurationError
from project.methods import Merged, RegMean, RegMeanPP
from project.methods.names import find_method
from project.moments import INPUTS, UNITS


class Two(nn.Module):
    """Two convolutions, a norm between them, a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 5, 3, 2, 1), nn.Linear(5, 3)
        for parameter in self.norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        pooled: Tensor = self.head(F.relu(self.second(x)).mean((2, 3)))
        return pooled


class Pooled(nn.Module):
    """A head on pooled values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def parameters(merged: Merged) -> dict[str, Tensor]:
    return {name: one.detach() for name, one in merged.student.network.named_parameters()}


def solved(weights: list[Tensor], inputs: list[Tensor]) -> Tensor:
    """(Σ Wᵢ Aᵢ) (Σ Aᵢ)⁻¹ of samples in columns, by the inverse itself."""
    moments = [x @ x.mT / x.shape[1] for x in inputs]
    crossed = sum(w.detach().double().flatten(1) @ moment for w, moment in zip(weights, moments, strict=True))
    return crossed @ torch.linalg.inv(sum(moments))  # type: ignore[arg-type, operator]


def patches(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return F.unfold(x, layer.kernel_size, 1, layer.padding, layer.stride).transpose(0, 1).flatten(1).double()


@pytest.mark.parametrize("count", [2, 3])
def test_every_layer_reads_what_the_merged_network_gives_it(count: int) -> None:
    sources = [Two(seed).eval() for seed in range(count)]
    it = make_problem(sources, needs=("pictures",))
    found = parameters(only(RegMeanPP(1.0, 0.0), it))
    batches = [torch.cat(list(it.pictures[domain])) for domain in it.owners]
    merged = copy.deepcopy(sources[0]).double()
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            parameter.copy_(torch.stack([dict(source.named_parameters())[name].double() for source in sources]).mean(0))
        first = solved([source.first.weight for source in sources], [patches(x, merged.first) for x in batches])
        merged.first.weight.copy_(first.view_as(merged.first.weight))
        maps = [F.conv2d(x.double(), merged.first.weight, padding=1) for x in batches]
        everything = torch.cat(maps)
        merged.norm.running_mean.copy_(everything.mean((0, 2, 3)))
        merged.norm.running_var.copy_(everything.var((0, 2, 3), correction=0))
        hidden = [F.relu(merged.norm(one)) for one in maps]
        second = solved([source.second.weight for source in sources], [patches(h, merged.second) for h in hidden])
    assert torch.allclose(found["first.weight"].double().flatten(1), first, rtol=1e-3, atol=1e-3)
    assert torch.allclose(found["second.weight"].double().flatten(1), second, rtol=1e-3, atol=1e-3)
    other = parameters(only(RegMean(1.0, 0.0), make_problem(sources, needs=(INPUTS,))))
    assert torch.allclose(found["first.weight"], other["first.weight"], rtol=1e-4, atol=1e-4), "it reads the pictures"
    assert not torch.allclose(found["second.weight"], other["second.weight"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["random", *KINDS])
def test_sources_that_agree_come_back(name: str) -> None:
    """Whatever the layers: grouped, depthwise, in branches, in attention."""
    network, shape = (random_network(0, 0), PICTURE) if name == "random" else (kind(name, 0), (3, SIDE, SIDE))
    batches = [(domain, pictures(4, seed, shape)) for seed, domain in enumerate(DOMAINS[:2])]
    it = make_problem([network, copy.deepcopy(network)], shape=shape, needs=("pictures",), batches=batches)
    found = parameters(only(RegMeanPP(), it))
    for key, parameter in network.named_parameters():
        assert torch.allclose(found[key], parameter, rtol=1e-3, atol=1e-4), key


def test_units_of_other_bases_are_matched_first() -> None:
    network = random_network(1, 1)
    twin = copy.deepcopy(network)
    permuted_copy(network, twin, traced(network, PICTURE), 0)
    it = make_problem([network, twin], needs=("pictures", UNITS))
    apart, matched = (only(RegMeanPP(align=align), it).layers for align in ("none", "activations"))
    assert max(layer["residual_before"] for layer in matched.values()) < 1e-6, "all sources do the same"
    assert max(layer["residual_before"] for layer in apart.values()) > 1e-2


def test_it_needs_pictures_and_no_statistics() -> None:
    assert RegMeanPP().needs == {"pictures"}
    assert type(find_method("RegMean++")) is RegMeanPP
    assert RegMeanPP().name == "regmeanpp"
    with pytest.raises(ConfigurationError, match=r"off_diagonal is -0.1; allowed: 0 to 1"):
        RegMeanPP(-0.1)


def test_through_the_library() -> None:
    sources = [Two(seed) for seed in range(2)]
    seen = {domain: torch.randn(6, 3, 8, 8) for domain in ("art", "birds")}
    student = project.merge(sources, seen, method="regmean++", progress=False, audit="off")
    assert student(seen["art"]).isfinite().all()


def test_it_takes_what_it_said() -> None:
    """Moments of all sources at the widest layer, however many there are."""
    sources = [nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 6, 5), Pooled(6)) for _ in range(4)]
    batches = [(domain, pictures(6, seed, (3, 9, 9))) for seed, domain in enumerate(DOMAINS[:4])]
    it = make_problem([source.eval() for source in sources], shape=(3, 9, 9), needs=("pictures",), batches=batches)
    told = estimate_case(RegMeanPP(), it, dict.fromkeys(it.owners, 6), [1.0], 6)
    moment = 8 * (40 * 25) ** 2
    assert 4 * moment < peak_bytes(lambda: only(RegMeanPP(), it)) <= told.whole
