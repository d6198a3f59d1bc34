"""What is wrong with a command as far as its words and the files they name tell, before anything long is imported."""

import inspect
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from project.errors import ConfigurationError, encodable, nearest, present

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
"""What stands beside a class in a configuration."""
WEIGHTS = (".bin", ".ckpt", ".pth", ".pt", ".safetensors", ".tar")
"""What files of weights end in."""
FITTED = ("FineTuneModule", "FederatedModule")
"""Modules whose base is a file: to others it may be a name."""
LIBRARIES = ("timm/", "torchvision/")
"""What stands before a library's name of a network."""
LATER = ("best", "last", "hpc", "registry")
"""Checkpoints that only a trainer finds."""


class ConfigLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads YAML in which no key stands twice: of two, one would be passed over without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Refuse a mapping with a key that it has already."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_words(arguments: Sequence[str]) -> None:
    """Refuse arguments that no configuration could hold, and files that are not there.

    Args:
        arguments: After the program's name.

    Raises:
        ConfigurationError: If an argument is no text, or a configuration none.
        CheckpointError: If a file of weights is not there.
    """
    for word in arguments:
        if not encodable(word):
            raise ConfigurationError(f"the arguments hold {word!r}, which is not UTF-8; rename what it names.")
    if not arguments or arguments[0].startswith("-") or {"-h", "--help"} & set(arguments):
        return
    subcommand, *others = arguments
    files = takewhile(lambda word: not word.startswith("-"), others)
    if subcommand == "add-statistics":
        present(*files, what="The file of statistics")
    elif subcommand == "export":
        present(*files, what="The student")
    elif subcommand == "report":
        present(*files, what="The folder of a run")
    elif subcommand == "average":
        present(*files)
    elif subcommand == "check":
        present(*(word for word in files if not word.startswith(LIBRARIES)))
        check_network_word(*(following for word, following in pairwise(others) if word == "--model"))
        for folder in (following for word, following in pairwise(others) if word == "--pictures"):
            if not os.path.exists(folder):
                raise ConfigurationError(f"pictures is {folder}, which is not there.")
    else:
        present(*(files if subcommand == "merge" else ()))
        present(*weights_named([read_config(path) for path in config_files(arguments)], others))


