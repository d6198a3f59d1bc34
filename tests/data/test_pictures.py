"""Opening, transforming and checking pictures."""

import os
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps
from torchvision import transforms

from project.data.checking import PictureCheck
from project.data.opening import defect, examine, open_picture
from project.data.pictures import Pictures
from project.data.transforms import evaluation_transform, training_transform
from project.errors import ConfigurationError, DataError
from project.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing

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


def test_an_orientation_may_be_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    lying.save(tmp_path / "a.png", exif=exif)
    shown = open_picture(tmp_path / "a.png", Preprocessing(4, orientation="ignored"))
    assert np.array_equal(np.asarray(shown), np.asarray(lying))
    pictures = Pictures([(tmp_path / "a.png", 0)], evaluation_transform(Preprocessing(4, orientation="ignored")))
    assert torch.equal(pictures[0][0], pictures.transform(lying))
    assert not torch.equal(Pictures(pictures.samples, evaluation_transform(Preprocessing(4)))[0][0], pictures[0][0])


@pytest.mark.parametrize("orientation", [1, 6, 200])
def test_no_picture_fails_for_its_metadata(tmp_path: Path, orientation: int) -> None:
    """Turning a picture, Pillow writes all metadata anew: a rational of -1/0 it reads, and cannot write."""
    entries = struct.pack("<HHIHxx", 0x0112, 3, 1, orientation) + struct.pack("<HHII", 0x011A, 10, 1, 38)
    content = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<Iii", 0, -1, 0)
    lying = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    for name, exif_content in (("broken", content), ("nonsense", b"Exif\0\0nonsense"), ("short", content[:20])):
        lying.save(tmp_path / f"{name}.png", exif=exif_content)
        assert defect(tmp_path / f"{name}.png") is None
        turned = name == "broken" and orientation == 6
        if turned:
            with Image.open(tmp_path / "broken.png") as image, pytest.raises(struct.error):
                ImageOps.exif_transpose(image)
        assert open_picture(tmp_path / f"{name}.png").size == ((6, 4) if turned else (4, 6))


def test_deep_pictures_keep_their_greys(tmp_path: Path) -> None:
    greys = np.arange(64, dtype=np.float64).reshape(8, 8) / 63
    saved = {
        "a.png": Image.fromarray(np.rint(greys * 65535).astype(np.uint16)),
        "b.tif": Image.fromarray(np.rint(greys * 65535).astype(np.uint16)),
        "c.tif": Image.fromarray(greys.astype(np.float32)),
    }
    for name, image in saved.items():
        image.save(tmp_path / name)
    height = b"P5 8 8 65535\n" + np.rint(greys * 65535).astype(">u2").tobytes()
    (tmp_path / "d.pgm").write_bytes(height)
    for name in (*saved, "d.pgm"):
        shown = np.asarray(open_picture(tmp_path / name))
        assert np.abs(shown - 255 * greys[:, :, None]).max() <= 0.51  # half a step, and what 16 bits round
        assert examine(tmp_path / name).deep


def test_values_of_unknown_range_are_refused(tmp_path: Path) -> None:
    saved = {"a.tif": np.full((4, 4), 70_000, np.int32), "b.tif": np.full((4, 4), 1.5, np.float32)}
    saved |= {"c.tif": np.full((4, 4), np.nan, np.float32), "d.tif": np.full((4, 4), -0.5, np.float32)}
    for name, values in saved.items():
        Image.fromarray(values).save(tmp_path / name)
        words = "integers of 32 bits" if name == "a.tif" else r"floating point, from .*; allowed: 0 to 1"
        assert re.search(words, defect(tmp_path / name) or "")
        with pytest.raises(DataError, match=words):
            open_picture(tmp_path / name)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_pictures_lie_on_the_ground_of_choice(tmp_path: Path, mode: str) -> None:
    """Black strokes of which some are half, some wholly transparent."""
    alpha = np.array([[0, 255], [0, 0]], np.uint8) if mode == "P" else np.array([[0, 64], [128, 255]], np.uint8)
    image = Image.fromarray(np.zeros((2, 2, 4), np.uint8))
    image.putalpha(Image.fromarray(alpha))
    options = {}
    if mode == "P":  # one colour of the palette is transparent
        image = Image.fromarray((alpha == 0).astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0] * 256)
        options = {"transparency": 1}
    (image if mode == "P" else image.convert(mode)).save(tmp_path / "a.png", **options)
    for ground, colour in (("white", (255,) * 3), ("black", (0,) * 3), ("#ff8000", (255, 128, 0))):
        shown = np.asarray(open_picture(tmp_path / "a.png", Preprocessing(4, ground=ground))).astype(float)
        expected = (1 - alpha[:, :, None] / 255) * colour
        assert np.abs(shown - expected).max() <= 1
    assert np.asarray(open_picture(tmp_path / "a.png")).max() == 0
    assert examine(tmp_path / "a.png").transparent


