"""The command's parser: what is wrong with the arguments in one sentence, not a page of usage."""

import argparse
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from project.errors import ConfigurationError, nearest

FRAME = re.compile(r"Does not validate|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>")
TYPE = re.compile(r"Expected a (?:typing\.Literal\[(.+)\]|<class '(.+?)'>)")
PATH = re.compile(r"Expected a (?:path|dot import path)\b")
MISSING = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
SHOWN = 3


class CommandParser(argparse.ArgumentParser):
    """Of a command that needs neither data nor trainer."""

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong in one sentence."""
        raise ConfigurationError(f"{message}; see '{self.prog} --help'.")


class OneSentenceParser(LightningArgumentParser):
    """Tells an error in one sentence with the key, the cause and where to look; exit status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and leave; as jsonargparse does it where that was asked for."""
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        sys.stderr.write(f"pleas: error: {sentence(message, parser.prog.replace(' [options]', ''))}\n")
        self.exit(2)


def sentence(message: str, command: str) -> str:
    """What jsonargparse says in a page, in one sentence.

    Args:
        message: Its message: keys and classes on the way to the cause, a line each, and every type that was tried.
        command: What to ask for help.
    """
    keys: list[str] = []
    literals: list[tuple[int, str]] = []
    owner, given, causes = "", "", []
    for line in message.splitlines():
        line = line.strip().removeprefix("- ")
        if key := re.match(r'Parser key "([^"]+)":?\s*(.*)', line):
            keys.append(key[1])
            line = key[2]
        if found := re.match(r"Problem with given class_path '([^']+)'", line):
            owner = found[1]
        elif option := re.match(r"Option '([^']+)' is not accepted", line):
            causes = [_unknown(option[1], owner)]
            break
        elif value := re.match(r"Given value: (?!NestedArg)(.{1,40})$", line):
            given = given or f"got value: {value[1]}"
        elif "codec can't decode" in line:  # jsonargparse takes a file in a list's place for one that holds the list
            causes.append("a list is expected, such as '[FILE]'")
        elif missing := MISSING.search(line):
            causes.append(f"{missing[0]}{nearest(missing[2], _names(missing[1]))}")
            owner = ""  # of which nothing can be asked
        elif (kind := TYPE.match(line)) and kind[1]:
            literals.append((len(set(keys)), kind[1]))
            value = re.search(r"Got value: (.+?)\.?$", line)
            given = given or (f"got value: {value[1]}" if value else "")
        elif line and not FRAME.match(line):
            told = TYPE.sub(lambda kind: f"expected {kind[1] or kind[2]}", line)
            causes.append(told.replace(". Got", "; got").rstrip("."))
    if words := [word for depth, word in literals if depth == len(set(keys))]:  # and not those of a key further out
        causes = [f"expected {', '.join(dict.fromkeys(words))}", *(one for one in causes if not PATH.match(one))]
    where = f"{'.'.join(dict.fromkeys(keys))}: " if keys else ""
    topic = f"--{keys[0]}.help {owner}" if owner and len(set(keys)) == 1 else "--help"
    return f"{where}{'; '.join(filter(None, [*dict.fromkeys(causes[:SHOWN]), given]))}; see '{command} {topic}'."


def _unknown(option: str, owner: str) -> str:
    """An option that a class does not have, and those of nearly its name."""
    if not owner:
        return f"there is no option {option!r}"
    return (
        f"{owner} has no option {option!r}{nearest(option, inspect.signature(pkgutil.resolve_name(owner)).parameters)}"
    )


def _names(module: str) -> list[str]:
    """What a module offers."""
    found = importlib.import_module(module)
    return [name for name in getattr(found, "__all__", vars(found)) if not name.startswith("_")]


def files_first(arguments: Sequence[str]) -> list[str]:
    """A command's arguments with its ``--config`` files in front, so that options overrule files wherever they stand.

    Args:
        arguments: After the program's name; they stay as they are where no command comes first.
    """
    if not arguments or arguments[0].startswith("-"):
        return list(arguments)
    files: list[str] = []
    others, left = [], list(arguments[1:])
    while left:
        one = left.pop(0)
        if one in ("--config", "-c") and left:
            files += [one, left.pop(0)]
        elif re.match(r"--config=|-c[^-]", one):
            files.append(one)
        else:
            others.append(one)
    return [arguments[0], *files, *others]
