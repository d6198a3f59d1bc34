"""A merge without YAML: files, a folder of pictures and options without their paths, as the parser knows them.

    pleas merge photo.pth sketch.pth --pictures my_data --image-size 224 --budget 1.0 1.5 --out runs/mine

becomes what a user would have written with the paths of all options: ``--model.sources``, ``--data.sets``, and so on.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import takewhile
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from project import methods
from project.allocation import Budget, check_budgets
from project.data import ImageFolders
from project.errors import ConfigurationError, DataError, nearest, present
from project.merging.prepared import agreed_preprocessing, sized
from project.methods.names import find_method
from project.models import Description, Preprocessing, read_description
from project.short_options import (
    BELOW,
    BUDGETS,
    CLASS_ORDER,
    DOMAINS,
    IMAGE_SIZE,
    METHODS,
    PICTURES,
    SHORTS,
    TEST,
    Short,
)  # fmt: skip

MODULE = "project.modules.MergeModule"
DATA = "project.data.DomainDataModule"
FOLDERS = "project.data.ImageFolders"


OF_FOLDERS = (CLASS_ORDER, BELOW, TEST)
"""Options of the data set that the folder of pictures is."""
BY_NAME = {name: short for short in SHORTS for name in short.names}
FIRST = frozenset({"config", "c", "data", "model"})
"""Options whose values others build upon."""
PLAIN = FIRST | {"overwrite", "probe", "run", "seed_everything", "trainer"}
"""Names without a dot of the options of ``pleas merge`` that one value follows."""
FLAGS = frozenset({"help", "h", "print_config"})
"""Those that none follows."""


@dataclass(frozen=True)
class Given:
    """The arguments of a merge, sorted.

    Args:
        files: Paths before, between and behind the options.
        shorts: Short options and their values.
        first: Options that name a configuration file or a class, with their values.
        others: All others, with theirs.
        paths: Path, without ``init_args``, of every option that is not short -> as the user wrote it.
        configs: Files of ``--config``.
    """

    files: list[str] = field(default_factory=list)
    shorts: dict[Short, list[str]] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    configs: list[Path] = field(default_factory=list)


def described(path: Path) -> Description:
    """What a file of weights, or that of a folder, says about itself.

    Raises:
        CheckpointError: If it cannot be read.
    """
    return read_description(path)


def expand(
    arguments: Sequence[str], describe: Callable[[Path], Description] = described
) -> tuple[list[str], list[str]]:
    """Rewrite the arguments of a merge in the short form as options with their paths.

    Args:
        arguments: After the program's name; those of other commands stay as they are, and so does a call for help.
        describe: Tells what a file of weights says about itself, see :func:`described`.

    Returns:
        The arguments, and what to tell the user about values that nobody named.

    Raises:
        PleasError: If a file or folder is not there or empty, a file cannot be read, an option is unknown or given
            twice, or a value impossible.
    """
    if arguments[:1] != ["merge"] or any(re.fullmatch(r"-h|--help|--.+\.help(=.*)?", word) for word in arguments):
        return list(arguments), []
    given = _sort(arguments[1:])
    if len(arguments) > 1 and not given.files and not given.shorts:
        return list(arguments), []
    _refuse_doubles(given)
    configs = [_content(path) for path in given.configs]
    has_data = "data" in given.paths or any("data" in config for config in configs)
    has_model = "model" in given.paths or any("model" in config for config in configs)
    if given.files:
        _check_files(given, configs, has_data)
    elif not has_model and "model.sources" not in given.paths:
        raise ConfigurationError(
            "no network is named; allowed: two or more files first, or --config FILE; see 'pleas merge --help'."
        )
    values = {short.path: _value(short, texts) for short, texts in given.shorts.items() if short not in OF_FOLDERS}
    folders = {short: given.shorts[short] for short in OF_FOLDERS if short in given.shorts}
    if PICTURES in given.shorts:
        root = given.shorts[PICTURES][0]
        options = {short.path.rpartition(".")[2]: _of_folders(texts) for short, texts in folders.items()}
        domains = _domains(Path(root), given.shorts.get(DOMAINS), options)
        values[PICTURES.path] = _json(
            {"class_path": FOLDERS, "init_args": {"root": root, "domains": domains, **options}}
        )
    elif folders:
        raise ConfigurationError(
            f"{next(iter(folders)).option} goes with {PICTURES.option} FOLDER, which is not given."
        )
    descriptions = [describe(Path(path)) for path in given.files]
    if given.files:
        values["model.sources"] = _json(given.files)
    messages = []
    if not has_data:
        found, said = _preprocessing(given, descriptions, {*values, *given.paths})
        values |= found
        messages += said
    classes = [] if has_model else ["--model", MODULE]
    classes += [] if has_data else ["--data", DATA]
    words = [word for path, value in values.items() for word in (f"--{path}", value)]
    return ["merge", *given.first, *classes, *words, *given.others], messages


def _sort(arguments: Sequence[str]) -> Given:
    """Tell files, short options and others apart.

    Raises:
        ConfigurationError: If an option is unknown, or a short one is given twice or has no value.
    """
    given, left = Given(), list(arguments)
    while left:
        word = left.pop(0)
        if not _is_option(word):
            given.files.append(word)
            continue
        option, equals, value = word.partition("=")
        if re.match(r"-c[^=]", word):  # the file may follow the letter at once
            option, equals, value = "-c", "=", word[2:]
        name = option.lstrip("-")
        short = BY_NAME.get(name.replace("_", "-")) if option.startswith("--") else None
        following = [] if equals else [*takewhile(lambda other: not _is_option(other), left)]
        if short is not None:
            values = [value] if equals else following if short.several else following[:1]
            del left[: 0 if equals else len(values)]
            if short in given.shorts:
                raise ConfigurationError(f"{option} is given twice; allowed: once.")
            if not values or not all(values):
                raise ConfigurationError(f"{option} has no value; allowed: {short.option} {short.values}.")
            given.shorts[short] = values
            continue
        if "." not in name and name not in PLAIN | FLAGS:
            known = nearest(name, [*BY_NAME, *PLAIN, *FLAGS])
            raise ConfigurationError(f"there is no option {option!r}{known}; see 'pleas merge --help'.")
        words = [word, *following[:1]] if name not in FLAGS else [word]
        del left[: len(words) - 1]
        (given.first if name in FIRST else given.others).extend(words)
        given.paths[name.rstrip("+").replace(".init_args", "")] = option
        if name in ("config", "c"):
            given.configs.append(Path(value or words[-1]))
    return given


def _is_option(word: str) -> bool:
    """Whether a word is an option, and neither a value nor a negative number."""
    return re.match(r"-+[A-Za-z]", word) is not None


def _content(path: Path) -> Mapping[str, Any]:
    """What a configuration file holds; nothing if it cannot be read, which the parser is left to tell."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _refuse_doubles(given: Given) -> None:
    """Refuse what is said twice in two ways, and files that stand where values are read.

    Raises:
        ConfigurationError: With both spellings.
    """
    for short, values in given.shorts.items():
        paths = [short.path, *(["data.sets.root", "data.root"] if short is PICTURES else [])]
        for long in (given.paths[path] for path in paths if path in given.paths):
            raise ConfigurationError(f"{short.option} and {long} are both given; allowed: one of them.")
        if short.several and (files := [value for value in values if isfile(value)]):
            raise ConfigurationError(f"{files[0]} stands behind {short.option}, as one of its values; put files first.")
    if given.files and "model.sources" in given.paths:
        raise ConfigurationError(
            f"{given.files[0]} and {given.paths['model.sources']} are both given; allowed: files or that option."
        )


