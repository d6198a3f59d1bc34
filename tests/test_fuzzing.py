"""What files, words and trees that are spoilt at random do: some of ``make fuzz``, and the readers by themselves."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random
from typing import TypeVar

import numpy as np
import pytest
import torch
from fuzzing import world
from fuzzing.cases import KINDS, Case, draw
from fuzzing.contents import damaged, foreign, spoilt_state, spoilt_statistics, spoilt_student
from fuzzing.judging import Outcome, faults, perform
from helpers import (
    DOMAINS,
    PICTURE,
    gathered,
    make_problem,
    merge_case,
    pictures,
    random_network,
    randomised,
    resnet,
    run,
    traced,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from project.allocation import Budget
from project.data.opening import defect, open_picture
from project.errors import PleasError
from project.methods import Permutation
from project.models import Architecture, Preprocessing, read_weights
from project.moments import (
    INPUTS,
    LAYERS,
    UNITS,
    Collector,
    Fingerprint,
    Lockstep,
    Statistics,
    read_statistics,
    save_statistics,
    tensor_sums,
)
from project.runtime import read_bytes
from project.shorthand import expand
from project.student import load_student, save_student

T, U = TypeVar("T"), TypeVar("U")
RANDOMS = st.randoms(use_true_random=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files of all examples, one after the other."""
    return tmp_path_factory.mktemp("fuzzing")


def read_or_refused(path: Path, content: bytes, read: Callable[[Path], T]) -> T | None:
    """What a reader makes of a file; None where it refuses it, in one sentence that names the file."""
    path.write_bytes(content)
    found, told = tried(read, path)
    assert told is None or (path.name in told and "\n" not in told), told
    return found


def tried(work: Callable[[U], T], given: U) -> tuple[T | None, str | None]:
    """What comes of some work, or the sentence in which it is refused."""
    try:
        return work(given), None
    except PleasError as error:
        return None, str(error)


# ---- files of weights ------------------------------------------------------------------------------------------------


@cache
def state() -> dict[str, Tensor]:
    """Tensors of all kinds that a network has."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    return {f"layer{name}": tensor for name, tensor in randomised(network, 0).state_dict().items()}


def written(random: Random, content: object) -> bytes:
    """A state dict in PyTorch's form or, where that can hold it, as safetensors."""
    if random.random() < 0.5 and isinstance(content, dict):
        with suppress(Exception):  # whatever safetensors has against it
            return save({name: tensor.contiguous() for name, tensor in content.items()})
    file = BytesIO()
    torch.save(content, file)
    return file.getvalue()


@given(random=RANDOMS)
def test_weights_are_finite_or_refused(place: Path, random: Random) -> None:
    content = written(random, spoilt_state(random, state())[0])
    weights = read_or_refused(place / "spoilt.pth", content, read_weights)
    for tensor in weights.state_dict.values() if weights else ():
        assert tensor.layout == torch.strided
        assert not tensor.is_floating_point() or tensor.dtype == torch.float32
        assert tensor.isfinite().all()


@given(random=RANDOMS)
def test_bytes_are_weights_or_refused(place: Path, random: Random) -> None:
    if random.random() < 0.5:
        content, empty = damaged(random, written(random, state()))[0], False
    else:
        content, _, empty = foreign(random, state())
    weights = read_or_refused(place / "bytes.pth", content, read_weights)
    assert weights is None or not empty


# ---- students --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(place: Path) -> Path:
    """A student's file."""
    sources = [resnet("resnet8", seed) for seed in (1, 2)]
    it = make_problem(sources, "different", shape=(3, 16, 16), architecture=Architecture("resnet8", 5), needs=(),
                      batches=[], preprocessing=Preprocessing(16))  # fmt: skip
    (merged,) = merge_case(Permutation("weights"), it, [1.0])
    merged.student.lineage = {"budget": 1.0, "learned": {"deep": [{"a": [1, 2.5]}]}}
    save_student(merged.student, place / "student.safetensors")
    return place / "student.safetensors"


@given(random=RANDOMS)
def test_students_are_finite_or_refused(place: Path, student: Path, random: Random) -> None:
    content = (spoilt_student if random.random() < 0.8 else damaged)(random, student.read_bytes())[0]
    found = read_or_refused(place / "spoilt.safetensors", content, load_student)
    if found is not None:
        assert all(tensor.isfinite().all() for tensor in found.state_dict().values())
        assert run(found, pictures(1, 0, (3, 16, 16))).shape == (1, found.labels.width)


# ---- statistics ------------------------------------------------------------------------------------------------------


@cache
def sources() -> tuple[nn.Module, nn.Module]:
    """Two networks of one structure."""
    return random_network(3, 1), random_network(3, 2)


@pytest.fixture(scope="module")
def statistics(place: Path) -> Path:
    """A file of statistics of these networks."""
    spec, domains = traced(sources()[0], PICTURE), DOMAINS[:2]
    found = gathered(sources(), spec, [(domain, pictures(4, 1)) for domain in domains], domains)
    seen = tensor_sums({domain: [pictures(4, 1)] for domain in domains})
    save_statistics(found, Fingerprint.of(sources(), spec, seen), place / "statistics.safetensors")
    return place / "statistics.safetensors"


def filled(path: Path) -> Statistics:
    """Statistics of these networks, with what a file says of them."""
    spec, owners = traced(sources()[0], PICTURE), {domain: index for index, domain in enumerate(DOMAINS[:2])}
    needs = (LAYERS, UNITS, INPUTS)
    found = Collector(spec, Lockstep(sources()), needs, tuple(owners), owners, device="meta").statistics
    stored = read_statistics(path)
    stored.check()
    stored.fill(found)
    return found


