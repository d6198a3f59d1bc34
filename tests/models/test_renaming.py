"""Other writers' names."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18, resnet50

from project.models.cifar import CifarResNet
from project.models.reading.renaming import TABLES, Renaming, renamed

TABLES_OF_RESNETS = [table for table in TABLES if "ResNet" in table.writer or "torchvision" in table.writer]


def state(kind: str) -> Mapping[str, Tensor]:
    with torch.device("meta"):
        return {"basic": resnet18, "bottleneck": resnet50, "small": lambda: CifarResNet(3, 10)}[kind]().state_dict()


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "small"])
@pytest.mark.parametrize("table", TABLES_OF_RESNETS, ids=lambda table: table.writer)
def test_names_there_and_back_are_the_same(table: Renaming, kind: str) -> None:
    network = state(kind)
    theirs = table.theirs(network)
    back = table.ours(theirs)
    assert back is not None
    assert list(back) == list(network)
    assert all(back[name] is tensor for name, tensor in network.items())
    assert table in [found for found, _ in renamed(theirs)]
    assert table.ours({**theirs, "criterion.weight": torch.ones(1)}) is None


def test_parts_are_put_together_in_order() -> None:
    vit = next(table for table in TABLES if table.writer == "transformers' ViT")
    packed = torch.arange(12.0).view(6, 2)
    theirs = vit.theirs({"blocks.0.attn.qkv.weight": packed})
    assert [len(piece) for piece in theirs.values()] == [2, 2, 2]
    shuffled = dict(sorted(theirs.items()))
    back = vit.ours(shuffled)
    assert back is not None
    assert torch.equal(back["blocks.0.attn.qkv.weight"], packed)
    del shuffled[next(iter(theirs))]
    assert vit.ours(shuffled) is None
