"""Networks as other writers build them, whose files are read under our names: the same logits both ways."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import permuted_copy, randomised, traced
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

import project
from project.errors import CheckpointError
from project.methods import Permutation, PLeaS
from project.models import Architecture, load_network
from project.models.reading.renaming import TABLES, Renaming


class HubConv(nn.Module):
    """A convolution, its norm and perhaps a ReLU, as transformers names them."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.normalization = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalization(self.convolution(x))
        return x.relu() if self.relu else x


class Residual(nn.Module):
    """Something and a shortcut, under the names of a writer."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        (self.main, main), (self.side, side) = parts.items()
        self.add_module(self.main, main)
        self.add_module(self.side, side)

    def forward(self, x: Tensor) -> Tensor:
        return (self.get_submodule(self.main)(x) + self.get_submodule(self.side)(x)).relu()


class Named(nn.Module):
    """Parts under a name, one after the other."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


def hub_resnet() -> nn.Module:
    """ResNetForImageClassification with basic layers."""
    stages, inputs = [], 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        layers: list[nn.Module] = []
        for index in range(2):
            stride = 2 if stage and not index else 1
            layer = nn.Sequential(HubConv(inputs, outputs, 3, stride), HubConv(outputs, outputs, 3, relu=False))
            changed = inputs != outputs
            shortcut = HubConv(inputs, outputs, 1, stride, relu=False) if changed else nn.Identity()
            layers.append(Residual(layer=layer, shortcut=shortcut))
            inputs = outputs
        stages.append(Named(layers=nn.Sequential(*layers)))
    return Named(
        resnet=Named(
            embedder=Named(embedder=HubConv(3, 64, 7, 2), pooler=nn.MaxPool2d(3, 2, 1)),
            encoder=Named(stages=nn.Sequential(*stages)),
            pooler=nn.AdaptiveAvgPool2d(1),
        ),
        classifier=nn.Sequential(nn.Flatten(), nn.Linear(512, 5)),
    )


def mm_resnet() -> nn.Module:
    """ImageClassifier of a ResNet and a LinearClsHead."""
    backbone = resnet18(num_classes=5)
    head = backbone.fc
    backbone.fc = nn.Identity()  # type: ignore[assignment]
    return Named(backbone=backbone, head=Named(fc=head))


def body_and_head() -> nn.Module:
    """What fastai makes of a network with a plain head."""
    children = list(resnet18().children())
    return nn.Sequential(
        nn.Sequential(*children[:-2]), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 5))
    )


class LargestAndMean(nn.Module):
    """AdaptiveConcatPool2d."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.amax((2, 3), keepdim=True), x.mean((2, 3), keepdim=True)], 1)


def learner(dropout: bool = True) -> nn.Module:
    """What fastai makes of a network by default."""
    parts = [
        LargestAndMean(), nn.Flatten(),
        nn.BatchNorm1d(1024), nn.Dropout(0.25), nn.Linear(1024, 32, bias=False), nn.ReLU(),
        nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 5, bias=False),
    ]  # fmt: skip
    head = [part for part in parts if dropout or not isinstance(part, nn.Dropout)]
    return nn.Sequential(nn.Sequential(*list(resnet18().children())[:-2]), nn.Sequential(*head))


def learner_of_timm() -> nn.Module:
    """The same of a network of timm's."""
    made = learner(dropout=False)
    body = resnet18()
    body.fc, body.avgpool = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    body.forward = lambda x: nn.Sequential(*list(body.children())[:-2])(x)  # type: ignore[method-assign]
    return Named(**{"0": Named(model=body), "1": made[1]})  # type: ignore[index]


