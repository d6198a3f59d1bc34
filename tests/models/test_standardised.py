"""Convolutions that compute what they convolve with, and such as look like them and are none."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from project.models import written_out


class Derived(nn.Conv2d):
    """A convolution with a weight that it computes."""

    def computed(self, x: Tensor) -> Tensor:
        return self.weight / self.weight.std((1, 2, 3), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.computed(x), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Activated(Derived):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Dynamic(Derived):
    def computed(self, x: Tensor) -> Tensor:
        return self.weight * (1 + x.mean())


@pytest.mark.parametrize(("kind", "plain"), [(Derived, True), (Activated, False), (Dynamic, False)])
def test_only_what_amounts_to_a_plain_convolution_becomes_one(kind: type[Derived], plain: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(kind(3, 4, 3, stride=2, padding=1, bias=False), nn.Flatten()).eval()
    pictures = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = network(pictures)
        written = written_out(network)
        torch.testing.assert_close(written(pictures), expected)
    assert (type(written[0]) is nn.Conv2d) is plain
