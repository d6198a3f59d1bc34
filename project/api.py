"""The library in five lines: sources and pictures in, students out, without a command and without Lightning."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from project.allocation import Budget, check_budgets
from project.data.domains import Domains
from project.data.folders import ImageFolders
from project.data.given import Given, GivenPictures, NoPictures
from project.errors import ConfigurationError, at_least, nearest, whole
from project.merging.engine import Engine
from project.merging.labels import label_space_of
from project.merging.loop import drive
from project.merging.preparation import go_together
from project.merging.prepared import PICTURE_OPTIONS, agreed_preprocessing, asked, sized
from project.merging.settings import Place, Settings
from project.merging.sources import SourceFile, check_distinct
from project.methods import Method
from project.methods.names import find_method
from project.models.labels import CODE_POINTS, LabelMode
from project.models.preprocessing import LARGEST_SIDE, Preprocessing
from project.options import MergeOptions
from project.report.check import CheckReport, check_network, never_trained
from project.runtime import alone_in
from project.runtime.allocator import held_tight
from project.runtime.progress import taken_up_again
from project.runtime.saving import check_writable
from project.student import Source, Student, load_source, source_of

DEFAULT_SIZE = 224
AnySource = str | Path | nn.Module | SourceFile | Mapping[str, Any]
AnyPictures = str | Path | Domains | Mapping[str, Given] | Given | None


def merge(
    sources: Sequence[AnySource] | Mapping[str, AnySource],
    pictures: AnyPictures = None,
    budget: float | str = 1.0,
    method: Method | str = "pleas",
    **options: Unpack[MergeOptions],
) -> Student:
    """Merge several networks of one architecture into one, of a size you choose, without labels.

    Args:
        sources: Two or more: files of weights, folders that hold one, mappings such as ``{"path": FILE, "architecture":
            NAME}``, or modules in memory, which stay as they are. ``{"path": FILE, "head": "none"}`` is the trunk of a
            ResNet alone, such as one that learnt without classes: students give each one's pooled values in place of
            logits.
            As a mapping, domain -> the source that was trained on it; else the domain that its file says, or the one
            in its place among the pictures'.
        pictures: Domain -> pictures (n, channels, height, width) prepared as the sources expect them, or a DataLoader
            of them; or a folder ``<domain>/<class>/<picture>``; or pictures of no domain alone. None for methods that
            need no pictures.
        budget: Largest size of the student: multiply-accumulates over one source's (1.5), or a size with its unit, such
            as ``'14M params'``, see :class:`~project.allocation.Budget`.
        method: A method, or its name.
        options: See :class:`MergeOptions`.

    Returns:
        The student, on the CPU, in eval mode: called on prepared pictures it gives logits; ``labels`` names them.

    Raises:
        ConfigurationError: If arguments do not go together, before any long work.
        CheckpointError: If a file cannot be read.
        TraceError: If the architecture cannot be traced; the line is named.
        MergeError: If no sound student can be made.

    Example:
        >>> import torch, torchvision, project
        >>> photo, sketch = (torchvision.models.resnet18(num_classes=5) for _ in range(2))
        >>> pictures = {"photo": torch.randn(8, 3, 32, 32), "sketch": torch.randn(8, 3, 32, 32)}
        >>> student = project.merge([photo, sketch], pictures, method="permutation")
        >>> student(pictures["photo"]).shape
        torch.Size([8, 5])
    """
    (student,) = merges(sources, pictures, [budget], [method], **options).values()
    return student


def merges(
    sources: Sequence[AnySource] | Mapping[str, AnySource],
    pictures: AnyPictures = None,
    budgets: Sequence[float | str] = (1.0,),
    methods: Sequence[Method | str] = ("pleas",),
    **options: Unpack[MergeOptions],
) -> dict[str, Student]:
    """Merge by several methods to several sizes; pictures are looked at once for all of them.

    Args:
        sources: See :func:`merge`.
        pictures: See :func:`merge`.
        budgets: Largest sizes of the students.
        methods: Methods, or their names.
        options: See :class:`MergeOptions`.

    Returns:
        Name, such as ``pleas-1.50`` -> student, in the order of methods and budgets.

    Raises:
        PleasError: See :func:`merge`.

    Example:
        >>> import torch, project
        >>> from project.models import Architecture
        >>> photo, sketch = (Architecture("resnet8", num_classes=5).build() for _ in range(2))
        >>> pictures = {"photo": torch.randn(8, 3, 32, 32), "sketch": torch.randn(8, 3, 32, 32)}
        >>> students = project.merges([photo, sketch], pictures, budgets=[1, 1.5], methods=["average", "permutation"])
        >>> list(students)
        ['average-1.00', 'permutation-1.00', 'permutation-1.50']
    """
    _check_options(pictures, options)
    settings = Settings(
        [_method(method) for method in _listed("methods", methods)],
        [Budget.of(budget) for budget in _listed("budgets", budgets)],
        without_source=_listed("without_source", options.get("without_source", ())),
        base=_base(options.get("base")),
        statistics=_path(options.get("statistics")),
        memory=options.get("memory"),
        audit=options.get("audit", "stop"),
        heads=options.get("heads", "shared"),
    )
    files = _files(sources)
    check_budgets(settings.budgets, len(files))
    place = Place(_path(options.get("folder")), device_of(options.get("device")))
    with ExitStack() as alone:
        if place.folder is not None:
            check_writable(place.folder, f"folder is {place.folder}")
            alone.enter_context(alone_in(place.folder, f"folder is {place.folder}"))
        return _students(files, pictures, settings, place, options)


def _students(
    files: Sequence[tuple[SourceFile, AnySource]],
    pictures: AnyPictures,
    settings: Settings,
    place: Place,
    options: MergeOptions,
) -> dict[str, Student]:
    """The students of one merge, by name."""
    loaded = [_load(file, source, options) for file, source in files]
    check_distinct(loaded)
    data = _data(pictures, loaded, options)
    claims = [file for file, _ in files]
    if isinstance(data, GivenPictures):
        domains = list(data.calibration_domains)
        if not isinstance(pictures, Mapping):  # they are of no domain: each source is its own
            domains = [_domain(claim, source) for claim, source in zip(claims, loaded, strict=True)]
            claims = [replace(claim, domains=[domain]) for claim, domain in zip(claims, domains, strict=True)]
        said = (options.get("classes"), options.get("label_space"))
        labels = label_space_of(claims, loaded, domains, settings.without_source, *said)
        data.adopt(labels, _common(loaded))
    engine = Engine(go_together(claims, loaded, settings, data.picture), settings, data, place)
    engine.renormalise = options.get("renormalise", True)
    with taken_up_again(place.folder), held_tight(settings.memory is not None):
        drive(engine, data, torch.device(place.device), options.get("progress", True))
    return {merged.name: merged.student.eval() for merged in engine.merged}


@torch.no_grad()
def check(network: nn.Module, image_size: int = 224, tolerance: float = 1e-3) -> CheckReport:
    """Derive the permutation groups of a network, prove them on it, and tell at which budgets it can be merged.

    Args:
        network: Of any class; it stays as it is.
        image_size: Height and width of the pictures that it is run on, in pixels.
        tolerance: Largest change of the logits, relative to the largest logit, that permuting a group may make.

    Returns:
        The report: ``print`` it, or look at its ``groups``, ``changes`` and ``obstacle``.

    Raises:
        ConfigurationError: If it is no network that could be a source.
        TraceError: If it cannot be traced, the line of code being named, or its groups do not hold.

    Example:
        >>> import torchvision, project
        >>> report = project.check(torchvision.models.resnet18(), image_size=32)
        >>> len(report.groups), report.obstacle
        (12, None)
    """
    whole(1, LARGEST_SIDE, image_size=image_size)
    at_least(0, tolerance=tolerance)
    source = source_of(network, type(network).__name__)
    picture = (3, image_size, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return check_network(source.network, source.name, picture, tolerance, fresh=never_trained(source.network))


def _files(
    sources: Sequence[AnySource] | Mapping[str, AnySource],
) -> list[tuple[SourceFile, AnySource]]:
    """What is said of each source, and the source.

    Raises:
        ConfigurationError: If they are fewer than two, or one is neither a file nor a module.
    """
    if isinstance(sources, str | Path | nn.Module) or not isinstance(sources, Iterable):
        raise ConfigurationError(
            f"sources is a {type(sources).__name__}; allowed: a list of files and networks, or domain -> one of these."
        )
    named = list(sources.items()) if isinstance(sources, Mapping) else [(None, source) for source in sources]
    if len(named) < 2:
        raise ConfigurationError(f"sources holds {len(named)} of at least 2 networks that a merge needs.")
    files: list[tuple[SourceFile, AnySource]] = []
    for number, (domain, source) in enumerate(named):
        if not isinstance(domain, str | None):
            raise ConfigurationError(f"sources holds the domain {domain!r}; allowed: names, as text.")
        if isinstance(source, Mapping):
            source = described(source)
        if isinstance(source, SourceFile):
            file = source
        elif isinstance(source, nn.Module):
            file = SourceFile(Path(f"<{type(source).__name__} {number + 1}>"))
        elif isinstance(source, str | Path):
            file = SourceFile(Path(source))
        else:
            raise ConfigurationError(
                f"sources holds a {type(source).__name__}; allowed: paths of files or folders, mappings such as "
                f"{{'path': FILE, 'architecture': NAME}}, and nn.Modules."
            )
        files.append((replace(file, domains=[domain]) if domain is not None else file, source))
    return files


def described(source: Mapping[str, Any]) -> SourceFile:
    """What YAML says of a file, in Python.

    Raises:
        ConfigurationError: If it lacks the path, or holds something else.
    """
    try:
        return SourceFile(**{**source, "path": Path(source["path"])})
    except (KeyError, TypeError) as error:
        known = ", ".join(field.name for field in fields(SourceFile))
        raise ConfigurationError(f"sources holds {dict(source)}; allowed: {known}, of which path is needed.") from error


def _load(file: SourceFile, source: AnySource, options: MergeOptions) -> Source:
    """The source, from a file or from memory; what is said of it alone overrules what is said of all."""
    architecture = file.architecture or options.get("architecture")
    arguments = options.get("arguments") if file.arguments is None else file.arguments
    if isinstance(source, nn.Module):
        return source_of(source, str(file.path), architecture, arguments)
    return load_source(file.path, file.name, architecture, arguments, file.weights, file.head)


def _data(pictures: AnyPictures, loaded: Sequence[Source], options: MergeOptions) -> Domains | GivenPictures:
    """The pictures, wherever they are; those in folders are prepared as the sources say."""
    if isinstance(pictures, Domains):
        return pictures
    stated = asked(options)
    if isinstance(pictures, str | Path):
        folders = ImageFolders(pictures, class_order=options.get("class_order", CODE_POINTS))
        mode = options.get("label_space") or _mode(folders)
        known = {source.origin: source.description.preprocessing for source in loaded}
        agreed = {**agreed_preprocessing(known, stated), **stated}
        sized(agreed, known)
        data = Domains(
            folders,
            label_space=mode,
            **agreed,
            batch_size=options.get("batch_size", 64),
            calibration=options.get("calibration", 512),
        )
        data.read()
        return data
    if pictures is None:
        prepared = _common(loaded)
        size = stated.get("image_size", prepared.image_size if prepared else DEFAULT_SIZE)
        whole(1, LARGEST_SIDE, image_size=size)
        return NoPictures((3, size, size))
    return GivenPictures(pictures, options.get("batch_size", 64))


def _mode(folders: ImageFolders) -> LabelMode:
    """One head for all where all domains have the same classes."""
    return "shared" if len({domain.classes for domain in folders.read()}) == 1 else "different"


def device_of(device: torch.device | str | None) -> torch.device:
    """Where to run: a GPU with float64, in which layers are solved, else the CPU."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(f"device is {str(device)!r}, but torch sees no such accelerator here; allowed: 'cpu'.")
    try:
        chosen = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=chosen).cpu()
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ConfigurationError(f"device is {str(device)!r}, on which float64 cannot be had: {error}") from error
    return chosen


