"""Similarities against numpy on the values themselves."""

import numpy as np
import pytest
import torch
from helpers import DOMAINS, PICTURE, gathered, pictures, random_network, traced
from torch import Tensor, nn

from project.alignment import activation_similarity
from project.symmetry import Spec, graph_of


def collected(network: nn.Module, batches: list[Tensor]) -> dict[str, np.ndarray]:
    """Every value of the graph: units × samples over all batches, float64."""
    values: dict[str, list[np.ndarray]] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Tensor:
            result = super().run_node(n)
            if n.op != "output":
                values.setdefault(n.name, []).append(result.double().transpose(0, 1).flatten(1).numpy().copy())
            return result

    with torch.no_grad():
        for batch in batches:
            Recorder(graph_of(network)).run(batch)
    return {name: np.concatenate(parts, 1) for name, parts in values.items()}


def scene(seed: int, count: int) -> tuple[list[nn.Module], Spec, list[Tensor]]:
    sources = [random_network(seed, weights) for weights in range(count)]
    return sources, traced(sources[0], PICTURE), [pictures(4, 1), pictures(9, 2), pictures(5, 3)]


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        *((seed, 2 + seed % 2) for seed in range(8)),
        *(pytest.param(seed, 3 - seed % 2, marks=pytest.mark.slow) for seed in range(8)),  # the other number of sources
    ],
)
def test_similarities_over_all_batches_and_values(seed: int, count: int) -> None:
    sources, spec, batches = scene(seed, count)
    statistics = gathered(sources, spec, list(zip(("art", "birds", "art"), batches, strict=True)), DOMAINS)
    runs = [collected(source, batches) for source in sources]
    for group in spec.free:
        correlations, distances = [], []
        for node in group.nodes:
            stacked = np.concatenate([run[node] for run in runs])
            dead = stacked.std(1) <= 1e-12
            with np.errstate(invalid="ignore", divide="ignore"):
                correlation = np.corrcoef(stacked)
            correlation[dead] = correlation[:, dead] = 0.0
            correlations.append(correlation)
            distances.append(-np.sqrt(((stacked[:, None] - stacked[None]) ** 2).mean(2)))
        scale = np.abs(np.mean(distances, 0)).max()
        found = activation_similarity(statistics, group, "correlation").numpy()
        assert np.allclose(found, np.mean(correlations, 0), atol=1e-3)
        found = activation_similarity(statistics, group, "distance").numpy()
        off = ~np.eye(len(found), dtype=bool)
        assert np.allclose(found[off], np.mean(distances, 0)[off], atol=1e-3 * scale)


def test_units_that_never_vary_correlate_with_nothing() -> None:
    """Constants come with rounding: a float32 sum of squares is not the square of a float32 sum."""
    sources = [
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)).eval()
    ] * 2
    with torch.no_grad():
        sources[0][0].weight[:4] = 0.0
        sources[0][0].bias[:4] = torch.tensor([0.1, 0.7, 3.3, 0.0])
        sources[0][0].bias[4:] = 1.0
    spec = traced(sources[0], PICTURE)
    batches = [("art", pictures(50, seed)) for seed in range(3)]
    found = activation_similarity(gathered(sources, spec, batches, ["art"]), spec.free[0], "correlation")
    dead = torch.tensor([0, 1, 2, 3, 6, 7, 8, 9])
    assert float(found[dead].abs().max()) == 0.0
    assert float(found[4, 10]) == pytest.approx(1.0, abs=1e-3)
