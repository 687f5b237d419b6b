"""Rewards of pictures without weights: numbers by hand, gradients by differences, and words that are read."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from autotelic.errors import UsageError
from autotelic.rewards.image import pictures
from autotelic.rewards.image.pictures import Colourfulness, JPEGSize, Sharpness, TextMatch, match, quoted


def two_colours(left: tuple[int, int, int], right: tuple[int, int, int]) -> Tensor:
    """[3, 4, 8] in 0..1, half of each."""
    picture = torch.empty(3, 4, 8)
    picture[:, :, :4] = torch.tensor(left)[:, None, None] / 255
    picture[:, :, 4:] = torch.tensor(right)[:, None, None] / 255
    return picture


def noise(count: int = 2, side: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 + 0.8 * torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64)


def test_jpeg_sizes_are_those_of_the_files() -> None:
    flat = np.full((16, 16, 3), 128, np.uint8)
    rough = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    bytes_of = []
    for picture in (flat, rough):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="JPEG", quality=75)
        bytes_of.append(len(file.getvalue()))
    assert bytes_of[1] > bytes_of[0] + 100
    assert JPEGSize(75)(outputs=[flat, rough]) == [-size / 100 for size in bytes_of]
    assert JPEGSize(75, "incompressible")(outputs=[flat, rough]) == [size / 100 for size in bytes_of]
    assert JPEGSize(10)(outputs=[rough])[0] > JPEGSize(90)(outputs=[rough])[0]


def test_what_the_headers_of_a_jpeg_file_cost() -> None:
    assert JPEGSize().size(np.full((16, 16, 3), 128, np.uint8)) == 629


def test_jpeg_sizes_of_float_pictures_are_those_of_their_8_bit_roundings() -> None:
    rounded = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    floating = torch.from_numpy(rounded).permute(2, 0, 1) / 255
    nudged = (floating + 0.001).clamp(0, 1)
    assert JPEGSize()(outputs=[floating]) == JPEGSize()(outputs=nudged[None]) == JPEGSize()(outputs=[rounded])


def test_a_wrong_quality_or_target_is_refused() -> None:
    with pytest.raises(UsageError, match=r"quality of a JPEG file is 1\.\.95, not 100"):
        JPEGSize(100)
    with pytest.raises(UsageError, match='"compressible" or "incompressible", not "small"'):
        JPEGSize(target="small")  # type: ignore[arg-type]


def test_colourfulness_of_one_and_of_two_colours() -> None:
    """Red: rg = 255, yb = 127.5. Blue: rg = 0, yb = -255."""
    one, both, grey = Colourfulness()(
        outputs=[
            two_colours((255, 0, 0), (255, 0, 0)),
            two_colours((255, 0, 0), (0, 0, 255)),
            two_colours((20, 20, 20), (200, 200, 200)),
        ]
    )
    assert one == pytest.approx(0.3 * (255**2 + 127.5**2) ** 0.5)
    # means 127.5 and -63.75, deviations from them 127.5 and 191.25
    assert both == pytest.approx((127.5**2 + 191.25**2) ** 0.5 + 0.3 * (127.5**2 + 63.75**2) ** 0.5)
    assert grey == pytest.approx(0, abs=1e-4)


def test_sharpness_of_stripes_a_chessboard_and_a_ramp() -> None:
    """At a white stripe the Laplacian is 1 + 1 - 4, at a black one 1 + 1; on a chessboard -4 and 4."""
    stripes = (torch.arange(6) % 2).expand(3, 6, 6)
    board = ((torch.arange(6)[:, None] + torch.arange(6)) % 2).expand(3, 6, 6)
    ramp = (torch.arange(6) / 6).expand(3, 6, 6)
    green = stripes * torch.tensor([0, 1, 0])[:, None, None]
    sharp = Sharpness()(outputs=torch.stack([stripes, board, ramp, green]).float())
    assert sharp.tolist() == pytest.approx([4, 16, 0, 4 * 0.587**2], abs=1e-6)
    with pytest.raises(ValueError, match=r"3 x 3 pixels or more, not \(2, 6\)"):
        Sharpness()(outputs=stripes[None, :, :2].float())


@pytest.mark.parametrize("reward", [Colourfulness(), Sharpness()], ids=["colourfulness", "sharpness"])
def test_gradients_are_those_of_finite_differences(reward: Any) -> None:
    assert reward.differentiable
    assert torch.autograd.gradcheck(lambda images: reward(outputs=images), noise().requires_grad_())


@pytest.mark.parametrize("reward", [Colourfulness(), Sharpness()], ids=["colourfulness", "sharpness"])
def test_the_gradient_at_a_grey_picture_is_a_number(reward: Any) -> None:
    grey = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    reward(outputs=grey).sum().backward()
    assert grey.grad is not None and grey.grad.isfinite().all()


@pytest.mark.parametrize("reward", [Colourfulness(), Sharpness()], ids=["colourfulness", "sharpness"])
def test_half_precision_is_computed_in_single(reward: Any) -> None:
    half = noise().to(torch.bfloat16)
    assert reward(outputs=half).dtype == torch.float32
    assert torch.equal(reward(outputs=half), reward(outputs=half.float()))


@pytest.mark.parametrize("reward", [JPEGSize(50), Colourfulness(), Sharpness()])
def test_they_travel_and_treat_every_form_of_a_picture_alike(reward: Any) -> None:
    array = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    forms = [array, Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1) / 255]
    scores = [float(score) for score in pickle.loads(pickle.dumps(reward))(outputs=forms, prompts=["a", "b", "c"])]
    assert len(set(scores)) == 1
    assert JPEGSize.differentiable is False


def test_a_match_counts_edits_by_the_letters_asked_for() -> None:
    assert match("sitting", "kitten") == 1 - 3 / 6
    assert match("open", "open") == 1
    assert match("", "open") == 0
    assert match("something else altogether", "open") == 0
    assert match("opens", "open") == 0.75


def test_the_quoted_parts_of_a_prompt() -> None:
    assert quoted('a sign "OPEN" above "24 h"') == "OPEN 24 h"
    assert quoted("a shirt that says 'Hi all'") == "Hi all"
    assert quoted("\u201cone\u201d and \u2018two\u2019") == "one two"
    assert quoted("the dog's bone and the dogs' house") == quoted("a plain prompt") == quoted(None) == ""


def test_the_words_asked_for_come_from_the_task_or_else_from_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "find_spec", lambda name: name)
    monkeypatch.setattr(pictures, "read", lambda picture: "openup")
    images, prompts = [two_colours((0, 0, 0), (9, 9, 9))] * 3, ['"OPEN UP"', '"closed"', "no words"]
    reward = TextMatch()
    assert reward(outputs=images, prompts=prompts) == [1.0, pytest.approx(0.0), None]
    assert reward(outputs=images, prompts=prompts, text=[None, "Open", None]) == [1.0, 0.5, None]
    assert reward(outputs=images) == [None, None, None]


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package rapidocr-onnxruntime: install it, or autotelic with"):
        TextMatch()


def test_the_reader_gets_blue_first_and_small_pictures_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def reader(picture: Any) -> tuple[list[Any], None]:
        seen.append(picture)
        return [[None, "Two W", 0.9], [None, "ords", 0.8]], None

    monkeypatch.setattr(pictures, "_reader", lambda: reader)
    for side in (50, 128):
        picture = np.zeros((side, 2 * side, 3), np.uint8)
        picture[..., 0] = 200
        assert pictures.read(picture) == "twowords"
    assert [picture.shape for picture in seen] == [(150, 300, 3), (128, 256, 3)]
    assert all((picture == (0, 0, 200)).all() for picture in seen)


def written(word: str, side: int, letters: int) -> Image.Image:
    picture = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(picture).text((1, side // 4), word, fill="black", font=ImageFont.load_default(letters))
    return picture


def test_words_are_read() -> None:
    pytest.importorskip("rapidocr_onnxruntime")
    words = TextMatch()
    large = [written("Hello", 64, 20), written("STOP", 64, 20), Image.new("RGB", (64, 64), "white")]
    right, wrong, none = words(outputs=large, prompts=['"hello"'] * 3)
    assert (right, none) == (1.0, 0.0)
    assert wrong is not None and wrong < 0.5
    assert words(outputs=[written("stop", 16, 8)], text=["stop"]) == [1.0]
