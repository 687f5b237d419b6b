"""The small model that speaks as tests use it: untrained, or after lessons of a second or two."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from autotelic.envs.toys import scenes
from autotelic.types import Task
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.small import glimpse_training
from autotelic.vlm.small.glimpse_backbone import GlimpseBackbone, GlimpseRenderer
from autotelic.vlm.small.glimpse_training import Schooling

NAMES = glimpse_training.naming_items


def untrained(seed: int = 0, noise: float = 0.02, **options: Any) -> TokenPolicy:
    """A policy whose every weight differs a little from its start, vision frozen."""
    model = glimpse_training.new_model(seed).eval()  # type: ignore[no-untyped-call]
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=random)
    for part in (model.see, model.seen):
        part.requires_grad_(False)
    return TokenPolicy(GlimpseBackbone(model), GlimpseRenderer(), **{"horizon": 8, **options})


def teach_quickly(patch: pytest.MonkeyPatch, cache: Path, **lessons: Any) -> None:
    """Default models are made in ``cache`` from now on, of a few lessons each."""
    few = {"seeing": 80, "naming": 0, "answering": 30, "batch": 16} | lessons
    patch.setenv("AUTOTELIC_CACHE", str(cache))
    patch.setattr(glimpse_training, "Schooling", partial(Schooling, **few))
    patch.setattr(glimpse_training, "naming_items", lambda count, *how: NAMES(count // 40, *how))


def asked(*texts: str, seed: str = "asked") -> list[Task]:
    """Questions about a picture each, whatever the answers are."""
    draws = scenes.questions("kth", len(texts), seed)
    pictures = scenes.render([scene for _, scene in draws], seed)
    return [Task(f"q{i}", text, (picture,)) for i, (text, picture) in enumerate(zip(texts, pictures, strict=True))]
