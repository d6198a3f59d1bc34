"""The mean of networks whose units are aligned first, in a file of the form that theirs have."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, get_args

import torch
from torch import Tensor

from project.allocation import Budget
from project.api import described, device_of
from project.data import PictureFolder, evaluation_transform
from project.data.given import Given, GivenPictures, NoPictures
from project.data.pictures import Pictures
from project.data.splits import shuffled
from project.errors import CheckpointError, ConfigurationError, DataError, MergeError, one_of, whole
from project.exports.common import compared
from project.merging.engine import Engine
from project.merging.loop import drive
from project.merging.preparation import go_together
from project.merging.prepared import CROP_PCT, PICTURE_OPTIONS, agreed_preprocessing, asked, sized
from project.merging.settings import Place, Settings
from project.merging.sources import SourceFile, check_distinct
from project.methods import Average
from project.methods.shared.matching import By
from project.models import Description, LabelSpace, Preprocessing, build_network, read_weights, written_out
from project.models.labels import LabelMode
from project.models.preprocessing import LARGEST_SIDE, resize_of
from project.models.reading.files import Weights, bare_names
from project.models.reading.folder import weights_file
from project.models.reading.rewriting import Form
from project.models.reading.sound import check_varied
from project.models.unfused.attention import fused
from project.options import AverageOptions
from project.runtime import tell
from project.runtime.saving import check_target
from project.student import Source, Student, batch_norms, is_student
from project.symmetry import permute_tensors

USUAL, SMALL = 224, 32  # side of the pictures that networks are run on where nobody says, and those for small ones
COUNTER = "num_batches_tracked"
FEW = 32
"""Pictures below which it is told that they are few."""


@dataclass(frozen=True, eq=False)
class Read:
    """A network, and its file.

    Args:
        source: The network, its layers written out.
        weights: What was read, under the names that files have.
        names: The network's own name of each of its tensors -> the one that files have.
    """

    source: Source
    weights: Weights
    names: Mapping[str, str]


def average(
    sources: Sequence[str | Path | SourceFile | Mapping[str, Any]],
    out: str | Path,
    pictures: str | Path | Given | None = None,
    **options: Unpack[AverageOptions],
) -> Path:
    """Write the mean of networks of one architecture and one head, matched units being averaged with each other.

    The file has the form of the first: its container, keys, prefixes and types, so that whatever loads the first loads
    the mean. What belongs to one course of training, such as an optimizer, and objects of classes that are not torch's
    are left out, which is told. Units stand in the order of the first network's.

    Args:
        sources: Two or more: files of weights, folders that hold one, mappings such as ``{"path": FILE, "weights":
            "raw"}``.
        out: The file to write.
        pictures: A folder of pictures, however it is arranged, or pictures (n, channels, height, width) prepared as the
            networks expect them, or a DataLoader of them. Units are matched on them, and the statistics of batch norms
            re-estimated. None: units are matched by their weights, and statistics are the mean of the sources'.
        options: See :class:`AverageOptions`.

    Returns:
        The file.

    Raises:
        ConfigurationError: If arguments do not go together, or the networks differ in architecture or classes.
        CheckpointError: If a file cannot be read.
        DataError: If there are no pictures in the folder, or one cannot be read.
        TraceError: If the architecture cannot be traced.
        StorageError: If there is no room for the file, or the disk fails.

    Example:
        >>> import torch, project
        >>> from project.models import Architecture
        >>> for name in ("first.pth", "second.pth"):
        ...     torch.save({"model": Architecture("resnet8", num_classes=5).build().state_dict()}, name)
        >>> list(torch.load(project.average(["first.pth", "second.pth"], "mean.pth"), weights_only=True))
        ['model']
    """
    out = Path(out)
    files = _files(sources, options)
    _check(files, out, pictures, options)
    samples = _samples(pictures) if isinstance(pictures, str | Path) else []
    read = [_read(file) for file in files]
    check_distinct([one.source for one in read])
    form = Form(read[0].weights)
    _check_suffix(form, out)
    labels = _labels(read)
    data = _data(read, pictures, samples, options)
    student = _mean([one.source for one in read], labels, data, options)
    own = _own(student, read[0])
    if not read[0].weights.headless:  # whose student has a head for each
        _check_same(student, own, files[0], read[0])
    tensors = _tensors(own, read)
    left_out = form.write(tensors, out, _description(read))
    tell(
        f"{out}: the mean of {len(read)} networks, as {read[0].weights.path} has them" + _told(left_out, student, data)
    )
    return out


def _samples(folder: str | Path) -> list[tuple[Path, int]]:
    """The pictures of a folder, however it is arranged."""
    if not os.path.isdir(folder):
        what = "no folder" if os.path.exists(folder) else "not there"
        raise DataError(f"pictures is {folder}, which is {what}; allowed: a folder of pictures.")
    return PictureFolder(folder).read()[0].train


def _files(sources: object, options: AverageOptions) -> list[SourceFile]:
    """What is said of each file, and of all."""
    if isinstance(sources, str | Path | Mapping) or not isinstance(sources, Sequence):
        raise ConfigurationError(f"sources is a {type(sources).__name__}; allowed: a list of files.")
    if len(sources) < 2:
        raise ConfigurationError(f"sources holds {len(sources)} of at least 2 files that have a mean.")
    files = []
    for source in sources:
        if isinstance(source, Mapping):
            source = described(source)
        if not isinstance(source, str | Path | SourceFile):
            raise ConfigurationError(f"sources holds a {type(source).__name__}; allowed: paths, and mappings with one.")
        file = source if isinstance(source, SourceFile) else SourceFile(Path(source))
        files.append(
            replace(
                file,
                path=weights_file(file.path),
                architecture=file.architecture or options.get("architecture"),
                arguments=options.get("arguments") if file.arguments is None else file.arguments,  # type: ignore[arg-type]
                weights=file.weights or options.get("weights"),
                head=file.head or options.get("head"),
            )
        )
    return files


def _check(files: Sequence[SourceFile], out: Path, pictures: object, options: AverageOptions) -> None:
    """Refuse, before any file is read, what cannot work.

    Raises:
        ConfigurationError: With the argument.
    """
    for name in options:
        if name not in AverageOptions.__optional_keys__:
            raise ConfigurationError(f"{name!r} is no option of an average.")
    check_target(out, f"out is {out}")
    if os.path.exists(out):
        if any(os.path.exists(file.path) and os.path.samefile(file.path, out) for file in files):
            raise ConfigurationError(f"out is {out}, which is one of the files that are averaged; choose another.")
        if not options.get("overwrite", False):
            raise ConfigurationError(f"out is {out}, which is there already; choose another, or pass overwrite true.")
    align = options.get("align")
    if align is not None:
        one_of(("none", *get_args(By)), align=align)
        if pictures is None and align in ("activations", "both"):
            raise ConfigurationError(f"align is {align!r}, which needs pictures; allowed without: 'weights', 'none'.")
    if (size := options.get("image_size")) is not None:
        whole(1, LARGEST_SIDE, image_size=size)
    whole(1, batch_size=options.get("batch_size", 64))
    if (calibration := options.get("calibration", 512)) != "all":
        if isinstance(calibration, str):
            raise ConfigurationError(
                f"calibration is {calibration!r}; allowed: 'all', or a number of pictures, at least 1."
            )
        whole(1, calibration=calibration)
    if isinstance(pictures, Mapping):
        raise ConfigurationError("pictures is a mapping; allowed: a folder, or pictures of all networks together.")
    in_folder = isinstance(pictures, str | Path)
    for name in (*PICTURE_OPTIONS, "calibration"):
        if options.get(name) is not None and not in_folder:
            raise ConfigurationError(
                f"{name} is {options.get(name)}, which changes nothing without a folder of pictures."
            )
    Preprocessing(**{"image_size": USUAL, **asked(options)})


def _read(file: SourceFile) -> Read:
    """Read a file and build its network.

    Raises:
        CheckpointError: If it cannot be read, or is a student.
    """
    weights = read_weights(file.path, file.weights, file.head)
    if is_student(weights):
        raise CheckpointError(f"{file.path} is a student of a merge, whose widths may be its own; use pleas merge.")
    check_varied(weights.state_dict, str(file.path), CheckpointError)
    network, weights = build_network(weights, file.architecture, file.arguments)
    own = list(network.state_dict())
    names = dict(zip(own, bare_names(own), strict=True))
    description = Description(weights.architecture, weights.label_space, weights.preprocessing, weights.class_names)
    source = Source(file.name or file.path.stem, written_out(network), description, weights.sha256, file.path)
    return Read(source, weights, names)


def _check_suffix(form: Form, out: Path) -> None:
    """Refuse a name that says another container than the file will be.

    Raises:
        ConfigurationError: With both.
    """
    if form.safetensors != (out.suffix.lower() == ".safetensors"):
        kind = "safetensors" if form.safetensors else "PyTorch"
        allowed = ".safetensors" if form.safetensors else "another suffix, such as .pth"
        raise ConfigurationError(
            f"out is {out}, but {form.weights.path} is a file of {kind}, whose form the mean has; allowed: {allowed}."
        )


def _labels(read: Sequence[Read]) -> LabelSpace:
    """One head for all networks, each being the source of a domain of its own.

    Raises:
        ConfigurationError: If they have heads of other classes, the mean of which would mean nothing.
    """
    first, *others = read
    for other in others:
        if other.source.logits != first.source.logits:
            raise ConfigurationError(
                f"{first.source.origin} has {first.source.logits} logits, and {other.source.origin} "
                f"{other.source.logits}: there is no mean of their heads; pleas merge keeps one of each."
            )
    said = [(one.source.origin, classes) for one in read if (classes := one.source.description.classes) is not None]
    for origin, classes in said[1:]:
        if set(classes) != set(said[0][1]):
            raise ConfigurationError(
                f"{said[0][0]} and {origin} say that they have other classes: there is no mean of their heads; pleas "
                f"merge keeps one of each."
            )
    names = said[0][1] if said else tuple(map(str, range(first.source.logits)))
    mode: LabelMode = "different" if first.weights.headless else "shared"  # what pooled values mean is each one's own
    return LabelSpace({f"network {number + 1}": names for number in range(len(read))}, mode)


def _data(
    read: Sequence[Read], pictures: Any, samples: list[tuple[Path, int]], options: AverageOptions
) -> GivenPictures:
    """The pictures, or the size of those that there are not.

    Raises:
        ConfigurationError: If nothing tells the size of pictures in a folder, or files say different things of them.
    """
    known = {one.source.origin: one.source.description.preprocessing for one in read}
    if pictures is None:
        stated = {one.image_size for one in known.values() if one}
        usual = SMALL if read[0].source.architecture.stem == "small" else USUAL
        size = options.get("image_size") or (stated.pop() if len(stated) == 1 else usual)
        return NoPictures((3, size, size))
    if not isinstance(pictures, str | Path):
        return GivenPictures(pictures, options.get("batch_size", 64))
    wanted = asked(options)
    agreed = agreed_preprocessing(known, wanted) | wanted
    sized(agreed, known)
    if "mean" not in agreed or "std" not in agreed:
        tell("pictures are normalised as ImageNet's, since the files do not say; mean and std change that")
    if CROP_PCT in agreed:
        agreed["resize"] = resize_of(agreed["image_size"], agreed.pop(CROP_PCT))
    preprocessing = Preprocessing(**agreed)
    count = options.get("calibration", 512)
    taken = shuffled(samples, 0)[: None if count == "all" else count]
    if len(taken) < FEW:
        tell(f"only {len(taken)} pictures match units and re-estimate statistics of norms: chance has much of a say")
    return GivenPictures(_batches(Pictures(taken, evaluation_transform(preprocessing)), options.get("batch_size", 64)))


def _batches(pictures: Pictures, size: int) -> Iterator[Tensor]:
    for start in range(0, len(pictures), size):
        yield torch.stack([pictures.picture(index) for index in range(start, min(start + size, len(pictures)))])


def _mean(sources: Sequence[Source], labels: LabelSpace, data: GivenPictures, options: AverageOptions) -> Student:
    """The merge whose student is the mean."""
    align = options.get("align") or ("activations" if data.batches else "weights")
    settings = Settings([Average(align=align)], [Budget(1.0)], audit="off")  # the pictures are of no one network
    files = [
        SourceFile(source.path or Path(source.name), domains=[domain])
        for source, domain in zip(sources, labels.domains, strict=True)
    ]
    data.adopt(labels, None)
    place = Place(None, device_of(options.get("device")))
    engine = Engine(go_together(files, sources, settings, data.picture), settings, data, place)
    drive(engine, data, torch.device(place.device), options.get("progress", True))
    return engine.merged[0].student.eval()


def _own(student: Student, first: Read) -> dict[str, Tensor]:
    """The student's tensors under the first network's own names, its units in the order of that network's.

    Raises:
        ConfigurationError: If the network computes with tensors that a student does not keep.
    """
    orders = {group.name: student.maps[group.name].members[:, 0].argsort() for group in student.spec.free}
    own = fused(permute_tensors(student.dense().state_dict(), student.spec, orders), first.names)
    for name in first.names:
        if name not in own and not name.endswith(COUNTER):
            raise ConfigurationError(
                f"{first.weights.path} computes weights with {name!r}, for which there is no mean; use pleas merge."
            )
    return own


def _check_same(student: Student, own: Mapping[str, Tensor], file: SourceFile, first: Read) -> None:
    """Refuse tensors with which the network does not do what the student does: it computes its weights from them.

    Raises:
        ConfigurationError: With the file.
    """
    network, _ = build_network(first.weights, file.architecture, file.arguments)
    network.load_state_dict(own, strict=False)
    try:
        compared(student, network.eval(), str(first.weights.path))
    except MergeError as error:
        raise ConfigurationError(
            f"{first.weights.path} computes its weights from its tensors, so that theirs is not the mean of what the "
            f"networks do; use pleas merge."
        ) from error


def _tensors(own: Mapping[str, Tensor], read: Sequence[Read]) -> dict[str, Tensor]:
    """The mean under the names that files have."""
    found = {}
    for name, written in read[0].names.items():
        if written not in read[0].weights.state_dict:  # counters that files from before torch 0.4.1 have not
            continue
        if name.endswith(COUNTER):
            counts = [one.weights.state_dict[written] for one in read if written in one.weights.state_dict]
            found[written] = torch.stack(counts).amax(0)
        else:
            found[written] = own[name]
    return found


def _description(read: Sequence[Read]) -> Description | None:
    """What the mean is, where all files say what theirs are: of all their domains."""
    spaces = [one.source.description.label_space for one in read]
    first = read[0].source.description.classes
    if first is None or any(space is None or space.mode != "shared" for space in spaces):
        return None
    domains = [domain for space in spaces if space is not None for domain in space.classes]
    classes = dict.fromkeys(domains, first)  # in whose order all columns stand
    return replace(read[0].source.description, label_space=LabelSpace(classes, "shared"))


def _told(left_out: Sequence[str], student: Student, data: GivenPictures) -> str:
    """What of the first file is not in the new one, and what statistics of norms are worth."""
    told = f"; left out: {', '.join(left_out)}" if left_out else ""
    if not data.batches and batch_norms(student.network):
        told += (
            "; running statistics of batch norms are the mean of the sources', but averaged units vary less: with "
            "pictures they are re-estimated"
        )
    return told
