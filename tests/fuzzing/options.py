"""Commands that work, and what can be wrong about their words and files."""

import copy
from collections.abc import Sequence
from random import Random
from typing import Any

from fuzzing.contents import ODD

SIZE = 32
"""Side of the pictures."""
QUIET = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
]
ONE_EPOCH = ["--trainer.max_epochs", "1"]
"""Said last, where a spoilt configuration might say a thousand."""
MERGE, EVALUATION = "project.modules.MergeModule", "project.modules.EvaluationModule"
NUMBERS = (
    "0", "-1", "1", "3", "1.5", "nan", "inf", "-inf", "1e400", "1e9", "9" * 30, "0x10", "1_0", "٣", "１", "", " ",
    "two", "8,8", "[8]", "{}", "null", "true", "-", "2147483648", "9223372036854775808",
)  # fmt: skip
FRACTIONS = ("0", "1", "-0.1", "1.1", "nan", "inf", "-inf", "x", "", "null", "[0.5]", "1e-400", "0.999999")
VALUES: dict[str, Sequence[str]] = {
    "--image-size": (*NUMBERS, "7", "33"),
    "--calibration": (*NUMBERS, "all", "none", "public", "All"),
    "--batch-size": NUMBERS,
    "--seed": (*NUMBERS, "4294967296", "-5"),
    "--budget": (
        "0", "-1", "nan", "inf", "1e400", "2.0000001", "1.999", "2", "9k params", "1e400 params", "0 MMAC",
        "-3 MB", "1.2x", "1.2y", "x", "", "1,5", "1e-400", "1.2x params", "1.5 MB", "1 KB", "1.0 1.0", "null",
        "[1]", "1\n",
    ),
    "--method": (
        "plaes", "PLEAS", "", "tuned", "builtins.dict", "os.getcwd", "project.methods.Nope", "project.methods",
        "...", ".", "ties", "emr", "smile", "regmean", "fisher", "zipit", "interpolation", "pleas,average",
        "nope.Nope", "torch.nn.Linear", "project.methods.Method", "taskarithmetic", "mats", "concrete",
    ),
    "--base": ("mean", "none", "art.pth", "toy.safetensors", "nowhere", "IMAGENET1K_V1", "", "pictures", "MEAN"),
    "--label-space": ("different", "Different", "", "both", "null", "0"),
    "--memory": (
        "16 GB", "1 B", "0 GB", "-1 GB", "GB", "16", "nan GB", "inf GB", "1e400 GB", "1e-9 GB", "16GB", "16 gb",
        "16 GiB", "", "1 kB", "2 MB", "20 MB", "0", "null",
    ),
    "--domains": ("art", "Art", "nowhere", "", ".", "null", "art/cat", "../pictures", "*"),
    "--trainer.limit_val_batches": ("0", "-1", "0.0", "1.5", "nan", "x"),
    "--trainer.limit_test_batches": ("0", "-1", "0.0", "1.5", "nan", "x"),
    "--trainer.precision": ("16-true", "bf16-true", "64-true", "64", "nope", "", "8", "16-mixed", "bf16-mixed"),
    "--trainer.devices": ("0", "-1", "x", "1.5", "[0]", "[]", ""),
    "--trainer.num_nodes": ("0", "-1", "x"),
    "--trainer.strategy": ("nope", "", "fsdp", "deepspeed", "dp", "null"),
    "--trainer.accelerator": ("nope", "", "tpu", "gpu", "mps", "null"),
    "--trainer.fast_dev_run": ("true", "-1", "x"),
    "--trainer.max_time": ("x", "00:00:00:00", "-1", "{}"),
    "--trainer.logger": ("false", "x", "{}", "[]"),
    "--trainer.callbacks": ("x", "[x]", "{}", "project.callbacks.MergeCallback", "[{class_path: os.getcwd}]"),
    "--trainer.deterministic": ("true", "x", "warn"),
    "--trainer.barebones": ("true", "x"),
    "--model.tolerance": FRACTIONS,
    "--model.keep_every": FRACTIONS,
    "--model.without_source": ("[art]", "[nowhere]", "art", "[[]]", "null", "[art, toy]"),
    "--data.validation_fraction": FRACTIONS,
    "--data.calibration_views": ("0", "-1", "1.5", "x", "2"),
    "--data.calibration_batch_size": NUMBERS,
    "--data.mean": ("[0]", "[0,0,0]", "[nan,0,0]", "0", "x", "[1e300,0,0]", "[0,0,0,0]", "null"),
    "--data.std": ("[0,0,0]", "[1]", "[nan,1,1]", "[-1,1,1]", "x", "[1e-300,1,1]", "[inf,1,1]", "null"),
    "--data.crop": ("squash", "nope", "", "null"),
    "--data.num_workers": ("-1", "1.5", "x", "null"),
    "--data.on_error": ("skip", "nope", "", "null"),
    "--probe": ("x", "3", "", "null"),
    "--overwrite": ("x", "3", "", "null"),
}  # fmt: skip
"""Options of a merge, long and short, and values for them; none for which a run would rightly take hours."""
UNKNOWN = (
    "--budgte",
    "--nothing",
    "--model.nothing",
    "--data.nothing",
    "--trainer.nothing",
    "-x",
    "--",
    "--model.sources.x",
)


