"""torchvision's own networks, at full size: copies with their units in other orders merge to themselves."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from helpers import close, make_problem, merge_case, permuted_copy, pictures, traced
from torch import nn

from project.methods import PLeaS
from project.models import written_out
from project.moments import PICTURES

SHAPE = (3, 64, 64)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnext50_32x4d": lambda: torchvision.models.resnext50_32x4d(num_classes=10),
    "convnext_tiny": lambda: torchvision.models.convnext_tiny(num_classes=10),
    # With all its twelve layers this took more than 24 GB, since nothing plans the memory here as a merge does.
    "vit_b_16, two layers": lambda: torchvision.models.VisionTransformer(64, 16, 2, 12, 768, 3072, num_classes=10),
    "regnet_y_400mf": lambda: torchvision.models.regnet_y_400mf(num_classes=10),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_permuted_copies_merge_to_themselves(name: str) -> None:
    torch.manual_seed(0)
    network = written_out(NETWORKS[name]().eval())
    for parameter in network.parameters():  # layer scales, class tokens and heads begin at (almost) zero
        if float(parameter.detach().abs().max()) < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():  # batch norms that know their inputs keep values in range through a deep network
        network.train()(pictures(16, 1, SHAPE))
    network.eval()
    twin = copy.deepcopy(network)
    permuted_copy(network, twin, traced(network, SHAPE), 0)
    batches = [(domain, pictures(8, seed, SHAPE)) for seed, domain in enumerate(("art", "birds"))]
    hidden = any(not group.nodes for group in traced(network, SHAPE).free)  # which activations do not show
    method = PLeaS("weights" if hidden else "activations")
    problem = make_problem([network, twin], shape=SHAPE, batches=batches, needs=method.needs - {PICTURES})
    (merged,) = merge_case(method, problem, [1.0])
    with torch.no_grad():
        assert close(merged.student(batches[0][1]), network(batches[0][1]), 1e-3)
