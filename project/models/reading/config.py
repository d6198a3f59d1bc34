"""What config.json and its kin say of the weights beside them: which network, which classes, which pictures.

timm's folders say the architecture, its arguments and ``pretrained_cfg``; transformers' the sizes of a network whose
twin torchvision or timm has, and ``preprocessor_config.json`` what its pictures go through. Nothing in them is code.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project.errors import CheckpointError, ConfigurationError
from project.models.architecture import IMAGENET_BLOCKS, IMAGENET_NETS
from project.models.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Crop,
    Interpolation,
    Preprocessing,
    resize_of,
)
from project.models.reading.classes import distinct
from project.models.reading.config_kinds import check_kinds
from project.models.zoo import EPSILON, FETCHING, TIMM, plain_name, timm_defaults
from project.runtime import tell
from project.runtime.json_text import json_value
from project.runtime.opening import open_file

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
BESIDE = frozenset({"model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"})
"""Files of weights that a config.json in their folder describes."""
LARGEST = 2**26  # bytes of a description
HALVES = (0.5, 0.5, 0.5)
USUAL_EPSILON = 1e-6  # of timm's layer norms
CROP_PCT = 0.875  # of both libraries, where nothing is said
EXACT = 1e-9
UNFIT = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, ConfigurationError)
"""What is raised of values that are none of their kind."""
RESAMPLES: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By the numbers that Pillow gives them."""
BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
READ = "of its networks ResNet, ViT and ConvNext are read, and any that timm wrote"
VITS = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base", (1024, 24, 16): "large"}
CONVNEXTS = {
    ((3, 3, 9, 3), (96, 192, 384, 768)): "tiny", ((3, 3, 27, 3), (96, 192, 384, 768)): "small",
    ((3, 3, 27, 3), (128, 256, 512, 1024)): "base", ((3, 3, 27, 3), (192, 384, 768, 1536)): "large",
    ((3, 3, 27, 3), (256, 512, 1024, 2048)): "xlarge",
}  # fmt: skip
SHORTEST_SQUASHED = 384
"""Side from which on transformers' ConvNext processor, which its ResNets use too, squashes pictures to a square."""


