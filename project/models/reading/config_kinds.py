"""Of which kinds the values are that config.json and its kin hold, as their libraries write them."""

from collections.abc import Callable, Mapping
from typing import Any

from project.errors import CheckpointError

SHOWN = 80  # characters of a value


def check_kinds(path: object, content: Mapping[str, Any]) -> None:
    """Refuse values of another kind than the libraries write, wherever a network or its pictures depend on them.

    Args:
        path: The description.
        content: What it holds.

    Raises:
        CheckpointError: With the key, its value, and what is allowed.
    """
    for where, said in (("", content), ("pretrained_cfg ", content.get("pretrained_cfg"))):
        if not isinstance(said, Mapping):
            continue
        for key, (fits, allowed) in KINDS.items():
            if (value := said.get(key)) is not None and not fits(value):
                raise CheckpointError(
                    f"{path} cannot be read: its {where}{key} is {str(value)[:SHOWN]!r}; allowed: {allowed}."
                )


def _mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _wholes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_whole, value))


def _shape(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and _wholes(value)


def _colours(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_number, value))


def _sides(value: object) -> bool:
    return _whole(value) or (isinstance(value, Mapping) and all(map(_whole, value.values())))


def _by_number(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, Mapping) and all(str(key).isdecimal() for key in value))


KINDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("model_args", "pretrained_cfg"), (_mapping, "a mapping")),
    "input_size": (_shape, "channels, height and width"),
    **dict.fromkeys(("mean", "std", "image_mean", "image_std"), (_colours, "three numbers")),
    **dict.fromkeys(("crop_pct", "rescale_factor", "layer_norm_eps", "layer_scale_init_value"), (_number, "a number")),
    **dict.fromkeys(("depths", "hidden_sizes"), (_wholes, "whole numbers above 0")),
    **dict.fromkeys(
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "intermediate_size", "num_channels"),
        (_whole, "a whole number above 0"),
    ),
    **dict.fromkeys(("size", "crop_size"), (_sides, "a side, or sides by name, in whole pixels above 0")),
    "id2label": (_by_number, "names by their number"),
}
"""Key -> whether a value is of its kind, and which values are."""