class Padding(nn.Module):
    """Shortcut of option A."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4), "constant", 0)


class SmallBlock(nn.Module):
    """Block of the widespread ResNets for CIFAR."""

    def __init__(self, inputs: int, planes: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Sequential()
        if inputs != planes and option == "A":
            self.shortcut = Padding(planes)
        elif inputs != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.shortcut(x)).relu()


def small_resnet(option: str, widths: tuple[int, ...], blocks: int) -> nn.Module:
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), "bn1": nn.BatchNorm2d(widths[0]), "relu": nn.ReLU(),
    }  # fmt: skip
    inputs = widths[0]
    for stage, planes in enumerate(widths):
        layer = []
        for index in range(blocks):
            layer.append(SmallBlock(inputs, planes, 2 if stage and not index else 1, option))
            inputs = planes
        parts[f"layer{stage + 1}"] = nn.Sequential(*layer)
    return Named(**parts, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), linear=nn.Linear(inputs, 5))


def residual_functions() -> nn.Module:
    """The ResNet-18 for CIFAR-100 whose blocks hold a residual_function."""
    parts: dict[str, nn.Module] = {
        "conv1": nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    }
    inputs = 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        layers = []
        for index in range(2):
            stride = 2 if stage and not index else 1
            function = nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
            )  # fmt: skip
            shortcut = nn.Sequential()
            if inputs != outputs:
                shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            layers.append(Residual(residual_function=function, shortcut=shortcut))
            inputs = outputs
        parts[f"conv{stage + 2}_x"] = nn.Sequential(*layers)
    return Named(**parts, avg_pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(512, 5))


WRITERS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "transformers": (hub_resnet, "transformers' ResNet", "fc"),
    "mmpretrain": (mm_resnet, "mmpretrain's ResNet", "fc"),
    "fastai": (body_and_head, "a sequence of torchvision's", "fc.2"),
    "fastai's own head": (learner, "a sequence of torchvision's", ""),
    "fastai's own head, of timm": (learner_of_timm, "", ""),
    "kuangliu": (lambda: small_resnet("B", (64, 128, 256, 512), 2), "ResNets whose shortcut", "fc"),
    "option A": (lambda: small_resnet("A", (16, 32, 64), 3), "ResNets whose shortcut", "fc"),
    "option B": (lambda: small_resnet("B", (16, 32, 64), 1), "ResNets whose shortcut", "fc"),
    "residual functions": (residual_functions, "ResNets of residual functions", "fc"),
}


def table_of(writer: str) -> Renaming:
    return next(table for table in TABLES if table.writer.startswith(writer))


def random_network(build: Callable[[], nn.Module]) -> nn.Module:
    """With running statistics of pictures, so that every norm counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
        network.train()
        with torch.no_grad():
            network(torch.randn(8, 3, 32, 32))
    return network.eval()


SLOW = ("fastai's own head, of timm",)


