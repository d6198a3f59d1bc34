"""Moments of gradients against gradients taken one picture at a time."""

from functools import partial

import pytest
import torch
from helpers import pictures, random_network, traced
from torch import Tensor, nn

from project.errors import MergeError
from project.moments import DIAGONAL, FACTORS, Collector, Lockstep, Statistics, fisher_need
from project.moments.fisher import drawn

PICTURE = (3, 11, 13)


def gathered(
    network: nn.Module,
    classes: str,
    batches: list[Tensor],
    labels: list[Tensor] | None = None,
    columns: slice | None = None,
) -> Statistics:
    spec = traced(network, PICTURE)
    needs = [fisher_need(what, classes) for what in (DIAGONAL, FACTORS)]  # type: ignore[arg-type]
    known = {} if columns is None else {"art": columns}
    collector = Collector(spec, Lockstep([network]), needs, ["art"], {"art": 0}, known)
    with torch.inference_mode():
        for index, batch in enumerate(batches):
            collector.gather("art", batch, labels[index] if labels else None)
    assert not collector.statistics.layers
    assert not collector.statistics.units
    return collector.statistics


def sums(statistics: Statistics) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the one source on the one domain, by parameter and by layer."""
    (squares,) = (table for table in statistics.squares.values() if table)
    (factors,) = (table for table in statistics.factors.values() if table)
    key = (0, "art")
    return {n: t[key].totals[0] for n, t in squares.items()}, {n: t[key].sum() for n, t in factors.items()}


def brute(network: nn.Module, batch: Tensor, weights: Tensor, columns: slice = slice(None)) -> tuple[dict, dict]:
    """Σ p(c) of the squared gradients and of g gᵀ, a picture and a class at a time; weights (pictures, classes)."""
    squares = {name: torch.zeros_like(one, dtype=torch.float64) for name, one in network.named_parameters()}
    factors: dict[str, Tensor] = {}
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for picture, shares in zip(batch, weights, strict=True):
        for label, share in enumerate(shares.tolist()):
            if not share:
                continue
            seen: dict[str, Tensor] = {}

            handles = [module.register_forward_hook(partial(keep, seen, name)) for name, module in layers.items()]
            network.zero_grad()
            network(picture[None])[0, columns].log_softmax(0)[label].backward()
            for handle in handles:
                handle.remove()
            for name, one in network.named_parameters():
                if one.grad is not None:
                    squares[name] += share * one.grad.double().square()
            for name, output in seen.items():
                rows = output.grad.double().transpose(0, 1).flatten(1)
                factors[name] = factors.get(name, 0.0) + share * rows @ rows.mT
    network.zero_grad()
    return squares, factors


def keep(seen: dict[str, Tensor], name: str, _: nn.Module, __: object, output: Tensor) -> Tensor:
    output.retain_grad()
    seen[name] = output
    return output.clone()


def assert_same(statistics: Statistics, squares: dict[str, Tensor], factors: dict[str, Tensor]) -> None:
    found = sums(statistics)
    assert (found[0].keys(), found[1].keys()) == (squares.keys(), factors.keys())
    for name, expected in squares.items():
        assert torch.allclose(found[0][name], expected, rtol=1e-3, atol=1e-5 * float(expected.max() + 1e-9)), name
    for name, expected in factors.items():
        assert torch.allclose(found[1][name], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())), name


@pytest.mark.parametrize("seed", range(3))
def test_labels_and_all_classes_against_one_picture_at_a_time(seed: int) -> None:
    network, batch = random_network(seed, seed), pictures(5, seed)
    labels = torch.tensor([0, 3, 1, 4, 4])
    one_hot = nn.functional.one_hot(labels, 5).double()
    assert_same(gathered(network, "labels", [batch], [labels]), *brute(network, batch, one_hot))
    with torch.no_grad():
        shares = network(batch).softmax(1).double()
    assert_same(gathered(network, "exact", [batch]), *brute(network, batch, shares))
    part = slice(2, 5)
    found = gathered(network, "labels", [batch], [labels % 3], part)
    assert_same(found, *brute(network, batch, nn.functional.one_hot(labels % 3, 3).double(), part))


def test_means_are_over_pictures_and_over_positions() -> None:
    """Whatever the number of classes that are gone through."""
    network, batch = random_network(0), pictures(5, 0)
    for classes in ("sampled", "exact"):
        found = gathered(network, classes, [batch[:2], batch[2:]])
        squares, factors = sums(found)
        for name, total in squares.items():
            assert torch.allclose(found.square(name, 0, classes), total / 5)  # type: ignore[arg-type]
        for layer in traced(network, PICTURE).layers:
            mean = found.factor(layer.name, 0, classes)  # type: ignore[arg-type]
            assert torch.allclose(mean, factors[layer.name] / (5 * layer.positions))


def test_pieces_are_the_whole_and_the_source_is_left_alone() -> None:
    network, batch = random_network(1), pictures(9, 0)
    before = {name: one.clone() for name, one in network.state_dict().items()}
    for classes in ("exact", "sampled"):
        whole = gathered(network, classes, [batch])
        pieces = gathered(network, classes, list(torch.split(batch.flip(0), 4)))
        assert_same(pieces, *sums(whole))
    assert all(torch.equal(one, before[name]) for name, one in network.state_dict().items())
    assert all(one.grad is None for one in network.parameters())


def test_sampling_is_right_on_average() -> None:
    network, batch = random_network(2), pictures(3, 0)
    exact = gathered(network, "exact", [batch])
    many = gathered(network, "sampled", [batch.repeat(100, 1, 1, 1) + 1e-6 * pictures(300, 1)])
    name = [n for n, _ in network.named_parameters() if n.endswith("weight")][-1]
    found, expected = sums(many)[0][name] / 100, sums(exact)[0][name]
    assert float((found - expected).norm() / expected.norm()) < 0.2


def test_what_a_picture_draws_is_uniform_and_its_own() -> None:
    batch = (pictures(4000, 3, (3, 2, 2)) * 2).round() / 2  # few values, as pictures have
    found = drawn(batch)
    assert torch.equal(found[7:19], drawn(batch[7:19]))
    counts = torch.histc(found.float(), 10, 0, 1)
    assert float(((counts - 400) ** 2 / 400).sum()) < 27.9, "chi-squared with 9 degrees of freedom: 1 in 1000"


def test_labels_that_are_missing_are_missed() -> None:
    with pytest.raises(MergeError, match="hold none"):
        gathered(random_network(0), "labels", [pictures(2, 0)])


def test_processes_add_up() -> None:
    network, batch = random_network(1), pictures(9, 0)
    whole = gathered(network, "exact", [batch])
    first, second = (gathered(network, "exact", [part]) for part in torch.split(batch, 5))
    waiting: list[Tensor] = []
    second.reduce(lambda total: waiting.append(total.clone()))
    first.reduce(lambda total: total.add_(waiting.pop(0)))
    assert not waiting
    assert_same(first, *sums(whole))
    assert [one.count for one in first.moments()] == [one.count for one in whole.moments()]
    assert first.pictures == whole.pictures
