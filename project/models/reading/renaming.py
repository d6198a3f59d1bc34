"""What other writers call the tensors of networks that we know: one table each, read in both directions.

A row pairs our name of a module or parameter with the writer's. ``{i}`` stands for a whole number that both names
share, ``{i+1}`` for the number after it; what follows a module's name, such as ``.weight``, is the same in both. Where
a row has several names of the writer's, ours is their tensors one after the other along the first axis.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Row = tuple[str, str | tuple[str, ...]]
PLACEHOLDER = re.compile(r"\{(\w)(?:\+(\d+))?\}")
LEAVES = r"(?P<leaf>(?:\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?)"


@dataclass(frozen=True)
class Renaming:
    """A table of names.

    Args:
        writer: Who writes the names on the right, as messages say it.
        rows: Pairs of our name and theirs.
        optional: Prefixes that the writer leaves off when it saves the trunk alone.
    """

    writer: str
    rows: tuple[Row, ...]
    optional: str = ""

    def ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The tensors under our names.

        Args:
            state_dict: Tensors under the writer's names; shapes are left alone.

        Returns:
            All of them, in the writer's order; None where a name is in no row, or a part of a row is missing, so that
            the names are not this writer's.
        """
        pairs, others = self.pairs(state_dict)
        if others:
            return None
        return {
            ours: state_dict[theirs[0]] if len(theirs) == 1 else torch.cat([state_dict[name] for name in theirs])
            for ours, theirs in pairs.items()
        }

    def pairs(self, names: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        """Our names of the writer's.

        Args:
            names: The writer's, perhaps among others.

        Returns:
            Our names, each with the writer's whose tensors it is one after the other; and the names that are in no row,
            or of which a part is missing.
        """
        parts: dict[str, dict[int, str]] = {}
        counts: dict[str, int] = {}
        others = []
        for name in names:
            if (target := self._match(name)) is None:
                others.append(name)
                continue
            ours, index, counts[ours] = target
            parts.setdefault(ours, {})[index] = name
        whole = {
            ours: tuple(pieces[index] for index in sorted(pieces))
            for ours, pieces in parts.items()
            if len(pieces) == counts[ours]
        }
        return whole, others + [name for ours in parts.keys() - whole.keys() for name in parts[ours].values()]

    def rows_of(self, ours: str) -> tuple[str, ...]:
        """What the writer calls a module of ours that has one name; empty where it has none."""
        found = [theirs for name, theirs in self.rows if name == ours and isinstance(theirs, str)]
        short = [name.removeprefix(self.optional) for name in found if self.optional and name.startswith(self.optional)]
        return (*found, *short)

    def theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the writer's names.

        Args:
            state_dict: Tensors under our names.

        Raises:
            KeyError: With the name of ours that is in no row.
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in state_dict.items():
            names = self.their_names(name)
            renamed |= dict(zip(names, [tensor] if len(names) == 1 else tensor.chunk(len(names)), strict=True))
        return renamed

    def their_names(self, name: str) -> tuple[str, ...]:
        """The writer's names of a tensor of ours.

        Raises:
            KeyError: If it is in no row.
        """
        for pattern, templates in self._from_ours:
            if match := pattern.fullmatch(name):
                return tuple(_filled(template, match) for template in templates)
        raise KeyError(name)

    def _match(self, name: str) -> tuple[str, int, int] | None:
        """Our name of a tensor, which part of it this is, and of how many."""
        for candidate in (name, self.optional + name):
            for pattern, template, index, count in self._from_theirs:
                if match := pattern.fullmatch(candidate):
                    return _filled(template, match), index, count
        return None

    @cached_property
    def _from_ours(self) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
        return [(_pattern(ours), (theirs,) if isinstance(theirs, str) else theirs) for ours, theirs in self.rows]

    @cached_property
    def _from_theirs(self) -> list[tuple[re.Pattern[str], str, int, int]]:
        return [
            (_pattern(name), ours, index, 1 if isinstance(theirs, str) else len(theirs))
            for ours, theirs in self.rows
            for index, name in enumerate([theirs] if isinstance(theirs, str) else theirs)
        ]


def renamed(state_dict: Mapping[str, Tensor]) -> Iterable[tuple[Renaming, dict[str, Tensor]]]:
    """Every table that knows all the names, with the tensors under our names."""
    for table in TABLES:
        tensors = table.ours(state_dict)
        if tensors is not None and list(tensors) != list(state_dict):
            yield table, tensors


def _pattern(template: str) -> re.Pattern[str]:
    """What matches a name; a number that is written plus n is captured as ``<letter>_n``."""
    pieces, end = [], 0
    for match in PLACEHOLDER.finditer(template):
        pieces.append(re.escape(template[end : match.start()]))
        pieces.append(rf"(?P<{match[1]}_{match[2] or 0}>\d+)")
        end = match.end()
    return re.compile("".join(pieces) + re.escape(template[end:]) + LEAVES)


def _filled(template: str, match: re.Match[str]) -> str:
    """A name with the numbers of a match of its partner."""
    values = {
        key.partition("_")[0]: int(value) - int(key.partition("_")[2])
        for key, value in match.groupdict().items()
        if key != "leaf"
    }
    name = PLACEHOLDER.sub(lambda found: str(values[found[1]] + int(found[2] or 0)), template)
    return name + match["leaf"]


RESNET_BLOCK = (
    ("layer{s}.{l}.conv{k}", "layer{s}.{l}.conv{k}"),
    ("layer{s}.{l}.bn{k}", "layer{s}.{l}.bn{k}"),
)
TORCHVISION = Renaming(
    "torchvision's ResNet",
    (
        ("conv1", "conv1"),
        ("bn1", "bn1"),
        *RESNET_BLOCK,
        ("layer{s}.{l}.downsample.{k}", "layer{s}.{l}.downsample.{k}"),
        ("fc", "fc"),
        ("fc.{k}", "fc.{k}"),
    ),
)
"""Names that stay as they are: timm has the same."""
VIT = (
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
    ("norm", "vit.layernorm"),
    ("head", "classifier"),
)
TABLES = (
    Renaming(
        "transformers' ResNet",
        (
            ("conv1", "resnet.embedder.embedder.convolution"),
            ("bn1", "resnet.embedder.embedder.normalization"),
            ("layer{s+1}.{l}.conv{k+1}", "resnet.encoder.stages.{s}.layers.{l}.layer.{k}.convolution"),
            ("layer{s+1}.{l}.bn{k+1}", "resnet.encoder.stages.{s}.layers.{l}.layer.{k}.normalization"),
            ("layer{s+1}.{l}.downsample.0", "resnet.encoder.stages.{s}.layers.{l}.shortcut.convolution"),
            ("layer{s+1}.{l}.downsample.1", "resnet.encoder.stages.{s}.layers.{l}.shortcut.normalization"),
            ("fc", "classifier.1"),
        ),
        optional="resnet.",
    ),
    Renaming(
        "transformers' ViT",
        (
            *VIT,
            ("blocks.{l}.norm1", "vit.encoder.layer.{l}.layernorm_before"),
            (
                "blocks.{l}.attn.qkv",
                tuple(f"vit.encoder.layer.{{l}}.attention.attention.{which}" for which in ("query", "key", "value")),
            ),
            ("blocks.{l}.attn.proj", "vit.encoder.layer.{l}.attention.output.dense"),
            ("blocks.{l}.norm2", "vit.encoder.layer.{l}.layernorm_after"),
            ("blocks.{l}.mlp.fc1", "vit.encoder.layer.{l}.intermediate.dense"),
            ("blocks.{l}.mlp.fc2", "vit.encoder.layer.{l}.output.dense"),
        ),
        optional="vit.",
    ),
    Renaming(
        "transformers' ViT in memory, since version 5",
        (
            *VIT,
            ("blocks.{l}.norm1", "vit.layers.{l}.layernorm_before"),
            ("blocks.{l}.attn.qkv", tuple(f"vit.layers.{{l}}.attention.{which}_proj" for which in "qkv")),
            ("blocks.{l}.attn.proj", "vit.layers.{l}.attention.o_proj"),
            ("blocks.{l}.norm2", "vit.layers.{l}.layernorm_after"),
            ("blocks.{l}.mlp.fc{k}", "vit.layers.{l}.mlp.fc{k}"),
        ),
        optional="vit.",
    ),
    Renaming(
        "transformers' ConvNext",
        (
            ("stem.0", "convnext.embeddings.patch_embeddings"),
            ("stem.1", "convnext.embeddings.layernorm"),
            ("stages.{s}.downsample.{k}", "convnext.encoder.stages.{s}.downsampling_layer.{k}"),
            ("stages.{s}.blocks.{l}.conv_dw", "convnext.encoder.stages.{s}.layers.{l}.dwconv"),
            ("stages.{s}.blocks.{l}.norm", "convnext.encoder.stages.{s}.layers.{l}.layernorm"),
            ("stages.{s}.blocks.{l}.mlp.fc{k}", "convnext.encoder.stages.{s}.layers.{l}.pwconv{k}"),
            ("stages.{s}.blocks.{l}.gamma", "convnext.encoder.stages.{s}.layers.{l}.layer_scale_parameter"),
            ("head.norm", "convnext.layernorm"),
            ("head.fc", "classifier"),
        ),
        optional="convnext.",
    ),
    Renaming(
        "mmpretrain's ResNet",
        (
            ("conv1", "backbone.conv1"),
            ("bn1", "backbone.bn1"),
            ("layer{s}.{l}.conv{k}", "backbone.layer{s}.{l}.conv{k}"),
            ("layer{s}.{l}.bn{k}", "backbone.layer{s}.{l}.bn{k}"),
            ("layer{s}.{l}.downsample.{k}", "backbone.layer{s}.{l}.downsample.{k}"),
            ("fc", "head.fc"),
        ),
    ),
    Renaming(
        "a sequence of torchvision's children, as fastai's bodies are",
        (
            ("conv1", "0.0"),
            ("bn1", "0.1"),
            *((f"layer{stage}.{{l}}.conv{{k}}", f"0.{stage + 3}.{{l}}.conv{{k}}") for stage in range(1, 5)),
            *((f"layer{stage}.{{l}}.bn{{k}}", f"0.{stage + 3}.{{l}}.bn{{k}}") for stage in range(1, 5)),
            *(
                (f"layer{stage}.{{l}}.downsample.{{k}}", f"0.{stage + 3}.{{l}}.downsample.{{k}}")
                for stage in range(1, 5)
            ),
            ("fc.{k}", "1.{k}"),
            ("fc", "1"),
        ),
    ),
    Renaming(
        "ResNets whose shortcut is a sequence and whose head is called linear",
        (
            ("conv1", "conv1"),
            ("bn1", "bn1"),
            *RESNET_BLOCK,
            ("layer{s}.{l}.downsample.{k}", "layer{s}.{l}.shortcut.{k}"),
            ("fc", "linear"),
        ),
    ),
    Renaming(
        "ResNets of residual functions",
        (
            ("conv1", "conv1.0"),
            ("bn1", "conv1.1"),
            *(
                (f"layer{{s}}.{{l}}.{kind}{index + 1}", f"conv{{s+1}}_x.{{l}}.residual_function.{3 * index + offset}")
                for index in range(3)
                for offset, kind in enumerate(("conv", "bn"))
            ),
            ("layer{s}.{l}.downsample.{k}", "conv{s+1}_x.{l}.shortcut.{k}"),
            ("fc", "fc"),
        ),
    ),
)