@pytest.mark.parametrize("writer", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in WRITERS])
def test_logits_are_the_writers(writer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build, words, head = WRITERS[writer]
    theirs = random_network(build).double()  # rounding of float32 hangs on the processor
    torch.save({"state_dict": theirs.state_dict(), "meta": {"epoch": 3}}, tmp_path / "w.pth")
    with caplog.at_level("INFO", logger="project"):
        ours, weights = load_network(tmp_path / "w.pth")
    assert not words or f"its names are those of {words}" in caplog.text
    pictures = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        theirs.float().double()  # as files are read
        expected = theirs(pictures)
        ours.double()
        torch.testing.assert_close(ours(pictures), expected, atol=1e-6 * float(expected.abs().max()), rtol=0)
        if head:
            renamed = {re.sub("^fc", head, name): tensor for name, tensor in ours.state_dict().items()}
            back = table_of(words).theirs(renamed)
        else:
            back = {
                weights.names[name][0].removeprefix("state_dict."): tensor for name, tensor in ours.state_dict().items()
            }
        fresh = build().eval().double()
        fresh.load_state_dict(back)
        torch.testing.assert_close(fresh(pictures), expected, atol=0, rtol=0)
    assert weights.architecture is not None
    assert weights.architecture.shortcut == ("padding" if writer == "option A" else "projection")


@pytest.mark.slow
def test_networks_of_option_a_merge_and_average(tmp_path: Path) -> None:
    """Units of a stage are tied to a range of the next: a network and its permuted copy give it back."""
    architecture, pictures = Architecture("resnet8", 5, shortcut="padding"), torch.randn(16, 3, 16, 16)
    made, twin = (randomised(architecture.build(), seed).eval() for seed in range(2))
    permuted_copy(made, twin, traced(made, (3, 16, 16)), 1)
    files = {"photo": tmp_path / "photo.pth", "sketch": tmp_path / "sketch.pth"}
    for file, one in zip(files.values(), (made, twin), strict=True):
        torch.save({"net": table_of("ResNets whose shortcut").theirs(one.state_dict())}, file)
    with torch.no_grad():
        expected = made(pictures)
        for method in (Permutation(matching="weights"), PLeaS(matching="weights")):
            student = project.merge(
                files, dict.fromkeys(files, pictures), 1.0, method, renormalise=False, progress=False
            )
            # sums of float32 in another order, and what the fit's pull leaves of rounding
            torch.testing.assert_close(student(pictures), expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
    project.average(list(files.values()), tmp_path / "mean.pth", image_size=16, progress=False)
    mean, _ = load_network(tmp_path / "mean.pth")
    for name, tensor in made.state_dict().items():
        torch.testing.assert_close(mean.state_dict()[name], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrap", ["", "model."])
@pytest.mark.parametrize("beside", [False, True])
def test_writers_names_are_known_under_a_prefix_and_beside_others(wrap: str, beside: bool, tmp_path: Path) -> None:
    theirs = hub_resnet().state_dict()
    state = {wrap + name: tensor for name, tensor in theirs.items()}
    torch.save(state | ({"criterion.weight": torch.ones(5)} if beside else {}), tmp_path / "w.pth")
    _, weights = load_network(tmp_path / "w.pth")
    assert torch.equal(weights.state_dict["fc.weight"], theirs["classifier.1.weight"])


class Kinds:
    """Small networks of transformers and timm's of the same sizes."""

    @staticmethod
    def vit(transformers: Any) -> tuple[Any, nn.Module]:
        config = transformers.ViTConfig(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, image_size=32,
            patch_size=16, num_labels=5, layer_norm_eps=1e-6,
        )  # fmt: skip
        timm = pytest.importorskip("timm.models.vision_transformer")
        twin = timm.VisionTransformer(img_size=32, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=5)
        return transformers.ViTForImageClassification(config), twin

    @staticmethod
    def convnext(transformers: Any) -> tuple[Any, nn.Module]:
        sizes = [16, 32, 48, 64]
        config = transformers.ConvNextConfig(
            depths=[1, 1, 2, 1], hidden_sizes=sizes, num_labels=5, layer_norm_eps=1e-6, layer_scale_init_value=0.5
        )
        timm = pytest.importorskip("timm.models.convnext")
        return transformers.ConvNextForImageClassification(config), timm.ConvNeXt(
            depths=(1, 1, 2, 1), dims=tuple(sizes), num_classes=5
        )

    @staticmethod
    def resnet(transformers: Any) -> tuple[Any, None]:
        config = transformers.ResNetConfig(
            depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", num_labels=5
        )
        return transformers.ResNetForImageClassification(config), None


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["saved", "in memory"])
@pytest.mark.parametrize("kind", ["resnet", "vit", "convnext"])
def test_transformers_own_networks(kind: str, kept: str, tmp_path: Path) -> None:
    theirs, twin = getattr(Kinds, kind)(pytest.importorskip("transformers"))
    theirs.double().eval()
    path = tmp_path / "model.safetensors"
    if kept == "saved":
        theirs.save_pretrained(tmp_path)
    else:
        path = tmp_path / "model.pth"
        torch.save(theirs.state_dict(), path)
    if twin is not None and kept != "saved":  # config.json says which it is, see test_naming_networks.py
        with pytest.raises(CheckpointError, match="timm's is the same"):
            load_network(path)
    ours, _ = load_network(path, twin)
    pictures = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.float().double()(pictures).logits  # as files are read
        bound = 1e-6 * float(expected.abs().max())
        torch.testing.assert_close(ours.double()(pictures), expected, atol=bound, rtol=0)