@dataclass(frozen=True)
class Said:
    """What stands beside weights.

    Args:
        path: The description.
        name: Of the network, as :class:`~project.models.architecture.Architecture` has it; None where it is not said.
        arguments: What it is built with.
        preprocessing: What its pictures go through.
        class_names: Of its logits, in their order.
        obstacle: Why its network cannot be built here, in words; empty where nothing hinders.
        remark: What it is, in words, where the tensors alone may still tell a network.
    """

    path: Path
    name: str | None = None
    arguments: Mapping[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    obstacle: str = ""
    remark: str = ""


class NoTwinError(Exception):
    """A network of transformers that neither torchvision nor timm builds."""


def said_beside(weights: Path) -> Said | None:
    """What config.json in a file's folder says of it; None where there is none that is about weights.

    Args:
        weights: The file of weights; one whose name no library gives weights has nothing to do with a config.json.

    Raises:
        CheckpointError: If the description is damaged, or cannot be.
    """
    config = weights.with_name(CONFIG)
    return said_by(config) if weights.name in BESIDE and config.is_file() else None


def said_by(config: Path) -> Said | None:
    """What a config.json says, and the description of pictures beside it; None where it is about something else.

    Raises:
        CheckpointError: If it is damaged, or what it says cannot be.
    """
    content = _read(config)
    check_kinds(config, content)
    try:
        if isinstance(content.get("architecture"), str):
            return _of_timm(config, content)
        if isinstance(content.get("model_type"), str):
            return _of_transformers(config, content)
    except ConfigurationError as error:
        raise CheckpointError(f"{config} cannot be read: {str(error).rstrip('.')}.") from error
    except UNFIT as error:
        raise CheckpointError(
            f"{config} cannot be read: it holds values of other kinds than its library writes."
        ) from error
    return None


def said_by_training(path: Path, content: Any) -> Said | None:
    """What a checkpoint of timm's train.py says of itself; where its arguments say nothing, timm's defaults hold.

    Args:
        path: The checkpoint.
        content: What it holds, objects as stand-ins.

    Returns:
        What it says; None where it is no such checkpoint, or timm has no network of the name.

    Raises:
        CheckpointError: If what it says cannot be.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("arch"), str) or "version" not in content:
        return None
    training = content.get("args")
    if not isinstance(training, Mapping):
        training = getattr(training, "attributes", None)
    if not isinstance(training, Mapping) or training.get("model") != content["arch"]:
        return None
    full = f"{TIMM}{content['arch']}"
    defaults = timm_defaults(full)
    if defaults == {}:
        return None
    try:
        return _trained(path, full, training, defaults)
    except UNFIT as error:
        what = (
            str(error).rstrip(".") if isinstance(error, ConfigurationError) else "they are of other kinds than timm's"
        )
        raise CheckpointError(f"{path}: its args cannot be read: {what}.") from error


def _trained(path: Path, full: str, training: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> Said:
    """What the arguments of a training say, and the defaults of its network; None where timm is not there to ask."""
    arguments = dict(training.get("model_kwargs") or {})
    renamed = {"in_chans": "in_chans", "gp": "global_pool"}
    if (defaults or {}).get("fixed_input_size"):
        renamed["img_size"] = "img_size"
    arguments |= {name: training[key] for key, name in renamed.items() if training.get(key) is not None}
    told = {
        key: training[key] for key in ("mean", "std", "crop_pct", "crop_mode", "interpolation") if training.get(key)
    }
    if training.get("input_size"):
        told["input_size"] = training["input_size"]
    elif training.get("img_size"):
        told["input_size"] = (3, training["img_size"], training["img_size"])
    told = {key: list(one) * 3 if key in ("mean", "std") and len(one) == 1 else one for key, one in told.items()}
    whole = defaults is not None or {"mean", "std", "crop_pct", "interpolation", "input_size"} <= told.keys()
    name, given = _timms(full, arguments)
    return Said(path, name, given, _pictures_of_timm(path, {**(defaults or {}), **told}) if whole else None)


def _of_timm(config: Path, content: Mapping[str, Any]) -> Said:
    """What timm writes; older releases had all of it in one mapping."""
    pictures = content.get("pretrained_cfg") or content
    names = content.get("label_names") or pictures.get("label_names") or pictures.get("labels")
    name, arguments = _timms(f"{TIMM}{content['architecture']}", content.get("model_args") or {})
    return Said(config, name, arguments, _pictures_of_timm(config, pictures), _names(names))


def _timms(full: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """A network of timm; its plain ResNets are torchvision's, tensor by tensor, and are built without timm."""
    name = plain_name(full)
    left = FETCHING | {"num_classes"}
    given = {key: value for key, value in arguments.items() if key not in left and value is not None}
    short = name.removeprefix(TIMM)
    usual = {"in_chans": 3, **({"global_pool": "avg"} if short in IMAGENET_NETS else {})}
    given = {key: value for key, value in given.items() if key not in usual or value != usual[key]}
    return (short if short in IMAGENET_NETS and not given else name), given or None


def _pictures_of_timm(path: Path, said: Mapping[str, Any]) -> Preprocessing | None:
    """What pictures go through; None where nothing is said, or what cannot be said here."""
    if not any(said.get(key) for key in ("input_size", "mean", "std")):
        return None
    _, height, width = said.get("input_size") or (3, 224, 224)
    mode: Any = said.get("crop_mode") or "center"
    if height != width or mode not in ("center", "squash"):
        shown = f"pictures of {width} × {height} pixels" if height != width else f"crop_mode {mode!r}"
        tell(f"{path} says {shown}, which are not prepared here: what it says of pictures is left out")
        return None
    interpolation: Any = said.get("interpolation") or "bicubic"
    return Preprocessing(
        height,
        said.get("mean") or IMAGENET_MEAN,
        said.get("std") or IMAGENET_STD,
        mode,
        resize=resize_of(height, said.get("crop_pct") or CROP_PCT),
        interpolation="bicubic" if interpolation == "random" else interpolation,
    )


def _of_transformers(config: Path, content: Mapping[str, Any]) -> Said:
    """What transformers writes, with the twin of its network."""
    kind = content["model_type"]
    pictures = _pictures_of_transformers(config.with_name(PROCESSOR))
    labels = content.get("id2label") or {}
    names = [labels[key] for key in sorted(labels, key=int)] if isinstance(labels, Mapping) else None
    if names and all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names):
        names = None  # nobody has named them
    find = TWINS.get(kind)
    if find is None:
        listed = ", ".join(map(str, content.get("architectures") or [])) or f"model_type {kind!r}"
        return Said(
            config, None, None, pictures, _names(names), remark=f"{config} says {listed} of transformers; {READ}"
        )
    try:
        name, arguments = find(content)
    except NoTwinError as error:
        return Said(config, None, None, pictures, _names(names), obstacle=f"{config} says {error}")
    return Said(config, name, arguments or None, pictures, _names(names))


