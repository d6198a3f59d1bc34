import io
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same_state
from strangers import FORMS, Stranger, layouts, tarred
from torch import Tensor, nn

from project.errors import CheckpointError
from project.models import Architecture, read_checkpoint, read_weights
from project.models.reading.archive import read_content
from project.models.reading.inert import plain, unpickle
from project.models.reading.stand_ins import DamagedError, StandIn

NETWORK = Architecture("resnet20", 3).build().eval()
TENSORS = {name: tensor.clone() for name, tensor in NETWORK.state_dict().items()}


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    (tmp_path / "strange").mkdir()
    with Stranger(tmp_path / "strange") as one:
        yield one


def nothing(_: Any) -> Any:
    raise AssertionError


def loads(raw: bytes) -> Any:
    return plain(unpickle(io.BytesIO(raw), nothing, nothing, {}))


def test_tensors_of_every_layout_in_every_form_come_and_nothing_runs(
    tmp_path: Path, stranger: Stranger, caplog: pytest.LogCaptureFixture
) -> None:
    """What stands in for objects is checked against torch's own reading of the tensors, equal bit for bit."""
    files = {}
    for name, content in layouts(TENSORS, NETWORK, stranger).items():
        for form, write in FORMS.items():
            files[name, form] = tmp_path / f"{name}-{form}.pt"
            write(content, files[name, form])
    stranger.rest()
    with caplog.at_level("INFO", "project"):
        for (name, form), path in files.items():
            assert same_state(read_weights(path).state_dict, TENSORS), (name, form)
    assert not stranger.ran
    told = [one for one in caplog.messages if "passed over, and not imported" in one]
    assert len(told) == len(FORMS) * 5, "two layouts hold nothing else"
    (script,) = (one for one in told if "training script-zip" in one)
    assert "argparse.Namespace" in script
    assert f"{stranger.name}.leave" in script


def test_objects_are_inert_and_values_plain(tmp_path: Path, stranger: Stranger) -> None:
    for form, write in FORMS.items():
        write(stranger.objects(), tmp_path / form)
    stranger.rest()
    for form in FORMS:
        content = read_content(tmp_path / form)
        found = content.plain(content.tree)
        assert isinstance(found["config"], StandIn), form
        assert found["config"].name == f"{stranger.name}.Config"
        assert found["config"].attributes["lr"] == 0.1
        assert isinstance(found["called"], StandIn)
        assert found["called"].arguments == (1, 2)
        assert found["names"].entries == {"a": 1}
        assert issubclass(found["class"], StandIn)
        assert found["args"].attributes["lr"] == 0.1
        assert (found["accuracy"], found["sizes"]) == (0.5, (1, 2))
        assert torch.equal(found["table"], torch.arange(6.0, dtype=torch.float64).view(2, 3))
        assert found["many"] == [{1, 2}, frozenset([3]), 1 + 2j, b"raw", b"raw", torch.float16, "cpu"]
    assert not stranger.ran


@pytest.mark.filterwarnings("ignore")  # of torch's own reader
def test_archives_of_the_first_versions(tmp_path: Path) -> None:
    tarred(TENSORS, tmp_path / "first.tar")
    assert same_state(read_weights(tmp_path / "first.tar").state_dict, TENSORS)
    expected = torch.load(tmp_path / "first.tar", weights_only=False)
    assert same_state(expected, TENSORS), "torch reads the same"


@pytest.mark.parametrize("form", list(FORMS))
def test_views_share_their_storage(tmp_path: Path, form: str) -> None:
    whole = torch.arange(24.0).view(4, 6)
    content = {
        "whole": whole, "part": whole[1:3, ::2], "turned": whole.T, "expanded": torch.ones(1).expand(5, 3),
        "none": torch.empty(0, 3), "one": torch.tensor(3.0), "half": whole.half(), "wide": whole.double(),
        "brain": whole.bfloat16(), "whole numbers": torch.arange(3), "flags": torch.tensor([True, False]),
        "eighth": torch.ones(3).to(torch.float8_e4m3fn), "unsigned": torch.tensor([1, 2, 3], dtype=torch.uint16),
    }  # fmt: skip
    FORMS[form](content, tmp_path / "w")
    held = read_content(tmp_path / "w")
    found = held.plain(held.tree)
    for name, tensor in content.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].double(), tensor.double()), name
    if form != "pickle":  # which keeps a storage for every tensor
        found["whole"][1, 0] = 7.5  # in memory that is the process's own
        assert found["part"][0, 0] == 7.5


