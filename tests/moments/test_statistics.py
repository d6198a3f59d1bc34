"""Statistics of whole networks: what is gathered, in pieces, over processes."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import DOMAINS, PICTURE, close, gathered, pictures, random_network, same_state, traced, unfolded
from torch import Tensor, nn

from project.errors import MergeError
from project.moments import LAYERS, UNITS, Collector, Lockstep, Statistics
from project.symmetry import graph_of


def equal(a: Statistics, b: Statistics, tolerance: float = 1e-6) -> bool:
    pairs = list(zip(a.moments(), b.moments(), strict=True))
    assert pairs
    return a.pictures == b.pictures and all(
        x.count == y.count and (x.count == 0 or close(x.mean(), y.mean(), tolerance)) for x, y in pairs
    )


def values_of(network: nn.Module, batch: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What every value of the graph reads and is, copied at once."""
    seen = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Tensor:
            first = self.env[n.args[0]].clone() if n.args and n.args[0] in self.env else torch.empty(0)
            result = super().run_node(n)
            if n.op != "output":
                seen[n.name] = (first, result.clone())
            return result

    with torch.no_grad():
        Recorder(graph_of(network)).run(batch)
    return seen


@pytest.mark.parametrize("seed", range(8))
def test_statistics_are_second_moments_of_what_sources_read_and_write(seed: int) -> None:
    sources = [random_network(seed, weights) for weights in range(2 + seed % 2)]
    spec = traced(sources[0], PICTURE)
    batches = [("art", pictures(3, 1)), ("birds", pictures(2, 2)), ("art", pictures(4, 3))]
    found = gathered(sources, spec, batches, DOMAINS[:3])
    assert found.pictures == {"art": 7, "birds": 2, "cars": 0}
    runs = {
        domain: [
            values_of(source, torch.cat([batch for name, batch in batches if name == domain])) for source in sources
        ]
        for domain in ("art", "birds")
    }
    for layer in spec.layers:
        modules = [source.get_submodule(layer.name) for source in sources]
        total = 0.0
        for domain, seen in runs.items():
            parts = [unfolded(run[layer.node][0], module) for run, module in zip(seen, modules, strict=True)]
            columns = torch.cat([*parts, *[torch.ones_like(parts[0][:1])] * layer.bias])
            moment = found.layers[layer.name][domain]
            assert moment.count == columns.shape[1]
            assert close(moment.sum(), columns @ columns.mT)
            total = total + columns @ columns.mT
        assert found.layers[layer.name]["cars"].count == 0
        assert close(found.layer(layer.name).sum(), total)
    nodes = [node for group in spec.groups.values() if group.fixed != "input" for node in group.nodes]
    assert set(found.units) == set(nodes)
    for node in nodes:
        parts = [run[node][1].double().transpose(0, 1).flatten(1) for run in runs["art"]]
        columns = torch.cat([*parts, torch.ones_like(parts[0][:1])])
        assert close(found.units[node]["art"].sum(), columns @ columns.mT)


@pytest.mark.parametrize("seed", range(4))
def test_a_pass_in_pieces_is_a_pass(seed: int) -> None:
    sources = [random_network(seed, weights) for weights in (0, 1)]
    spec = traced(sources[0], PICTURE)
    art, birds = pictures(12, 1), pictures(9, 2)
    entire = gathered(sources, spec, [("art", art), ("birds", birds)], DOMAINS)
    pieces = [("birds", b) for b in birds.split(2)] + [("art", a) for a in art.split(5)]
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed)).tolist()
    assert equal(entire, gathered(sources, spec, [pieces[i] for i in order], DOMAINS))
    assert not equal(entire, gathered(sources, spec, [("art", art), ("birds", birds + 0.1)], DOMAINS))


@pytest.mark.parametrize("seed", range(4))
def test_gathering_leaves_sources_alone_and_returns_their_logits(seed: int) -> None:
    sources = [random_network(seed, weights) for weights in (0, 1)]
    before = [{name: tensor.clone() for name, tensor in source.state_dict().items()} for source in sources]
    spec = traced(sources[0], PICTURE)
    collector = Collector(spec, Lockstep(sources), (LAYERS, UNITS), ["art"])
    batch = pictures(5, 0)
    kept = batch.clone()
    logits = collector.gather("art", batch)
    for source, found, state in zip(sources, logits, before, strict=True):
        assert not any(module.training for module in source.modules())
        assert same_state(state, source.state_dict())
        with torch.no_grad():
            assert torch.equal(found, source(batch))
    assert torch.equal(batch, kept)
    assert collector.sources.taps == []


def test_only_what_is_needed_is_gathered() -> None:
    sources = [random_network(0, weights) for weights in (0, 1)]
    spec = traced(sources[0], PICTURE)
    assert not gathered(sources, spec, [("art", pictures(2, 0))], ["art"], [LAYERS]).units
    assert not gathered(sources, spec, [("art", pictures(2, 0))], ["art"], [UNITS]).layers
    with pytest.raises(MergeError, match="'nothing'"):
        gathered(sources, spec, [("art", pictures(2, 0))], ["art"], [UNITS]).layer("nothing")


def test_nothing_gathered_can_be_reduced() -> None:
    sources = [random_network(0, weights) for weights in (0, 1)]
    spec = traced(sources[0], PICTURE)
    statistics = gathered(sources, spec, [("art", pictures(2, 0))], ["art"], [])
    statistics.reduce(lambda tensor: tensor.mul_(2))
    assert statistics.pictures == {"art": 4}


def test_processes_that_saw_nothing_take_part_in_the_sum() -> None:
    """Every process must reduce the same tensors, else the sum never ends."""
    sources = [random_network(0, weights) for weights in (0, 1)]
    spec = traced(sources[0], PICTURE)
    some = gathered(sources, spec, [("art", pictures(2, 0))], DOMAINS)
    none = gathered(sources, spec, [], DOMAINS)
    assert [m.size for m in none.moments()] == [m.size for m in some.moments()]


def _share(rank: int) -> list[tuple[str, Tensor]]:
    """Rank 1 never sees birds, rank 0 never sees cars."""
    everything = [("art", pictures(6, 1)), ("birds", pictures(3, 2)), ("cars", pictures(4, 3))]
    return [everything[0], everything[1]] if rank == 0 else [("art", pictures(5, 4)), everything[2]]


def _sources() -> list[nn.Module]:
    return [random_network(3, weights) for weights in (0, 1)]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    sources = _sources()
    statistics = gathered(sources, traced(sources[0], PICTURE), _share(rank), DOMAINS[:3])
    statistics.reduce(dist.all_reduce)
    content = {
        "sums": [moment.sum() for moment in statistics.moments()],
        "counts": [moment.count for moment in statistics.moments()],
        "pictures": statistics.pictures,
    }
    torch.save(content, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_are_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    sources = _sources()
    alone = gathered(sources, traced(sources[0], PICTURE), _share(0) + _share(1), DOMAINS[:3])
    assert alone.pictures == {"art": 11, "birds": 3, "cars": 4}
    for rank in (0, 1):
        content = torch.load(tmp_path / f"{rank}.pt")
        assert content["pictures"] == alone.pictures
        assert content["counts"] == [moment.count for moment in alone.moments()]
        for found, moment in zip(content["sums"], alone.moments(), strict=True):
            assert close(found, moment.sum(), 1e-6)
