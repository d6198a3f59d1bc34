"""The short form of a merge, as the options with paths that it stands for."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from project.cli import main
from project.errors import PleasError
from project.models import Description, LabelSpace, Preprocessing
from project.models.preprocessing import resize_of
from project.parser import OneSentenceParser
from project.short_options import usage
from project.shorthand import FLAGS, PLAIN, expand

SILENT = Description()
MODEL, DATA = ["--model", "project.modules.MergeModule"], ["--data", "project.data.DomainDataModule"]


@pytest.fixture
def there(inside: Path) -> Path:
    """A working directory with three files and a folder of pictures of two domains."""
    for name in ("photo.pth", "my_SKETCH_net.pth", "net.pth"):
        Path(name).touch()
    for domain in ("sketch", "photo"):
        for label in ("cat", "dog"):
            folder = Path("pictures", domain, label)
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}.png").touch()
    Path("empty").mkdir()
    Path("silent.yaml").write_text("data: {class_path: project.data.DomainDataModule}\n")
    Path("full.yaml").write_text(
        "model: {class_path: project.modules.MergeModule, init_args: {sources: [a.pth, b.pth]}}\n"
        "data: {class_path: project.data.DomainDataModule}\n"
    )
    return inside


def options(*arguments: str, **described: Description) -> dict[str, object]:
    """The options that a merge is rewritten to; those in JSON as what they hold."""
    if not described and not any(re.search(r"image.size|^--config|^-c", word) for word in arguments):
        arguments += ("--image-size", "224")
    words, _ = expand(["merge", *arguments], lambda path: described.get(path.stem, SILENT))
    assert words[0] == "merge"
    assert len(words) % 2 == 1
    assert all(name.startswith("-") for name in words[1::2])
    return {
        name.lstrip("-"): json.loads(value) if value[0] in "[{" else value
        for name, value in zip(words[1::2], words[2::2], strict=True)
    }


def test_the_example_of_the_help(there: Path) -> None:
    found = options(
        "photo.pth", "my_SKETCH_net.pth", "--pictures", "pictures", "--budget", "1.0", "1.5", "--out", "r/m"
    )
    assert found == {
        "model": "project.modules.MergeModule",
        "data": "project.data.DomainDataModule",
        "model.sources": [
            "photo.pth",
            "my_SKETCH_net.pth",
        ],
        "data.sets": {
            "class_path": "project.data.ImageFolders",
            "init_args": {"root": "pictures", "domains": ["photo", "sketch"]},
        },
        "data.image_size": "224",
        "model.budgets": [1.0, 1.5],
        "run": "r/m",
    }


FILES = ["photo.pth", "net.pth", "--pictures", "pictures"]


def test_how_folders_are_read_is_said_beside_them(there: Path) -> None:
    for domain in ("sketch", "photo"):
        Path("deep", domain).mkdir(parents=True)
        Path("pictures", domain).rename(Path("deep", domain, "images"))
    files = ["photo.pth", "net.pth", "--class-order", "natural", "--below", "images", "--pictures", "deep"]
    init = {"root": "deep", "domains": ["photo", "sketch"], "class_order": "natural", "below": "images"}
    assert options(*files)["data.sets"] == {"class_path": "project.data.ImageFolders", "init_args": init}
    init["class_order"] = ["dog", "cat"]
    assert options(*files[:3], "dog", "cat", *files[4:])["data.sets"]["init_args"] == init  # type: ignore[index]
    with pytest.raises(PleasError, match=r"deep/photo can be read in two ways"):
        options("photo.pth", "net.pth", "--pictures", "deep")
    with pytest.raises(PleasError, match=r"class_order is 'natrual'; allowed: 'code points', 'natural', or a list"):
        options(*files[:3], "natrual", *files[4:])
    with pytest.raises(PleasError, match=r"--test goes with --pictures FOLDER, which is not given"):
        options("photo.pth", "net.pth", "--config", "silent.yaml", "--test", "test")


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (["--budgets", "1.2", "14M params", "48 MB"], {"model.budgets": [1.2, "14M params", "48 MB"]}),
        (["--budget=1.2"], {"model.budgets": [1.2]}),
        (["--image-size", "64"], {"data.image_size": "64"}),
        (["--image_size=64"], {"data.image_size": "64"}),
        (["--data.image_size", "64"], {"data.image_size": "64"}),
        (["--data.init_args.image_size", "64"], {"data.init_args.image_size": "64"}),
        (["--batch-size", "8", "--calibration", "all"], {"data.batch_size": "8", "data.calibration": "all"}),
        (["--label-space", "different"], {"data.label_space": "different"}),
        (["--base", "mean", "--statistics", "s.safetensors"],
         {"model.base": "mean", "model.statistics": "s.safetensors"}),
        (["--memory", "16 GB", "--seed", "3"], {"model.memory": "16 GB", "seed_everything": "3"}),
        (["--method", "pleas", "Average"],
         {"model.methods": [{"class_path": "project.methods.PLeaS"}, {"class_path": "project.methods.Average"}]}),
        (["--methods", "taskarithmetic", "mine.Method"],
         {"model.methods": [{"class_path": "project.methods.TaskArithmetic"}, {"class_path": "mine.Method"}]}),
        (["--out", "there", "--overwrite", "true"], {"run": "there", "overwrite": "true"}),
        (["--trainer.devices", "2", "--model.tolerance", "0.1"], {"trainer.devices": "2", "model.tolerance": "0.1"}),
    ],
)  # fmt: skip
def test_options_without_paths(there: Path, short: list[str], long: dict[str, object]) -> None:
    plain = options(*FILES)
    if any(name.endswith("image_size") for name in long):
        del plain["data.image_size"]
    assert options(*FILES, *short) == plain | long


def test_domains_are_chosen_and_taken_in_their_order(there: Path) -> None:
    found = options("net.pth", "photo.pth", "--pictures", "pictures", "--domains", "sketch", "photo")
    assert found["data.domains"] == ["sketch", "photo"]
    assert found["data.sets"]["init_args"]["domains"] == ["sketch", "photo"]  # type: ignore[index]
    assert found["model.sources"] == ["net.pth", "photo.pth"]
    with pytest.raises(PleasError, match=r"domains is \['bird'\]; allowed: one or more, each once, of photo, sketch"):
        options("net.pth", "photo.pth", "--pictures", "pictures", "--domains", "bird")


def test_what_a_file_says_of_itself_comes_first(there: Path) -> None:
    labels = LabelSpace({"sketch": ("cat", "dog")})
    said = Description(label_space=labels, preprocessing=Preprocessing(48))
    found = options("photo.pth", "my_SKETCH_net.pth", "--pictures", "pictures", photo=said)
    assert found["model.sources"] == ["photo.pth", "my_SKETCH_net.pth"]
    assert found["data.image_size"] == "48"


def test_a_folder_of_weights_is_a_source(there: Path) -> None:
    Path("Photo-run").mkdir()
    torch.save(torch.nn.Linear(2, 2).state_dict(), "Photo-run/only.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "net.pth")
    words, _ = expand(["merge", "net.pth", "Photo-run", "--pictures", "pictures", "--image-size", "8"])
    assert json.loads(words[words.index("--model.sources") + 1]) == [
        "net.pth", "Photo-run"]  # fmt: skip


def test_the_image_size_is_told(there: Path) -> None:
    (message,) = expand(["merge", *FILES], lambda _: Description(preprocessing=Preprocessing(32)))[1]
    assert message == "image size 32, for which the sources were made; --image-size takes another"
    with pytest.raises(PleasError, match=r"image_size is missing: photo.pth, net.pth do not say.*--image-size 224"):
        expand(["merge", *FILES], lambda _: SILENT)
    assert expand(["merge", *FILES, "--image-size", "64"], lambda _: SILENT)[1] == []
    differing = iter((32, 64))
    with pytest.raises(PleasError, match=r"photo.pth was made for image_size 32, but net.pth for 64; say which"):
        expand(["merge", *FILES], lambda _: Description(preprocessing=Preprocessing(next(differing))))


def test_pictures_are_prepared_as_files_say(there: Path) -> None:
    """The user's word comes first; a share of the picture goes with any size."""
    said = Preprocessing(224, (0.5, 0.5, 0.5), resize=248, interpolation="bicubic")
    found = options(*FILES, photo=Description(preprocessing=said))
    assert {name: value for name, value in found.items() if name.startswith("data.") and name != "data.sets"} == {
        "data.image_size": "224", "data.mean": [0.5, 0.5, 0.5], "data.resize": "248", "data.interpolation": "bicubic"
    }  # fmt: skip
    _, (size, rest) = expand(
        ["merge", *FILES], lambda path: Description(preprocessing=said if path.stem == "photo" else None)
    )
    assert "for which photo.pth was made; net.pth does not say" in size
    assert "mean (0.5, 0.5, 0.5), interpolation bicubic, resize 248" in rest
    found = options(*FILES, "--image-size", "128", "--data.mean", "[0,0,0]", photo=Description(preprocessing=said))
    assert found["data.mean"] == [0, 0, 0]
    assert "data.resize" not in found
    assert resize_of(128, float(str(found["data.crop_pct"]))) == 141  # of 224 in 248
    other = {"net": Description(preprocessing=replace(said, mean=(0.4, 0.5, 0.5)))}
    with pytest.raises(PleasError, match="mean"):
        options(*FILES, photo=Description(preprocessing=said), **other)
    options(*FILES, "--data.mean", "[0,0,0]", photo=Description(preprocessing=said), **other)