def words(files: Sequence[str], options: dict[str, list[str]]) -> list[str]:
    """The words of a merge in the short form."""
    return ["merge", *files, *(word for name, values in options.items() for word in (name, *values)), *QUIET]


def short_options(random: Random) -> dict[str, list[str]]:
    """Options of a merge that works."""
    return {
        "--pictures": ["pictures"],
        "--image-size": [str(SIZE)],
        "--calibration": ["8"],
        "--batch-size": ["8"],
        "--method": random.choice((["average"], ["permutation"], ["pleas"])),
        "--budget": random.choice((["1.0"], ["1.5"])),
        "--out": ["out"],
    }


def spoilt_words(random: Random) -> tuple[list[str], str, set[str]]:
    """A merge in the short form with something wrong, or odd, about its words.

    Returns:
        The words; what is wrong; and names of which a sentence about it holds one.
    """
    options, files = short_options(random), ["art.pth", "toy.pth"]
    what = random.choice(
        ("value",) * 12 + ("no value", "twice", "unknown", "misspelt", "files", "command", "equals", "lost")
    )
    name = random.choice(list(VALUES))
    value = random.choice(VALUES[name])
    if what in ("value", "equals"):
        options[name] = [value]
        told = f"{name} is {value!r}"
        found = words(files, options)
        if what == "equals":
            place = found.index(name)
            found[place : place + 2] = [f"{name}={value}"]
        return found, told, about(name, value)
    if what == "no value":
        options[name] = []
        return words(files, options), f"{name} has no value", about(name)
    if what == "twice":
        return (
            [*words(files, options), name, value, name, value],
            f"{name} is given twice, {value!r}",
            about(name, value),
        )
    if what == "unknown":
        name = random.choice(UNKNOWN)
        return [*words(files, options), name, value], f"{name} is given, {value!r}", about(name, value)
    if what == "misspelt":
        name = random.choice([name for name in options if name != "--out"])
        place = random.randrange(3, len(name))
        wrong = random.choice((name[:place] + name[place + 1 :], name[:place] + "x" + name[place:], name.upper()))
        options = {wrong if one == name else one: values for one, values in options.items()}
        return words(files, options), f"{name} is written {wrong}", about(name) | about(wrong)
    if what == "files":
        files = random.choice(
            (["art.pth"], ["art.pth", "art.pth"], [*files, "art.pth"], [], ["art.pth", "art.safetensors"], [*files,
            "pictures"],
             [*files, "toy.safetensors"], ["pictures", "toy.pth"], ["art.pth,toy.pth"], ["[art.pth, toy.pth]"])
        )  # fmt: skip
        return words(files, options), f"the files are {files}", {"file", "source", "network", *files, "art", "pictures"}
    if what == "command":
        command = random.choice(
            ("merg", "", "Merge", "merge merge", "-merge", "fit", "test", "predict", "check", "validate")
        )
        named = {"subcommand", command or "''", *options, *files, "model", "option", "command"}
        return [command, *words(files, options)[1:]], f"the command is {command!r}", named
    name = random.choice([name for name in options if name not in ("--image-size", "--calibration")])
    del options[name]
    run = [] if name != "--out" else ["--out", "out"]
    return [*words(files, options), *run], f"{name} is not given", about(name)


