"""Moments of each source's own inputs, on the domains where it is looked at."""

import torch
from helpers import pictures, random_network, traced, unfolded

from project.moments import INPUTS, Collector, Lockstep, own_domains
from project.symmetry import graph_of


def test_whose_domain_is_whose() -> None:
    assert own_domains(3, ["a", "b", "c"], {"a": 1, "c": 1, "b": 0}) == [["b"], ["a", "c"], ["a", "b", "c"]]


def test_own_inputs_are_the_sources_own() -> None:
    for seed in range(3):
        sources = [random_network(seed, weights) for weights in range(3)]
        spec = traced(sources[0], (3, *pictures(1, 0).shape[2:]))
        batches = {"a": pictures(6, 1), "b": pictures(4, 2)}
        collector = Collector(spec, Lockstep(sources), (INPUTS,), ("a", "b"), {"a": 0, "b": 1})
        for domain, batch in batches.items():
            collector.gather(domain, batch)
        assert not collector.statistics.layers
        assert not collector.statistics.units
        for layer in spec.layers:
            found = collector.statistics.inputs[layer.name]
            assert set(found) == {(0, "a"), (1, "b"), (2, "a"), (2, "b")}
            for (source, domain), moment in found.items():
                columns = unfolded(
                    read(sources[source], layer.name, batches[domain]), sources[source].get_submodule(layer.name)
                )
                assert moment.count == columns.shape[1]
                assert torch.allclose(moment.sum(), columns @ columns.mT, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def read(network: torch.nn.Module, name: str, batch: torch.Tensor) -> torch.Tensor:
    """What a layer reads."""
    seen = []
    graph = graph_of(network)
    handle = graph.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    graph(batch)
    handle.remove()
    return seen[0]
