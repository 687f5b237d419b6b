"""Images as rewards meet them: from whatever a policy or a user hands over to one array.

A denoising policy hands over float tensors [3, H, W] with values in 0..1, or one tensor [B, 3, H, W] with
gradient; users hand over whatever ``autotelic.images`` opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import OutputError, UsageError
from ...images import ROUNDING, as_pil


def as_float(images: Sequence[Any] | Tensor) -> Tensor:
    """[B, 3, H, W] float in 0..1; the gradient of a tensor is kept.

    Raises:
        UsageError: what is no image, images of several sizes; OutputError: values that are not finite or outside 0..1.
            The line names the sample.
    """
    if isinstance(images, Tensor):
        stacked = images.float() / 255 if images.dtype == torch.uint8 else images
    else:
        pictures = [_one(index, image) for index, image in enumerate(images)]
        sizes = sorted({f"{picture.shape[-1]} x {picture.shape[-2]}" for picture in pictures})
        if len(sizes) > 1:
            raise UsageError(f"images are of several sizes ({', '.join(sizes[:4])}): they are scored together, at one")
        stacked = torch.stack(pictures) if pictures else torch.zeros(0, 3, 1, 1)
    if stacked.ndim != 4 or stacked.shape[1] != 3:
        raise UsageError(f"images have shape {tuple(stacked.shape)}, not [B, 3, H, W]")
    _check_values(stacked.detach())
    return stacked


def as_uint8(images: Sequence[Any] | Tensor) -> NDArray[np.uint8]:
    """[B, H, W, 3] as a file would hold them: rounded to 8 bits, without gradient; errors as of ``as_float``."""
    pixels = (as_float(images).detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return array


def _check_values(images: Tensor) -> None:
    """Names the first sample whose values are no brightnesses."""
    if not images.numel():
        return
    low, high = images.amin((1, 2, 3)), images.amax((1, 2, 3))
    good = (low >= -ROUNDING) & (high <= 1 + ROUNDING)  # False for NaN
    if not bool(good.all()):
        sample = int((~good).nonzero()[0])
        values = f"lie in {low[sample].item():.3g}..{high[sample].item():.3g}, not in 0..1"
        finite = bool(torch.isfinite(images[sample]).all())
        raise OutputError(f"sample {sample}: image values {values if finite else 'are not finite'}")


def _one(index: int, image: Any) -> Tensor:
    """[3, H, W]; floats as they are, since a rounding would be seen by gradients and by fine scores."""
    if isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating):
        image = torch.from_numpy(np.array(image))
    if (
        isinstance(image, Tensor)
        and image.is_floating_point()
        and image.ndim == 3
        and 3 in (image.shape[0], image.shape[-1])
    ):
        return image if image.shape[0] == 3 else image.permute(2, 0, 1)
    pixels = np.asarray(as_pil(image, f"sample {index}"))
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
