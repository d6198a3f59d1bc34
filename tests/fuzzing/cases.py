"""Cases: a command, and what is wrong with its inputs. Each draws from one seed, in a folder of its own."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from safetensors.torch import load_file

from fuzzing import world
from fuzzing.contents import (
    TRACE,
    damaged,
    foreign,
    shown,
    spoilt_plain,
    spoilt_state,
    spoilt_statistics,
    spoilt_student,
)
from fuzzing.options import (
    QUIET,
    about,
    command_of,
    config,
    short_options,
    spoilt_config,
    spoilt_words,
    words,
)
from fuzzing.trees import SPECIAL, path_to_read, path_to_write, special, spoilt_list, spoilt_tree
from fuzzing.world import CLASSES, DOMAINS, PICTURES, SIZE


@dataclass
class Case:
    """A command and what is wrong with its inputs.

    Args:
        kind: What was spoilt.
        words: The command's words, behind its name.
        notes: What was done to its inputs, in words.
        named: A sentence of refusal must hold one of these.
        impossible: Whether no sound answer can be given, so that it must be refused.
        writes: Where it may write, beside its run's folder, ``out``.
    """

    kind: str
    words: list[str]
    notes: list[str]
    named: set[str]
    impossible: bool = False
    writes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where a case is made.

    Args:
        random: What it draws from.
        world: Folder of the good inputs.
        folder: Its own, in which the command is going to run.
    """

    random: Random
    world: Path
    folder: Path

    def take(self, *parts: str) -> None:
        """Copy parts of the world."""
        for part in parts:
            world.copy(self.world, self.folder, part)


def weights(place: Place) -> Case:
    """A source whose tensors are not a network's, in PyTorch's form or safetensors'."""
    random, folder = place.random, place.folder
    place.take("weights", "pictures")
    state = torch.load(folder / "art.pth", weights_only=True)
    found, told, impossible = spoilt_state(random, state)
    path = folder / random.choice(("art.pth", "art.safetensors", "art.ckpt"))
    if path.suffix == ".safetensors":
        try:
            world.save_described(found, path, "art")
        except (ValueError, RuntimeError, AttributeError, TypeError, NotImplementedError):
            path = folder / "art.pth"
    if path.suffix != ".safetensors":
        torch.save(found if random.random() < 0.7 else {"model": found, "epoch": 1}, path)
    return _of_file(place, path.name, [f"{path.name}: {told}"], impossible, "weights")


def weight_files(place: Place) -> Case:
    """A source whose file is damaged, or of another form."""
    random, folder = place.random, place.folder
    place.take("weights", "pictures")
    path = folder / random.choice(("art.pth", "art.safetensors", "art.ckpt"))
    if random.random() < 0.5:
        content, told = damaged(random, path.read_bytes())
        empty = False
    else:
        (folder / f"{TRACE}.py").write_text(f"open({str(folder / 'imported')!r}, 'w').close()\nclass Kind: ...\n")
        state = torch.load(folder / "art.pth", weights_only=True)
        content, told, empty = foreign(random, state)
    path.write_bytes(content)
    return _of_file(place, path.name, [f"{path.name}: {told}"], empty, "weight files")


def descriptions(place: Place) -> Case:
    """A source whose file says something odd of its architecture, classes or preprocessing."""
    random, folder = place.random, place.folder
    place.take("weights", "pictures")
    name = random.choice(("art.safetensors", "art.ckpt"))
    if name == "art.safetensors":
        state = load_file(folder / name)
        value, told = spoilt_plain(random, {"pleas": world.described("art")["pleas"]})
        text = json.dumps(value.get("pleas", value) if isinstance(value, dict) else value)
        world.save_with(state, {"pleas": text}, folder / name)
    else:
        content = torch.load(folder / name, weights_only=True)
        spoilt, told = spoilt_plain(random, {key: value for key, value in content.items() if key != "state_dict"})
        torch.save({"state_dict": content["state_dict"], **(spoilt if isinstance(spoilt, dict) else {"x": spoilt})},
                   folder / name)  # fmt: skip
    return _of_file(place, name, [f"{name}: {told}"], False, "descriptions")


