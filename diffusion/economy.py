"""What memory on the device is saved by: layers that are computed again, and pictures that are decoded by tiles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from torch.utils.checkpoint import checkpoint

from ..errors import UsageError
from ..trainers.peak import recomputed_share
from .pipelines import PipelineAdapter

How = Literal["auto", "always", "never"]

TILED = 1024 * 1024
"""Pixels beyond which pictures are decoded by tiles, unless the config says otherwise."""


def recompute_layers(adapter: PipelineAdapter, share: float | None) -> bool:
    """Let layers of the denoiser, and of the decoder where a gradient goes through it, keep their inputs alone.

    The gradient is the same; a layer's activations live while it is differentiated.

    Args:
        share: of the denoiser's layers, spread evenly, 0 to 1; None is as of ``recomputed_share``. The
            decoder's are recomputed where any are.

    Returns:
        Whether any are recomputed.

    Raises:
        UsageError: it is asked for, and the denoiser cannot.
    """
    asked = recomputed_share(adapter.denoiser, share)
    if not asked:
        return False
    try:
        _asked(adapter.denoiser, "enable_gradient_checkpointing", Recomputed(asked))
    except UsageError:
        if share is not None:
            raise
        return False
    with suppress(UsageError):  # a decoder that keeps everything
        _asked(adapter.pipeline.components.get("vae"), "enable_gradient_checkpointing")
    return True


def compile_blocks(adapter: PipelineAdapter, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let ``torch.compile`` make one piece of each repeated block of the denoiser, in drawing and in learning.

    Blocks of a kind are compiled once, when they are first called, for each shape and for with and without gradient.

    Raises:
        UsageError: diffusers names no blocks of the denoiser.
    """
    denoiser: Any = adapter.denoiser
    kinds = getattr(denoiser, "_repeated_blocks", None) or getattr(denoiser, "_no_split_modules", None) or ()
    blocks = [part for part in denoiser.modules() if type(part).__name__ in kinds]
    if not blocks:
        raise UsageError(f"--compile compiles repeated blocks, and {type(denoiser).__name__} names none: leave it out")
    for block in blocks:
        block.compile(backend=backend)


class Recomputed:
    """Calls a layer, and where it is one of a share of all that are called keeps its inputs alone."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.places: dict[int, int] = {}

    def __call__(self, layer: Callable[..., Any], *inputs: Any) -> Any:
        place = self.places.setdefault(id(layer), len(self.places))
        if int((place + 1) * self.share) == int(place * self.share):
            return layer(*inputs)
        return checkpoint(layer, *inputs, use_reentrant=False)


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


def _asked(module: Any, method: str, *how: Any) -> None:
    try:
        getattr(module, method)(*how)
    except (AttributeError, NotImplementedError, ValueError) as error:
        what = "pipeline without a decoder" if module is None else type(module).__name__
        raise UsageError(
            f"this {what} has no {method.removeprefix('enable_').replace('_', ' ')}: leave it out"
        ) from error
