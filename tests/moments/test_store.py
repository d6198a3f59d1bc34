"""Statistics in files: bit for bit, additive over shards, and never taken for what they are not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DOMAINS, PICTURE, gathered, pictures, random_network, traced
from moments.test_statistics import equal
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from project.errors import CheckpointError, ConfigurationError, MergeError
from project.models import Architecture
from project.moments import (
    DIAGONAL,
    FACTORS,
    INPUTS,
    LAYERS,
    UNITS,
    Collector,
    Fingerprint,
    Lockstep,
    PictureSum,
    Statistics,
    add_statistics,
    fisher_need,
    read_statistics,
    save_statistics,
    tensor_sums,
)
from project.symmetry import Spec

Batches = list[tuple[str, Tensor]]
ALL = (LAYERS, UNITS, INPUTS, fisher_need(DIAGONAL, "exact"), fisher_need(FACTORS, "sampled"))


def sources(seed: int, count: int = 2) -> tuple[list[nn.Module], Spec]:
    networks = [random_network(seed, weights) for weights in range(count)]
    return networks, traced(networks[0], PICTURE)


def fingerprint(networks: list[nn.Module], spec: Spec, batches: Batches) -> Fingerprint:
    domains = dict.fromkeys(name for name, _ in batches)
    return Fingerprint.of(networks, spec, tensor_sums({d: [b for name, b in batches if name == d] for d in domains}))


def blank(networks: list[nn.Module], spec: Spec, domains: tuple[str, ...]) -> Statistics:
    owners = {domain: index for index, domain in enumerate(domains)}
    return Collector(spec, Lockstep(networks), ALL, domains, owners, device="meta").statistics


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_what_comes_back_is_what_was_kept(tmp_path: Path, seed: int) -> None:
    networks, spec = sources(seed, 2 + seed % 2)
    batches = [("art", pictures(5, 1)), ("birds", pictures(3, 2))]
    found = gathered(networks, spec, batches, DOMAINS[:2], ALL)
    save_statistics(found, fingerprint(networks, spec, batches), tmp_path / "kept.safetensors")
    stored = read_statistics(tmp_path / "kept.safetensors")
    assert stored.fingerprint == fingerprint(networks, spec, batches)
    assert stored.pictures == {"art": 5, "birds": 3}
    again = blank(networks, spec, DOMAINS[:2])
    stored.fill(again, torch.device("cpu"))
    pairs = list(zip(again.named().items(), found.named().items(), strict=True))
    assert pairs
    for (name, mine), (other, theirs) in pairs:
        assert name == other
        assert mine.count == theirs.count
        assert all(torch.equal(one, two) for one, two in zip(mine.totals, theirs.totals, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.safetensors"]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_the_sum_of_shards_is_the_whole(tmp_path: Path, seed: int) -> None:
    """The second shard has never seen birds, and its first batch is split otherwise than in the whole."""
    networks, spec = sources(seed)
    art, birds, cars = pictures(9, 1), pictures(4, 2), pictures(3, 3)
    whole: Batches = [("art", art), ("birds", birds), ("cars", cars)]
    shards: list[Batches] = [
        [("art", art[6:]), ("birds", birds)],
        [("cars", cars), ("art", art[:2]), ("art", art[2:6])],
    ]
    for number, shard in enumerate(shards):
        found = gathered(networks, spec, shard, DOMAINS[:3], ALL)
        save_statistics(found, fingerprint(networks, spec, shard), tmp_path / f"{number}.safetensors")
    stored = add_statistics([tmp_path / f"{number}.safetensors" for number in (0, 1)], tmp_path / "sum.safetensors")
    reference = gathered(networks, spec, whole, DOMAINS[:3], ALL)
    again = blank(networks, spec, DOMAINS[:3])
    stored.fill(again, torch.device("cpu"))
    again.pictures = dict(stored.pictures)
    assert equal(again, reference)
    assert stored.fingerprint == fingerprint(networks, spec, whole), "the sum says of itself what the whole would"
    one, other = (gathered(networks, spec, shard, DOMAINS[:3], ALL) for shard in shards)
    one.add(other)
    assert equal(one, reference)


def test_adding_takes_along_what_only_one_has_seen() -> None:
    networks, spec = sources(0)
    one, other = (Collector(spec, Lockstep(networks), (UNITS,), [domain], {domain: 0}) for domain in ("art", "birds"))
    one.gather("art", pictures(4, 1))
    other.gather("birds", pictures(3, 2))
    before = next(iter(other.statistics.units.values()))
    kept = before["birds"].sum()
    one.statistics.add(other.statistics)
    whole = gathered(networks, spec, [("art", pictures(4, 1)), ("birds", pictures(3, 2))], DOMAINS[:2], [UNITS])
    assert equal(one.statistics, whole)
    one.statistics.add(other.statistics)
    assert torch.equal(before["birds"].sum(), kept), "what is added stays as it is"


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    networks, spec = sources(0)
    batches: Batches = [("art", pictures(3, 1))]
    found, mine = gathered(networks, spec, batches, ["art"]), fingerprint(networks, spec, batches)
    units = gathered(networks, spec, batches, ["art"], [UNITS])
    first = tmp_path / "first.safetensors"
    save_statistics(found, mine, first)
    cases = {
        "other sources": (found, replace(mine, sources=("a", "b"))),
        "another transform .image_size 8 instead of None": (found, replace(mine, transform={"image_size": 8})),
        "lacks layers/.* although it has seen art": (units, mine),
    }
    for words, (statistics, said) in cases.items():
        save_statistics(statistics, said, tmp_path / "second.safetensors")
        with pytest.raises(ConfigurationError, match=words):
            add_statistics([first, tmp_path / "second.safetensors"], tmp_path / "sum.safetensors")
    with pytest.raises(ConfigurationError, match="two or more, each once"):
        add_statistics([first, tmp_path / "." / "first.safetensors"], tmp_path / "sum.safetensors")
    assert not (tmp_path / "sum.safetensors").exists()


def test_stamps_say_what_differs() -> None:
    networks, spec = sources(0)
    batches: Batches = [("art", pictures(4, 1)), ("birds", pictures(3, 2))]
    mine = fingerprint(networks, spec, batches)
    mixed: Batches = [("birds", batches[1][1].flip(0)), ("art", batches[0][1][2:]), ("art", batches[0][1][:2])]
    assert mine.differences(fingerprint(networks, spec, mixed)) == [], "neither order nor batches matter"
    assert mine.digest != fingerprint(networks[::-1], spec, batches).digest
    assert mine.differences(fingerprint(networks[::-1], spec, batches)) == ["sources in another order"]
    with torch.no_grad():
        next(networks[1].parameters()).view(-1)[0] += 1e-6
    assert mine.differences(fingerprint(networks, spec, batches)) == ["other sources"]
    fewer = replace(mine, pictures=fingerprint(networks, spec, [("art", batches[0][1][:3]), batches[1]]).pictures)
    assert mine.differences(fewer) == ["other pictures of art (3 instead of 4)"]
    changed = replace(mine, pictures=fingerprint(networks, spec, [batches[0], ("birds", pictures(3, 3))]).pictures)
    assert mine.differences(changed) == ["other pictures of birds (as many)"]
    assert Fingerprint.read(mine.plain) == mine


def test_stamps_of_gradients_say_which_heads_and_labels() -> None:
    """As far as both know of any: what reads no labels may lie beside what does."""
    networks, spec = sources(0)
    plain = fingerprint(networks, spec, [("art", pictures(4, 1)), ("birds", pictures(3, 2))])
    mine = replace(plain, heads={"art": (0, 3), "birds": ()}, labels={"art": PictureSum(4, "a"), "birds": PictureSum()})
    assert Fingerprint.read(mine.plain) == mine
    assert mine.differences(plain) == plain.differences(mine) == []
    assert plain.beside(mine) == mine.beside(plain) == mine
    assert len({plain.digest, mine.digest, replace(mine, labels={}).digest}) == 3
    assert mine.differences(replace(mine, heads={"art": (3, 6)})) == ["another head of art"]
    assert mine.differences(replace(mine, labels={"art": PictureSum(4, "b")})) == ["other labels of art"]
    both = mine + replace(mine, pictures={"art": PictureSum(2, "1")}, labels={"art": PictureSum(2, "1")})
    assert both.labels == {"art": PictureSum(6, "b"), "birds": PictureSum()}
    assert both.heads == mine.heads


def test_files_that_are_no_statistics_are_refused(tmp_path: Path) -> None:
    networks, spec = sources(0)
    batches: Batches = [("art", pictures(3, 1))]
    good = tmp_path / "good.safetensors"
    save_statistics(gathered(networks, spec, batches, ["art"], [UNITS]), fingerprint(networks, spec, batches), good)
    content = good.read_bytes()
    for kept in (0, 5, len(content) // 2, len(content) - 1):
        (tmp_path / "short").write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match=r"short is damaged"):
            read_statistics(tmp_path / "short")
    save_file(dict(list(load_file(good).items())[:1]), tmp_path / "weights")
    with pytest.raises(CheckpointError, match="holds no statistics"):
        read_statistics(tmp_path / "weights")
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=path.name):
            read_statistics(path)
    others, other_spec = sources(1)
    with pytest.raises(MergeError, match="cannot hold"):
        next(iter(blank(others, other_spec, ("art",)).moments())).load([torch.zeros(1, 1)], 1)


def forged(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> Path:
    """The same file with something changed in its tensors or in what stands beside them."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, path.with_name("forged"), metadata)
    return path.with_name("forged")


