"""Latents and pictures that are not finite: found where they are drawn, and kept out of every loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..types import Rollout


def is_sound(rollout: Rollout) -> bool:
    """Whether a rollout's picture is finite, so that it can be learned from."""
    return bool(rollout.output.isfinite().all())


def faults_of(ids: Sequence[str], paths: Tensor, pictures: Tensor) -> list[str]:
    """Per row what of it is not finite; empty where all is."""
    found = []
    for name, path, picture in zip(ids, paths, pictures, strict=True):
        bad = [what for what, t in (("latents", path), ("pixels", picture)) if not bool(t.isfinite().all())]
        found.append(f"the {bad[0]} of {name} are not finite" if bad else "")
    return found


def discarded(rollout: Rollout, fault: str) -> Rollout:
    """The rollout as one that decides nothing, so that none of its numbers enters a loss."""
    nothing = {"path": torch.zeros_like(rollout.payload["path"])}
    return replace(
        rollout,
        output=torch.full_like(rollout.output, torch.nan),
        payload={**rollout.payload, **nothing},
        log_probs=torch.zeros(len(rollout.mask), dtype=torch.float64),
        mask=torch.zeros_like(rollout.mask),
        info={**rollout.info, "fault": fault},
    )
