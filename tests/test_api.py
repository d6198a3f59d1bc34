"""The library in five lines: what it makes, what it refuses, and that nothing of the user's changes."""

import copy
import doctest
import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import randomised, resnet, same_state
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import project
from project import api
from project.cli import main
from project.data import Domains, ImageFolders, Shapes
from project.errors import CheckpointError, ConfigurationError, DataError, TraceError
from project.merging.passes import KeptPictures, ReestimationPass
from project.methods import Fisher, Permutation, PLeaS
from project.models import Preprocessing
from project.moments import lock_of
from project.runtime import alone_in, only_writer

pytestmark = pytest.mark.usefixtures("shown_once")

CLASSES = 5


class Own(nn.Module):
    """A network of nobody's package."""

    def __init__(self, width: int = 6, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return out


class Untraceable(Own):
    """Its way depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Integers(Own):
    """Its head is quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(self.head.weight.detach().to(torch.int8), requires_grad=False)


def networks(count: int = 2, kind: type[Own] = Own, **options: Any) -> list[nn.Module]:
    return [randomised(kind(**options), seed) for seed in range(count)]


def pictures(domains: tuple[str, ...] = ("photo", "sketch"), count: int = 12, size: int = 9) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {domain: torch.randn(count, 3, size, size, generator=draw) for domain in domains}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    paths = [folder / "photo.pth", folder / "sketch.pth"]
    for seed, path in enumerate(paths):
        torch.save(resnet("resnet8", seed, CLASSES).state_dict(), path)
    return paths


def test_files_and_tensors_make_a_student_of_the_size_asked_for(files: list[Path], tmp_path: Path) -> None:
    seen = pictures(size=16)
    student = project.merge(files, seen, budget=1.2)
    assert student(seen["photo"]).shape == (12, CLASSES)
    assert student.macs <= 1.2 * resnet_macs(student)
    assert not student.training
    project.save_student(student, tmp_path / "merged.safetensors")
    assert same_state(project.load_student(tmp_path / "merged.safetensors").state_dict(), student.state_dict())
    assert list(student.labels.classes.values()) == [tuple("01234")] * 2


def resnet_macs(student: project.Student) -> float:
    from project.allocation import source_macs

    return source_macs(student.spec, student.maps)


def test_one_gathering_serves_all_methods_and_budgets(files: list[Path]) -> None:
    seen = pictures(size=16)
    students = project.merges(files, seen, budgets=[1, 1.5], methods=["pleas", Permutation(label="mine"), "Average"])
    assert list(students) == ["pleas-1.00", "pleas-1.50", "mine-1.00", "mine-1.50", "average-1.00"]
    alone = project.merge(files, seen, budget=1.5)
    assert same_state(students["pleas-1.50"].state_dict(), alone.state_dict())


def test_modules_in_memory_stay_as_they_are() -> None:
    """Of a class of its own, one in training mode, one whose weights are frozen."""
    sources = networks()
    sources[0].train()
    sources[1].requires_grad_(False)
    before = [copy.deepcopy(source.state_dict()) for source in sources]
    student = project.merge(sources, pictures())
    assert [source.training for source in sources] == [True, False]
    assert [next(source.parameters()).requires_grad for source in sources] == [True, False]
    assert all(same_state(source.state_dict(), state) for source, state in zip(sources, before, strict=True))
    assert student(pictures()["photo"]).shape == (12, CLASSES)


def test_a_student_of_ones_own_class_is_rebuilt_by_naming_it(tmp_path: Path) -> None:
    student = project.merge(networks(width=8), pictures(), arguments={"width": 8}, architecture=Own)
    project.save_student(student, tmp_path / "own.safetensors")
    with pytest.raises((CheckpointError, ConfigurationError), match=r"architecture='[\w.]*Own'"):
        project.load_student(tmp_path / "own.safetensors")
    again = project.load_student(tmp_path / "own.safetensors", architecture=Own)
    assert torch.equal(again(pictures()["photo"]), student(pictures()["photo"]))


def test_at_the_size_of_all_sources_the_student_is_them() -> None:
    sources, seen = networks(classes=4), pictures()
    student = project.merge(sources, seen, budget=2, label_space="different")
    with torch.no_grad():
        expected = torch.cat([source.eval()(seen["photo"]) for source in sources], 1)
        assert torch.allclose(student(seen["photo"]), expected, atol=1e-4 * float(expected.abs().max()))


def test_loaders_and_tensors_are_the_same_pictures() -> None:
    sources, seen = networks(), pictures()
    labels = torch.zeros(12, dtype=torch.long)
    loaders: Mapping[str, Any] = {
        "photo": DataLoader(TensorDataset(seen["photo"], labels), batch_size=5),
        "sketch": [seen["sketch"][:5], seen["sketch"][5:10], seen["sketch"][10:]],
    }
    mine = project.merge(sources, seen, batch_size=5)
    assert same_state(project.merge(sources, loaders).state_dict(), mine.state_dict())
    fisher = project.merge(sources, {name: [(part, labels)] for name, part in seen.items()}, method="fisher")
    assert fisher(seen["photo"]).shape == (12, CLASSES)


def test_a_file_of_ones_own_class_is_described_as_in_yaml(tmp_path: Path) -> None:
    for number, network in enumerate(networks(width=7)):
        torch.save(network.state_dict(), tmp_path / f"{number}.pth")
    own = {"architecture": f"{Own.__module__}.Own", "arguments": {"width": 7}}
    described = [{"path": tmp_path / f"{number}.pth", **own} for number in range(2)]
    together = project.merge(
        [tmp_path / "0.pth", tmp_path / "1.pth"], pictures(), architecture=Own, arguments={"width": 7}
    )
    assert same_state(project.merge(described, pictures()).state_dict(), together.state_dict())


def test_a_mapping_says_which_source_is_whose(files: list[Path]) -> None:
    seen = pictures(size=16)
    listed = project.merge(files, seen)
    turned = project.merge({"sketch": files[1], "photo": files[0]}, seen)
    crossed = project.merge({"sketch": files[0], "photo": files[1]}, seen)
    assert [one["domains"] for one in turned.lineage["sources"]] == [["sketch"], ["photo"]]  # type: ignore[attr-defined]
    assert torch.allclose(listed(seen["photo"]), turned(seen["photo"]), atol=1e-3)
    assert not torch.allclose(listed(seen["photo"]), crossed(seen["photo"]), atol=1e-3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"shape \(3,\)"),
        (torch.zeros(12), "float32"),
        (torch.full((12,), CLASSES), "allowed: 0 to 4"),
        (["a.jpg"] * 12, "come without labels"),
    ],
)
def test_labels_that_a_method_reads_are_the_classes_numbers(
    labels: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("project.merging.engine.Engine.step", lambda *_: pytest.fail("too late"))
    seen = {name: [(part, labels)] for name, part in pictures().items()}
    with pytest.raises(ConfigurationError, match=message):
        project.merge(networks(), seen, method=Fisher("labels"))


def test_pictures_of_any_precision_are_those_of_float32() -> None:
    sources, seen = networks(), pictures()
    exact = {name: part.double().requires_grad_() for name, part in seen.items()}
    expected = project.merge(sources, seen).state_dict()
    assert same_state(project.merge(sources, exact).state_dict(), expected)


def test_a_folder_takes_up_what_was_interrupted_and_nothing_that_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    sources, seen = networks(), pictures()
    alone = project.merge(sources, seen).state_dict()
    with monkeypatch.context() as broken:
        broken.setattr("project.merging.engine.lineage", interrupted)
        with pytest.raises(KeyboardInterrupt):
            project.merge(sources, seen, folder=tmp_path)
    assert list(tmp_path.glob("progress/merge-*"))
    with monkeypatch.context() as resumed:
        resumed.setattr(PLeaS, "students", lambda *_: pytest.fail("fitted again"))
        assert same_state(project.merge(sources, seen, folder=tmp_path).state_dict(), alone)
    assert not list(tmp_path.iterdir())
    others = {name: part + 1 for name, part in seen.items()}
    assert same_state(project.merge(sources, others, folder=tmp_path).state_dict(),
                      project.merge(sources, others).state_dict())  # fmt: skip


def test_one_run_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    sources, seen, folder = networks(), pictures(), tmp_path / "mine"
    with (
        alone_in(folder, "run is mine"),
        pytest.raises(ConfigurationError, match=r"folder is .*mine, into which another run is writing"),
    ):
        project.merge(sources, seen, folder=folder)
    project.merge(sources, seen, folder=folder, method="permutation")
    assert not folder.exists()


def test_one_run_at_a_time_writes_a_file_of_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number may read it; who was not the only one to find it missing or incomplete begins again."""
    sources, seen, path = networks(), pictures(), tmp_path / "statistics.safetensors"
    permutation = {"method": "permutation", "statistics": path}
    with (
        only_writer(lock_of(path), "no"),
        pytest.raises(ConfigurationError, match=r"statistics is .*, which another run is gathering"),
    ):
        project.merge(sources, seen, **permutation)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as broken:
        broken.setattr("project.merging.calibration.save_statistics", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            project.merge(sources, seen, **permutation)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    project.merge(sources, seen, **permutation)  # type: ignore[arg-type]
    before = path.read_bytes()
    with only_writer(lock_of(path), "no"):
        project.merge(sources, seen, **permutation)  # type: ignore[arg-type]

    @contextmanager
    def waited(*_: object) -> Iterator[None]:
        path.write_bytes(before)  # by another run
        yield

    with monkeypatch.context() as late:
        late.setattr("project.merging.calibration.only_writer", waited)
        with pytest.raises(ConfigurationError, match=r"statistics is .*, which another run has just written"):
            project.merge(sources, seen, method="regmean", statistics=path)
    project.merge(sources, seen, method="regmean", statistics=path)
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_in_folders_are_brought_to_the_size_that_the_sources_say(files: list[Path], tmp_path: Path) -> None:
    shapes = Shapes(tmp_path / "shapes", size=16, train_per_class=1, test_per_class=1, domains=["clipart", "sketch"])
    shapes.prepare()
    for domain in shapes.read():
        for path, label in (*domain.train, *domain.test):
            target = tmp_path / "pictures" / domain.name / f"{label % CLASSES}" / f"{label}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    sources = project.merges(files, pictures(("clipart", "sketch"), size=16), methods=["average", "permutation"])
    for student in sources.values():
        student.preprocessing = Preprocessing(16)
    merged = project.merge(dict(zip(["clipart", "sketch"], sources.values(), strict=True)), tmp_path / "pictures")
    assert merged.spec.picture == (3, 16, 16)


def test_the_base_may_be_a_path(tmp_path: Path) -> None:
    *sources, base = networks(3)
    torch.save(base.state_dict(), tmp_path / "base.pth")
    options: dict[str, Any] = {"base": tmp_path / "base.pth", "architecture": Own}
    student = project.merge(sources, pictures(), method="task-arithmetic", **options)
    project.save_student(student, tmp_path / "student.safetensors")
    again = project.load_student(tmp_path / "student.safetensors", architecture=Own)
    assert again.lineage["base"] == str(tmp_path / "base.pth")


def test_pictures_are_let_go_once_the_students_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[KeptPictures]] = []
    start, begin = KeptPictures.start, ReestimationPass.start

    def remember(self: KeptPictures, scratch: Path | None) -> None:
        kept.append(weakref.ref(self))
        start(self, scratch)

    def look(self: ReestimationPass, site: Any) -> None:
        gc.collect()
        assert [pictures() for pictures in kept] == [None]
        begin(self, site)

    monkeypatch.setattr(KeptPictures, "start", remember)
    monkeypatch.setattr(ReestimationPass, "start", look)
    project.merges(networks(), pictures(), methods=["pleas", "permutation"])


def test_what_needs_no_pictures_gets_none(files: list[Path]) -> None:
    student = project.merge(files, method="average", image_size=16)
    assert student(torch.zeros(1, 3, 16, 16)).shape == (1, CLASSES)
    with pytest.raises(ConfigurationError, match="needs calibration pictures"):
        project.merge(files, image_size=16)


def test_pictures_go_through_what_is_said_of_them(files: list[Path], tmp_path: Path) -> None:
    """As through data sets that are described in full."""
    for domain, name, number in product(("photo", "sketch"), "abcde", range(2)):
        path = tmp_path / "pictures" / domain / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = torch.randint(256, (20, 24, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(values.numpy()).save(path)
    said: dict[str, Any] = {"image_size": 16, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "crop": "squash"}
    said |= {"resize": 18, "interpolation": "bicubic", "channels": "BGR"}
    whole = Domains(ImageFolders(tmp_path / "pictures"), **said)
    whole.read()
    expected = project.merge(files, whole, method="permutation", progress=False)
    student = project.merge(files, tmp_path / "pictures", method="permutation", progress=False, **said)
    assert student.preprocessing == expected.preprocessing == Preprocessing(**said)
    assert same_state(student.network.state_dict(), expected.network.state_dict())
    other = project.merge(files, tmp_path / "pictures", method="permutation", progress=False, image_size=16)
    assert not same_state(other.network.state_dict(), expected.network.state_dict())


def test_the_command_makes_the_same_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, from a folder of pictures."""
    monkeypatch.chdir(tmp_path)
    shapes = Shapes(tmp_path / "shapes", size=16, train_per_class=3, test_per_class=1, domains=["clipart", "sketch"])
    shapes.prepare()
    for domain in shapes.read():
        for path, label in (*domain.train, *domain.test):
            target = tmp_path / "pictures" / domain.name / domain.classes[label] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    for seed, name in enumerate(("clipart", "sketch")):
        torch.save(resnet("resnet8", seed, 12).state_dict(), tmp_path / f"{name}.pth")
    student = project.merge(["clipart.pth", "sketch.pth"], "pictures", budget=1.5, image_size=16)
    main(
        ["merge", "--run", "run", "--trainer.accelerator", "cpu", "--trainer.logger", "false",
         "--model", "project.modules.MergeModule",
         "--model.sources", json.dumps(["clipart.pth", "sketch.pth"]), "--model.budgets", "[1.5]",
         "--model.methods", '[{"class_path": "project.methods.PLeaS"}]',
         "--data", "project.data.DomainDataModule", "--data.sets", "project.data.ImageFolders",
         "--data.sets.root", "pictures", "--data.image_size", "16"]
    )  # fmt: skip
    (path,) = (tmp_path / "run" / "students").iterdir()
    assert same_state(project.load_student(path).state_dict(), student.state_dict())


def test_neither_yaml_nor_lightning_is_needed() -> None:
    code = (
        "import sys, torch, project\nfrom project.models import Architecture\n"
        "nets = [Architecture('resnet8', 3).build() for _ in range(2)]\n"
        "project.merge(nets, {'a': torch.randn(4, 3, 16, 16), 'b': torch.randn(4, 3, 16, 16)}, method='permutation')\n"
        "assert not {'lightning', 'jsonargparse', 'torchmetrics', 'yaml'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=Path(project.__file__).parent.parent)


def test_the_examples_of_the_documentation_run() -> None:
    outcome = doctest.testmod(api, optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 8
    assert outcome.failed == 0


def test_a_network_is_checked() -> None:
    report = project.check(networks(1)[0], image_size=9)
    assert len(report.groups) == 2
    assert max(report.changes.values()) < 1e-3
    assert "merge, at any budget: yes" in str(report)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sources": networks(1)}, ConfigurationError, "sources holds 1 of at least 2"),
        ({"sources": [*networks(1), "nowhere.pth"]}, CheckpointError, "nowhere.pth"),
        ({"sources": [*networks(1), 7]}, ConfigurationError, "sources holds a int"),
        ({"sources": [*networks(1), *networks(1, width=7)]}, ConfigurationError, "sources must be of one architecture"),
        ({"sources": networks(2, Untraceable)}, TraceError, "Untraceable|test_api"),
        ({"sources": [networks(1)[0]] * 2}, ConfigurationError, "the same network"),
        ({"sources": [*networks(1), Own().to("meta")]}, ConfigurationError, "meta"),
        ({"sources": [*networks(1), Integers()]}, ConfigurationError, "int8"),
        ({"pictures": pictures(("photo", "sketch", "art"))}, ConfigurationError, "state them: photo, sketch, art"),
        ({"pictures": {**pictures(), "photo": torch.zeros(2, 3, 8, 9)}}, ConfigurationError, "all must be of one"),
        ({"pictures": {**pictures(), "photo": torch.zeros(2, 9, 9)}}, ConfigurationError, r"shape \(2, 9, 9\)"),
        ({"pictures": {**pictures(), "photo": torch.full((2, 3, 9, 9), torch.nan)}}, ConfigurationError, "not finite"),
        ({"pictures": {**pictures(), "photo": torch.zeros(2, 3, 9, 9).byte()}}, ConfigurationError, "uint8"),
        ({"pictures": {**pictures(), "photo": torch.zeros(0, 3, 9, 9)}}, DataError, "photo are none"),
        ({"pictures": {**pictures(), "photo": ["cat.jpg"]}}, ConfigurationError, "photo hold a str"),
        ({"sources": [*networks(1), {"file": "x.pth"}]}, ConfigurationError, "of which path is needed"),
        ({"pictures": "nowhere"}, DataError, "nowhere is not there"),
        ({"pictures": {}}, ConfigurationError, "pictures holds no domain"),
        ({"pictures": {**pictures(), "photo": None}}, ConfigurationError, "photo are a NoneType"),
        ({"pictures": {**pictures(), "photo": [[]]}}, ConfigurationError, "photo hold a list"),
        ({"pictures": {**pictures(), "photo": [{"x": torch.zeros(2, 3, 9, 9)}]}}, ConfigurationError, "hold a dict"),
        ({"pictures": {0: torch.zeros(2, 3, 9, 9)}}, ConfigurationError, "pictures holds the domain 0"),
        ({"sources": "photo.pth"}, ConfigurationError, "sources is a str"),
        ({"sources": nn.Sequential(*networks())}, ConfigurationError, "sources is a Sequential"),
        ({"sources": dict(enumerate(networks()))}, ConfigurationError, "sources holds the domain 0"),
        ({"budget": None}, ConfigurationError, "budgets holds None"),
        ({"method": PLeaS}, ConfigurationError, "methods holds <class"),
        ({"renormalize": False}, ConfigurationError, "'renormalize' is no option of a merge; nearest: renormalise"),
        ({"image_size": 9}, ConfigurationError, "image_size is 9, which changes nothing where pictures are in memory"),
        ({"channels": "BGR"}, ConfigurationError, "channels is 'BGR', which changes nothing where pictures are in"),
        ({"batch_size": 0}, ConfigurationError, "batch_size is 0"),
        ({"classes": "abcde"}, ConfigurationError, "classes is 'abcde'; allowed: a list"),
        ({"classes": list("aabcd")}, ConfigurationError, "every name once"),
        ({"without_source": "art"}, ConfigurationError, "without_source is 'art'; allowed: a list"),
        ({"base": Own(), "method": "task-arithmetic"}, ConfigurationError, "base is a Own"),
        ({"device": "meta"}, ConfigurationError, "device is 'meta'"),
        ({"folder": __file__}, ConfigurationError, "folder is .* is no folder"),
        ({"method": "pleas", "statistics": f"{__file__}/s"}, ConfigurationError, "statistics is .* is no folder"),
        ({"budget": 0.5}, ConfigurationError, "budgets holds 0.5"),
        ({"budget": 3}, ConfigurationError, "budgets holds 3"),
        ({"budget": "many"}, ConfigurationError, "budgets holds 'many'"),
        ({"method": "please"}, ConfigurationError, "method is 'please'; nearest: pleas"),
        ({"classes": ["cat"]}, ConfigurationError, "5 logits"),
        ({"classes": {"art": ["cat"]}}, ConfigurationError, "classes names 'art'"),
        ({"device": "abacus"}, ConfigurationError, "device is 'abacus'"),
        ({"memory": "1 kB"}, ConfigurationError, "memory"),
        ({"without_source": ["art"]}, ConfigurationError, "without_source holds 'art'"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(
    change: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the sources run on any picture."""
    monkeypatch.setattr("project.merging.engine.Engine.step", lambda *_: pytest.fail("too late"))
    given = {"sources": networks(), "pictures": pictures(), "method": PLeaS("weights")} | change
    with pytest.raises(error, match=message) as caught:
        project.merge(**given)
    assert "\n" not in str(caught.value)
