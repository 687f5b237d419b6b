"""Pictures as people have them: one opener for whatever shows something, wherever it comes in.

Questions, judges, tools, rewards and recorded pairs open pictures here, so that one file looks the same to all of them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .errors import UsageError

PIXEL_LIMIT = 50_000_000
"""Most pixels of a picture."""
ROUNDING = 1e-3
"""So far outside 0..1 a float may lie and is still clipped."""
_PROGRAMS = ("EPS", "WMF")


def as_pil(image: Any, name: str = "the image", pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """A picture in 8-bit RGB, upright, as a copy.

    A rotation that the EXIF data ask for is applied. Whole numbers of more than 8 bits are divided by 65,535 (by
    2^31 - 1 where they are larger), floats lie in 0..1. What is transparent stands on white. Of several frames the
    first is taken.

    Args:
        image: a path, the bytes of a file, a PIL image, an array or tensor [H, W, 3] or [3, H, W] (uint8, uint16 or
            floats in 0..1), or a row {"bytes": ..., "path": ...} as ``datasets`` holds undecoded images.
        name: what to call it in messages.
        pixel_limit: most pixels; nothing larger is decoded.

    Raises:
        UsageError: no image, one that cannot be decoded, one with more pixels than ``pixel_limit``, numbers out of
            range.
    """
    if isinstance(image, Mapping) and ("bytes" in image or "path" in image):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str | Path | bytes | bytearray):
        with _opened(image, name, pixel_limit) as file:
            return _decoded(file, name, _file(image))
    if isinstance(image, Image.Image):
        _check_size(image.width, image.height, name, pixel_limit)
        return _decoded(image, name, "")
    return Image.fromarray(_pixels(image, name, pixel_limit))


def check_image_file(path: str | Path, name: str, pixel_limit: int = PIXEL_LIMIT) -> None:
    """Raise UsageError for a file that is no image or has too many pixels; nothing is decoded."""
    _opened(path, name, pixel_limit).close()


def _opened(source: str | Path | bytes | bytearray, name: str, pixel_limit: int) -> Image.Image:
    """The picture behind a path or in bytes, of which only the header is read."""
    if isinstance(source, str | Path):
        try:
            known = Path(source).is_file()  # neither a folder nor a pipe that nobody writes to
        except ValueError:
            known = False
        if not known:
            raise UsageError(f"{name}: there is no file {source}")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes | bytearray) else source)
    except Image.DecompressionBombError as error:
        raise UsageError(f"{name} has too many pixels: make it smaller ({error})") from error
    except Exception as error:  # of whatever kind: the file may be anything
        raise _broken(name, _file(source), error) from error
    if image.format in _PROGRAMS:
        raise UsageError(f"{name} is a program ({image.format}) and no pixels: convert it to PNG")
    _check_size(image.width, image.height, name, pixel_limit)
    return image


def _file(source: str | Path | bytes | bytearray) -> str:
    return f" ({Path(source).name})" if isinstance(source, str | Path) else ""


def _broken(name: str, file: str, error: Exception) -> UsageError:
    reason = (str(error).splitlines() or [""])[0]
    return UsageError(f"{name} cannot be decoded{file}: {type(error).__name__}{reason and f': {reason}'}")


def _decoded(image: Image.Image, name: str, file: str) -> Image.Image:
    try:
        image.load()  # the first time tells that data are broken, a second time may not
        image = _upright(image)
        if image.mode == "F" or image.mode.startswith("I"):
            grey = _eight_bits(np.asarray(image), name)
            return Image.fromarray(grey).convert("RGB")
        if image.has_transparency_data:
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")
    except UsageError:
        raise
    except Exception as error:  # decoders of hostile files raise whatever comes
        raise _broken(name, file, error) from error


def _upright(image: Image.Image) -> Image.Image:
    """A copy, turned as its EXIF data say; broken ones say nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image.copy()


def _pixels(image: Any, name: str, pixel_limit: int) -> NDArray[np.uint8]:
    """An array or tensor as [H, W, 3]."""
    array = image
    if hasattr(image, "detach"):  # a tensor, without importing torch for it
        tensor = image.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if not isinstance(array, np.ndarray) or array.ndim != 3 or 3 not in (array.shape[0], array.shape[-1]):
        shape = f" of shape {tuple(array.shape)}" if isinstance(array, np.ndarray) else ""
        raise UsageError(f"{name} is no image but {type(image).__name__}{shape}")
    array = array if array.shape[-1] == 3 else array.transpose(1, 2, 0)
    _check_size(array.shape[1], array.shape[0], name, pixel_limit)
    if array.dtype not in (np.uint8, np.uint16) and not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"{name} has values of {array.dtype}, not uint8, uint16 or floats in 0..1")
    return np.ascontiguousarray(array if array.dtype == np.uint8 else _eight_bits(array, name))


def _eight_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Floats in 0..1 or whole numbers of 16 bits and more, rounded to 8 bits."""
    if not np.isfinite(values).all():
        raise UsageError(f"{name} has values that are not finite")
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer)
    largest = 1.0 if not whole else 65_535.0 if high <= 65_535 else 2.0**31 - 1
    slack = 0.0 if whole else ROUNDING
    if low < -slack or high > largest + slack:
        raise UsageError(f"{name} has values in {low:.6g}..{high:.6g}, not in 0..{largest:g}: scale them")
    scaled: NDArray[np.uint8] = (values.astype(np.float64) / largest * 255).clip(0, 255).round().astype(np.uint8)
    return scaled


def _check_size(width: int, height: int, name: str, pixel_limit: int) -> None:
    if width * height > pixel_limit:
        raise UsageError(f"{name} has {width} x {height} pixels, more than pixel_limit={pixel_limit}: make it smaller")
    if width * height == 0:
        raise UsageError(f"{name} has no pixels ({width} x {height})")
