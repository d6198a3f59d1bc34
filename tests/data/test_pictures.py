"""Opening, transforming and checking pictures."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from project.data.checking import PictureCheck
from project.data.pictures import Pictures, defect, open_picture
from project.data.transforms import evaluation_transform, training_transform
from project.errors import ConfigurationError, DataError
from project.models.preprocessing import Preprocessing

Draw = Callable[..., Path]

EXACT = True  # see tests/conftest.py


def test_a_picture_of_the_right_size_is_only_normalised(draw: Draw) -> None:
    path = draw("a.png", 8, 8)
    preprocessing = Preprocessing(8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    values = np.asarray(Image.open(path), dtype=np.float64) / 255
    expected = ((values - preprocessing.mean) / preprocessing.std).transpose(2, 0, 1)
    for crop in ("center", "squash"):
        got = evaluation_transform(replace(preprocessing, crop=crop))(open_picture(path))
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


def test_center_keeps_the_middle_and_squash_the_whole(draw: Draw) -> None:
    image = open_picture(draw("a.png", 16, 8))
    preprocessing = Preprocessing(8, (0, 0, 0), (1, 1, 1))
    center, squash = (evaluation_transform(replace(preprocessing, crop=crop))(image) for crop in ("center", "squash"))
    middle = np.asarray(image)[:, 4:12].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(center.numpy(), middle, atol=1e-6)
    assert squash.shape == center.shape
    assert not torch.equal(squash, center)


def test_training_pictures_vary_with_the_seed_of_torch(draw: Draw) -> None:
    image, transform = open_picture(draw("a.png", 20, 20)), training_transform(Preprocessing(8))
    torch.manual_seed(0)
    first, second = transform(image), transform(image)
    torch.manual_seed(0)
    assert torch.equal(transform(image), first)
    assert not torch.equal(first, second)
    assert first.shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    Image.new("RGB", (4, 4)).convert(mode).save(path)
    assert open_picture(path).mode == "RGB"


@pytest.fixture(params=["missing", "text", "truncated.png", "truncated.jpg"])
def bad(request: pytest.FixtureRequest, tmp_path: Path, draw: Draw) -> Path:
    path = tmp_path / "bad.png"
    if request.param == "text":
        path.write_text("no picture")
    elif request.param != "missing":
        path = draw(request.param, 64, 64)
        path.write_bytes(path.read_bytes()[:-700])
    return path


def test_a_picture_stands_as_its_camera_held_it(tmp_path: Path) -> None:
    upright = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "turned.png")), np.asarray(upright))


def test_a_picture_is_handed_to_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would let Ghostscript draw PostScript, whatever its file is called."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program is called"))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="EPS")
    assert defect(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png cannot be read as a picture"):
        open_picture(tmp_path / "a.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert defect(tmp_path / "a.png") == "it is no file"
    with pytest.raises(DataError, match=r"a\.png cannot be read as a picture: it is no file"):
        open_picture(tmp_path / "a.png")


def test_an_unreadable_picture_is_named(bad: Path) -> None:
    pictures = Pictures([(bad, 0)], evaluation_transform(Preprocessing(8)))
    with pytest.raises(DataError, match=rf"{bad.name} cannot be read as a picture: "):
        pictures[0]


def test_unreadable_pictures_are_found_beforehand(bad: Path, draw: Draw) -> None:
    samples = [(draw("good.png"), 0), (bad, 1), (draw("fine.jpg"), 2)]
    with pytest.raises(DataError, match=rf"1 of 3 pictures cannot be read: .*{bad.name}.*'skip'"):
        PictureCheck().readable(samples)
    check = PictureCheck("skip")
    with pytest.warns(UserWarning, match=rf"1 of 3 pictures cannot be read: .*{bad.name}.*; they are left out"):
        assert check.readable(samples) == [samples[0], samples[2]]


def test_many_unreadable_pictures_are_counted(tmp_path: Path) -> None:
    samples = [(tmp_path / f"{index}.png", 0) for index in range(9)]
    with pytest.raises(DataError, match=r"9 of 9 .*0.png.*4.png \([^)]*\) and 4 more"):
        PictureCheck().readable(samples)


def test_a_picture_is_decoded_once(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, check = [(draw("a.png"), 0)], PictureCheck()
    check.readable(samples)
    monkeypatch.delattr("project.data.checking.defect")
    assert check.readable(samples) == samples


def test_an_unknown_way_with_errors_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"on_error is 'ignore'; allowed: 'raise', 'skip'"):
        PictureCheck("ignore")  # type: ignore[arg-type]