def test_options_beside_a_configuration(there: Path) -> None:
    """It keeps its classes and its size; files may stand beside one without sources."""
    assert options("--config", "full.yaml", "--budget", "1.2", "--out", "x") == {
        "config": "full.yaml", "model.budgets": [1.2], "run": "x"}  # fmt: skip
    assert options("photo.pth", "net.pth", "-c", "silent.yaml") == {
        "model": "project.modules.MergeModule", "c": "silent.yaml", "model.sources": ["photo.pth", "net.pth"]
    }  # fmt: skip
    for config in ("-csilent.yaml", "--config=silent.yaml"):
        words, messages = expand(["merge", "photo.pth", "net.pth", config, "--domains", "photo", "x"], lambda _: SILENT)
        assert words[:4] == ["merge", config, "--model", "project.modules.MergeModule"]
        assert json.loads(words[-1]) == ["photo.pth", "net.pth"]
        assert not messages, "the image size is the configuration's"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["fit", "--config", "x", "--budget"],
        ["merge", "--print_config"],
        ["merge", "--config", "absent.yaml", "--run", "x", "--print_config"],
        ["merge", "photo.pth", "--help"],
        ["merge", "--data.help", "project.data.DomainDataModule", "--nothing"],
        ["merge", "--model.methods+=project.methods.PLeaS", "--trainer.callbacks=[]"],
    ],
)
def test_other_arguments_stay(there: Path, arguments: list[str]) -> None:
    assert expand(arguments) == (arguments, [])