@given(random=RANDOMS)
def test_statistics_can_be_or_are_refused(place: Path, statistics: Path, random: Random) -> None:
    content, impossible = statistics.read_bytes(), False
    if random.random() < 0.3:
        content, _ = damaged(random, content)
    else:
        content, _, impossible = spoilt_statistics(random, content)
    found = read_or_refused(place / "sums.safetensors", content, filled)
    if found is not None:
        assert not impossible
        held = [total for moment in found.moments() for total in moment.totals if not total.is_meta]
        assert all(total.isfinite().all() for total in held)


# ---- pictures --------------------------------------------------------------------------------------------------------


@cache
def picture(suffix: str) -> bytes:
    """A picture with what a camera notes of it."""
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif[0x9204] = 0.5
    values = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    Image.fromarray(values).save(file, format=suffix, **({"exif": exif} if suffix in EXIF else {}))
    return file.getvalue()


EXIF = ("JPEG", "PNG", "WEBP", "TIFF")


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd heads
@given(random=RANDOMS)
def test_pictures_are_opened_or_refused(place: Path, random: Random) -> None:
    path = place / "picture.png"
    content, _ = damaged(random, picture(random.choice([*EXIF, "BMP", "GIF", "PPM"])))
    opened = read_or_refused(path, content, open_picture)
    assert opened is None or opened.mode == "RGB"
    reason = defect(path)
    assert opened is not None or reason


# ---- words -----------------------------------------------------------------------------------------------------------


@given(
    text=st.text(max_size=12) | st.from_regex(r"[-+]?[0-9.eEnaif]{1,9} ?[kMGx]?( ?(MAC|params|B|GB))?", fullmatch=True)
)
def test_amounts_are_read_or_refused(text: str) -> None:
    for told in (tried(Budget.of, text)[1], tried(read_bytes, text)[1]):
        assert told is None or (repr(text) in told and "\n" not in told), told


WORDS = st.sampled_from(
    ["--budget", "--method", "--pictures", "--out", "--domains", "--config", "--seed=3", "--", "-c"]
)


@given(words=st.lists(WORDS | st.text(max_size=8), max_size=6))
def test_words_are_read_or_refused(place: Path, words: list[str]) -> None:
    found, told = tried(expand, ["merge", *words])
    assert told is None or "\n" not in told
    assert found is None or all(isinstance(word, str) for part in found for word in part)


# ---- whole commands --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good inputs that need no merge."""
    folder = tmp_path_factory.mktemp("world")
    for part in ("weights", "pictures"):
        world.make(folder, part)
    return folder


SAMPLE = [
    ("short form", 1), ("short form", 2), ("weights", 1), ("weight files", 1), ("trees", 1), ("descriptions", 1),
]  # fmt: skip


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("kind", "number"), SAMPLE)
def test_a_command_answers_or_says_why_not(base: Path, tmp_path: Path, kind: str, number: int) -> None:
    inputs, scratch = tmp_path / "inputs", tmp_path / "scratch"
    inputs.mkdir()
    scratch.mkdir()
    case = draw(0, number, base, inputs, [kind])
    outcome = perform(case, inputs, scratch)
    assert not faults(case, outcome, inputs), (case, outcome.err)


def test_every_case_is_drawn_again_from_its_seed(base: Path, tmp_path: Path) -> None:
    for kind in set(KINDS) - {"students", "statistics", "checks", "checkpoints", "paths"}:
        drawn = []
        for folder in (tmp_path / kind / "one", tmp_path / kind / "two"):
            folder.mkdir(parents=True)
            drawn.append(draw(3, 5, base, folder, [kind]))
        assert drawn[0] == drawn[1]


CASE = Case("any", ["merge"], [], {"art.pth"})
GOOD = Outcome(2, "", "pleas: error: art.pth is no file.\n", {"art.pth": "file 1"}, {"art.pth": "file 1"}, [])


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, []),
        ({"err": "Traceback (most recent call last):\n" + GOOD.err}, ["it says 'Traceback (most recent call last):'"]),
        ({"err": GOOD.err + "and more\n"}, ["its sentence goes on: 'and more'"]),
        ({"err": ""}, ["it says 0 sentences of error"]),
        ({"err": GOOD.err * 2}, ["it says 2 sentences of error"]),
        ({"err": "pleas: error: no.\n"}, ["its sentence names nothing of ['art.pth']: no."]),
        ({"status": 139}, ["its exit status is 139"]),
        ({"after": {"art.pth": "file 2"}}, ["it changed art.pth"]),
        ({"after": {}}, ["it changed art.pth"]),
        ({"after": {**GOOD.before, "imported": "file 0"}},
         ["it imported a module that a file names", "it failed and left imported"]),
        ({"after": {**GOOD.before, "out/.a.tmp": "file 0"}}, ["it left out/.a.tmp", "it failed and left out/.a.tmp"]),
        ({"left": ["x"]}, ["it leaves x among temporary files"]),
        ({"status": 0}, []),
    ],
)  # fmt: skip
def test_what_does_not_hold_is_found(changed: dict[str, object], found: list[str], tmp_path: Path) -> None:
    outcome = Outcome(**{**vars(GOOD), **changed})  # type: ignore[arg-type]
    assert faults(CASE, outcome, tmp_path) == found


def test_what_is_accepted_must_be_possible_and_finite(tmp_path: Path) -> None:
    accepted = Outcome(**{**vars(GOOD), "status": 0, "after": {**GOOD.before, "out/results.json": "file 0"}})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text('{"table": [{"residual": NaN}]}')
    case = Case("any", ["merge"], [], set(), impossible=True)
    assert faults(case, accepted, tmp_path) == ["it accepted what cannot be", "out/results.json holds NaN"]