def _check_files(given: Given, configs: Sequence[Mapping[str, Any]], has_data: bool) -> None:
    """Refuse files that are not there, too few, or beside others, and such without pictures.

    Raises:
        ConfigurationError: If their number, or what stands beside them, does not make a merge.
        CheckpointError: If one is not there.
    """
    present(*given.files)
    for file, config in zip(given.configs, configs, strict=True):
        model = config.get("model")
        inner = model.get("init_args", model) if isinstance(model, Mapping) else {}
        if isinstance(inner, Mapping) and "sources" in inner:
            raise ConfigurationError(
                f"{', '.join(given.files)} and the sources of {file} are both given; allowed: files, or those sources."
            )
    if len(given.files) < 2:
        raise ConfigurationError(f"1 file is named, {given.files[0]}; a merge needs two or more.")
    if PICTURES not in given.shorts and "data.sets" not in given.paths and not has_data:
        raise ConfigurationError(f"{PICTURES.option} FOLDER is missing, with {PICTURES.help}.")
    check_budgets([Budget.of(text) for text in given.shorts.get(BUDGETS, ["1"])], len(given.files))


def _of_folders(texts: Sequence[str]) -> str | list[str]:
    """The value of an option of the folder of pictures."""
    return list(texts) if len(texts) > 1 else texts[0]


