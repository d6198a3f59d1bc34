"""Sources from networks in memory, students of the user's own classes, and that no file chooses their code."""

import copy
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import elsewhere
from helpers import DOMAINS, close, make_problem, merge_case, pictures, randomised, resnet, run, same_state
from kinds import KINDS, SIDE
from torch import Tensor, nn

from project.errors import CheckpointError, ConfigurationError, TraceError
from project.merging import SourceFile
from project.merging.sources import read_sources
from project.methods import SMILE, Method, Permutation
from project.models import Architecture, Heads, LabelSpace, Preprocessing
from project.modules import EvaluationModule, MergeModule
from project.modules.scored import load_scored_networks
from project.moments import network_hash
from project.student import (
    Source,
    Student,
    common_spec,
    load_source,
    load_student,
    original_sources,
    save_student,
    source_of,
)

SHAPE = (3, 16, 16)
HERE = "test_own_classes"


class Net(nn.Module):
    """Registers its head before its trunk."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        logits: Tensor = self.head(torch.relu(self.body(x)).mean((2, 3)))
        return logits


class Odd(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.softmax(x, 1))


def build_net(width: int = 8) -> Net:
    return Net(width)


def net(seed: int, **options: Any) -> nn.Module:
    return randomised(Net(**options), seed)


def merged(sources: list[Source], method: Method | None = None, budget: float = 1.5) -> Student:
    it = make_problem(
        [source.network for source in sources], "different", shape=SHAPE, architecture=sources[0].architecture,
        needs=(), batches=[(DOMAINS[i], pictures(8, i, SHAPE)) for i in range(len(sources))], base="mean",
    )  # fmt: skip
    (found,) = merge_case(method or Permutation("weights"), it, [budget])
    return found.student


# ---- networks in memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_users_network_is_left_as_it_was(training: bool) -> None:
    network = net(0).train(training)
    network.body.requires_grad_(False)
    hashed, needs = network_hash(network), [parameter.requires_grad for parameter in network.parameters()]
    labels, preprocessing = LabelSpace({"art": tuple("abcd")}), Preprocessing(16)
    source = source_of(network, "mine", labels=labels, preprocessing=preprocessing)
    assert [module.training for module in network.modules()] == [training] * 5
    assert [parameter.requires_grad for parameter in network.parameters()] == needs
    assert network_hash(network) == hashed == source.sha256
    assert (source.name, source.path, source.origin, source.logits) == ("mine", None, "mine (in memory)", 4)
    assert source.architecture == Architecture(f"{HERE}.Net", 4)
    assert (source.description.label_space, source.description.preprocessing) == (labels, preprocessing)
    assert not any(module.training for module in source.network.modules())
    assert not any(parameter.requires_grad for parameter in source.network.parameters())
    batch = pictures(3, 0, SHAPE)
    expected = run(copy.deepcopy(network).eval(), batch)
    assert torch.equal(run(source.network, batch), expected)
    with torch.no_grad():
        source.network.head.weight.zero_()
    assert network_hash(network) == hashed, "nothing is shared"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_become_those_that_a_file_would_give(dtype: torch.dtype, tmp_path: Path) -> None:
    network = net(0).to(dtype)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    source = source_of(network, "mine")
    assert network.head.weight.dtype == dtype
    assert same_state(
        source.network.state_dict(), load_source(tmp_path / "net.pth", architecture=Net).network.state_dict()
    )


def test_a_network_elsewhere_stays_there() -> None:
    network, batch = net(0), pictures(3, 0, SHAPE)
    expected = run(network, batch)
    with elsewhere() as device:
        network.to(device)
        source = source_of(network, "mine")
        assert {parameter.device for parameter in network.parameters()} == {device}
    assert close(run(source.network, batch), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_wrappers_are_taken_off() -> None:
    plain = net(0)
    for wrapped in (nn.DataParallel(plain), torch.compile(plain), torch.compile(nn.DataParallel(plain))):
        source = source_of(wrapped, "mine")
        assert source.architecture.name == f"{HERE}.Net"
        assert source.sha256 == network_hash(plain)


def test_a_named_network_goes_by_its_name() -> None:
    source = source_of(resnet("resnet20", 0, 4), "mine")
    assert source.architecture == Architecture("resnet20", 4)


def test_attention_is_written_out_in_the_copy_alone() -> None:
    network = KINDS["transformer"]().eval()
    source = source_of(network, "mine")
    written, own = (sum(isinstance(part, Heads) for part in one.modules()) for one in (source.network, network))
    assert written > 0 == own
    assert close(run(source.network, pictures(2, 0, (3, SIDE, SIDE))), run(network, pictures(2, 0, (3, SIDE, SIDE))))


def spoilt(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network = net(0)
        change(network)
        return network

    return make


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "number": (lambda: 3, "mine is a int; allowed: a file or an nn.Module"),
    "class": (lambda: Net, "mine is a type; allowed"),
    "empty": (nn.Flatten, "mine is a Flatten without weights"),
    "lazy": (lambda: nn.LazyLinear(3), "mine holds 'weight', which has no shape yet"),
    "meta": (lambda: net(0).to("meta"), "mine holds 'head.weight', which is on the meta device"),
    "nan": (spoilt(lambda it: it.head.weight.data.fill_(float("nan"))), "mine holds values in 'head.weight' that are"),
    "inf": (spoilt(lambda it: it.norm.running_var.fill_(float("inf"))), "mine holds values in 'norm.running_var'"),
    "integers": (
        spoilt(lambda it: setattr(it.head, "weight", nn.Parameter(torch.ones(4, 8, dtype=torch.int8), False))),
        "mine holds 'head.weight' of type int8; allowed: floating point",
    ),
    "hook": (
        spoilt(lambda it: it.body.register_forward_hook(lambda *_: None)),
        "mine has forward hooks on layer 'body', which no student would have",
    ),
    "lock": (spoilt(lambda it: setattr(it, "lock", threading.Lock())), "mine cannot be copied: cannot pickle"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_a_source_is_told_in_one_sentence(kind: str) -> None:
    make, message = BAD[kind]
    with pytest.raises(ConfigurationError, match=message) as caught:
        source_of(make(), "mine")
    assert "\n" not in str(caught.value)


def test_a_network_on_two_devices_is_refused() -> None:
    network = net(0)
    with elsewhere() as device:
        network.body.to(device)
        with pytest.raises(ConfigurationError, match=r"mine is on several devices \(.* on cpu, body.bias on lazy\)"):
            source_of(network, "mine")


def test_the_line_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(TraceError, match=r"at student/test_own_classes.py, line \d+: return super"):
        common_spec([source_of(randomised(Odd(), 0), "odd")], SHAPE)


def test_unequal_networks_are_refused_by_their_names() -> None:
    sources = [source_of(net(0), "one"), source_of(net(1, width=6), "other")]
    with pytest.raises(ConfigurationError, match=r"but one \(in memory\) is .*Net .* and other \(in memory\) is"):
        common_spec(sources, SHAPE)


@pytest.mark.parametrize(
    ("named", "arguments", "expected"),
    [
        (None, {"width": 8}, Architecture(f"{HERE}.Net", 4, arguments={"width": 8})),
        (f"{HERE}.Net", None, Architecture(f"{HERE}.Net", 4)),
        (build_net, {"width": 8}, Architecture(f"{HERE}.build_net", 4, arguments={"width": 8})),
        (f"{HERE}.build_net", {}, Architecture(f"{HERE}.build_net", 4, arguments={})),
    ],
)
def test_what_it_was_built_with_is_remembered(named: Any, arguments: Any, expected: Architecture) -> None:
    assert source_of(net(0), "mine", named, arguments).architecture == expected


@pytest.mark.parametrize(
    ("named", "arguments", "message"),
    [
        (
            None,
            {"width": 9},
            r"mine is not what test_own_classes.Net\(width=9\) builds: head.weight is 4×8 instead of 4×9",
        ),
        ("resnet18", None, "mine is not resnet18: The weights hold no convolution"),
        ("alexnet", None, "mine is a Net, but alexnet is a AlexNet"),
        (Architecture(f"{HERE}.Net", 4), None, "name its code: architecture='test_own_classes.Net'"),
        (Odd, None, f"mine is a Net, but {HERE}.Odd is a Odd"),
    ],
)
def test_what_it_is_not_is_refused(named: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        source_of(net(0), "mine", named, arguments)


# ---- their students --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, SMILE(rank=1)], ids=["plain", "mixture"])
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_student_of_a_class_is_rebuilt_by_it(method: Method | None, suffix: str, tmp_path: Path) -> None:
    count = 3 if method else 2  # two differ from their mean by the sign alone
    sources = [source_of(net(seed), str(seed), arguments={"width": 8}) for seed in range(count)]
    student = merged(sources, method, 1.0 if method else 1.5)
    path, batch = tmp_path / f"student.{suffix}", pictures(3, 0, SHAPE)
    save_student(student, path)
    for named in (f"{HERE}.Net", Net, net(5)):
        loaded = load_student(path, named)
        assert torch.equal(run(loaded, batch), run(student, batch))
        assert loaded.architecture == Architecture(f"{HERE}.Net", 4, arguments={"width": 8})
        assert not any(module.training for module in loaded.modules())
    if method is None:
        again = [load_source(path, "file", Net), source_of(student, "memory")]
        assert torch.equal(run(again[0].network, batch), run(again[1].network, batch))
        assert close(run(again[0].network, batch), run(student, batch))
        assert again[0].architecture == again[1].architecture == student.architecture
        common_spec(again, SHAPE)


def test_arguments_that_nobody_knows_are_asked_for(tmp_path: Path) -> None:
    student, path = merged([source_of(net(seed, width=6), str(seed)) for seed in range(2)]), tmp_path / "s.safetensors"
    save_student(student, path)
    with pytest.raises(CheckpointError, match=r"its sources have 6 units in '\w+', where the architecture has 8"):
        load_student(path, Net)
    for found in (load_student(path, Net, {"width": 6}), load_student(path, net(0, width=6))):
        assert same_state(found.state_dict(), student.state_dict())


def test_a_student_without_architecture_is_saved_by_its_class(tmp_path: Path) -> None:
    student = merged([source_of(net(seed), str(seed)) for seed in range(2)])
    student.architecture = None
    save_student(student, tmp_path / "s.safetensors")
    assert load_student(tmp_path / "s.safetensors", Net).architecture == Architecture(f"{HERE}.Net", 4)
    mixture = merged([source_of(net(seed), str(seed)) for seed in range(3)], SMILE(rank=1), 1.0)
    mixture.architecture = None
    with pytest.raises(CheckpointError, match=r"m.safetensors cannot be written: .*student.architecture = project"):
        save_student(mixture, tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


# ---- a file never chooses code ---------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module whose import leaves a trace, and a student that names it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trapped_student", raising=False)
    trace = tmp_path / "trace"
    (tmp_path / "trapped_student.py").write_text(
        f"import pathlib\nfrom test_own_classes import Net\n\npathlib.Path({str(trace)!r}).touch()\n"
    )
    student = merged([source_of(net(seed), str(seed)) for seed in range(2)])
    student.architecture = Architecture("trapped_student.Net", 4)
    student.lineage = {
        "sources": [
            {
                "name": str(seed),
                "sha256": "0",
                "architecture": {"name": "trapped_student.Net", "num_classes": 4, "stem": "imagenet", "width": 1},
                "domains": [],
            }
            for seed in range(2)
        ]
    }
    save_student(student, tmp_path / "merged.safetensors")
    save_student(student, tmp_path / "merged.ckpt")
    return trace


class Data:
    """As much of a data module as it takes to get to the files."""

    label_space = LabelSpace({"art": tuple("abcd"), "birds": tuple("efgh")}, "different")


READERS: dict[str, Callable[[Path], object]] = {
    "load_student": load_student,
    "load_source": load_source,
    "merge": lambda path: MergeModule([SourceFile(path), SourceFile(path)]).read(SHAPE),
    "test and predict": lambda path: load_scored_networks(EvaluationModule([path]).files, Data.label_space),
    "a description": lambda path: load_student(path, Architecture("trapped_student.Net", 4)),
}


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_never_chooses_code(reader: str, suffix: str, trap: Path) -> None:
    path = trap.with_name(f"merged.{suffix}")
    with pytest.raises(ConfigurationError) as caught:
        READERS[reader](path)
    assert str(caught.value).startswith(
        f"{path} is a student of trapped_student.Net, code of yours that a file may not choose: name it, "
        f"architecture='trapped_student.Net'"
    )
    assert not trap.exists()


def test_code_that_the_user_names_is_run(trap: Path) -> None:
    path = trap.with_name("merged.safetensors")
    with pytest.raises(ConfigurationError, match=f"is of trapped_student.Net, but architecture is {HERE}.Net; if"):
        load_student(path, Net)
    load_student(path, net(0))
    assert not trap.exists()
    (scored,) = load_scored_networks([SourceFile(path, architecture="trapped_student.Net")], Data.label_space)
    assert trap.exists()
    assert isinstance(scored.network, Student)


def test_another_name_than_the_students_is_refused(tmp_path: Path) -> None:
    student = merged([source_of(resnet("resnet20", seed, 4), str(seed)) for seed in range(2)], budget=1.0)
    save_student(student, tmp_path / "s.safetensors")
    for same in (None, "resnet20", Architecture("resnet20", 4), resnet("resnet20", 0, 3)):
        assert load_student(tmp_path / "s.safetensors", same).architecture == Architecture("resnet20", 4)
    with pytest.raises(ConfigurationError, match="is a student of resnet20, but architecture is resnet32"):
        load_student(tmp_path / "s.safetensors", "resnet32")


def test_sources_are_read_by_their_arguments(tmp_path: Path) -> None:
    for seed in range(2):
        torch.save(net(seed, width=6).state_dict(), tmp_path / f"{seed}.pth")
    files = [SourceFile(tmp_path / f"{seed}.pth", None, None, f"{HERE}.Net", {"width": 6}) for seed in range(2)]
    sources = read_sources(files)
    assert [source.architecture for source in sources] == [Architecture(f"{HERE}.Net", 4, arguments={"width": 6})] * 2
    (scored, _) = load_scored_networks(files, LabelSpace({"art": tuple("abcd")}))
    assert torch.equal(run(scored.network, pictures(2, 0, SHAPE)), run(sources[0].network, pictures(2, 0, SHAPE)))


def test_a_refinement_names_the_code_of_its_sources(trap: Path) -> None:
    paths = [trap.with_name(f"{seed}.pth") for seed in range(2)]
    for seed, path in enumerate(paths):
        torch.save(net(seed).state_dict(), path)
    student = load_student(trap.with_name("merged.safetensors"), net(0))
    for entry, path in zip(student.lineage["sources"], paths, strict=True):  # type: ignore[call-overload]
        entry["sha256"] = load_source(path, architecture=Net).sha256
    with pytest.raises(ConfigurationError, match=r"0.pth is a network of trapped_student.Net, code of yours that"):
        original_sources(student, paths)
    assert not trap.exists()
    found = original_sources(student, paths, "trapped_student.Net")
    assert [source.path for source in found] == paths
    assert trap.exists()