def students(place: Place) -> Case:
    """A student's file that is damaged, or says something else."""
    random, folder = place.random, place.folder
    place.take("weights", "pictures", "students")
    names = sorted(path.name for path in (folder / "students").glob("*.safetensors"))
    path = folder / "students" / random.choice(names)
    if random.random() < 0.2:
        content, told = damaged(random, path.read_bytes())
    else:
        content, told = spoilt_student(random, path.read_bytes())
    path.write_bytes(content)
    name = f"students/{path.name}"
    return _of_file(place, name, [f"{name}: {told}"], False, "students")


def statistics(place: Place) -> Case:
    """A file of statistics that is damaged, or holds what cannot be."""
    random, folder = place.random, place.folder
    place.take("weights", "pictures", "statistics")
    add = random.random() < 0.4
    path = folder / (random.choice(("shard-0.safetensors", "shard-1.safetensors")) if add else "statistics.safetensors")
    if random.random() < 0.25:
        content, told = damaged(random, path.read_bytes())
        impossible = False
    else:
        content, told, impossible = spoilt_statistics(random, path.read_bytes())
    path.write_bytes(content)
    if add:
        line = ["add-statistics", "shard-0.safetensors", "shard-1.safetensors", "--out", "sum.safetensors"]
        return Case("statistics", line, [f"{path.name}: {told}"], {path.name}, impossible, ["sum.safetensors"])
    options = short_options(random) | {"--method": ["pleas"], "--statistics": [path.name], "--budget": ["1.0"]}
    line = words(["art.pth", "toy.pth"], options)
    return Case("statistics", line, [f"{path.name}: {told}"], {path.name}, impossible, [path.name])


def short_form(place: Place) -> Case:
    """A merge in the short form with something wrong about its words."""
    place.take("weights", "pictures")
    line, told, named = spoilt_words(place.random)
    return Case("short form", line, [told], named)


def configurations(place: Place) -> Case:
    """A configuration file of any command with another value, key or class, or damaged as a text."""
    random = place.random
    place.take("weights", "pictures")
    command = random.choice(("merge", "merge", "merge", "test", "validate", "predict", "fit"))
    content = config(random, command)
    file = place.folder / "config.yaml"
    named = {"config.yaml"}
    if random.random() < 0.15:
        text, told = damaged(random, yaml.safe_dump(content, sort_keys=False).encode())
        file.write_bytes(text)
        return Case(
            "configurations", command_of(command), [f"config.yaml of {command}: {told}"], {*named, *_keys(content)}
        )
    if (found := spoilt_config(random, content)) is not None:
        spoilt, told, more = found
        named |= more
    else:
        spoilt, told = spoilt_plain(random, content)
        named |= {part for part in told.split(" ")[0].split("/") if part}
        named |= _keys(content) | _keys(spoilt)
    file.write_text(yaml.safe_dump(spoilt, sort_keys=False, allow_unicode=True), errors="surrogatepass")
    return Case("configurations", command_of(command), [f"config.yaml of {command}: {told}"], named)


def _keys(content: Any) -> set[str]:
    """All keys and words of a configuration, one of which a sentence about it holds."""
    if isinstance(content, Mapping):
        return {str(key) for key in content}.union(*(_keys(value) for value in content.values()))
    if isinstance(content, list):
        return set().union(*map(_keys, content))
    return {content} if isinstance(content, str) else set()


def trees(place: Place) -> Case:
    """A tree of pictures with something wrong, or odd."""
    random, folder = place.random, place.folder
    place.take("weights", "pictures")
    told, named = _here(folder, lambda: spoilt_tree(random, Path("pictures")))
    command = random.choice(("merge", "merge", "test", "predict", "fit"))
    if command == "merge":
        options = short_options(random)
        if random.random() < 0.3:
            options["--label-space"] = ["different"]
        more = ["--data.on_error", "skip"] if random.random() < 0.3 else []
        return Case("trees", [*words(["art.pth", "toy.pth"], options), *more], [told], {*named, "art", "toy", "domain"})
    content = config(random, command)
    if random.random() < 0.3:
        content["data"]["init_args"]["on_error"] = "skip"
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Case("trees", command_of(command), [f"{command}: {told}"], {*named, "art", "toy", "domain"})


