"""Rewards of pictures on videos: the mean over frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..calling import MADE
from ..rewards.reward import Reward
from ..trainers.scoring import columns
from ..types import Score

FRAMES = 8
"""Frames of a video that are looked at, evenly spaced."""


def per_frame(reward: Reward) -> Reward:
    """A reward whose terms see frames as pictures; those with an attribute ``videos`` see [F, 3, H, W]."""
    if any(term is not reward for _, term in reward.terms):  # a sum
        summed: Any = type(reward)
        made: Reward = summed([(weight, per_frame(term)) for weight, term in reward.terms])
        return made
    if getattr(reward.function, "videos", False):
        return reward
    wrapped = _PerFrame(reward)
    return Reward(wrapped, reward.name, differentiable=reward.differentiable, families=reward.families)


class _PerFrame:
    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    def __call__(self, **named: Any) -> Mapping[str, Any]:
        videos, rollouts = named["outputs"], named["rollouts"]
        looked_at = [torch.linspace(0, len(v) - 1, min(FRAMES, len(v))).round().long().tolist() for v in videos]
        pictures = [video[place] for video, places in zip(videos, looked_at, strict=True) for place in places]
        single = [
            replace(rollout, output=video[place], group=f"{rollout.group_key}, frame {place}")
            for rollout, video, places in zip(rollouts, videos, looked_at, strict=True)
            for place in places
        ]
        table = columns(single)
        if isinstance(videos, Tensor):  # with gradient
            table |= dict.fromkeys(MADE, torch.stack(pictures))
        counts = [len(places) for places in looked_at]
        return {name: _means(scores, counts) for name, scores in self.reward(**table).items()}


def _means(scores: Sequence[Score], counts: Sequence[int]) -> list[Score]:
    """Of each video's frames, with their gradient; None where none of them has a score."""
    found: list[Score] = []
    place = 0
    for count in counts:
        known = [torch.as_tensor(score) for score in scores[place : place + count] if score is not None]
        mean = torch.stack(known).mean() if known else None
        found.append(mean if mean is None or mean.requires_grad else mean.item())
        place += count
    return found
