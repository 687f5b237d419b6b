"""Rewards of pictures that need no weights: size of the file, colour, sharpness, and written words.

Each is called with the column ``outputs``, in any of the forms that :mod:`.images` reads. The differentiable ones
return a tensor [B] through which gradient flows to the pictures; the others return one number per picture. They are
for trying methods out: each is easily driven up without the picture becoming better, by noise for example.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...errors import UsageError
from .images import as_float, as_uint8


class JPEGSize:
    """Bytes of a picture's JPEG file, in hundreds; negative when small files are wanted.

    Nothing is subtracted: 625 bytes of every file are headers and Huffman tables as Pillow writes them, so that a
    flat picture of 16 x 16 pixels has 629 bytes. Black box: pictures are rounded to 8 bits.

    Source: the (in)compressibility rewards of DDPO (arXiv 2305.13301; checked against the code of ddpo-pytorch,
    which counts in thousands of bytes and saves at quality 95).

    Args:
        quality: of the file, 1..95, as Pillow counts.
        target: "compressible" gives -bytes/100, "incompressible" +bytes/100.
    """

    differentiable = False
    families = frozenset({"jpeg"})

    def __init__(self, quality: int = 90, target: Literal["compressible", "incompressible"] = "compressible") -> None:
        if not 1 <= quality <= 95:
            raise UsageError(f"the quality of a JPEG file is 1..95, not {quality}")
        if target not in ("compressible", "incompressible"):
            raise UsageError(f'JPEGSize rewards "compressible" or "incompressible", not "{target}"')
        self.quality = quality
        self.minimum = 0.0 if target == "incompressible" else None
        self.sign = -1 if target == "compressible" else 1

    def __call__(self, outputs: Any, **_: Any) -> list[float]:
        return [self.sign * self.size(picture) / 100 for picture in as_uint8(outputs)]

    def size(self, picture: NDArray[np.uint8]) -> int:
        """Bytes of one picture [H, W, 3]."""
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="JPEG", quality=self.quality)
        return file.tell()


class Colourfulness:
    """The metric M3 of Hasler and Süsstrunk (Measuring colourfulness in natural images, 2003).

    With rg = R - G and yb = (R + G)/2 - B in 0..255: √(σ²_rg + σ²_yb) + 0.3 √(μ²_rg + μ²_yb) over the pixels.
    The differences are signed; some public code takes their absolute values and gets other numbers. Grey pictures
    score 0, and get gradient 0 there. The formula is not checked against the paper.
    """

    differentiable = True
    families = frozenset({"colourfulness"})
    minimum = 0.0

    def __call__(self, outputs: Any, **_: Any) -> Tensor:
        red, green, blue = (255 * _precise(as_float(outputs))).flatten(2).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1)  # [B, 2, H*W]
        mean = opponents.mean(-1, keepdim=True)
        # A norm, unlike a square root of squares, has a gradient at zero.
        spread: Tensor = torch.linalg.vector_norm(opponents - mean, dim=(1, 2)) / opponents.shape[-1] ** 0.5
        cast: Tensor = torch.linalg.vector_norm(mean, dim=(1, 2))
        return spread + 0.3 * cast


class Sharpness:
    """Variance of the Laplacian of the brightness, 0.299 R + 0.587 G + 0.114 B in 0..1.

    The Laplacian is the sum of the four neighbours less four times the pixel, at pixels that have all four. For
    values as computed from 8-bit pictures, multiply by 255². The variance divides by the number of these pixels. A
    common focus measure (Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000; not checked against
    the paper). Noise scores higher than any picture of something.
    """

    differentiable = True
    families = frozenset({"sharpness"})
    minimum = 0.0

    def __call__(self, outputs: Any, **_: Any) -> Tensor:
        pictures = _precise(as_float(outputs))
        if min(pictures.shape[-2:]) < 3:
            raise ValueError(f"sharpness needs pictures of 3 x 3 pixels or more, not {tuple(pictures.shape[-2:])}")
        grey = torch.einsum("bchw,c->bhw", pictures, pictures.new_tensor([0.299, 0.587, 0.114]))
        neighbours = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
        return (neighbours - 4 * grey[:, 1:-1, 1:-1]).var(dim=(1, 2), correction=0)


class TextMatch:
    """How well the words in a picture are those that were asked for: 1 - min(1, edits / letters asked for).

    The words asked for are the task's extra column ``text``; where there is none, the quoted parts of the prompt, in
    order ('a sign that says "OPEN"'; straight or curly, double or single quotation marks). A sample with neither gets
    None: does not apply. Letters are compared without regard to case and without spaces, since the reader often loses
    those; everything else that is read costs an edit. Words are read line by line from the top.

    Reading takes about 0.2 s per picture on one CPU core, whatever the picture's size, because the detector enlarges
    each to 736 pixels. Small pictures are enlarged before, which the reader of the found words needs.

    The formula is the usual OCR reward of text-to-image reinforcement learning (not checked against a paper).

    Raises:
        UsageError: the package rapidocr-onnxruntime, which holds reader and weights, is not installed.
    """

    differentiable = False
    families = frozenset({"text reader"})
    minimum = 0.0

    def __init__(self) -> None:
        if find_spec("rapidocr_onnxruntime") is None:
            raise UsageError(
                "reading text needs the package rapidocr-onnxruntime: install it, or autotelic with the extra ocr"
            )

    def __call__(
        self, outputs: Any, prompts: Sequence[Any] | None = None, text: Sequence[str | None] | None = None, **_: Any
    ) -> list[float | None]:
        pictures = as_uint8(outputs)
        asked = list(text) if text is not None else [None] * len(pictures)
        said = list(prompts) if prompts is not None else [None] * len(pictures)
        wanted = [_letters(own or quoted(prompt)) for own, prompt in zip(asked, said, strict=True)]
        return [match(read(p), words) if words else None for p, words in zip(pictures, wanted, strict=True)]


def read(picture: NDArray[np.uint8]) -> str:
    """The letters in a picture [H, W, 3], without spaces and in lower case; empty if there are none."""
    factor = -(-_READABLE // min(picture.shape[:2]))
    if factor > 1:
        size = (picture.shape[1] * factor, picture.shape[0] * factor)
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    found, _ = _reader()(np.ascontiguousarray(picture[:, :, ::-1]))  # it reads blue, green, red
    return _letters(" ".join(str(text) for _, text, _ in found or []))


def match(found: str, wanted: str) -> float:
    """1 - min(1, edit distance / len(wanted)); wanted is not empty."""
    return 1 - min(1.0, _edits(found, wanted) / len(wanted))


def quoted(prompt: Any) -> str:
    """The quoted parts of a prompt, joined; empty if it has none or is no text. An apostrophe quotes nothing."""
    if not isinstance(prompt, str):
        return ""
    parts = re.findall(r"\"([^\"]+)\"|\u201c([^\u201d]+)\u201d|\u2018([^\u2019]+)\u2019|(?<!\w)'([^']+)'(?!\w)", prompt)
    return " ".join("".join(part) for part in parts)


_READABLE = 128  # pixels of the shorter side; words in 16-pixel pictures were lost below 64


@lru_cache(maxsize=1)
def _reader() -> Any:
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=torch.get_num_threads())


def _letters(text: str) -> str:
    return "".join(text.split()).casefold()


def _edits(first: str, second: str) -> int:
    """Levenshtein's distance: insertions, deletions and replacements."""
    costs = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, costs[0] = costs[0], i
        for j, b in enumerate(second, 1):
            before, costs[j] = costs[j], min(costs[j] + 1, costs[j - 1] + 1, before + (a != b))
    return costs[-1]


def _precise(pictures: Tensor) -> Tensor:
    return pictures if pictures.dtype == torch.float64 else pictures.float()
