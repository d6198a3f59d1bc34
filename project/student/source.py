"""Sources: trained networks that go into a merge, whatever file they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from project.errors import CheckpointError, ConfigurationError
from project.models import Architecture, Description, build_network, read_weights, written_out
from project.student.file import build_student, is_student
from project.symmetry import Spec, trace


@dataclass(frozen=True, eq=False)
class Source:
    """A trained network and what is known of it.

    Args:
        name: Short name for tables.
        network: Plain layers, in eval mode.
        description: Architecture, classes and preprocessing, as far as its file tells.
        sha256: Hash of its file.
        path: Its file.
    """

    name: str
    network: nn.Module
    description: Description
    sha256: str
    path: Path

    @property
    def architecture(self) -> Architecture:
        """What it was built as; a merged source keeps its architecture's name though its widths differ."""
        return cast(Architecture, self.description.architecture)

    @property
    def logits(self) -> int:
        """Number of logits, whatever its architecture was built with."""
        last = [module for module in self.network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        return last.weight.shape[0]


def load_source(path: str | Path, name: str | None = None, architecture: Architecture | str | None = None) -> Source:
    """Read a source: a Lightning checkpoint, a state dict, a safetensors file, or a student of an earlier merge.

    Args:
        path: The file.
        name: Name for tables; default: the file's stem.
        architecture: The network; default: what the file says, else what its shapes tell.

    Raises:
        CheckpointError: If the file cannot be read or does not fit the architecture.
    """
    weights = read_weights(path)
    name = name or weights.path.stem
    if is_student(weights):
        student = build_student(weights)
        description = Description(student.architecture, student.labels, student.preprocessing)
        try:
            plain = student.dense().eval()
        except CheckpointError as error:
            raise CheckpointError(f"{weights.path} cannot be a source: {error}") from error
        return Source(name, plain, description, weights.sha256, weights.path)
    network, weights = build_network(weights, architecture)
    description = Description(weights.architecture, weights.label_space, weights.preprocessing)
    return Source(name, written_out(network), description, weights.sha256, weights.path)


def common_spec(sources: Sequence[Source], picture: tuple[int, int, int]) -> Spec:
    """The spec that all sources share; only the number of their logits may differ.

    Raises:
        ConfigurationError: Where two sources are not of the same architecture and widths.
    """
    specs = [trace(source.network, picture) for source in sources]
    first = specs[0]
    for source, spec in zip(sources[1:], specs[1:], strict=True):
        mine = {name: size for name, size in first.sizes.items() if name != first.output.name}
        theirs = {name: size for name, size in spec.sizes.items() if name != spec.output.name}
        same = (first.layers, first.norms, first.parameters) == (spec.layers, spec.norms, spec.parameters)
        if same and mine == theirs:
            continue
        raise ConfigurationError(
            f"sources must be of one architecture, but {sources[0].path} is {_describe(sources[0], first)} "
            f"and {source.path} is {_describe(source, spec)}."
        )
    return first


def _describe(source: Source, spec: Spec) -> str:
    widths = [group.size for group in spec.free]
    return f"{source.architecture.name} ({len(spec.layers)} layers, widths {min(widths)} to {max(widths)})"
