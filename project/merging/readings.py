"""Other ways to read a source: how its pictures might have been prepared, and what its network might be.

Names and shapes of tensors do not tell these from each other, but running statistics do; see ``audit.py``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from project.models.architecture import IMAGENET_NETS, Architecture
from project.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Channels, Preprocessing

Kind = Literal["present", "colours", "size", "network", "domain", "other"]
Colours = tuple[float, float, float]

BYTES = 1 / 255
NORMALISATIONS: dict[str, tuple[Colours, Colours]] = {
    "ImageNet's mean and deviation": (IMAGENET_MEAN, IMAGENET_STD),
    "CIFAR's mean and deviation": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "mean and deviation 0.5 (values from -1 to 1)": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "no mean and deviation (values from 0 to 1)": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "values from 0 to 255": ((0.0, 0.0, 0.0), (BYTES, BYTES, BYTES)),
    "values from 0 to 255 less ImageNet's mean": (IMAGENET_MEAN, (BYTES, BYTES, BYTES)),
}
"""What networks are fed, in words -> mean and deviation for values from 0 to 1, in the order red, green, blue."""
ORDERS: dict[Channels, str] = {"BGR": "blue before red (BGR)", "RGB": "red before blue (RGB)"}
SAME = 0.02
"""Difference of means, or of deviations relative to the smaller, up to which two normalisations are one."""
EDGE = 0.03
"""How far from 0 and 1 the darkest and the brightest values of a batch of pictures may lie."""


@dataclass(frozen=True)
class Reading:
    """One way to read a source.

    Args:
        kind: What it is about.
        words: What it says.
        mend: The option that takes it, with its value; "" where there is none.
        prepare: Makes what the network reads of the pictures as they are prepared now.
        scale: Factor on the side of the pictures.
        change: Makes the network another one while open; None where it stays.
        simple: Whether it differs from the present one in one thing alone.
        after: First module that the change reaches, from whose norms on the readings differ; "" for all.
    """

    kind: Kind
    words: str
    mend: str = ""
    prepare: Callable[[Tensor], Tensor] | None = None
    scale: float = 1.0
    change: Callable[[nn.Module], AbstractContextManager[None]] | None = None
    simple: bool = True
    after: str = ""


PRESENT = Reading("present", "as it is read now")


def normalisation_readings(given: Preprocessing, prepares: bool) -> list[Reading]:
    """Other means and deviations.

    Args:
        given: What the pictures have gone through.
        prepares: Whether options of the data decide it; else the user has prepared the pictures.
    """
    whose = "data" if prepares else "pictures"
    return [
        Reading("colours", words, _values(mean, std, whose), Prepared(given, mean, std, given.channels))
        for words, (mean, std) in NORMALISATIONS.items()
        if not _alike(mean, std, given)
    ]


def order_readings(given: Preprocessing | None, prepares: bool, like: Reading = PRESENT) -> list[Reading]:
    """The colours in the other order, with the mean and deviation of each, or with those in the order as it is now.

    Args:
        given: What the pictures have gone through; None where that is not known.
        prepares: See :func:`normalisation_readings`.
        like: The reading whose mean and deviation are taken.
    """
    whose = "data" if prepares else "pictures"
    if given is None:
        mend = f"channels BGR of the {whose}"
        return [Reading("colours", ORDERS["BGR"], mend, lambda pictures: pictures.flip(1))]
    mean, std = (like.prepare.mean, like.prepare.std) if isinstance(like.prepare, Prepared) else (given.mean, given.std)
    other: Channels = "RGB" if given.channels == "BGR" else "BGR"
    beside = "" if like is PRESENT else f", {like.words}"
    mend = f"channels {other} of the {whose}"
    with_values = "" if like is PRESENT else f" with {_values(mean, std, whose)}"
    simple = like is PRESENT
    found = [
        Reading("colours", ORDERS[other] + beside, mend + with_values, Prepared(given, mean, std, other), simple=simple)
    ]
    if mean != mean[::-1] or std != std[::-1]:
        stays = f"{ORDERS[other]}, but mean and deviation in the order as now"
        values = _values(mean[::-1], std[::-1], whose)
        turned = Prepared(given, mean[::-1], std[::-1], other)
        found.append(Reading("colours", stays + beside, f"{mend} with {values}", turned, simple=simple))
    return found


def combined_readings(given: Preprocessing, prepares: bool, like: Reading | None = None) -> list[Reading]:
    """Another mean and deviation, and the colours in the other order.

    Args:
        given: What the pictures have gone through.
        prepares: See :func:`normalisation_readings`.
        like: The only mean and deviation to look at; nothing where they are the present ones. Default: all.
    """
    others = normalisation_readings(given, prepares)
    likely = [one for one in others if like is None or one.words == like.words]
    return [found for one in likely for found in order_readings(given, prepares, one)]


def size_readings(size: int, prepares: bool) -> list[Reading]:
    """Half and twice the side of the pictures."""
    found = []
    for words, scale in (("half the size", 0.5), ("twice the size", 2.0)):
        side = round(size * scale)
        if side >= 8:
            mend = f"image_size {side} of the data" if prepares else f"pictures of {side} pixels"
            found.append(Reading("size", f"{words} ({side} pixels)", mend, scale=scale))
    return found


def network_readings(architecture: Architecture, network: nn.Module) -> list[Reading]:
    """Other networks with the same tensors, of the ResNets that have such.

    Args:
        architecture: What the source is read as.
        network: The source.
    """
    if architecture.name not in IMAGENET_NETS or not all(hasattr(network, name) for name in ("conv1", "maxpool")):
        return []
    code = "a class or function of yours that builds it: {path: FILE, architecture: DOTTED.PATH}"
    found = []
    if architecture.stem == "small":
        pool = nn.MaxPool2d(3, 2, 1)
        found += [
            Reading("network", "a stem with max pooling", code, change=replacing({"maxpool": pool}), after="layer1"),
            Reading("network", "a first layer of stride 2", code, change=setting({"conv1": {"stride": (2, 2)}})),
        ]
    else:
        lost = replacing({"maxpool": nn.Identity()})
        found.append(Reading("network", "a stem without max pooling", code, change=lost, after="layer1"))
    return found + _bottleneck_readings(architecture, network)


def _bottleneck_readings(architecture: Architecture, network: nn.Module) -> list[Reading]:
    blocks = {
        name: module for name, module in network.named_modules() if all(hasattr(module, f"conv{n}") for n in (1, 2, 3))
    }
    strided = {name: block for name, block in blocks.items() if tuple(block.conv2.stride) == (2, 2)}
    if not strided:
        return []
    first = next(iter(strided))
    moved: dict[str, dict[str, Any]] = {}
    for name in strided:
        moved |= {f"{name}.conv1": {"stride": (2, 2)}, f"{name}.conv2": {"stride": (1, 1)}}
    code = "a class or function of yours that builds it: {path: FILE, architecture: DOTTED.PATH}"
    found = [Reading("network", "stride in the 1×1 convolutions", code, change=setting(moved), after=first)]
    if architecture.stem == "imagenet":
        plain = {f"{name}.conv2": {"stride": (1, 1)} for name in strided}
        for word, pool, behind in (
            ("blur", nn.Sequential(nn.MaxPool2d(3, 1, 1), Blur()), Blur()),
            ("aa", nn.AvgPool2d(2), nn.AvgPool2d(2)),
        ):
            reads = {"maxpool": pool, **{f"{name}.conv3": behind for name in strided}}
            found.append(
                Reading(
                    "network",
                    "anti-aliased pooling" if word == "blur" else "average pooling in place of strides",
                    f"architecture timm/resnet{word}50" if architecture.name == "resnet50" else code,
                    change=both(setting(plain), anti_aliased(reads)),
                    after="layer1",
                )
            )
    return found


@dataclass(frozen=True)
class Prepared:
    """Pictures prepared in another way, made from how they are prepared now.

    Args:
        given: What they have gone through.
        mean: Mean that is taken off instead.
        std: Deviation by which they are divided instead.
        channels: Their order.
    """

    given: Preprocessing
    mean: Colours
    std: Colours
    channels: Channels

    def __call__(self, pictures: Tensor) -> Tensor:
        """What the network reads, of pictures (batch, 3, height, width)."""
        order = self.given.channels
        plain = _turned(pictures, order) * _column(self.given.std, pictures) + _column(self.given.mean, pictures)
        return _turned((plain - _column(self.mean, plain)) / _column(self.std, plain), self.channels)


def guessed(pictures: Tensor, size: int) -> Preprocessing | None:
    """What pictures in memory have gone through, by their darkest and brightest values; None where that tells nothing.

    Args:
        pictures: Shape (batch, 3, height, width).
        size: Their side.
    """
    if pictures.shape[1] != 3 or not pictures.numel():
        return None
    low, high = pictures.amin((0, 2, 3)), pictures.amax((0, 2, 3))
    errors = {}
    for mean, std in NORMALISATIONS.values():
        ends = torch.stack([low, high]) * torch.tensor(std).to(low) + torch.tensor(mean).to(low)
        errors[mean, std] = float((ends - torch.tensor([[0.0], [1.0]]).to(low)).abs().max())
    (mean, std), error = min(errors.items(), key=lambda item: item[1])
    return Preprocessing(size, mean, std) if error <= EDGE else None


# ---- networks that are other ones for a while --------------------------------------------------------------------


class Blur(nn.Module):
    """Every other pixel behind a binomial filter of 3 × 3 (Zhang 2019, arXiv 1904.11486), borders mirrored."""

    def forward(self, values: Tensor) -> Tensor:
        """Shape (batch, channels, height / 2, width / 2) of (batch, channels, height, width)."""
        taps = values.new_tensor([0.25, 0.5, 0.25])
        channels = values.shape[1]
        kernel = (taps[:, None] * taps).expand(channels, 1, 3, 3)
        return functional.conv2d(functional.pad(values, (1, 1, 1, 1), "reflect"), kernel, stride=2, groups=channels)


Change = Callable[[nn.Module], AbstractContextManager[None]]


def setting(attributes: dict[str, dict[str, Any]]) -> Change:
    """Modules have other attributes while it is open.

    Args:
        attributes: Module -> attribute -> value.
    """

    @contextmanager
    def change(network: nn.Module) -> Iterator[None]:
        before = []
        try:
            for name, values in attributes.items():
                module = network.get_submodule(name)
                for attribute, value in values.items():
                    before.append((module, attribute, getattr(module, attribute)))
                    setattr(module, attribute, value)
            yield
        finally:
            for module, attribute, value in reversed(before):
                setattr(module, attribute, value)

    return change


def replacing(modules: dict[str, nn.Module]) -> Change:
    """Children of the network are others while it is open."""
    return setting({"": dict(modules)})


def anti_aliased(reads: Mapping[str, nn.Module]) -> Change:
    """Modules read through others while it is open; ``maxpool`` is replaced.

    Args:
        reads: Module -> what goes before it.
    """

    @contextmanager
    def change(network: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(replacing({"maxpool": reads["maxpool"]})(network))
            for name, before in reads.items():
                if name != "maxpool":
                    stack.callback(_through(network.get_submodule(name), before))
            yield

    return change


def _through(module: nn.Module, before: nn.Module) -> Callable[[], None]:
    return module.register_forward_pre_hook(lambda _module, inputs: (before(inputs[0]),)).remove


def both(*changes: Change) -> Change:
    """Several changes while it is open."""

    @contextmanager
    def change(network: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for one in changes:
                stack.enter_context(one(network))
            yield

    return change


# ---- words -------------------------------------------------------------------------------------------------------


def _alike(mean: Colours, std: Colours, given: Preprocessing) -> bool:
    """Whether pictures prepared so are about as they are now."""
    shifts = max(
        abs(one - other) / min(d, e) for one, other, d, e in zip(mean, given.mean, std, given.std, strict=True)
    )
    spreads = max(abs(one - other) / min(one, other) for one, other in zip(std, given.std, strict=True))
    return max(shifts, spreads) <= SAME


def _values(mean: Colours, std: Colours, whose: str) -> str:
    return f"mean {[round(one, 6) for one in mean]} and std {[round(one, 6) for one in std]} of the {whose}"


def _turned(pictures: Tensor, channels: Channels) -> Tensor:
    return pictures.flip(1) if channels == "BGR" else pictures


def _column(values: Colours, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)