def lists(place: Place) -> Case:
    """Lists of pictures, of which one is damaged or says something odd."""
    random, folder = place.random, place.folder
    place.take("weights", "pictures")
    for domain in DOMAINS:
        for split, numbers in (("train", range(1, PICTURES)), ("test", range(1))):
            lines = [
                f"{domain}/{kind}/{number}.png {label}\n" for label, kind in enumerate(CLASSES) for number in numbers
            ]
            (folder / "pictures" / f"{domain}_{split}.txt").write_text("".join(lines))
    path = folder / "pictures" / random.choice(("art_train.txt", "toy_train.txt", "toy_test.txt"))
    if random.random() < 0.3:
        content, told = damaged(random, path.read_bytes())
        path.write_bytes(content)
    elif random.random() < 0.3:
        path.unlink()
        told = random.choice(SPECIAL)
        special(path, told)
    else:
        told = spoilt_list(random, path)
    command = random.choice(("merge", "test", "predict", "fit"))
    content = config(random, command)
    content["data"] = config(random, "merge" if command == "predict" else command)["data"]
    content["data"]["init_args"]["sets"] = {"class_path": "project.data.DomainNet", "init_args": {"root": "pictures"}}
    named = {path.name, *DOMAINS, *CLASSES, "Label", "pictures"}
    return _of_config(folder, content, command, [f"{command}, {path.name}: {told}"], named, "lists")