def test_the_file_stays_as_it_is_whatever_is_done_to_its_tensors(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(5)}, tmp_path / "w.pt")
    before = (tmp_path / "w.pt").read_bytes()
    read_weights(tmp_path / "w.pt").state_dict["a"].fill_(1)
    assert (tmp_path / "w.pt").read_bytes() == before
    assert torch.equal(read_weights(tmp_path / "w.pt").state_dict["a"], torch.zeros(5))


def test_a_checkpoint_gives_what_it_is_gone_on_from_and_no_arguments(tmp_path: Path, stranger: Stranger) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    content = {
        "state_dict": {"a": torch.ones(2)}, "optimizer_states": [optimizer.state_dict()], "epoch": 3,
        "lr_schedulers": [scheduler.state_dict()], "hyper_parameters": stranger.objects(),
        "datamodule_hyper_parameters": stranger.objects(), "loops": {"fit_loop": {"ready": 2}},
    }  # fmt: skip
    torch.save(content, tmp_path / "c.ckpt")
    torch.save({**content, "callbacks": {"mine": {"state": stranger.module.Config()}}}, tmp_path / "objects.ckpt")
    stranger.rest()
    found = read_checkpoint(tmp_path / "c.ckpt")
    assert found.keys() == content.keys() - {"hyper_parameters", "datamodule_hyper_parameters"}
    kept, expected = (one["state"][0]["exp_avg"] for one in (found["optimizer_states"][0], optimizer.state_dict()))
    assert torch.equal(kept, expected)
    twin = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    twin.load_state_dict(found["lr_schedulers"][0])
    assert twin.milestones == scheduler.milestones == Counter([2, 5])
    (tmp_path / "c.ckpt").write_bytes(b"")  # what goes on has memory of its own
    assert torch.equal(found["state_dict"]["a"], torch.ones(2))
    with pytest.raises(CheckpointError, match=r"holds an object of .*Config in 'callbacks'; allowed in a checkpoint"):
        read_checkpoint(tmp_path / "objects.ckpt")
    assert not stranger.ran


def test_programs_that_change_what_reads_them_leave_nothing_behind(stranger: Stranger) -> None:
    """What a pickle may set or fill are its own stand-ins; what all files share stays as it is."""
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    table = b"ccollections\nOrderedDict\n"
    config = f"c{stranger.name}\nConfig\n".encode()
    change = b"N}(X\x04\x00\x00\x00nameX\x04\x00\x00\x00evilu\x86b."  # BUILD: attributes of the object below
    stranger.rest()
    for name in (function, table, config, b"ctorch\nfloat32\n", b"ctorch\nFloatStorage\n", b"ctorch\nSize\n"):
        with pytest.raises(DamagedError):
            loads(b"\x80\x02" + name + change)
    assert StandIn.name == ""
    assert loads(b"\x80\x02" + config + b")\x81" + change).name == f"{stranger.name}.Config"  # an object of its own
    assert not stranger.ran


DOUBLE = b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R"


