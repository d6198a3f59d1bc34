"""Stages of the sequential fit, against the longest path in the graph."""

import copy

import pytest
import torch
from torch import fx, nn

from project.fit import in_stages, stages
from project.models import Architecture
from project.symmetry import graph_of, trace

SIZE = (3, 32, 32)


def layers_of(network: nn.Module) -> set[str]:
    return {layer.node for layer in trace(network, SIZE).layers}


def longest(node: fx.Node, layers: set[str]) -> int:
    return max((longest(one, layers) for one in node.all_input_nodes), default=0) + (node.name in layers)


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_a_stage_holds_the_layers_with_as_many_layers_before_them(name: str) -> None:
    network = Architecture(name, 4).build().eval()
    graph, layers = graph_of(network), layers_of(network)
    found = stages(graph, layers)
    nodes = {node.name: node for node in graph.graph.nodes}
    assert sorted(name for stage in found for name in stage) == sorted(layers)
    # The recursion takes every path there is, whose number doubles with each block: hence the first stages alone.
    assert all(longest(nodes[one], layers) == depth for depth, stage in enumerate(found[:12], 1) for one in stage)
    assert ["layer2_0_conv1", "layer2_0_downsample_0"] in found


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_calls_in_stage_order_compute_the_same(name: str) -> None:
    network = Architecture(name, 4).build().eval()
    layers = layers_of(network)
    before, after = graph_of(network), in_stages(graph_of(copy.deepcopy(network)), layers)
    order = [node.name for node in after.graph.nodes if node.name in layers]
    assert order == [one for stage in stages(before, layers) for one in stage]
    assert order != [node.name for node in before.graph.nodes if node.name in layers]
    pictures = torch.randn(2, *SIZE)
    torch.testing.assert_close(after(pictures), before(pictures))
