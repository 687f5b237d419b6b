"""Numbers that are not finite, and options out of range."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from autotelic.rewards.image.images import as_uint8

from .cases import Refuses, case


@case(
    "diffusion B1: a picture of NaN counts as black",
    kind="numbers",
    modality="diffusion",
    entry="reward",
    required=Refuses("not finite"),
    by="policy",
    waits=True,
)
def nan_picture(folder: Path) -> object:
    return as_uint8([torch.full((3, 8, 8), math.nan)])