def _domain(claim: SourceFile, source: Source) -> str:
    """What to call the domain of a source of which no pictures are given."""
    domains = claim.domains or source.description.domains
    return domains[0] if len(domains) == 1 else source.name.strip("<>")


def _check_options(pictures: AnyPictures, options: MergeOptions) -> None:
    """Refuse options that there are not, and those that would do nothing, the pictures being what they are.

    Raises:
        ConfigurationError: With the option.
    """
    known = MergeOptions.__optional_keys__
    for name in options:
        if name not in known:
            raise ConfigurationError(f"{name!r} is no option of a merge{nearest(name, known)}.")
    idle: tuple[str, ...] = ("image_size", *PICTURE_OPTIONS, "class_order", "calibration")
    kind = "in memory"
    if isinstance(pictures, Domains):
        kind, idle = "Domains", (*idle, "classes", "label_space", "batch_size")
    elif isinstance(pictures, str | Path):
        kind, idle = "in class folders", ("classes",)
    elif pictures is None:
        kind, idle = "None", (*PICTURE_OPTIONS, "class_order", "batch_size", "calibration")
    given: dict[str, Any] = {**options}
    for name in idle:
        if given.get(name) is not None:
            raise ConfigurationError(f"{name} is {given[name]!r}, which changes nothing where pictures are {kind}.")


def _listed(name: str, values: Any) -> list[Any]:
    """Several values of one argument."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigurationError(f"{name} is {values!r}; allowed: a list.")
    return list(values)


def _method(method: object) -> Method:
    """A method, or the one of a name."""
    if isinstance(method, str):
        return find_method(method)
    if not isinstance(method, Method):
        raise ConfigurationError(f"methods holds {method!r}; allowed: methods of project.methods, and their names.")
    return method


def _base(base: object) -> str | None:
    """What the sources were fine-tuned from, as a student's file can say it."""
    if not isinstance(base, str | Path | None):
        raise ConfigurationError(
            f"base is a {type(base).__name__}; allowed: a file, torchvision's name of weights, or 'mean'."
        )
    return None if base is None else str(base)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _common(sources: Sequence[Source]) -> Preprocessing | None:
    """What pictures go through, if all sources that say so say the same."""
    known = {source.description.preprocessing for source in sources} - {None}
    return known.pop() if len(known) == 1 else None
