"""Attention written out does what ``nn.MultiheadAttention`` does."""

import itertools

import pytest
import torch
from torch import nn

from project.errors import TraceError
from project.models import written_out
from project.models.unfused.attention import fused


@pytest.mark.parametrize(
    ("batch_first", "bias", "heads", "widths"),
    [*itertools.product((True, False), (True, False), (1, 2, 4), ({}, {"kdim": 5, "vdim": 3}))],
)
def test_written_out_is_the_same(batch_first: bool, bias: bool, heads: int, widths: dict[str, int]) -> None:
    torch.manual_seed(heads)
    fused = nn.MultiheadAttention(8, heads, bias=bias, batch_first=batch_first, **widths).eval()
    for parameter in fused.parameters():
        nn.init.normal_(parameter)
    query = torch.randn(2, 6, 8)
    key, value = torch.randn(2, 7, widths.get("kdim", 8)), torch.randn(2, 7, widths.get("vdim", 8))
    if not batch_first:
        query, key, value = (one.transpose(0, 1) for one in (query, key, value))
    with torch.no_grad():
        expected = fused(query, key, value)[0]
        found = written_out(fused)(query, key, value)[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_it_is_replaced_where_it_stands() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ModuleDict({"inner": nn.MultiheadAttention(8, 2)})).eval()
    assert written_out(network) is network
    assert not any(isinstance(module, nn.MultiheadAttention) for module in network.modules())
    assert not any(module.training for module in network.modules())
    assert network.get_submodule("1.inner.query").weight.shape == (8, 8)


def test_masks_are_refused() -> None:
    values = torch.randn(1, 3, 8)
    with pytest.raises(TraceError, match="mask"):
        written_out(nn.MultiheadAttention(8, 2))(values, values, values, attn_mask=torch.zeros(1, 1))


class Block(nn.Module):
    """Projections for queries, keys and values at once, and for keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.qkv, self.kv = nn.Linear(8, 24), nn.Linear(8, 16, bias=False)


def test_tensors_go_back_under_the_names_before() -> None:
    network = nn.ModuleDict({"block": Block(), "attention": nn.MultiheadAttention(8, 2)})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = written_out(network).state_dict()
    assert {"block.qkv.query.weight", "block.kv.value.weight", "attention.key.bias"} <= state.keys()
    back = fused(state, before)
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in before)


def test_names_that_nothing_tells_are_left_out() -> None:
    assert fused({"conv.weight": torch.ones(1)}, ["conv.weight", "conv.gain"]).keys() == {"conv.weight"}