def about(*words: str) -> set[str]:
    """Words by which a sentence may call options and values."""
    found = set()
    for word in words:
        bare = word.strip("-").partition("=")[0]
        found |= {
            word.strip(),
            bare,
            bare.replace("-", "_"),
            bare.rpartition(".")[2],
            bare.rpartition(".")[2].rstrip("s"),
        }
    return found - {"", "-"}


# ---- files of configuration ------------------------------------------------------------------------------------------


def config(random: Random, command: str) -> dict[str, Any]:
    """A configuration with which a command works."""
    sets = {"class_path": "project.data.ImageFolders", "init_args": {"root": "pictures", "test_fraction": 0.2}}
    arguments = {"sets": sets, "image_size": SIZE, "batch_size": 8, "calibration": 8, "validation_fraction": 0.0}
    data = {"class_path": "project.data.DomainDataModule", "init_args": arguments}
    if command == "merge":
        methods = random.choice(
            ([{"class_path": "project.methods.PLeaS", "init_args": {"ridge": 0.01, "separate": "front"}}],
             [{"class_path": "project.methods.Average"}, {"class_path": "project.methods.Permutation"}],
             [{"class_path": "project.methods.TIES", "init_args": {"keep": 0.2, "scale": 0.5}}],
             [{"class_path": "project.methods.RegMean", "init_args": {"off_diagonal": 0.9}}])
        )  # fmt: skip
        sources = random.choice(
            (["art.pth", "toy.pth"], [{"path": "art.pth", "domains": ["art"]}, {"path": "toy.safetensors"}])
        )
        inner: dict[str, Any] = {
            "sources": sources,
            "budgets": [1.0],
            "methods": methods,
            "base": "mean",
            "tolerance": 1e-3,
        }
        model = {"class_path": MERGE, "init_args": inner}
    elif command == "fit":
        arguments |= {"domains": ["art"], "validation_fraction": 0.25}
        inner = {
            "architecture": "resnet8",
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "momentum": 0.9}},
        }
        model = {"class_path": "project.modules.FineTuneModule", "init_args": inner}
    else:
        networks: list[Any] = random.choice((["art.safetensors"], ["art.ckpt", "toy.ckpt"]))
        model = {"class_path": EVALUATION, "init_args": {"networks": networks}}
        if command == "validate":
            arguments["validation_fraction"] = 0.25
        if command == "predict" and random.random() < 0.5:
            data = {"class_path": "project.data.UnsortedDataModule", "init_args": {"root": "pictures", "batch_size": 8}}
    return {"seed_everything": 3, "run": "out", "trainer": {"logger": True}, "model": model, "data": data}


def command_of(command: str, file: str = "config.yaml") -> list[str]:
    """The words that run a configuration."""
    return [command, "--config", file, *QUIET, *(ONE_EPOCH if command == "fit" else [])]


TOP = ("sources", "budgets", "models", "date", "trainers", "seed", "", "null", "1", "class_path")
CLASSES = (
    "builtins.dict", "os.getcwd", "project.methods.Nope", "project.methods", "nope.Nope", "torch.nn.Linear", "",
    ".", "project", "project.data.Shapes", "project.modules.MergeModule", "project.data.UnsortedDataModule",
    "project.methods.Method", 3,
)  # fmt: skip


def spoilt_config(random: Random, content: dict[str, Any]) -> tuple[dict[Any, Any], str, set[str]] | None:
    """A configuration with a key or a class of no meaning; None where another way of spoiling is to be taken."""
    spoilt: dict[Any, Any] = copy.deepcopy(content)
    what = random.choice(("top", "class", "none", "none", "none"))
    if what == "top":
        key, value = random.choice(TOP), random.choice(ODD)
        spoilt[key] = value
        return spoilt, f"{key!r} stands at the top, {value!r:.60}", about(str(key), repr(value)) | {"key", "option"}
    if what == "class":
        holder = random.choice(_with_classes(spoilt))
        holder["class_path"] = random.choice(CLASSES)
        named = {str(holder["class_path"]), "class", "model", "data", "methods", "optimizer", "sets"}
        return spoilt, f"a class_path is {holder['class_path']!r}", named
    return None


def _with_classes(content: Any) -> list[dict[Any, Any]]:
    found = [content] if isinstance(content, dict) and "class_path" in content else []
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        found += _with_classes(value)
    return found
