"""A folder as timm writes it, which transformers loads, too."""

import json
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor

from project.errors import MergeError
from project.exports.common import Exported, compared, heads_of, notes_of, state_of
from project.models import Architecture
from project.models.architecture import IMAGENET_NETS
from project.models.zoo import EPSILON, TIMM, timm_library
from project.runtime.saving import atomic_folder, tensor_bytes
from project.student import Student
from project.student.file import original_architecture

SAME = frozenset({
    *IMAGENET_NETS, "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
})  # fmt: skip
"""Networks of torchvision's that timm has under the same name, tensor by tensor."""
ROOM = 2**16  # bytes that the description takes at most, classes left out


def without_twin(student: Student) -> str | None:
    """Why timm does not build a student's network, in words; None where it does."""
    found = original_architecture(student)
    if _twin(found) is None:
        return f"is of {found.name}{_differing(found)}, which timm does not build"
    if student.preprocessing is not None and student.preprocessing.channels != "RGB":
        return f"reads {student.preprocessing.channels}, which timm cannot say"
    return None


def write(student: Student, path: Path) -> Exported:
    """Write config.json and model.safetensors.

    ``num_classes`` stands beside ``model_args`` and not in them, or transformers would get it twice.

    Raises:
        PleasError: See :func:`~project.exports.export.export`.
    """
    architecture = original_architecture(student)
    name = cast(str, _twin(architecture))
    library = timm_library(f"{TIMM}{name}")
    state, (classes,) = state_of(student), heads_of(student).values()
    arguments = {key: value for key, value in (architecture.arguments or {}).items() if key != EPSILON}
    needed = tensor_bytes(state) + ROOM + sum(len(one.encode()) for one in classes)
    notes = list(notes_of(student))
    if student.preprocessing is not None and student.preprocessing.ground is not None:
        notes.append(f"timm lays no transparent pictures on {student.preprocessing.ground}")
    if student.preprocessing is not None and student.preprocessing.orientation == "applied":
        notes.append("timm and transformers leave pictures as their pixels lie, whatever their camera noted (EXIF)")
    if EPSILON in (architecture.arguments or {}):
        notes.append("timm builds it with epsilons of its own in layer norms")
    with atomic_folder(path, needed) as draft:
        save_file(state, draft / "model.safetensors", metadata={"format": "pt"})
        config = _config(name, arguments, student, classes, _own(library, name))
        (draft / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
        try:
            network = library.create_model(f"local-dir:{draft}", pretrained=True).eval()
        except Exception as error:  # whatever timm raises of what it has read
            raise MergeError(f"{path} is not loaded by timm {library.__version__}: {error}") from error
        difference = compared(student, lambda pictures: cast(Tensor, network(pictures)), str(path))
        written = sum(file.stat().st_size for file in draft.iterdir())
    return Exported(path, written, difference, heads_of(student), tuple(notes))


def _twin(architecture: Architecture) -> str | None:
    """Timm's name of a network; None where it has none."""
    if architecture.of_timm:
        return architecture.name.removeprefix(TIMM)
    plain = architecture.stem == "imagenet" and not architecture.hidden and architecture.head_bias
    return architecture.name if plain and architecture.name in SAME and not architecture.arguments else None


def _differing(architecture: Architecture) -> str:
    """What sets a network apart from the one that its name means, in words."""
    if architecture.name not in SAME:
        return ""
    told = {
        "a small stem": architecture.stem != "imagenet",
        "a hidden layer in its head": architecture.hidden > 0,
        "a head without bias": not architecture.head_bias,
        f"arguments {architecture.arguments}": architecture.arguments,
    }  # fmt: skip
    return f" with {' and '.join(what for what, holds in told.items() if holds)}"


def _own(library: Any, name: str) -> dict[str, Any]:
    """What timm says of a network, less what is about weights that are not these."""
    found = library.models.get_pretrained_cfg(name)
    said = {} if found is None else found.to_dict()
    kept = ("first_conv", "classifier", "fixed_input_size")
    return {key: said[key] for key in kept if said.get(key) is not None}


def _config(
    name: str, arguments: dict[str, Any], student: Student, classes: list[str], own: dict[str, Any]
) -> dict[str, Any]:
    """The description, as timm's ``save_for_hf`` writes it."""
    known = student.preprocessing
    pictures: dict[str, Any] = {"input_size": list(student.spec.picture)}
    if known is not None:
        pictures = {
            "input_size": [3, known.image_size, known.image_size],
            "interpolation": known.interpolation,
            "crop_pct": known.crop_pct,
            "crop_mode": known.crop,
            "mean": list(known.mean),
            "std": list(known.std),
        }
    features = student.features
    return {
        "architecture": name,
        "num_classes": len(classes),
        "num_features": features,
        "label_names": classes,
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "tag": "", "custom_load": False, **pictures, "num_classes": len(classes), **own,
        },
    }  # fmt: skip
