"""What a file of weights says about itself, as plain values that load without running code."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from project.errors import CheckpointError, ConfigurationError
from project.models.architecture import Architecture
from project.models.labels import LabelSpace
from project.models.preprocessing import Preprocessing

ENTRY = "pleas"  # one entry of our own: other tools' files hold "architecture" or "classes" of other forms
DESCRIPTION = "description"  # what stands there in a student's safetensors file, where that entry holds the others too


@dataclass(frozen=True)
class Description:
    """What is known about a network beside its tensors; None where nothing is.

    Args:
        architecture: The network.
        label_space: What its output columns mean.
        preprocessing: What its pictures went through.
        class_names: Of its logits, in their order, where the file names them but no domains.
    """

    architecture: Architecture | None = None
    label_space: LabelSpace | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains it was trained on; empty where they are not known."""
        return self.label_space.domains if self.label_space else ()

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Name of the class behind each output column; None where they are not known."""
        return column_names(self.label_space) if self.label_space else self.class_names

    def to_entries(self) -> dict[str, Any]:
        """The entry to add to a checkpoint: dictionaries, lists, strings and numbers only."""
        inside: dict[str, Any] = {}
        if self.architecture:
            inside["architecture"] = self.architecture.plain
        if self.label_space:
            inside["classes"] = {domain: list(names) for domain, names in self.label_space.classes.items()}
            inside["label_mode"] = self.label_space.mode
        if self.preprocessing:
            inside["preprocessing"] = asdict(self.preprocessing)
        return {ENTRY: inside}

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> "Description":
        """Read what :meth:`to_entries` wrote; entries of other names are passed over.

        Raises:
            CheckpointError: If the entry is not of the form that :meth:`to_entries` writes.
        """
        try:
            inside = _mapping(entries.get(ENTRY, {}), ENTRY)
            architecture, classes, preprocessing = (
                _mapping(inside.get(name) or {}, name) for name in ("architecture", "classes", "preprocessing")
            )
            return cls(
                Architecture(**architecture) if architecture else None,
                _label_space(classes, inside["label_mode"]) if classes else None,
                Preprocessing(**preprocessing) if preprocessing else None,
            )
        except (TypeError, ValueError, KeyError, AttributeError, ConfigurationError) as error:
            raise CheckpointError(f"The entry {ENTRY!r} cannot be read: {str(error).rstrip('.')}.") from error


def column_names(label_space: LabelSpace) -> tuple[str, ...]:
    """Name of the class behind each output column."""
    heads = list(label_space.classes.values())
    return tuple(name for names in (heads[:1] if label_space.mode == "shared" else heads) for name in names)


def _mapping(found: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise TypeError(f"{name} is a {type(found).__name__}; allowed: a mapping from names")
    return found


def _label_space(classes: Mapping[str, Any], mode: Any) -> LabelSpace:
    for domain, names in classes.items():
        if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
            raise TypeError(f"the classes of {domain!r} are no list of names")
    return LabelSpace({domain: tuple(names) for domain, names in classes.items()}, mode)
