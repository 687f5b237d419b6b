"""Images as rewards meet them: from whatever a policy or a user hands over to one array.

A denoising policy hands over float tensors [3, H, W] with values in 0..1, or one tensor [B, 3, H, W] with
gradient; users hand over PIL images and uint8 arrays [H, W, 3] as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def as_float(images: Sequence[Any] | Tensor) -> Tensor:
    """[B, 3, H, W] float in 0..1; the gradient of a tensor is kept.

    Raises:
        ValueError: an image of another shape, or values outside 0..1; the line names the sample.
    """
    stacked = images if isinstance(images, Tensor) else torch.stack([_one(i, image) for i, image in enumerate(images)])
    if stacked.ndim != 4 or stacked.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(stacked.shape)}, not [B, 3, H, W]")
    low, high = stacked.detach().amin().item(), stacked.detach().amax().item()
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"image values lie in {low:.3g}..{high:.3g}, not in 0..1")
    return stacked


def as_uint8(images: Sequence[Any] | Tensor) -> NDArray[np.uint8]:
    """[B, H, W, 3] as a file would hold them: rounded to 8 bits, without gradient."""
    pixels = (as_float(images).detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return array


def _one(index: int, image: Any) -> Tensor:
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.array(image))
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise ValueError(f"sample {index} is no image but {type(image).__name__}")
    pixels: Tensor = image.float() / 255 if image.dtype == torch.uint8 else image
    return pixels if pixels.shape[0] == 3 else pixels.permute(2, 0, 1)
