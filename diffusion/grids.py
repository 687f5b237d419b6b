"""Pictures to look at: what the start and the trained policy draw from the same noise, on sheets for the report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..rewards.image.images import as_uint8
from ..trainers.randomness import generator
from ..types import Task

if TYPE_CHECKING:
    from ..trainers.runs.run_folder import RunFolder
    from .setting import Setting

logger = logging.getLogger(__name__)

COLUMNS = 6
"""Noises per prompt."""
SIDE = 1536
"""Pixels along the longer side of a sheet."""
SMALL = 64
"""Pixels that a picture is wide at least."""
RATE = 8
"""Frames of a video per second."""


def write_grids(setting: Setting, folder: RunFolder) -> None:
    """samples/images/KIND-before and -after: a row per prompt, a column per noise, the same in both.

    What keeps them from being drawn, such as a lack of memory, is told and costs the pictures alone.
    """
    place = folder.samples / "images"
    if not setting.config.grid:
        return
    place.mkdir(parents=True, exist_ok=True)
    for kind, tasks in (("rewarded", setting.prompts.rewarded), ("unrewarded", setting.prompts.unrewarded)):
        order = torch.randperm(len(tasks), generator=generator("grid", kind)).tolist()
        chosen = [tasks[i] for i in order[: setting.config.grid]]
        try:
            for side, policy in (("before", setting.start), ("after", setting.shown)):
                write_grid(drawn(policy, chosen), place / f"{kind}-{side}")
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            logger.warning("no sheets of %s prompts: %s", kind, " ".join(str(error).split()) or type(error).__name__)
            continue
        (place / f"{kind}.txt").write_text("\n".join(str(task.prompt) for task in chosen) + "\n")


def drawn(policy: Any, tasks: Sequence[Task]) -> Tensor:
    """[R, C, ...] a row per task, at noise that evaluations draw as well."""
    from .evaluation import KEY

    columns = [policy.act(tasks, 1, key=(*KEY, copy), mode="evaluate") for copy in range(COLUMNS)]
    return torch.stack([torch.stack([rollout.output for rollout in column]) for column in columns], 1)


def write_grid(pictures: Tensor, stem: Path) -> Path:
    """[R, C, 3, H, W] as one PNG, or where that would be wider than ``SIDE`` a smaller WebP; [R, C, F, 3, H, W] moves.

    What is not finite is grey.
    """
    first, *rest = (grid(frame) for frame in (pictures.unbind(2) if pictures.ndim == 6 else [pictures]))
    exact = not rest and _cell(pictures)[2]
    path = stem.with_name(f"{stem.name}.{'png' if exact else 'webp'}")
    moving: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": 1000 // RATE, "loop": 0}
    options: dict[str, Any] = ({} if exact else {"quality": 80}) | (moving if rest else {})
    first.save(path, **options)
    return path


def grid(pictures: Tensor) -> Image.Image:
    """[R, C, 3, H, W] as one image; small pictures are enlarged without smoothing, large ones made smaller."""
    rows, columns = pictures.shape[:2]
    height, width, exact = _cell(pictures)
    gap = max(1, width // pictures.shape[-1])
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(picture for row in pictures for picture in row):
        (pixels,) = as_uint8([torch.where(picture.isfinite(), picture, 0.5)])
        way = Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS
        small = Image.fromarray(pixels).resize((width, height), way)
        sheet.paste(small, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return sheet


def _cell(pictures: Tensor) -> tuple[int, int, bool]:
    """Height and width of a picture on a sheet, and whether its own pixels are what is seen."""
    rows, columns = pictures.shape[:2]
    height, width = pictures.shape[-2:]
    scale = max(1, -(-SMALL // width))
    longest = max(rows * height, columns * width) * scale
    if longest <= SIDE:
        return height * scale, width * scale, True
    share = SIDE / longest * scale
    return max(1, int(height * share)), max(1, int(width * share)), False
