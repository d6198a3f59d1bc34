"""Sums of t zᵀ against unfolding in float64."""

import pytest
import torch
from torch import Tensor, nn

from project.moments import crosses
from project.moments.crosses import cross_moment

CONVOLUTIONS = [
    ({"kernel_size": 3, "padding": 1}, (5, 4)),
    ({"kernel_size": 3, "padding": 1}, (1, 2)),
    ({"kernel_size": 3, "padding": 2, "dilation": 2}, (3, 2)),
    ({"kernel_size": (3, 2), "padding": "same"}, (4, 5)),
    ({"kernel_size": 3, "stride": 2, "padding": 1}, (7, 6)),
    ({"kernel_size": (5, 1), "stride": (1, 2), "padding": (2, 0)}, (3, 5)),
    ({"kernel_size": 1, "stride": 2}, (5, 5)),
    ({"kernel_size": 2, "padding": "valid"}, (4, 4)),
]


def unfolded(values: Tensor, targets: Tensor, layer: nn.Conv2d) -> Tensor:
    """Σ t zᵀ by the gradient of ⟨t, layer(z)⟩, which autograd finds by itself."""
    twin = nn.Conv2d(values.shape[1], targets.shape[1], layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    twin = twin.double()
    (twin(values.double()) * targets.double()).sum().backward()
    assert twin.weight.grad is not None
    assert twin.bias is not None
    assert twin.bias.grad is not None
    return torch.cat([twin.weight.grad.flatten(1), twin.bias.grad[:, None]], 1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("wide", [1, 1000], ids=["by taps", "by the library"])
@pytest.mark.parametrize(("options", "sides"), CONVOLUTIONS)
def test_both_ways_are_the_sum(
    options: dict[str, object], sides: tuple[int, int], wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crosses, "WIDE", wide)
    torch.manual_seed(0)
    layer, values = nn.Conv2d(6, 4, **options), torch.randn(3, 6, *sides)  # type: ignore[arg-type]
    targets = torch.randn_like(layer(values))
    expected = unfolded(values, targets, layer)
    found = cross_moment(targets, values, layer, constant=True)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(cross_moment(targets, values, layer, constant=False), found[:, :-1])


def test_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    targets, values = torch.randn(7, 4), torch.randn(7, 5)
    found = cross_moment(targets, values, nn.Linear(5, 4), constant=True)
    assert torch.allclose(found, torch.cat([targets.mT @ values, targets.sum(0)[:, None]], 1), rtol=1e-5, atol=1e-5)
