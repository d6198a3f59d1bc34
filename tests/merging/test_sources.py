"""Which source is whose, and what is refused before any long work."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from project.errors import ConfigurationError
from project.merging import SourceFile
from project.merging.sources import domains_by_name, read_sources, settle_domains
from project.models import Architecture, Description, LabelSpace

NAMES = ("cat", "dog")


def settled(stated: list[list[str] | None], domains: str, mode: str = "shared", ownerless: tuple[str, ...] = ()) -> Any:
    """Domains of sources whose files say nothing themselves."""
    labels = LabelSpace({domain: NAMES for domain in domains}, mode)  # type: ignore[arg-type]
    files = [SourceFile(Path(f"{i}.pth"), one) for i, one in enumerate(stated)]
    silent = SimpleNamespace(description=SimpleNamespace(label_space=None, domains=()))
    return settle_domains(files, [silent] * len(files), labels, ownerless)  # type: ignore[list-item]


def test_silent_sources_take_what_is_left_in_order() -> None:
    assert settled([None, None, None], "abc") == [["a"], ["b"], ["c"]]
    assert settled([None, ["a"], None], "abc") == [["b"], ["a"], ["c"]]
    assert settled([["c", "a"], ["b"]], "abc") == [["c", "a"], ["b"]]
    assert settled([None, None], "abc", ownerless=("b",)) == [["a"], ["c"]]


def test_one_domain_is_all_sources_where_none_claims_any() -> None:
    assert settled([None, None, None], "a") == [["a"]] * 3
    with pytest.raises(ConfigurationError, match="does not say its domains; state them: a"):
        settled([["a"], None], "a")  # whoever names one may have forgotten the other's pictures
    with pytest.raises(ConfigurationError, match="does not say its domains; state them: a"):
        settled([None, None], "a", "different")


def test_a_source_of_another_domain_is_not_taken_by_its_place() -> None:
    labels = LabelSpace({domain: NAMES for domain in "ab"}, "shared")
    says = [SimpleNamespace(description=SimpleNamespace(label_space=None, domains=(domain,))) for domain in "cb"]
    with pytest.raises(ConfigurationError, match=r"trained on c, but the data have a, b; state its"):
        settle_domains([SourceFile(Path("0.pth")), SourceFile(Path("1.pth"))], says, labels)  # type: ignore[arg-type]
    stated = [SourceFile(Path("0.pth"), ["a"]), SourceFile(Path("1.pth"))]
    assert settle_domains(stated, says, labels) == [["a"], ["b"]]  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["shared", "different"])
def test_a_domain_without_a_source(mode: str) -> None:
    with pytest.raises(ConfigurationError, match="domain 'c' has no source"):
        settled([["a"], ["b"]], "abc", mode)
    if mode == "shared":
        assert settled([["a"], ["b"]], "abc", mode, ("c",)) == [["a"], ["b"]]


def test_a_domain_named_as_without_source_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match="without_source holds 'd'; the data have: a, b"):
        settled([["a"], ["b"]], "ab", ownerless=("d",))


def test_a_source_listed_twice(tmp_path: Path) -> None:
    """By its own name, by another way to it, or as a copy."""
    state = Architecture("resnet20", 2).build().state_dict()
    torch.save(state, tmp_path / "a.pth")
    (tmp_path / "copy.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    (tmp_path / "link.pth").symlink_to(tmp_path / "a.pth")
    for name in ("a.pth", "copy.pth", "link.pth"):
        with pytest.raises(ConfigurationError, match=rf"a\.pth and .*{name}, which are the same file"):
            read_sources([SourceFile(tmp_path / "a.pth"), SourceFile(tmp_path / name)])
    state["conv1.weight"] += 1
    torch.save(state, tmp_path / "b.pth")
    assert len(read_sources([SourceFile(tmp_path / "a.pth"), SourceFile(tmp_path / "b.pth")])) == 2


@pytest.mark.parametrize(
    ("names", "stated", "domains", "expected"),
    [
        (["PHOTO", "x-sketch-2"], [(), ()], ["photo", "sketch"], ["photo", "sketch"]),
        (["cartoon", "art"], [(), ()], ["art", "cartoon"], ["cartoon", "art"]),
        (["art_cartoon", "x"], [(), ()], ["art", "cartoon"], [None, None]),
        (["photo1", "photo2"], [(), ()], ["photo", "sketch"], [None, None]),
        (["photo", "x"], [(), ("photo",)], ["photo", "sketch"], [None, None]),
        (["photo", "x"], [("sketch",), ()], ["photo", "sketch"], [None, None]),
        (["photo", "sketch"], [(), ()], [], [None, None]),
        (["alpha", "base"], [(), ()], ["a", "b"], [None, None]),
    ],
)
def test_silent_files_are_placed_by_their_names(
    names: list[str], stated: list[tuple[str, ...]], domains: list[str], expected: list[str | None]
) -> None:
    assert domains_by_name(names, stated, domains) == expected


def test_a_name_goes_before_a_place() -> None:
    """Whatever the order of files and domains."""
    labels = LabelSpace({"photo": ("a", "b"), "sketch": ("a", "b")})
    files = [SourceFile(Path("my_sketch.pth")), SourceFile(Path("net.pth"))]
    silent = SimpleNamespace(description=Description(), origin="x")
    assert settle_domains(files, [silent] * 2, labels) == [["sketch"], ["photo"]]  # type: ignore[list-item]