def test_what_is_rewritten_stays(there: Path) -> None:
    """Processes that Lightning starts run the rewritten command again."""
    words, _ = expand(["merge", *FILES, "--budget", "1.2", "--out", "x", "--image-size", "8"], lambda _: SILENT)
    assert expand(words) == (words, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.pth", "--pictures", "pictures"], "1 file is named, photo.pth; a merge needs two or more."),
        (["photo.pth", "absent.pth", "--pictures", "pictures"], "The file of weights absent.pth is not there."),
        (["photo.pth", "net.pth"], "--pictures FOLDER is missing"),
        (["photo.pth", "net.pth", "--pictures", "absent"], "--pictures is absent, which is not there."),
        (["photo.pth", "net.pth", "--pictures", "photo.pth"], "--pictures is photo.pth, which is no folder."),
        (["photo.pth", "net.pth", "--pictures", "empty"], "empty holds no domains; put pictures there as"),
        (["photo.pth", "net.pth", "--pictures", "pictures/photo"], "Domain cat holds pictures and no folders"),
        (["--budget", "1.2", "photo.pth", "net.pth"], "photo.pth stands behind --budget, as one of its values"),
        ([*FILES, "--budget", "big"], "budgets holds 'big'; allowed: a number of times"),
        ([*FILES, "--budget", "900", "MMAC"], "budgets holds 'MMAC'"),
        ([*FILES, "--budget", "2.5"], "budgets holds 2.5; with 2 sources it must lie between 1"),
        ([*FILES, "--budget", "nan"], "budgets holds nan"),
        (["--config", "full.yaml", "--budget", "-1"], "budgets holds '-1'; allowed: a number of times"),
        ([*FILES, "--budget"], "--budget has no value; allowed: --budget SIZE"),
        ([*FILES, "--out="], "--out has no value"),
        ([*FILES, "--budget", "1", "--budgets", "2"], "--budgets is given twice"),
        ([*FILES, "--budget", "1", "--model.budgets", "[2]"], "--budget and --model.budgets are both given"),
        ([*FILES, "--model.init_args.budgets=[2]", "--budget", "1"], "--budget and --model.init_args.budgets are both"),
        ([*FILES, "--out", "x", "--run", "y"], "--out and --run are both given; allowed: one of them."),
        ([*FILES, "--data.root", "y"], "--pictures and --data.root are both given"),
        ([*FILES, "--data.sets", "{}"], "--pictures and --data.sets are both given"),
        ([*FILES, "--model.sources", "[]"], "photo.pth and --model.sources are both given"),
        (["photo.pth", "net.pth", "--config", "full.yaml"],
         "photo.pth, net.pth and the sources of full.yaml are both given"),
        (["--config", "full.yaml", "--budgte", "1.2"], "there is no option '--budgte'; nearest: budget"),
        ([*FILES, "--imagesize=64"], "there is no option '--imagesize'; nearest: image-size"),
        ([*FILES, "--method", "plaes"], "method is 'plaes'; nearest: pleas"),
        ([*FILES, "--method", "tuned"], "method is 'tuned', which needs arguments"),
        ([], "no network is named; allowed: two or more files first, or --config FILE"),
        (["--budget", "1.2", "--pictures", "pictures"], "no network is named"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_file_is_read(there: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(PleasError) as caught:
        expand(["merge", *arguments], lambda path: pytest.fail(f"{path} is read"))
    told = str(caught.value)
    assert message in told
    assert "\n" not in told


def test_no_option_of_the_parser_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[OneSentenceParser] = []

    def kept(parser: OneSentenceParser, *_: object, **__: object) -> None:
        parsers.append(parser)
        raise KeyboardInterrupt

    monkeypatch.setattr(OneSentenceParser, "parse_args", kept)
    with pytest.raises(KeyboardInterrupt):
        main(["merge", "--run", "x"])
    merge = parsers[0]._subcommands_action.choices["merge"]  # type: ignore[union-attr]
    names = {name.lstrip("-") for name in merge._option_string_actions if "." not in name}
    assert names - {"print_config"} == (PLAIN | FLAGS) - {"print_config"}


def test_the_help_shows_every_option_and_fits() -> None:
    lines = usage().splitlines()
    assert all(len(line) <= 120 for line in lines)
    for word in ("--budget SIZE", "--image-size", "--out", "pleas merge photo.pth sketch.pth --pictures my_data"):
        assert word in usage()
