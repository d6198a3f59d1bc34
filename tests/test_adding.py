"""``pleas add-statistics`` from the command line."""

from pathlib import Path

import pytest
from helpers import PICTURE, gathered, pictures, random_network
from moments.test_store import fingerprint

from project import __main__ as command
from project.cli import main
from project.errors import ConfigurationError
from project.moments import UNITS, lock_of, read_statistics, save_statistics
from project.runtime import only_writer
from project.symmetry import trace


def shards(folder: Path) -> list[str]:
    """Two files of three and two pictures."""
    networks = [random_network(0, weights) for weights in (0, 1)]
    spec = trace(networks[0], PICTURE)
    paths = []
    for number, count in enumerate((3, 2)):
        batches = [("art", pictures(count, number))]
        found = gathered(networks, spec, batches, ["art"], [UNITS])
        paths.append(str(folder / f"{number}.safetensors"))
        save_statistics(found, fingerprint(networks, spec, batches), paths[-1])
    return paths


def test_the_command_adds_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = shards(tmp_path)
    main(["add-statistics", *paths, "--out", str(tmp_path / "sum.safetensors")])
    found = read_statistics(tmp_path / "sum.safetensors")
    assert found.pictures == {"art": 5}
    assert f"{len(found.moments)} moments of 5 pictures of art" in capsys.readouterr().out


def test_a_file_that_another_run_writes_is_left_to_it(tmp_path: Path) -> None:
    paths, out = shards(tmp_path), tmp_path / "sum.safetensors"
    with (
        only_writer(lock_of(out), "no"),
        pytest.raises(ConfigurationError, match=r"out is .*sum\.safetensors, which an"),
    ):
        main(["add-statistics", *paths, "--out", str(out)])
    assert sorted(map(str, tmp_path.iterdir())) == paths


def test_what_cannot_be_added_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (path, _) = shards(tmp_path)
    monkeypatch.setattr("sys.argv", ["pleas", "add-statistics", path, path, "--out", str(tmp_path / "sum.safetensors")])
    assert command.console() != 0
    assert capsys.readouterr().err.splitlines()[-1].endswith("allowed: two or more, each once.")
    assert not (tmp_path / "sum.safetensors").exists()