def _resnet(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The twin of a ResNet of transformers: torchvision's, else timm's with blocks and widths of its own."""
    kind = config.get("layer_type", "bottleneck")
    depths = tuple(config.get("depths", (3, 4, 6, 3)))
    widths = tuple(config.get("hidden_sizes", BOTTLENECK))
    if kind not in ("basic", "bottleneck"):
        raise NoTwinError(f"layer_type {kind!r}; allowed: basic, bottleneck")
    if config.get("downsample_in_bottleneck") and kind == "bottleneck":
        raise NoTwinError(
            "downsample_in_bottleneck: its bottlenecks have their stride in the first 1×1 convolution, which no ResNet "
            "of torchvision or timm has; name code of yours that builds it: architecture: DOTTED.PATH"
        )
    _only(config, downsample_in_first_stage=False, hidden_act="relu", embedding_size=64, num_channels=3)
    names = IMAGENET_NETS[:2] if kind == "basic" else IMAGENET_NETS[2:]
    if widths == (BASIC if kind == "basic" else BOTTLENECK):
        for name in names:
            if IMAGENET_BLOCKS[name] == depths:
                return name, {}
    planes = widths if kind == "basic" else tuple(width // 4 for width in widths)
    return f"{TIMM}{names[0]}", {"layers": list(depths), "channels": list(planes)}


def _vit(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The twin of a ViT of transformers."""
    _only(config, hidden_act="gelu", num_channels=3)
    width, depth, heads = (
        config.get(key, default)
        for key, default in (("hidden_size", 768), ("num_hidden_layers", 12), ("num_attention_heads", 12))
    )
    patch, side, inner = (
        config.get("patch_size", 16),
        config.get("image_size", 224),
        config.get("intermediate_size", 3072),
    )
    size = VITS.get((width, depth, heads))
    usual = size is not None and patch in (16, 32) and (size, patch) != ("tiny", 32)
    arguments: dict[str, Any] = {}
    if not usual:
        arguments = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    if side != 224:
        arguments["img_size"] = side
    if inner != 4 * width:
        arguments["mlp_ratio"] = inner / width
    if not config.get("qkv_bias", True):
        arguments["qkv_bias"] = False
    if (epsilon := config.get("layer_norm_eps", 1e-12)) != USUAL_EPSILON:
        arguments[EPSILON] = {"": epsilon}
    return f"{TIMM}vit_{size}_patch{patch}_224" if usual else f"{TIMM}vit_base_patch16_224", arguments


def _convnext(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The twin of a ConvNext of transformers."""
    _only(config, hidden_act="gelu", num_channels=3, patch_size=4)
    if not config.get("layer_scale_init_value", 1e-6) > 0:
        raise NoTwinError("layer_scale_init_value 0, without which timm's ConvNeXt is another")
    depths = tuple(config.get("depths") or (3, 3, 9, 3))
    widths = tuple(config.get("hidden_sizes") or (96, 192, 384, 768))
    size = CONVNEXTS.get((depths, widths))
    arguments: dict[str, Any] = {} if size else {"depths": list(depths), "dims": list(widths)}
    if (epsilon := config.get("layer_norm_eps", 1e-12)) != USUAL_EPSILON:
        arguments[EPSILON] = {"head.norm": epsilon}
    return f"{TIMM}convnext_{size or 'tiny'}", arguments


TWINS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]] = {
    "resnet": _resnet, "vit": _vit, "convnext": _convnext,
}  # fmt: skip
"""What finds the twin of a network of transformers by its configuration, by its ``model_type``."""


def _only(config: Mapping[str, Any], **expected: Any) -> None:
    """Refuse settings that no twin has.

    Raises:
        NoTwinError: With the setting.
    """
    for key, value in expected.items():
        if (found := config.get(key, value)) != value:
            raise NoTwinError(f"{key} {found!r}; of such networks those with {value!r} are read")


def _pictures_of_transformers(path: Path) -> Preprocessing | None:
    """What an image processor does; None where nothing is said, or what cannot be said here."""
    if not path.is_file():
        return None
    said = _read(path)
    check_kinds(path, said)
    kind = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "")
    fitted = _fitting(said, "ConvNext" in kind or "crop_pct" in said)
    if fitted is None:
        return None
    usual = HALVES if "ViT" in kind or "ConvNext" in kind else None
    mean, std = said.get("image_mean") or usual, said.get("image_std") or usual
    if said.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if not mean or not std:
        return None
    white = 255 if said.get("do_rescale") is False else 255 * said.get("rescale_factor", 1 / 255)
    if abs(white - 1) < EXACT:
        white = 1
    side, crop, resize, interpolation = fitted
    return Preprocessing(
        side,
        _divided(mean, white),
        _divided(std, white),
        crop,
        resize=resize,
        interpolation=_resampling(said["resample"]) if said.get("resample") is not None else interpolation,
    )


def _resampling(number: Any) -> Interpolation:
    """The name of Pillow's number of a way to resize."""
    if type(number) is not int or not 0 <= number < len(RESAMPLES):
        raise ConfigurationError(f"resample is {number!r}; allowed: 0 to {len(RESAMPLES) - 1}, as Pillow numbers them")
    return RESAMPLES[number]


def _divided(values: Sequence[float], by: float) -> tuple[float, float, float]:
    red, green, blue = (value / by for value in values)
    return red, green, blue


def _fitting(said: Mapping[str, Any], convnext: bool) -> tuple[int, Crop, int, Interpolation] | None:
    """Side of the input, how pictures are fitted to it by way of which side, and the interpolation if none is said.

    Args:
        said: Settings of an image processor.
        convnext: Whether it is ConvNext's, which crops small inputs and squashes large ones.
    """
    size, middle = said.get("size", {}), said.get("crop_size", {})
    size = {"shortest_edge" if convnext else "height": size, "width": size} if isinstance(size, int) else size
    middle = {"height": middle, "width": middle} if isinstance(middle, int) else middle
    shortest, height, width = (size.get(key) for key in ("shortest_edge", "height", "width"))
    if said.get("do_resize") is False or not (shortest or (height and height == width)):
        return None
    if convnext and shortest:
        if shortest >= SHORTEST_SQUASHED:
            return shortest, "squash", shortest, "bicubic"
        return shortest, "center", resize_of(shortest, said.get("crop_pct") or CROP_PCT), "bicubic"
    kept = middle.get("height") if said.get("do_center_crop") else None
    if kept and kept != middle.get("width"):
        return None
    if height:
        return kept or height, "squash", height, "bilinear"
    return (kept, "center", shortest, "bilinear") if kept and shortest else None


def _names(given: Any) -> tuple[str, ...] | None:
    """Names of classes; those that stand twice have the number of their logit behind them."""
    if not given or not isinstance(given, Sequence) or isinstance(given, str):
        return None
    return distinct([str(name) for name in given])


def _read(path: Path) -> Mapping[str, Any]:
    """A description in JSON."""
    with open_file(path, "The description") as file:
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise CheckpointError(f"{path} is no description of a network: it has more than {LARGEST} bytes.")
    try:
        content = json_value(raw)
    except ValueError as error:  # of JSON, and of text
        raise CheckpointError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; allowed: a mapping.")
    return content
