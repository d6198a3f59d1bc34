"""What a shuffle keeps, how often it moves what, and what crosses between processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing import start_processes

from project.models import Architecture
from project.models.wash import draw, exchange, shuffle, shuffle_chances

MEMBERS = 4


def copies(count: int = MEMBERS) -> list[dict[str, Tensor]]:
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append({name: one.detach() for name, one in Architecture("resnet8", 5).build().named_parameters()})
    return found


def drawn(chance: float, schedule: Any = "constant", seed: int = 0, count: int = MEMBERS) -> dict[str, Any]:
    network = Architecture("resnet8", 5).build()
    sizes = {name: one.numel() for name, one in network.named_parameters()}
    return draw(sizes, shuffle_chances(network, chance, schedule), count, seed)


@pytest.mark.parametrize("chance", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_mean_and_spread_are_kept(chance: float, count: int) -> None:
    before, after = copies(count), copies(count)
    shuffle(after, drawn(chance, count=count))
    for name in before[0]:
        old, new = (torch.stack([one[name].double() for one in group]) for group in (before, after))
        assert torch.equal(old.sort(0).values, new.sort(0).values), "every entry's values are the same, in some order"
        assert torch.allclose(old.mean(0), new.mean(0), atol=1e-12)
        spreads = [(one - one.mean(0)).square().sum() for one in (old, new)]
        assert torch.allclose(*spreads, rtol=1e-10)
    moved = any(not torch.equal(a[name], b[name]) for a, b in zip(before, after, strict=True) for name in a)
    assert moved == (chance > 0)


def test_chances_fall_with_depth() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    network[2].weight.requires_grad_(False)
    expected = {"0": 0.3, "1": 0.2, "2": 0.1, "3": 0.0}
    found = shuffle_chances(network, 0.3)
    assert set(found) == {name for name, one in network.named_parameters() if one.requires_grad}
    for name, chance in found.items():
        assert chance == pytest.approx(expected[name.partition(".")[0]])
    assert set(shuffle_chances(network, 0.3, "constant").values()) == {0.3}
    assert set(shuffle_chances(nn.Linear(2, 2), 0.3).values()) == {0.3}, "a single layer is the first"


@pytest.mark.parametrize("chance", [1e-4, 0.01, 0.3])
def test_entries_are_drawn_as_often_as_they_should(chance: float) -> None:
    """Within five standard deviations of a binomial distribution, everywhere alike, each once, all orders as likely."""
    size, total = 200_000, 0
    halves = torch.zeros(2)
    orders = torch.zeros(3, 3)
    for seed in range(20):
        (found,) = draw({"a": size}, {"a": chance}, 3, seed).values()
        assert torch.equal(found.places, found.places.unique())
        assert not len(found.places) or 0 <= int(found.places[0]) <= int(found.places[-1]) < size
        assert (found.orders.sort(1).values == torch.arange(3)).all()
        total += len(found.places)
        halves += torch.tensor([int((found.places < size // 2).sum()), int((found.places >= size // 2).sum())])
        for member in range(3):
            orders[member] += torch.bincount(found.orders[:, member], minlength=3)
    spread = (20 * size * chance * (1 - chance)) ** 0.5
    assert abs(total - 20 * size * chance) < 5 * spread + 1
    assert (halves - 10 * size * chance).abs().max() < 5 * spread + 1
    assert (orders - total / 3).abs().max() < 5 * (total * 2 / 9) ** 0.5 + 1


def test_draws_are_those_of_their_seed() -> None:
    one, same, other = (draw({"a": 1000}, {"a": 0.5}, 4, seed)["a"] for seed in (7, 7, 8))
    assert torch.equal(one.places, same.places)
    assert torch.equal(one.orders, same.orders)
    assert not torch.equal(one.places, other.places)


def process(rank: int, folder: Path, size: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=size)
    mine = copies(size)[rank]
    sent = [exchange(mine, drawn(0.2, seed=seed, count=size)) for seed in range(3)]
    torch.save({"mine": mine, "sent": sent}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_processes_shuffle_as_one_does_and_send_what_moves_alone(tmp_path: Path) -> None:
    """Per network and step p n (N - 1) / N numbers, which is what changes hands."""
    size = 2
    start_processes(process, (tmp_path, size), nprocs=size, start_method="fork")
    whole = copies(size)
    draws = [drawn(0.2, seed=seed, count=size) for seed in range(3)]
    for one in draws:
        shuffle(whole, one)
    for rank in range(size):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(found["mine"][name], whole[rank][name]) for name in whole[rank])
        others = [other for other in range(size) if other != rank]
        crossing = [
            sum(int((part.orders[:, other] == rank).sum()) for part in one.values() for other in others)
            for one in draws
        ]
        assert found["sent"] == crossing
        numbers = sum(one.numel() for one in whole[rank].values())
        expected = 0.2 * numbers * (size - 1) / size
        assert all(abs(count - expected) < 6 * expected**0.5 for count in found["sent"])