def test_a_channel_that_hides_nothing_is_no_transparency(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(tmp_path / "a.png")
    assert not examine(tmp_path / "a.png").transparent
    assert open_picture(tmp_path / "a.png", Preprocessing(4, ground="white")).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 33)])
def test_resize_and_crop_are_those_of_torchvision(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    for mode in get_args(Interpolation):
        reference = transforms.Compose([
            transforms.Resize(16, transforms.InterpolationMode(mode)), transforms.CenterCrop(14), transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ])  # fmt: skip
        made = evaluation_transform(Preprocessing(14, resize=16, interpolation=mode))(image)
        assert torch.allclose(made, reference(image), atol=1e-6)
    squashed = evaluation_transform(Preprocessing(14, crop="squash", resize=16))(image)
    whole = evaluation_transform(Preprocessing(16, crop="squash"))(image)
    assert torch.equal(squashed, whole[:, 1:15, 1:15])


def test_channels_are_turned_after_all_else() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    known = Preprocessing(8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    turned = replace(known, channels="BGR")
    assert torch.equal(evaluation_transform(turned)(image), evaluation_transform(known)(image).flip(0))
    black = evaluation_transform(turned)(Image.new("RGB", (8, 8)))[:, 0, 0]
    mean, std = map(torch.tensor, turned.read)
    assert torch.allclose(black, -mean / std)


def test_a_picture_is_handed_to_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would let Ghostscript draw PostScript, whatever its file is called."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program is called"))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="EPS")
    assert defect(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png cannot be read as a picture"):
        open_picture(tmp_path / "a.png")


def test_the_smallest_jpegs_are_pictures(tmp_path: Path) -> None:
    for side in (1, 7, 8):
        Image.new("RGB", (side, 9)).save(tmp_path / "a.jpg")
        assert defect(tmp_path / "a.jpg") is None


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
    words = rf"1 of 3 pictures {'cannot be read' if bad.exists() else '.33.3 %. are not there'}: .*{bad.name}.*"
    with pytest.raises(DataError, match=words + "'skip'"):
        PictureCheck().readable(samples)
    check = PictureCheck("skip")
    with pytest.warns(UserWarning, match=words + "; they are left out"):
        assert check.readable(samples) == [samples[0], samples[2]]
    assert check.readable(samples[:2]) == samples[:1]  # and nothing is said twice


def test_many_unreadable_pictures_are_counted(tmp_path: Path) -> None:
    samples = [(tmp_path / f"{index}.png", 0) for index in range(9)]
    for path, _ in samples:
        path.write_text("no picture")
    with pytest.raises(DataError, match=r"9 of 9 .*0.png.*4.png \([^)]*\) and 4 more"):
        PictureCheck().readable(samples)


def test_missing_pictures_are_told_as_a_share(tmp_path: Path, draw: Draw) -> None:
    """Lists of another version of the data lack many files, a bad copy a few."""
    samples = [(draw(f"{index}.png"), 0) for index in range(6)] + [
        (tmp_path / "gone" / f"{i}.png", 0) for i in range(2)
    ]
    draw("0.png").write_text("no picture")
    words = (
        r"2 of 8 pictures \(25 %\) are not there: .*gone/0.png, .*gone/1.png; where they are many, .*another version"
    )
    with pytest.raises(DataError, match=words + r".*; 1 of 8 pictures cannot be read: .*0\.png.*; mend them"):
        PictureCheck().readable(samples)


def test_what_pixels_do_not_tell_is_said(tmp_path: Path, draw: Draw, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 4)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 9)).save(tmp_path / "clear.png")
    samples = [(tmp_path / f"{name}.png", 0) for name in ("turned", "deep", "clear")] + [(draw("plain.png"), 0)]
    check = PictureCheck()
    assert check.readable(samples) == samples
    with pytest.warns(UserWarning, match="domain art: 1 of 4 pictures are transparent .*; ground: white"):
        check.account(samples, Preprocessing(8), "domain art")
    assert "1 of 4 pictures noted another way up; they stand as that says" in caplog.text
    assert "1 of 4 pictures have more than 8 bits a value, and are scaled to 8" in caplog.text
    check.account(samples, Preprocessing(8, ground="white", orientation="ignored"), "domain art")
    assert "they lie as their pixels do" in caplog.text
    caplog.clear()
    check.account(samples[3:], Preprocessing(8), "domain art")
    assert not caplog.text


def test_a_picture_is_decoded_once(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, check = [(draw("a.png"), 0)], PictureCheck()
    check.readable(samples)
    monkeypatch.delattr("project.data.checking.examine")
    assert check.readable(samples) == samples


def test_an_unknown_way_with_errors_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"on_error is 'ignore'; allowed: 'raise', 'skip'"):
        PictureCheck("ignore")  # type: ignore[arg-type]
