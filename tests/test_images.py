"""The one opener of pictures: turned, scaled and put on white as every viewer does, and whatever noise a file holds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autotelic.errors import UsageError
from autotelic.images import as_pil, check_image_file

CORNERS = np.zeros((4, 6, 3), np.uint8)
CORNERS[0, 0], CORNERS[0, -1], CORNERS[-1, 0], CORNERS[-1, -1] = (9, 0, 0), (0, 9, 0), (0, 0, 9), (9, 9, 9)
TURNED = {
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.transpose(1, 0, 2),
    6: np.rot90(CORNERS, -1),
    7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(CORNERS),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_a_photograph_stands_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(CORNERS).save(file, "PNG", exif=exif)
    for form in (file.getvalue(), Image.open(file)):
        assert np.array_equal(np.asarray(as_pil(form)), TURNED[orientation])


def test_sixteen_bits_are_rounded_to_eight_by_their_share_of_65535() -> None:
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    seen = np.asarray(as_pil(Image.fromarray(ramp)))[..., 0].astype(int)
    assert np.array_equal(seen, np.rint(ramp / 65_535 * 255).astype(int))
    assert np.array_equal(np.asarray(as_pil(np.repeat(ramp[..., None], 3, 2)))[..., 1], seen)


def test_transparency_is_mixed_with_white_by_hand() -> None:
    image = Image.new("RGBA", (2, 2), (100, 0, 200, 51))  # a fifth of the colour, four fifths of 255
    assert as_pil(image).getpixel((0, 0)) == (224, 204, 244)


def test_what_is_returned_is_a_copy() -> None:
    image = Image.new("RGB", (2, 2))
    as_pil(image).putpixel((0, 0), (1, 2, 3))
    array = np.zeros((2, 2, 3), np.uint8)
    as_pil(array).putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (0, 0, 0) and not array.any()


def test_an_array_that_could_be_read_both_ways_has_its_channels_last() -> None:
    array = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(np.asarray(as_pil(array)), array)


@pytest.mark.parametrize("values", [[-0.5, 1.0], [0.0, 1.01]])
def test_floats_may_miss_0_and_1_by_a_rounding_alone(values: list[float]) -> None:
    with pytest.raises(UsageError, match=r"x has values in .*, not in 0..1: scale them"):
        as_pil(np.array(values, np.float32).repeat(6).reshape(2, 2, 3), "x")
    assert as_pil(np.full((1, 1, 3), 1.0005)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 4), (2, 3, 4, 4), (0, 4, 3), ()])
def test_other_shapes_are_refused_by_name(shape: tuple[int, ...]) -> None:
    for form in (np.zeros(shape, np.uint8), torch.zeros(shape)):
        with pytest.raises(UsageError, match=r"^x (is no image but|has no pixels)"):
            as_pil(form, "x")


def test_a_limit_of_pixels_holds_at_every_entrance(tmp_path: Path) -> None:
    image = Image.new("L", (11, 10))
    image.save(tmp_path / "large.png")
    forms = (tmp_path / "large.png", (tmp_path / "large.png").read_bytes(), image, np.zeros((10, 11, 3), np.uint8))
    for form in forms:
        with pytest.raises(UsageError, match="x has 11 x 10 pixels, more than pixel_limit=109"):
            as_pil(form, "x", 109)
        assert as_pil(form, "x", 110).size == (11, 10)
    with pytest.raises(UsageError, match="more than pixel_limit=109"):
        check_image_file(tmp_path / "large.png", "x", 109)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UsageError, match="x: there is no file"):
        as_pil(tmp_path / "pipe.png", "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"])
def test_damaged_files_are_opened_or_refused_in_one_line(kind: str) -> None:
    """Bytes changed, cut and repeated anywhere: nothing but a picture or a UsageError comes of it."""
    random = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8)).save(file, kind)
    whole = np.frombuffer(file.getvalue(), np.uint8)
    refused = 0
    for _ in range(150):
        data = whole.copy()
        places = random.integers(0, len(data), random.integers(1, 12))
        data[places] = random.integers(0, 256, len(places))
        start, end = sorted(random.integers(0, len(data), 2))
        data = [data, data[: max(1, end)], np.concatenate([data[:end], data[start:]])][random.integers(3)]
        try:
            assert as_pil(data.tobytes(), "x", 1_000_000).mode == "RGB"
        except UsageError as error:
            assert str(error).startswith("x ") and "\n" not in str(error)
            refused += 1
    assert refused > 10, "the damage is real"
