"""The command's parser: what is wrong with the arguments in one sentence, not a page of usage."""

import argparse
import inspect
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from project.entrance import config_words
from project.errors import ConfigurationError, nearest, printable
from project.runtime.json_text import json_value

FRAME = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Problem with given class_path"
    r"|Subclass types expect one of|a class path \(str\)|a dict with|Not of type Path"
)
TYPE = re.compile(r"Expected a (?:typing\.Literal\[(.+)\]|<class '(.+?)'>)")
PATH = re.compile(r"Expected a path\b|.* is no class_path$")
SHOWN = 3


class ClassError(argparse.ArgumentError):
    """What jsonargparse's parser of the arguments of a class refuses.

    Args:
        message: Its message.
        owner: The class.
    """

    def __init__(self, message: str, owner: type) -> None:
        super().__init__(None, message)
        self.owner = owner


class OneSentenceParser(ArgumentParser):
    """Tells an error in one sentence with the key, the cause and where to look; exit status 2."""

    owner: type | None = None
    """The class, where the parser is one that jsonargparse has made for the arguments of a single class."""

    def add_class_arguments(self, class_type: type, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Add the arguments of a class; one without a key is what this parser is for.

        jsonargparse would read every file that stands where a class may, among ``networks`` or ``sources``, as YAML
        first, pipes too, and import the class that it names; files of weights choose no code.
        """
        if nested_key is None:
            self.owner = class_type
        return super().add_class_arguments(class_type, nested_key, *args, **{**kwargs, "sub_configs": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and leave; as jsonargparse does it where that was asked for."""
        if not self.exit_on_error and self.owner is not None:
            raise ClassError(message, self.owner) from ex
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [option.lstrip("-") for option in parser._option_string_actions]
        subcommands = parser._subcommands_action.choices if parser._subcommands_action else ()
        told = sentence(message, parser.prog.replace(" [options]", ""), ex, known, subcommands)
        sys.stderr.write(f"pleas: error: {printable(told)}\n")
        self.exit(2)


def sentence(
    message: str,
    command: str,
    error: BaseException | None,
    known: Collection[str] = (),
    subcommands: Collection[str] = (),
) -> str:
    """What jsonargparse says in a page, in one sentence.

    Args:
        message: Its message: keys and classes on the way to the cause, a line each, and every type that was tried.
        command: What to ask for help.
        error: What it was made of, as far as there was an error.
        known: The options of the command, without their dashes.
        subcommands: The subcommands of the command.
    """
    origins = list(_origins(error))
    owner = next((origin.owner for origin in reversed(origins) if isinstance(origin, ClassError)), None)
    unreadable = [str(origin) for origin in origins if isinstance(origin, UnicodeDecodeError)]
    absent = {
        str(origin): nearest(str(origin.name), _names(origin.obj))
        for origin in origins
        if isinstance(origin, AttributeError) and isinstance(origin.obj, ModuleType)
    }
    keys: list[str] = []
    literals: list[tuple[int, str]] = []
    chosen, given, causes = "", "", []
    for line in message.splitlines():
        line = line.strip().removeprefix("- ")
        if key := re.match(r'Parser key "([^"]+)":?\s*(.*)', line):
            keys.append(key[1])
            line = key[2]
        if option := re.search(r"Option '([^']+)' is not accepted", line):
            inner = re.search(r"class_path='([^']+)'", line)
            causes = [_unknown(option[1], _imported(inner[1] if inner else chosen) or owner)]
            given = ""
            break
        if path := re.match(r"Problem with given class_path '([^']+)'", line):
            chosen = path[1]
        if unread := re.match(r"unrecognized arguments: (.+)", line):
            causes = [_unread(unread[1].split()[0], known)]
            break
        if missing := re.match(r"the following arguments are required: (.+)", line):
            names = missing[1].split(", ")
            if (subcommand := names[0].split(".")[0]) in subcommands:
                command, names = f"{command} {subcommand}", [name.removeprefix(f"{subcommand}.") for name in names]
            causes = [f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} missing"]
            break
        if value := re.match(r"Given value: (?!NestedArg)(.{1,40})$", line):
            given = given or f"got value: {value[1]}"
        elif lone := re.match(r"Expected a <class 'collections\.abc\.Sequence'>\. Got value: (.+?)\.?$", line):
            causes.append(f"a list is expected, such as '[{lone[1]}]'")
        elif any(words in line for words in unreadable):
            causes.append("the file that it names is no YAML, being no text")
        elif (kind := TYPE.match(line)) and kind[1]:
            literals.append((len(set(keys)), kind[1]))
            value = re.search(r"Got value: (.+?)\.?$", line)
            given = given or (f"got value: {value[1]}" if value else "")
        elif lacking := [f"{words}{others}" for words, others in absent.items() if words in line]:
            causes += lacking
        elif line and not FRAME.match(line):
            told = re.sub(r"Not a valid subclass of (\w+)", r"expected \1, as class_path and init_args", line)
            told = re.sub(r"Expected a dot import path string: (.+)", r"'\1' is no class_path", told)
            told = TYPE.sub(lambda kind: f"expected {kind[1] or kind[2]}", told)
            causes.append(told.replace(". Got", "; got").rstrip("."))
    if words := [word for depth, word in literals if depth == len(set(keys))]:  # and not those of a key further out
        causes = [f"expected {', '.join(dict.fromkeys(words))}", *(one for one in causes if not PATH.match(one))]
    where = f"{'.'.join(dict.fromkeys(keys))}: " if keys else ""
    topic = f"--{keys[0]}.help {_class_path(owner)}" if owner and not absent and len(set(keys)) == 1 else "--help"
    return f"{where}{'; '.join(filter(None, [*dict.fromkeys(causes[:SHOWN]), given]))}; see '{command} {topic}'."


def _origins(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was made of, the first of them last."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _class_path(owner: type) -> str:
    """The shortest path by which a class can be imported."""
    parts = owner.__module__.split(".")
    modules = [".".join(parts[: count + 1]) for count in range(len(parts))]
    exporting = (name for name in modules if getattr(sys.modules.get(name), owner.__name__, None) is owner)
    return f"{next(exporting, owner.__module__)}.{owner.__qualname__}"


def _imported(path: str) -> type | None:
    """The class of a path whose module is imported; None where there is none."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def _unknown(option: str, owner: type | None) -> str:
    """An option that a class does not have, and those of nearly its name."""
    if owner is None:
        return f"there is no option {option!r}"
    known = nearest(option, inspect.signature(owner).parameters)
    return f"{_class_path(owner)} has no option {option!r}{known}"


def _unread(word: str, known: Collection[str]) -> str:
    """A word that no option takes, and options of nearly its name."""
    if not word.startswith("-"):
        return f"{word!r} stands where an option is expected"
    option = word.partition("=")[0]
    return f"there is no option {option!r}{nearest(option.lstrip('-'), known)}"


def _names(module: ModuleType) -> list[str]:
    """What a module offers."""
    return [name for name in getattr(module, "__all__", vars(module)) if not name.startswith("_")]


def files_first(arguments: Sequence[str]) -> list[str]:
    """A command's arguments with its ``--config`` files in front, so that options overrule files wherever they stand.

    Args:
        arguments: After the program's name; they stay as they are where no command comes first.
    """
    if not arguments or arguments[0].startswith("-"):
        return list(arguments)
    files, others = config_words(arguments)
    return [arguments[0], *(word for words, _ in files for word in words), *others]


def keyword_arguments(text: str, name: str) -> dict[str, Any]:
    """Read keyword arguments from a word of the command.

    Args:
        text: A JSON object.
        name: What the option is called.

    Raises:
        ConfigurationError: If it is none.
    """
    try:
        found = json_value(text)
    except ValueError as error:
        raise ConfigurationError(f"{name} is {text!r}, which is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{name} is {text!r}; a JSON object of keyword arguments is allowed.")
    return found
