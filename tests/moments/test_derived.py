"""Moments that follow from others, against those that are gathered for themselves."""

from collections.abc import Callable

import pytest
import torch
from helpers import PICTURE, close, pictures, random_network, randomised, resnet, traced
from kinds import KINDS, SIDE, kind
from torch import Tensor, nn

from project.moments import LAYERS, UNITS, Collector, Lockstep, Moment, Statistics
from project.moments.derived import ReadByLayer, ThroughNorm
from project.moments.statistics import entry_name
from project.symmetry import Spec, graph_of

SHAPE = (3, 12, 10)


def collector_of(
    sources: list[nn.Module], spec: Spec, needs: tuple[str, ...], only: set[str] | None = None
) -> Collector:
    return Collector(spec, Lockstep(sources), needs, ["art", "birds"], only=only)


def seen(collector: Collector, shape: tuple[int, int, int] = SHAPE) -> Statistics:
    for seed, domain in enumerate(("art", "birds", "art")):
        collector.gather(domain, pictures(5, seed, shape))
    return collector.statistics


def alike(found: Statistics, expected: Statistics) -> bool:
    assert {node: set(table) for node, table in found.units.items()} == {
        node: set(table) for node, table in expected.units.items()
    }
    return all(
        one.count == expected.units[node][domain].count and close(one.sum(), expected.units[node][domain].sum())
        for node, table in found.units.items()
        for domain, one in table.items()
    )


def gathered_themselves(make: Callable[[], Collector], shape: tuple[int, int, int] = SHAPE) -> Statistics:
    collector = make()
    collector._rules.clear()
    return seen(collector, shape)


@pytest.mark.parametrize("needs", [(UNITS,), (LAYERS, UNITS)])
def test_norms_and_what_layers_read_are_not_multiplied(needs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [resnet("resnet20", weights) for weights in range(2)]
    spec = traced(sources[0], SHAPE)
    nodes = {node for group in spec.groups.values() if group.fixed != "input" for node in group.nodes}
    collector = collector_of(sources, spec, needs)
    norms = {node for (node, _), rule in collector._rules.items() if isinstance(rule, ThroughNorm)}
    read = {node for (node, _), rule in collector._rules.items() if isinstance(rule, ReadByLayer)}
    assert len(norms) == len(spec.norms)
    calls = [node for node in graph_of(sources[0]).graph.nodes if node.name in {layer.node for layer in spec.layers}]
    unstrided = {str(node.args[0]) for node in calls if "shortcut" not in node.name and "downsample" not in node.name}
    assert read == (unstrided & nodes if LAYERS in needs else set()), "all but those whose readers skip places"
    multiplied = set[int]()
    update = Moment.update

    def watched(moment: Moment, columns: Tensor, samples: int | None = None) -> None:
        multiplied.add(id(moment))
        update(moment, columns, samples)

    monkeypatch.setattr(Moment, "update", watched)
    found = seen(collector)
    assert {node for node, table in found.units.items() if id(table["art"]) in multiplied} == nodes - norms - read
    assert alike(found, gathered_themselves(lambda: collector_of(sources, spec, needs)))


@pytest.mark.parametrize("needs", [(UNITS,), (LAYERS, UNITS)])
@pytest.mark.parametrize("structure", [*range(6), *(pytest.param(i, marks=pytest.mark.slow) for i in range(6, 12))])
def test_networks_of_any_structure(structure: int, needs: tuple[str, ...]) -> None:
    sources = [random_network(structure, weights) for weights in range(2)]
    spec = traced(sources[0], PICTURE)
    expected = gathered_themselves(lambda: collector_of(sources, spec, needs), PICTURE)
    assert alike(seen(collector_of(sources, spec, needs), PICTURE), expected)


class InPlace(nn.Module):
    """A value that is changed in place and read again by its old name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.act, self.body = nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1)
        self.shortcut, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.how == "norm":
            self.act(x)
            x = self.body(self.norm(x))
        elif self.how == "shortcut":
            x = self.body(self.act(x)) + self.shortcut(x)
        elif self.how == "norm in shortcut":
            x = self.body(self.act(x)) + self.norm(x)
        elif self.how == "view":
            x.flatten(2).relu_()
            x = self.body(x)
        elif self.how == "sum":
            x += self.shortcut(x)
            x = self.body(x)
        else:
            torch.nn.functional.relu(x, True)
            x = self.body(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("how", ["norm", "shortcut", "norm in shortcut", "view", "sum", "function"])
def test_values_that_are_changed_in_place(how: str) -> None:
    sources = [randomised(InPlace(how), seed) for seed in range(2)]
    spec = traced(sources[0], SHAPE)
    expected = gathered_themselves(lambda: collector_of(sources, spec, (LAYERS, UNITS)))
    assert alike(seen(collector_of(sources, spec, (LAYERS, UNITS))), expected)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_network(name: str) -> None:
    sources = [kind(name, seed) for seed in range(2)]
    shape = (3, SIDE, SIDE)
    spec = traced(sources[0], shape)
    expected = gathered_themselves(lambda: collector_of(sources, spec, (LAYERS, UNITS)), shape)
    assert alike(seen(collector_of(sources, spec, (LAYERS, UNITS)), shape), expected)


def test_a_pass_that_lacks_what_a_value_follows_from_multiplies_it() -> None:
    """Passes divided where it is worst: what is derived, and what it is derived from, never together."""
    sources = [resnet("resnet20", weights) for weights in range(2)]
    spec = traced(sources[0], SHAPE)
    both = collector_of(sources, spec, (LAYERS, UNITS))
    derived = {entry_name(UNITS, node, domain) for node, domain in both._rules}
    everything = set(both.held.named())
    parts = [collector_of(sources, spec, (LAYERS, UNITS), only) for only in (derived, everything - derived)]
    assert len(parts[0]._rules) < len(both._rules)
    assert not parts[1]._rules
    total = seen(parts[0])
    for name, table in seen(parts[1]).units.items():
        total.units[name] |= table
    assert alike(total, gathered_themselves(lambda: collector_of(sources, spec, (UNITS,))))


def test_asking_in_between_changes_nothing() -> None:
    sources = [resnet("resnet20", weights) for weights in range(2)]
    spec = traced(sources[0], SHAPE)
    collector = collector_of(sources, spec, (LAYERS, UNITS))
    collector.gather("art", pictures(5, 9, SHAPE))
    assert collector.statistics.units["relu"]["art"].count == 5 * 12 * 10
    twice = seen(collector)
    expected = collector_of(sources, spec, (LAYERS, UNITS))
    expected.gather("art", pictures(5, 9, SHAPE))
    assert alike(twice, seen(expected))


def test_a_norm_in_which_much_cancels_is_multiplied() -> None:
    """A unit that hardly varies around a large mean: the rounding of its products would be all that is left."""
    sources = [resnet("resnet20", weights) for weights in range(2)]
    spec = traced(sources[0], SHAPE)
    whole = collector_of(sources, spec, (UNITS,))
    norm = sources[1].get_submodule(spec.norms[3].name)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean[0], norm.running_var[0] = 1.0, 1e-4
    assert len(collector_of(sources, spec, (UNITS,))._rules) == len(whole._rules) - 2  # in either domain