def _here(folder: Path, work: Callable[[], Any]) -> Any:
    """What some work gives that is done in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return work()
    finally:
        os.chdir(before)


def paths(place: Place) -> Case:
    """Something else than what is expected at a path that is read or written."""
    random, folder = place.random, place.folder
    which = random.choice(
        ("source", "source", "base", "pictures", "statistics", "statistics", "out", "out", "config", "checked",
         "network", "loose", "sum", "shard", "moved")
    )  # fmt: skip
    place.take("weights", "pictures")
    options, files = short_options(random), ["art.pth", "toy.pth"]
    if which in ("out", "sum"):
        odd, told = path_to_write(random, folder, ".safetensors" if which == "sum" else "")
    elif which == "statistics" and random.random() < 0.5:
        odd, told = path_to_write(random, folder, ".safetensors")
    else:
        good = {"pictures": "pictures", "loose": "pictures", "config": "config.yaml"}.get(which, "art.pth")
        (folder / "config.yaml").write_text(yaml.safe_dump(config(random, "merge"), sort_keys=False))
        odd, told = path_to_read(random, folder, good)
    note, named = [f"{which} is {shown(odd)}, {told}"], _named(odd) | about(f"--{which}")
    if which == "source":
        return Case("paths", words([odd, "toy.pth"], options), note, named | {"file", "files"}, False)
    if which == "out":
        options["--out"] = [odd]
        return Case(
            "paths", words(files, options), note, named | {"run"}, False, [odd] if odd.strip() else [" ", "runs"]
        )
    if which == "config":
        return Case("paths", ["merge", "--config", odd, *QUIET], note, named | {"config"}, False, ["runs"])
    if which == "checked":
        return Case("paths", ["check", "--model", odd, "--image-size", str(SIZE)], note, named | {"model"})
    if which in ("network", "loose"):
        content = config(random, "predict")
        content["data"] = {"class_path": "project.data.UnsortedDataModule", "init_args": {"root": "pictures"}}
        inner = content["data"] if which == "loose" else content["model"]
        inner["init_args"]["root" if which == "loose" else "networks"] = odd if which == "loose" else [odd]
        (folder / "config.yaml").write_text(json.dumps(content))  # YAML, too, and with names of any kind
        return Case("paths", command_of("predict"), note, named | {"root", "networks"})
    if which in ("sum", "shard"):
        place.take("statistics")
        shards = ["shard-0.safetensors", "shard-1.safetensors" if which == "sum" else odd]
        out = odd if which == "sum" else "sum.safetensors"
        return Case("paths", ["add-statistics", *shards, "--out", out], note, named | {"files", "out"}, False, [out])
    if which == "moved":
        line = words(files, options)
        return Case("paths", [*line[:1], *line[3:], *files], ["files stand last"], {"art.pth", "toy.pth", *options})
    options[f"--{which}"] = [odd]
    if which == "base":
        options["--method"] = ["ties"]
    return Case("paths", words(files, options), note, named, False, [odd] if which == "statistics" else [])


def _named(path: str) -> set[str]:
    """Words by which a sentence may call a path: itself as it is printed, or parts of it."""
    printed = {path, repr(path)[1:-1], ascii(path)[1:-1], *Path(path).parts}
    return {one[:40] for one in printed if one.strip()} | ({"''", "' '"} if not path.strip() else set())


def checks(place: Place) -> Case:
    """``pleas check`` of odd names, arguments and files."""
    random = place.random
    model = random.choice(
        ("art.pth", "students/plain.safetensors", "students/masked.safetensors", "resnet18", "resnet8", "nothing",
        "", ".",
         "a.b", "os.getcwd", "builtins.dict", "torch.nn.Linear", "torch.nn.ReLU", "torch.nn.Identity", "alexnet",
         "pictures",
         "project.models", "resnet18 ")
    )  # fmt: skip
    place.take("students" if model.startswith("students") else "weights")
    options = {
        "--model-args": ("{}", '{"num_classes": 3}', "{", "[]", "3", '{"x": 1}', '{"num_classes": -1}',
        '{"num_classes": "x"}',
                         '{"in_features": 3, "out_features": 2}', "null", '{"num_classes": 1000000000000}', "[" * 5000),
        "--image-size": ("32", "0", "-1", "1", "x", "1.5", "99999999999", "nan", ""),
        "--tolerance": ("0.001", "0", "-1", "nan", "inf", "x", ""),
        "--architecture": ("resnet8", "resnet18", "nothing", "", "torch.nn.Linear", "os.getcwd", "nope.Nope"),
    }  # fmt: skip
    given = {"--model": model, "--image-size": "32"}
    for name in random.sample(list(options), random.choice((0, 1, 1, 2))):
        given[name] = random.choice(options[name])
    line = ["check", *(word for pair in given.items() for word in pair)]
    return Case("checks", line, [f"check {given}"], about(*given, *given.values()) | {"model", "architecture"})


def checkpoints(place: Place) -> Case:
    """A checkpoint to go on from that is damaged, another file, or none."""
    random, folder = place.random, place.folder
    place.take("weights", "pictures", "checkpoint")
    command = random.choice(("fit", "fit", "test", "validate"))
    (folder / "config.yaml").write_text(yaml.safe_dump(config(random, "fit"), sort_keys=False))
    path = folder / "fit.ckpt"
    given, impossible = path.name, False
    what = random.choice(("bytes", "values", "state", "foreign", "path", "word", "bare"))
    if what == "bytes":
        content, told = damaged(random, path.read_bytes())
        path.write_bytes(content)
    elif what == "foreign":
        (folder / f"{TRACE}.py").write_text(f"open({str(folder / 'imported')!r}, 'w').close()\nclass Kind: ...\n")
        content, told, impossible = foreign(random, torch.load(folder / "art.pth", weights_only=True))
        path.write_bytes(content)
    elif what in ("values", "state"):
        held = torch.load(path, weights_only=True)
        if what == "state":
            held["state_dict"], told, impossible = spoilt_state(random, held["state_dict"])
        else:
            held, told = spoilt_plain(random, held)
        torch.save(held, path)
    elif what == "path":
        given, told = path_to_read(random, folder, path.name)
    elif what == "bare":
        given, told = random.choice(("art.pth", "art.safetensors", "art.ckpt")), "another kind of file"
    else:
        given, told = random.choice(("last", "best", "hpc", "registry", "LAST", "null", "[]", "3")), "a word"
    named = _named(given) | {"ckpt_path", "fit.ckpt"}
    return Case("checkpoints", going_on(command, given), [f"{command} from {given}: {told}"], named, impossible)


def going_on(command: str, checkpoint: str) -> list[str]:
    """The words of a command that goes on from a checkpoint of one epoch."""
    return [*command_of(command), "--ckpt_path", checkpoint, "--trainer.max_epochs", "2"]


def refining(random: Random, student: str) -> dict[str, Any]:
    """A configuration that refines a student."""
    content = config(random, "test")
    arguments = {"student": student, "sources": ["art.pth", "toy.pth"]}
    content["model"] = {"class_path": "project.modules.RefineModule", "init_args": arguments}
    content["data"]["class_path"] = "project.data.UnlabelledDataModule"
    content["data"]["init_args"]["validation_fraction"] = 0.25
    return content


KINDS: dict[str, Callable[[Place], Case]] = {
    "weights": weights,
    "short form": short_form,
    "trees": trees,
    "weight files": weight_files,
    "configurations": configurations,
    "students": students,
    "paths": paths,
    "lists": lists,
    "statistics": statistics,
    "descriptions": descriptions,
    "checks": checks,
    "checkpoints": checkpoints,
}


def _of_file(place: Place, name: str, notes: list[str], impossible: bool, kind: str) -> Case:
    """One of the commands that read a file of weights or a student."""
    random, folder, student = place.random, place.folder, kind == "students"
    command = random.choice(("merge", "merge", "merge", "test", "predict", "check", "average", "base", "refine"))
    named = {name, Path(name).name}
    if command == "check":
        return Case(kind, ["check", "--model", name, "--image-size", str(SIZE)], notes, named, impossible)
    if command == "average":
        out = f"mean{Path(name).suffix}"
        line = ["average", name, "toy.pth", "--out", out, "--image-size", str(SIZE)]
        more = ["--pictures", "pictures"] if random.random() < 0.5 else []
        return Case(kind, [*line, *more], notes, {*named, "toy.pth"}, impossible, [out])
    if command == "base":
        options = short_options(random) | {"--method": ["taskarithmetic"], "--base": [name], "--budget": ["1.0"]}
        sources = ["art.ckpt" if name == "art.pth" else "art.pth", "toy.pth"]
        return Case(kind, words(sources, options), notes, named, impossible)
    if command == "refine" and student:
        return _of_config(folder, refining(random, name), "fit", notes, named, kind)
    command = "merge" if command == "refine" else command
    content = config(random, command)
    inner = content["model"]["init_args"]
    if "networks" in inner:
        inner["networks"] = [name]
    else:
        inner["sources"] = [{"path": name, "domains": ["art"]}, {"path": "toy.pth", "domains": ["toy"]}]
    return _of_config(folder, content, command, notes, named, kind, impossible)


def _of_config(
    folder: Path, content: Any, command: str, notes: list[str], named: set[str], kind: str, impossible: bool = False
) -> Case:
    """A command of a configuration file."""
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Case(kind, command_of(command), notes, named, impossible)


# ---- nothing wrong ---------------------------------------------------------------------------------------------------


def sound(place: Place, what: str) -> Case:
    """One of the commands that the others spoil, as it is."""
    random, folder = place.random, place.folder
    place.take(*world.PARTS)
    command, _, name = what.partition(" ")
    if what == "short":
        options = short_options(random) | {"--method": ["pleas"], "--budget": ["1.0"]}
        line = words(["art.pth", "toy.pth"], options | {"--statistics": ["statistics.safetensors"]})
    elif what == "add":
        line = ["add-statistics", "shard-0.safetensors", "shard-1.safetensors", "--out", "sum.safetensors"]
    elif what == "check":
        line = ["check", "--model", "art.pth", "--image-size", str(SIZE)]
    elif what == "average":
        line = [
            "average",
            "art.pth",
            "toy.pth",
            "--out",
            "mean.pth",
            "--image-size",
            str(SIZE),
            "--pictures",
            "pictures",
        ]
    else:
        content = refining(random, "students/plain.safetensors") if name == "refine" else config(random, command)
        inner = content["model"]["init_args"]
        if name.startswith("students"):
            sources = [{"path": name, "domains": ["art"]}, {"path": "toy.pth", "domains": ["toy"]}]
            inner |= {"sources": sources} if command == "merge" else {"networks": [name]}
        (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        line = going_on(command, name) if name == "fit.ckpt" else command_of(command)
    return Case("sound", line, [what], set())


SOUND = (
    "merge", "test", "validate", "predict", "fit", "short", "add", "check", "average", "fit refine", "fit fit.ckpt",
    "merge students/plain.safetensors", "merge students/plain.ckpt",
    *(f"test students/{name}.safetensors" for name in ("plain", "wider", "heads", "masked", "experts")),
)  # fmt: skip
"""Commands in which nothing is wrong: all must be accepted, or what is refused says nothing."""


def draw(seed: int, number: int, base: Path, folder: Path, kinds: list[str] | None = None) -> Case:
    """The case of a seed and a number.

    Args:
        seed: Of the whole run.
        number: Of the case; it decides its kind. Below 0, nothing is wrong.
        base: The world's folder.
        folder: An empty folder, in which the command is to run.
        kinds: Those that are taken in turn; default: all.
    """
    if number < 0:
        return sound(Place(Random(seed), base, folder), SOUND[-number - 1])
    names = kinds or list(KINDS)
    kind = names[number % len(names)]
    return KINDS[kind](Place(Random(f"{seed} {number} {kind}"), base, folder))