def listed(key: str, change: Callable[[Any], object]) -> Callable[[dict[str, Tensor], dict[str, str]], object]:
    """A change of what a file says under a key."""

    def apply(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
        content = json.loads(metadata[key])
        change(content)
        metadata[key] = json.dumps(content)

    return apply


def first(content: Any) -> Any:
    return content[next(iter(content))]


READ = {
    "negative count": (listed("moments", lambda c: first(c).update(count=-5)), "of -5 samples of 3 pictures"),
    "no count": (listed("moments", lambda c: first(c).update(count=0)), "said to be of 0 samples of 3 pictures"),
    "a part of a picture": (listed("moments", lambda c: first(c).update(count=4)), "of 4 samples of 3 pictures"),
    "a broken count": (listed("moments", lambda c: first(c).update(count=3.0)), "of 3.0 samples of 3 pictures"),
    "another shape": (listed("moments", lambda c: first(c).update(shapes=[[2, 2]])), r"said to be \(2, 2\) in float64"),
    "a shape more": (listed("moments", lambda c: first(c)["shapes"].append([1])), "it lacks units/"),
    "no shapes": (listed("moments", lambda c: first(c).pop("shapes")), "damaged or no file of statistics: 'shapes'"),
    "other pictures": (listed("pictures", lambda c: c.update(art=4)), "of 4 and of 3 pictures of art"),
    "negative pictures": (listed("pictures", lambda c: c.update(art=-3)), "of -3 and of 3 pictures of art"),
    "no pictures": (listed("pictures", lambda c: c.clear()), "samples of 0 pictures"),
    "pictures in words": (listed("stamp", lambda c: first(c["pictures"]).update(count="3")), "said to be 3"),
    "pictures in no hash": (listed("stamp", lambda c: first(c["pictures"]).update(total="x")), "'x'"),
    "single precision": (lambda t, _: t.update({n: one.float() for n, one in t.items()}), "is .* in F32"),
}  # fmt: skip
LOOKED_AT = {
    "not a number": (lambda t, _: t[min(t)].view(-1)[0].fill_(torch.nan), r"holds values in units/.*/art that are not"),
    "infinite": (lambda t, _: t[min(t)].view(-1)[-1].fill_(torch.inf), r"holds values in units/.*/art that are not"),
    "samples more": (listed("moments", lambda c: first(c).update(count=90_000_000)), "but is said to be of 90000000"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*READ, *LOOKED_AT])
def test_counts_shapes_and_pictures_that_cannot_be_are_refused(tmp_path: Path, kind: str) -> None:
    networks, spec = sources(0)
    batches: Batches = [("art", pictures(3, 1))]
    good = tmp_path / "good.safetensors"
    save_statistics(gathered(networks, spec, batches, ["art"], [UNITS]), fingerprint(networks, spec, batches), good)
    read_statistics(good).check()
    change, words = {**READ, **LOOKED_AT}[kind]
    path = forged(good, change)  # type: ignore[arg-type]
    if kind in READ:
        with pytest.raises(CheckpointError, match=words):
            read_statistics(path)
        return
    with pytest.raises(CheckpointError, match=words):
        read_statistics(path).check()
    other: Batches = [("art", pictures(2, 2))]
    found = gathered(networks, spec, other, ["art"], [UNITS])
    save_statistics(found, fingerprint(networks, spec, other), tmp_path / "other.safetensors")
    for paths in ([path, tmp_path / "other.safetensors"], [tmp_path / "other.safetensors", path]):
        with pytest.raises(CheckpointError, match=words):
            add_statistics(paths, tmp_path / "sum.safetensors")
    assert not (tmp_path / "sum.safetensors").exists()


def test_a_shard_counts_once(tmp_path: Path) -> None:
    """Under whatever name it comes again, and also where it is in a sum already."""
    networks, spec = sources(0)
    paths = []
    for number, batches in enumerate(
        [[("art", pictures(3, 1))], [("art", pictures(2, 2))], [("birds", pictures(2, 3))]]
    ):
        paths.append(tmp_path / f"{number}.safetensors")
        found = gathered(networks, spec, batches, DOMAINS[:2], [UNITS])
        save_statistics(found, fingerprint(networks, spec, batches), paths[-1])
    copied, both, whole = (tmp_path / f"{name}.safetensors" for name in ("copied", "both", "whole"))
    copied.write_bytes(paths[0].read_bytes())
    add_statistics(paths[:2], both)
    assert add_statistics([both, paths[2]], whole).pictures == {"art": 5, "birds": 2}
    for files in ([paths[0], copied], [both, copied], [paths[2], whole], [both, whole]):
        with pytest.raises(
            ConfigurationError, match=rf"{files[1]} and {files[0]} cannot be added: both are of the same"
        ):
            add_statistics(files, tmp_path / "sum.safetensors")
    assert not (tmp_path / "sum.safetensors").exists()


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    networks, spec = sources(0)
    batches: Batches = [("art", pictures(1, 1))]
    (tmp_path / "plain").touch()
    save_statistics(
        gathered(networks, spec, batches, ["art"], [UNITS]), fingerprint(networks, spec, batches), tmp_path / "s"
    )
    assert (tmp_path / "s").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_moments_of_shapes_alone_take_no_memory() -> None:
    """A ResNet-152's would be gigabytes."""
    with torch.device("meta"):
        networks = [Architecture("resnet152", 5).build().eval() for _ in range(2)]
        spec = traced(networks[0], (3, 224, 224))
    found = Collector(spec, Lockstep(networks), ALL, ["art"], device="meta").statistics
    assert sum(8 * total.numel() for moment in found.moments() for total in moment.unflushed[0]) > 2**33
    assert all(total.is_meta for moment in found.moments() for total in moment.unflushed[0])