def _domains(folder: Path, chosen: list[str] | None, options: Mapping[str, Any]) -> list[str]:
    """Names of the domains below a folder.

    Raises:
        DataError: If it is no folder, or there are no pictures where they are expected.
        ConfigurationError: If one of the chosen is not there.
    """
    if not isdir(folder):
        raise DataError(f"{PICTURES.option} is {folder}, which is {'no folder' if exists(folder) else 'not there'}.")
    return [domain.name for domain in ImageFolders(folder, chosen, **options).read()]


def _value(short: Short, texts: Sequence[str]) -> str:
    """What the parser reads as the values of a short option.

    Raises:
        ConfigurationError: If a budget is no size, or there is no method of a name.
    """
    if short is BUDGETS:
        return _json([Budget.of(text).plain for text in texts])
    if short is METHODS:
        return _json([{"class_path": _class_path(text)} for text in texts])
    return _json(texts) if short.several else texts[0]


def _class_path(name: str) -> str:
    """The class of a method's name, whatever its case; a path stays as it is.

    Raises:
        ConfigurationError: If there is none, or it needs arguments.
    """
    return name if "." in name else f"{methods.__name__}.{type(find_method(name)).__name__}"


def _preprocessing(
    given: Given, descriptions: Sequence[Description], stated: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """Options for what pictures go through that nobody stated, and what to say of them.

    Raises:
        ConfigurationError: If the files do not agree, or do not say at which size they read pictures.
    """
    known = {file: one.preprocessing for file, one in zip(given.files, descriptions, strict=True)}
    agreed = agreed_preprocessing(known, {path.removeprefix("data.") for path in stated})
    defaults = {field.name: field.default for field in fields(Preprocessing)} | {"crop_pct": 1.0}
    told = {name: value for name, value in agreed.items() if value != defaults[name]}
    options = {f"data.{name}": value if isinstance(value, str) else _json(value) for name, value in told.items()}
    silent = [file for file, one in known.items() if one is None]
    reason = "for which the sources were made"
    if silent and len(silent) < len(known):
        reason = f"for which {next(file for file in known if file not in silent)} was made; {silent[0]} does not say"
    messages = []
    if IMAGE_SIZE.path not in stated:
        sized(agreed, given.files)
        messages.append(f"image size {agreed['image_size']}, {reason}; {IMAGE_SIZE.option} takes another")
    if others := {name: value for name, value in told.items() if name != "image_size"}:
        words = ", ".join(f"{name} {value}" for name, value in others.items())
        messages.append(f"pictures have {words}, {reason}; --data.{next(iter(others))} and its kin take others")
    return options, messages


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
