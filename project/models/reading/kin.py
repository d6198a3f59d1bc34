"""What a file's names look like, where no network that is known by its tensors has them."""

import re
from collections.abc import Iterable

TIMM = "say which it is: {path: FILE, architecture: timm/NAME}"
TORCHVISION = "say which it is: {path: FILE, architecture: NAME}"
OWN = "name the class that builds it: {path: FILE, architecture: DOTTED.PATH}"
WRITERS = (
    (r"(?:.*\.)?vit\.(?:encoder\.layer|layers)\.\d+\..*", "transformers' ViT", f"timm's is the same: {TIMM}"),
    (r"(?:.*\.)?convnext\.encoder\..*", "transformers' ConvNext", f"timm's is the same: {TIMM}"),
    (
        r"(?:.*\.)?(?:resnet|deit|beit|swin|swinv2|convnextv2|mobilenet_v[12]|efficientnet|dinov2|regnet|levit|poolformer"
        r"|segformer|cvt|bit|mobilevit)\.(?:encoder|embeddings|embedder|layers)\..*",
        "a network of transformers",
        "its twin of timm is read under timm's own names",
    ),
    (r"backbone\.layers\.\d+\.(?:ln1|ffn)\..*", "mmpretrain's ViT", "of mmpretrain's networks its ResNets are read"),
    (r"(?:.*\.)?layers\.\d+\.blocks\.\d+\.attn\.(?:qkv|relative_position_bias_table).*", "timm's Swin", TIMM),
    (r"(?:.*\.)?blocks\.\d+\.attn\.qkv\..*", "timm's ViT and its kin", TIMM),
    (r"(?:.*\.)?stages\.\d+\.blocks\.\d+\.(?:conv_dw\..*|gamma)", "timm's ConvNeXt and its kin", TIMM),
    (r"(?:.*\.)?conv_stem\.weight", "timm's EfficientNet, MobileNet and their kin", TIMM),
    (r"(?:.*\.)?s\d\.b\d+\.conv1\.conv\.weight", "timm's RegNet", TIMM),
    (r"(?:.*\.)?layer1\.0\.(?:se\.fc1|conv2\.radix|conv2\.fc1|conv2_s\d)\..*", "timm's kin of ResNet", TIMM),
    (r"(?:.*\.)?conv1\.3\.weight", "timm's ResNet with a deep stem, such as resnet50d", TIMM),
    (r"(?:.*\.)?encoder\.layers\.encoder_layer_\d+\..*", "torchvision's ViT", TORCHVISION),
    (r"(?:.*\.)?stages\.\d+\.\d+\.(?:dwconv|pwconv1)\..*", "ConvNeXt's of its authors", OWN),
    (r"(?:.*\.)?model\.\d+\.cv\d\.conv\.weight", "ultralytics' networks", OWN),
    (r"(?:.*\.)?features\.\d+\..*", "torchvision's VGG, DenseNet, EfficientNet, MobileNet or their kin", TORCHVISION),
)
"""Names of tensors, whose they are, and what to do: the first that fits."""
SELF_SUPERVISED = (
    ({"encoder_q", "encoder_k", "base_encoder", "momentum_encoder"}, "MoCo"),
    ({"online_encoder", "target_encoder", "online_network", "target_network"}, "BYOL"),
    ({"prototypes"}, "SwAV"),
    ({"last_layer", "weight_g"}, "DINO"),
    ({"projection_head"}, "SimCLR"),
    ({"predictor"}, "SimSiam"),
    ({"projector"}, "Barlow Twins or VICReg"),
)
"""Modules that stand beside, or around, a trunk which learnt without classes, and of which method."""


def kin(names: Iterable[str]) -> str | None:
    """Whose names these are, and what to do, as a sentence goes on behind ``named as``; None where nothing tells.

    Args:
        names: Of all tensors of a file.
    """
    names = list(names)
    for pattern, writer, hint in WRITERS:
        compiled = re.compile(pattern)
        if found := next((name for name in names if compiled.fullmatch(name)), None):
            return f"those of {writer} are ({found}); {hint}"
    return None


def self_supervision(names: Iterable[str]) -> tuple[str, str] | None:
    """The method by which a trunk learnt without classes, and the module that tells; None where nothing does."""
    parts = {part for name in names for part in name.split(".")}
    return next(((method, sorted(marks & parts)[0]) for marks, method in SELF_SUPERVISED if marks & parts), None)
