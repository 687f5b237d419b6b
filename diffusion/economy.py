"""What memory on the device is saved by: layers that are computed again, and pictures that are decoded by tiles."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

from torch import nn

from ..errors import UsageError
from .pipelines import PipelineAdapter

How = Literal["auto", "always", "never"]

LARGE = 10**9
"""Weights of a denoiser whose layers are computed again in the backward pass, unless the config says otherwise."""
TILED = 1024 * 1024
"""Pixels beyond which pictures are decoded by tiles, unless the config says otherwise."""


def recompute_layers(adapter: PipelineAdapter, how: How) -> bool:
    """Let the denoiser, and the decoder where a gradient goes through it, keep the inputs of its layers alone.

    The gradient is the same; a layer's activations live while it is differentiated. "auto" is for more than ``LARGE``
    weights.

    Returns:
        Whether it does.

    Raises:
        UsageError: it is asked for, and the denoiser cannot.
    """
    if how == "never" or (how == "auto" and _size(adapter.denoiser) <= LARGE):
        return False
    try:
        _asked(adapter.denoiser, "enable_gradient_checkpointing")
    except UsageError:
        if how == "always":
            raise
        return False
    with suppress(UsageError):  # a decoder that keeps everything
        _asked(adapter.pipeline.components.get("vae"), "enable_gradient_checkpointing")
    return True


def tile(adapter: PipelineAdapter, how: How) -> bool:
    """Let the decoder work through overlapping tiles; pictures differ a little where these meet.

    "auto" is for pictures of more than ``TILED`` pixels.

    Raises:
        UsageError: it is asked for, and the decoder cannot.
    """
    if how == "never" or (how == "auto" and adapter.height * adapter.width <= TILED):
        return False
    try:
        _asked(adapter.pipeline.components.get("vae"), "enable_tiling")
    except UsageError:
        if how == "always":
            raise
        return False
    return True


def _asked(module: Any, method: str) -> None:
    try:
        getattr(module, method)()
    except (AttributeError, NotImplementedError, ValueError) as error:
        what = "pipeline without a decoder" if module is None else type(module).__name__
        raise UsageError(
            f"this {what} has no {method.removeprefix('enable_').replace('_', ' ')}: leave it out"
        ) from error


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
