"""Two episodes side by side, as a moving picture that a web page can hold.

Animated WebP: every current browser plays it in an ``<img>`` from base64, Pillow writes it without a
video codec, and a robot at 128 pixels takes tens of kilobytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

LEAST = 128
"""Pixels of a side's height, at least."""
_BAND = 16
_GAP = 4


def squared(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """[size, size, 3] of a picture [H, W, 3]; its sides are stretched alike or not."""
    if picture.shape[:2] == (size, size):
        return np.array(picture)
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((size, size)), np.uint8)


def write_side_by_side(
    path: str | Path,
    left: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    right: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    labels: tuple[str, str],
    *,
    fps: float = 12.0,
    quality: int = 60,
) -> Path:
    """Write an animated WebP that loops; the shorter side waits on its last frame.

    Args:
        path: its suffix becomes ".webp".
        left, right: frames [H, W, 3] uint8, of one size each; a smaller side is enlarged to the height of the other,
            and both to LEAST pixels at least, so that labels can be read.
        labels: written above each side.
        fps: frames per second; a robot of 80 steps a second with one frame per chunk of 5 moves in real time at 16.
        quality: 0..100 of the lossy compression.

    Returns:
        The path written.

    Raises:
        ValueError: a side without frames, or frames of different sizes on one.
    """
    shapes = [{frame.shape for frame in side} for side in (left, right)]
    if any(len(some) != 1 for some in shapes):
        told = f"{len(left)} and {len(right)} frames of shapes {sorted(shapes[0] | shapes[1])}"
        raise ValueError(f"{path}: {told}; each side needs frames of one size")
    height = max(LEAST, *(next(iter(some))[0] for some in shapes))
    sides = [[_enlarged(frame, height) for frame in side] for side in (left, right)]
    widths = [side[0].width for side in sides]
    pictures = []
    for index in range(max(len(left), len(right))):
        canvas = Image.new("RGB", (sum(widths) + _GAP, height + _BAND), "white")
        draw = ImageDraw.Draw(canvas)
        for x, frames, label in zip((0, widths[0] + _GAP), sides, labels, strict=True):
            canvas.paste(frames[min(index, len(frames) - 1)], (x, _BAND))
            draw.text((x + 3, 2), label, fill="black")
        pictures.append(canvas)
    path = Path(path).with_suffix(".webp")
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, quality=quality, method=4
    )
    return path


def _enlarged(frame: NDArray[np.uint8], height: int) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(frame))
    return picture if picture.height == height else picture.resize((picture.width * height // picture.height, height))