def check_network_word(*words: str) -> None:
    """Refuse words for networks that name files of weights, and no architectures, where the files are not there.

    Raises:
        CheckpointError: With the first that is missing.
    """
    files = (word for word in words if "/" in word or word.lower().endswith(WEIGHTS))
    present(*(word for word in files if not word.startswith(LIBRARIES)))


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The files of ``--config`` behind a subcommand; configurations that are written out are none."""
    named = [value for _, value in config_words(arguments)[0]]
    return [Path(value) for value in named if value is not None and not re.search(r"[{}\n]", value)]


def config_words(arguments: Sequence[str]) -> tuple[list[tuple[list[str], str | None]], list[str]]:
    """Tell ``--config`` and its values from the other arguments.

    Args:
        arguments: After the program's name.

    Returns:
        Each ``--config`` as its words and its value, and the other words behind the subcommand; nothing where no
        subcommand comes first.
    """
    if not arguments or arguments[0].startswith("-"):
        return [], []
    found: list[tuple[list[str], str | None]] = []
    others, left = [], list(arguments[1:])
    while left:
        one = left.pop(0)
        if one in ("--config", "-c") and left:
            value = left.pop(0)
            found.append(([one, value], value))
        elif match := re.match(r"--config=(.*)|-c([^-].*)", one, re.DOTALL):
            found.append(([one], match[1] if match[2] is None else match[2].removeprefix("=")))
        else:
            others.append(one)
    return found, others


def read_config(path: Path) -> Mapping[str, Any]:
    """Read a configuration.

    Raises:
        ConfigurationError: If it is no file, no YAML, or no mapping.
    """
    given = f"config is {path}, which"
    if not os.path.isfile(path):  # which, unlike Path's, raises nothing, whatever the name
        raise ConfigurationError(f"{given} is {'no file' if os.path.exists(path) else 'not there'}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), ConfigLoader)
    except OSError as error:
        raise ConfigurationError(f"{given} cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ConfigurationError(f"{given} is no YAML: {error.problem}{where}.") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no text, or no number
        raise ConfigurationError(f"{given} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, Mapping):
        what = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ConfigurationError(f"{given} {what}; allowed: a mapping of options, such as 'run: FOLDER'.")
    return content


def check_keys(
    path: Path, content: Mapping[Any, Any], subcommand: str, known: Collection[str], trainer: Collection[str]
) -> None:
    """Refuse keys of a configuration that mean nothing: the parser passes over some of them.

    Args:
        path: Of the file, for messages.
        content: What it holds.
        subcommand: That it is given to.
        known: The options of the subcommand.
        trainer: Those of the trainer.

    Raises:
        ConfigurationError: With the key, and those of nearly its name.
    """
    _refuse_unknown(content, known, f"{path} holds", f", which {subcommand} does not take")
    if isinstance(content.get("trainer"), Mapping):
        _refuse_unknown(content["trainer"], trainer, f"trainer in {path} holds", ", which it does not take")
    for key in ("model", "data"):
        value = content.get(key)
        if isinstance(value, Mapping) and "init_args" in value:
            _refuse_unknown(value, CLASS_KEYS, f"{key} in {path} holds", f"; allowed: {', '.join(CLASS_KEYS)}")
    for where, value in _mappings(content):
        if "class_path" in value:
            _refuse_unknown(value, CLASS_KEYS, f"{where} in {path} holds", f"; allowed: {', '.join(CLASS_KEYS)}")
            arguments = value.get("init_args")
            if not isinstance(arguments, Mapping | None):
                raise ConfigurationError(f"init_args of {where} in {path} is no mapping of arguments.")
            owner = str(value["class_path"])
            empty = {key: part for key, part in (arguments or {}).items() if part == {}}  # which the parser passes over
            if empty and (taken := _arguments(owner)) is not None:
                _refuse_unknown(empty, taken, f"{where} in {path} holds", f", which {owner} does not take")


def _refuse_unknown(content: Mapping[Any, Any], known: Collection[str], holding: str, reason: str) -> None:
    for key in content:
        name = str(key).split(".")[0].rstrip("+")
        if name not in known:
            raise ConfigurationError(f"{holding} {key!r}{reason}{nearest(name, known)}.")


def _arguments(path: str) -> Collection[str] | None:
    """The arguments of a class whose module is imported; None where it is not, or hands some on to others."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    if not inspect.isclass(found):
        return None
    taken = inspect.signature(found).parameters
    return None if any(one.kind is one.VAR_KEYWORD for one in taken.values()) else taken


def _mappings(content: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """All mappings in a configuration, and where each lies; those that YAML names again come once."""
    seen, left = set(), [("", content)]
    while left:
        where, one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            if where:
                yield where, one
            left += [(f"{where}.{key}".removeprefix("."), value) for key, value in one.items()]
        elif isinstance(one, list):
            left += [(f"{where}[{number}]", value) for number, value in enumerate(one, 1)]


def weights_named(configs: Sequence[Mapping[str, Any]], options: Sequence[str]) -> list[str]:
    """The files of weights that are named for a module of this project.

    Args:
        configs: What configurations hold, a later one overruling an earlier.
        options: The other arguments, which overrule them all.
    """
    arguments: dict[str, Any] = {}
    names = ["sources", "networks", "student", "target", "ckpt_path"]
    for config in configs:
        model = config.get("model")
        if isinstance(model, Mapping) and str(path := model.get("class_path", "project.")).startswith("project."):
            inner = model.get("init_args", model)
            arguments |= inner if isinstance(inner, Mapping) else {}
            names += ["base"] if str(path).endswith(FITTED) else []
        arguments |= {name: config[name] for name in ("ckpt_path",) if name in config}
    for word, following in pairwise([*options, ""]):
        if match := re.fullmatch(r"--(?:model(?:\.init_args)?\.)?(\w+)\+?(?:=(.*))?", word, re.DOTALL):
            arguments[match[1]] = _value(following if match[2] is None else match[2])
    if isinstance(scope := arguments.get("scope"), Mapping):
        arguments["target"] = scope.get("target")
    found = []
    for name in names:
        values = arguments.get(name)
        for value in values if isinstance(values, list) else [values]:
            file = value.get("path") if isinstance(value, Mapping) else value
            if not isinstance(file, str) or (name == "ckpt_path" and (file.split(":")[0] in LATER or "://" in file)):
                continue
            found.append(os.path.expanduser(file) if name == "ckpt_path" else file)
    return found


def _value(text: str) -> Any:
    """What an option's text stands for, as far as that can be read."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
