"""The audit: sources that are read rightly pass, and of those that are not, the right reading is named."""

import warnings
from contextlib import nullcontext
from functools import lru_cache
from itertools import combinations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import project
from project.data.given import GivenPictures
from project.errors import ConfigurationError
from project.merging.audit import SEEN, Finding, audit, findings_of
from project.merging.judging import PICTURES
from project.merging.readings import NORMALISATIONS, Prepared, guessed, network_readings
from project.models import Architecture, Description, Preprocessing
from project.models.architecture import Stem
from project.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Channels
from project.student import Source, batch_norms

COLOURS = {"cold": (0.2, 0.4, 0.8), "warmer": (0.8, 0.5, 0.2), "wet": (0.3, 0.9, 0.4)}
IMAGENET, HALF = (IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3)
BYTES, PLAIN = ((0.0,) * 3, (1 / 255,) * 3), ((0.0,) * 3, (1.0,) * 3)
SIZE = 16
Values = tuple[tuple[float, ...], tuple[float, ...]]


class Held:
    """Textures of 48 pixels in the colours of domains, prepared as options of data would."""

    prepares = True

    def __init__(self, *domains: str, size: int = SIZE, values: Values = IMAGENET, channels: Channels = "RGB") -> None:
        self.calibration_domains = domains
        self.picture = (3, size, size)
        self.preprocessing = Preprocessing(size, *values, channels=channels)

    def sample(self, domain: str, count: int, scale: float = 1.0) -> Tensor:
        pictures = textures(domain)
        count, size = min(count, len(pictures)), round(scale * self.picture[-1])
        plain = pictures[[place * len(pictures) // count for place in range(count)]]
        plain = functional.interpolate(plain, (size, size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in (self.preprocessing.mean, self.preprocessing.std))
        made = (plain - mean) / std
        return made.flip(1) if self.preprocessing.channels == "BGR" else made


@lru_cache
def textures(domain: str) -> Tensor:
    random = torch.Generator().manual_seed(len(domain))
    coarse, fine = torch.rand(32, 3, 4, 4, generator=random), torch.rand(32, 3, 48, 48, generator=random)
    colour = torch.tensor(COLOURS[domain]).view(3, 1, 1)
    values = colour + 0.3 * (functional.interpolate(coarse, (48, 48)) - 0.5) + 1.2 * (fine - 0.5)
    return values.clamp(0, 1)


def network(seed: int = 0, name: str = "resnet8", **options: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Architecture(name, 2, **options).build().eval()


def trained(given: nn.Module, pictures: Tensor) -> nn.Module:
    """The network with the running statistics of some pictures, as training would leave them."""
    norms = batch_norms(given).values()
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        given(pictures)
    for norm in norms:
        norm.num_batches_tracked.fill_(SEEN)
    return given.eval()


def source(given: nn.Module, name: str = "one", architecture: Architecture | None = None) -> Source:
    return Source(name, given, Description(architecture or Architecture("resnet8", 2)), name)


def found_of(given: nn.Module, data: Held, architecture: Architecture | None = None) -> Finding:
    (finding,) = findings_of([source(given, architecture=architecture)], [["warmer"]], data)
    return finding


WAYS = [(values, channels) for values in (IMAGENET, HALF, PLAIN, BYTES) for channels in ("RGB", "BGR")]


@pytest.mark.parametrize("right", [0, 3, 6])
def test_the_right_values_and_order_pass_and_are_named_in_place_of_any_others(right: int) -> None:
    prepared = [Held("warmer", values=values, channels=channels) for values, channels in WAYS]
    expected = prepared[right].sample("warmer", PICTURES)
    known = trained(network(right), expected)
    for number, data in enumerate(prepared):
        finding = found_of(known, data)
        if number == right:
            assert finding.better is None
            assert not finding.unsure
            assert "fit the present reading" in finding.sentence()
            continue
        assert finding.better is not None, (WAYS[right], WAYS[number])
        reading = finding.better.reading
        assert isinstance(reading.prepare, Prepared)
        now = data.sample("warmer", PICTURES)
        assert float((reading.prepare(now) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
        assert reading.words in finding.sentence()
        assert reading.mend in finding.sentence()


def test_colours_turned_round_before_the_values_were_taken_off() -> None:
    turned = ((*IMAGENET_MEAN[::-1],), (*IMAGENET_STD[::-1],))
    expected = Held("warmer", values=turned, channels="BGR").sample("warmer", PICTURES)
    data = Held("warmer")
    finding = found_of(trained(network(), expected), data)
    assert finding.better is not None
    assert isinstance(finding.better.reading.prepare, Prepared)
    assert torch.allclose(finding.better.reading.prepare(data.sample("warmer", PICTURES)), expected, atol=1e-4)


@pytest.mark.parametrize(("trained_at", "read_at"), [(32, 16), (16, 32)])
def test_pictures_of_half_and_twice_the_size(trained_at: int, read_at: int) -> None:
    right = Held("warmer", size=trained_at)
    known = trained(network(), right.sample("warmer", PICTURES))
    assert found_of(known, right).better is None
    finding = found_of(known, Held("warmer", size=read_at))
    assert finding.better is not None
    assert finding.better.reading.scale == trained_at / read_at
    assert f"image_size {trained_at}" in finding.sentence()


def test_sources_are_told_their_own_domains() -> None:
    domains = sorted(COLOURS)
    data = Held(*domains)
    sources = [
        source(trained(network(seed), data.sample(domain, PICTURES)), domain) for seed, domain in enumerate(domains)
    ]
    for finding in findings_of(sources, [[domain] for domain in domains], data):
        assert finding.better is None
        assert not finding.unsure
    turned = [domains[1], domains[2], domains[0]]
    for finding in findings_of(sources, [[domain] for domain in turned], data):
        assert finding.better is not None
        assert finding.better.reading.kind == "domain"
        assert f"domains [{finding.name}]" in finding.sentence()
    # one that fits another's pictures better stays where it is if that one fits its own
    copies = [sources[0], source(trained(network(5), data.sample("cold", PICTURES)), "other")]
    findings = findings_of(copies, [["cold"], ["warmer"]], data)
    assert all(row.reading.kind != "domain" for finding in findings for row in finding.rows)


@pytest.mark.parametrize(
    ("name", "stem", "size", "faint"),
    [
        ("resnet18", "small", 16, 1),
        ("resnet18", "imagenet", 32, 0),
        pytest.param("resnet50", "imagenet", 32, 1, marks=pytest.mark.slow),
    ],
)
def test_networks_with_the_same_tensors(name: str, stem: Stem, size: int, faint: int) -> None:
    architecture, data = Architecture(name, 2, stem), Held("warmer", size=size)
    made, pictures = network(0, name, stem=stem), data.sample("warmer", PICTURES)
    logits, unnamed = [], 0
    for reading in [None, *network_readings(architecture, made)]:
        with reading.change(made) if reading and reading.change else nullcontext():
            logits.append(trained(made, pictures)(pictures[:2]))
        finding = found_of(made, data, architecture)
        if reading is None:
            assert finding.better is None
            continue
        nearest = max(finding.rows[1:], key=lambda row: row.present / row.distance)
        assert nearest.reading.words == reading.words
        assert finding.better is None or finding.better.reading.words == reading.words
        unnamed += finding.better is None
    assert unnamed <= faint  # random filters see no more of a first stride than this
    assert len(logits) == {"small": 3, "imagenet": 2}[stem] + 3 * (name == "resnet50")
    assert torch.equal(trained(made, pictures)(pictures[:2]), logits[0])  # it is itself again
    assert not any(torch.allclose(one, other) for one, other in combinations(logits, 2))


@pytest.mark.slow
def test_anti_aliased_networks_are_timms() -> None:
    made = trained(network(0, "resnet50"), Held("warmer", size=64).sample("warmer", 8))
    for reading in network_readings(Architecture("resnet50", 2), made):
        if reading.mend.startswith("architecture timm/"):
            other = timm.create_model(reading.mend.removeprefix("architecture timm/"), num_classes=2).eval()
            other.load_state_dict(made.state_dict())
            pictures = torch.randn(2, 3, 64, 64)
            assert reading.change is not None
            with reading.change(made):
                assert torch.allclose(made(pictures), other(pictures), atol=1e-5)
            assert not torch.allclose(made(pictures), other(pictures), atol=1e-2)


def test_what_tells_nothing_says_so() -> None:
    data, pictures = Held("warmer", "wet"), Held("warmer").sample("warmer", PICTURES)
    first, second = (trained(network(seed), pictures) for seed in range(2))
    for norm, other in zip(batch_norms(first).values(), batch_norms(second).values(), strict=True):
        other.load_state_dict({**other.state_dict(), **{n: t for n, t in norm.state_dict().items() if "running" in n}})
    found = findings_of([source(first, "a"), source(second, "b")], [["warmer"], ["wet"]], data)
    assert all("frozen" in finding.sentence() for finding in found)
    early = trained(network(), pictures)
    for norm in batch_norms(early).values():
        norm.num_batches_tracked.fill_(SEEN - 1)
    for given, words in (
        (network(), "never"),
        (early, "batches"),
        (nn.Sequential(nn.Conv2d(3, 2, 3)), "no batch norms"),
    ):
        finding = found_of(given, data)
        assert words in finding.unsure
        assert "cannot tell" in finding.sentence()
    (finding,) = findings_of([source(first)], [["nowhere"]], data)
    assert "no pictures of its own" in finding.unsure
    strange = trained(network(), torch.randn(PICTURES, 3, SIZE, SIZE) ** 3 * 50)
    finding = found_of(strange, data)
    assert finding.better is None
    assert "far from all readings" in finding.sentence()


def test_it_stops_warns_or_looks_away() -> None:
    domains = ("warmer", "wet")
    given = {domain: Held(domain).sample(domain, PICTURES) for domain in domains}
    networks = [trained(network(seed), given[domain]) for seed, domain in enumerate(domains)]
    turned = {domain: pictures.flip(1) for domain, pictures in given.items()}
    with pytest.raises(ConfigurationError, match=r"blue before red.*channels BGR of the pictures.*audit 'warn'"):
        project.merge(networks, turned, method="average")
    sources, owned = [source(one) for one in networks], [["warmer"], ["wet"]]
    with pytest.warns(UserWarning, match="blue before red"):
        assert len(audit(sources, owned, GivenPictures(turned), "warn")) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert audit(sources, owned, GivenPictures(turned), "off") == []
        assert not any(finding.better for finding in audit(sources, owned, GivenPictures(given)))
    exchanged = GivenPictures({"warmer": given["wet"], "wet": given["warmer"]})
    with pytest.raises(ConfigurationError, match=r"pictures of wet.*domains \[wet\]"):
        audit(sources, owned, exchanged)
    with pytest.raises(ConfigurationError, match="audit is 'no'"):
        project.merge(networks, given, method="average", audit="no")  # type: ignore[typeddict-item]


def test_pictures_in_memory_tell_what_they_have_gone_through() -> None:
    plain = textures("warmer").clone()
    plain[0, :, 0, 0], plain[0, :, 0, 1] = 0, 1
    for mean, std in NORMALISATIONS.values():
        found = guessed((plain - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1), 48)
        assert found is not None
        assert (found.mean, found.std) == (mean, std)
    assert guessed(torch.randn(8, 3, 9, 9), 9) is None


def test_it_costs_no_more_than_three_forwards() -> None:
    architecture, data = Architecture("resnet18", 2), Held("warmer", "wet", size=32)
    sources = [
        source(trained(network(seed, "resnet18"), data.sample(domain, PICTURES)), domain, architecture)
        for seed, domain in enumerate(("warmer", "wet"))
    ]
    flops = []
    for work in (
        lambda: [one.network(data.sample(one.name, PICTURES)) for one in sources],
        lambda: findings_of(sources, [["warmer"], ["wet"]], data),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work()
        flops.append(counter.get_total_flops())
    assert flops[1] <= 3 * flops[0]