def nested(code: bytes, times: int) -> bytes:
    return b"\x80\x02" + b")" + code * times + b"."


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (nested(b"\x85", 500), "more than 200 deep"),
        (b"\x80\x02}" + nested(b"\x85", 100_000)[2:-1] + b"Ns.", "more than 200 deep"),  # as a key
        (b"\x80\x02" + b"]" * 500 + b"a" * 499 + b".", "more than 200 deep"),
        (b"\x80\x02]q\x00h\x00a.", "lies in itself"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.", "EOFError"),  # a terabyte
        (b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.", "made of a int"),
        (b"\x80\x02cnumpy\nndarray\n)R(K\x01J\x00\x00\x00\x7f\x85" + DOUBLE + b"\x89C\x01atb.", "of shape"),
        (b"\x80\x02(1.", "."),
        (b"\x80\x02.", "."),
        (b"\x80\x02\xff.", "."),
        (b"", "EOFError"),
    ],
)  # fmt: skip
def test_programs_that_ask_for_too_much_are_refused(raw: bytes, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        loads(raw)


def test_a_number_of_the_memo_makes_no_room_for_those_below_it() -> None:
    assert loads(b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b"0N.") is None


def test_what_is_referred_to_many_times_is_made_once() -> None:
    twice = b"q%c]h%cah%ca"  # remember the list at hand, and put it into a new one two times
    found = loads(b"\x80\x02]" + b"".join(twice % (i, i, i) for i in range(100)) + b".")
    for _ in range(100):
        first, second = found
        assert first is second
        found = first
    assert found == []


def forged(tensor: Tensor, path: Path, **changes: Any) -> Path:
    """A file whose one tensor is said to be another than its storage holds."""
    torch.save({"a": tensor}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for old, new in changes["replace"]:
        (main,) = (name for name in parts if name.endswith("data.pkl"))
        assert old in parts[main]
        parts[main] = parts[main].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in parts.items():
            archive.writestr(name, raw)
    return path


def test_tensors_that_do_not_lie_in_their_storage_are_refused(tmp_path: Path) -> None:
    tensor = torch.arange(7.0)
    path = tmp_path / "w.pt"
    assert torch.equal(read_weights(forged(tensor, path, replace=[])).state_dict["a"], tensor), "forging itself is fine"
    for old, new in (
        (b"K\x07\x85", b"K\x08\x85"),  # one more element
        (b"K\x07\x85", b"J\x00\x00\x00\x7f\x85"),  # two billion
        (b"K\x07\x85", b"J\xff\xff\xff\xff\x85"),  # minus one
        (b"K\x01\x85", b"K\x02\x85"),  # every second
    ):
        with pytest.raises(CheckpointError, match=r"w.pt is truncated or damaged: a tensor .*shape"):
            read_weights(forged(tensor, path, replace=[(old, new)]))
    huge = [(b"K\x07\x85", b"\x8a\x05\x00\x00\x00\x00\x01\x85"), (b"K\x01\x85", b"K\x00\x85")]  # one, 2³² times
    with pytest.raises(CheckpointError, match=r"a tensor of shape .* is said to lie in 7 elements"):
        read_weights(forged(tensor, path, replace=huge))


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_an_archive_whose_checksums_fail_is_refused(tmp_path: Path, place: float) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(1000), "b": torch.ones(1000)}, path)
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * place)] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"w.pt is truncated or damaged: the checksum of w/data/. is another"):
        read_weights(path)


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same_state(read_weights(tmp_path / "w.pt").state_dict, TENSORS)


def test_the_other_order_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([3])}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in parts.items():
            width = {"w/data/0": 4, "w/data/1": 8}.get(name, 0)
            swapped = b"".join(raw[i : i + width][::-1] for i in range(0, len(raw), width)) if width else raw
            archive.writestr(name, b"big" if name.endswith("byteorder") else swapped)
    found = read_weights(path).state_dict
    assert torch.equal(found["a"], torch.tensor([1.0, 2.5]))
    assert torch.equal(found["b"], torch.tensor([3]))


def test_what_a_file_is_instead_is_said_with_what_to_do(tmp_path: Path) -> None:
    def written(name: str, raw: bytes) -> Path:
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name

    scripted, other = tmp_path / "scripted.pt", tmp_path / "other.zip"
    with zipfile.ZipFile(scripted, "w") as archive:
        for part in ("data.pkl", "constants.pkl"):
            archive.writestr(f"scripted/{part}", b"\x80\x02).")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "weights")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for path, words in {
        written("pointer.pth", pointer): "is a pointer of Git LFS, .* git lfs pull",
        written("page.pth", b"\n<!DOCTYPE html><html>404</html>"): "is a web page, not weights",
        written("w.pt.gz", b"\x1f\x8b\x08\x00abc"): "is compressed by gzip; unpack it: gunzip --keep .*w.pt.gz",
        written("w.h5", b"\x89HDF\r\n\x1a\n"): "is an HDF5 file",
        written("nothing.pt", b""): "is empty",
        scripted: r"is a program of TorchScript.*torch.jit.load\('.*scripted.pt'\).state_dict\(\)",
        other: r"is a zip archive that torch did not write \(in it: readme.txt\); unpack it: unzip",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            read_weights(path)


def test_names_are_shown_in_one_line_whatever_they_hold(tmp_path: Path) -> None:
    module, names = b"X\x01\x00\x00\x00m", (b"X\x06\x00\x00\x00a\nb\x1b[1", b"X\xe8\x03\x00\x00" + b"y" * 1000)
    stand_ins = b"".join(module + name + b"\x93" for name in names)
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x04}(X\x01\x00\x00\x00x(" + stand_ins + b"tu.")
    found = read_content(path)
    assert found.passed == ("m.a\\nb\\x1b[1", f"m.{'y' * 78}…")
    with pytest.raises(CheckpointError, match=r"its entry 'x' is a tuple") as refused:
        read_weights(path)
    assert "\n" not in str(refused.value)


def test_modules_of_the_standard_library_are_not_imported_either(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"\x80\x02}(X\x01\x00\x00\x00acthis\nd\nX\x01\x00\x00\x00bcantigravity\nfly\nu.")
    assert read_content(path).passed == ("antigravity.fly", "this.d")
    assert not {"this", "antigravity"} & set(sys.modules)
