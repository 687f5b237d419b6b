"""What a prompt's pictures scored so far: numbers by hand, what is kept, and what a checkpoint restores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autotelic.diffusion.statistics import PromptStatistics
from autotelic.trainers.runs import checkpoint
from autotelic.types import Rollout

from .small_drawing import TASKS, shapes_policy

POLICY = shapes_policy()


def drawn(red: list[float | None], blue: list[float | None]) -> list[Rollout]:
    """Pictures of two prompts with these scores."""
    found = [POLICY.act([task], len(scores)) for task, scores in zip(TASKS, (red, blue), strict=True) if scores]
    rollouts = [rollout for each in found for rollout in each]
    for rollout, score in zip(rollouts, [*red, *blue], strict=True):
        rollout.scores["total"] = score
    return rollouts


def advantages(statistics: PromptStatistics, rollouts: list[Rollout]) -> list[float]:
    batch = POLICY.collate(rollouts)
    found = statistics(batch)
    assert found.shape == batch.mask.shape and not found[~batch.mask].any()
    return [float(row[batch.mask[i]][0]) for i, row in enumerate(found)]


def test_by_hand() -> None:
    """Population deviations. In the first round each prompt has two of three: all four have mean 3, variance 38 / 4."""
    statistics, first = PromptStatistics(buffer_size=3, min_count=3), drawn([1, 3], [0, 8])
    assert statistics.update(first) == {"prompts/own_statistics": 0.0}
    std = (38 / 4) ** 0.5
    assert advantages(statistics, first) == pytest.approx([-2 / std, 0, -3 / std, 5 / std], abs=1e-5)
    second = drawn([5, 7], [])  # of 1, 3, 5, 7 the last three stay: mean 5, variance 8 / 3
    assert statistics.update(second) == {"prompts/own_statistics": 1.0}
    assert advantages(statistics, second) == pytest.approx([0, 2 / (8 / 3) ** 0.5], abs=1e-5)
    third = drawn([], [1])  # 0, 8, 1
    statistics.update(third)
    assert advantages(statistics, third) == pytest.approx([-2 / (38 / 3) ** 0.5], abs=1e-5)


def test_advantages_are_clamped_and_what_does_not_apply_is_0() -> None:
    rollouts = drawn([0, 0, 0, 0, 100], [None, float("nan")])
    free, clamped = PromptStatistics(8, 2), PromptStatistics(8, 2, clip_max=1.5)
    for statistics in (free, clamped):
        statistics.update(rollouts)
    assert advantages(free, rollouts)[4] == pytest.approx(2, abs=1e-5)
    assert advantages(clamped, rollouts) == pytest.approx([-0.5] * 4 + [1.5, 0, 0], abs=1e-5)


def test_a_checkpoint_restores_them(tmp_path: Path) -> None:
    one, other = PromptStatistics(4, 2), PromptStatistics(4, 2)
    one.update(drawn([1, 3], [0, 8]))
    checkpoint.save(tmp_path / "state", one.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "state"))
    later = drawn([2, 5], [4, 4])
    for statistics in (one, other):
        statistics.update(later)
    assert advantages(one, later) == advantages(other, later)
    std = float(torch.tensor([1.0, 3, 2, 5]).std(correction=0))
    assert advantages(one, later)[0] == pytest.approx((2 - 11 / 4) / std, rel=1e-4)


def test_equal_rewards_say_nothing() -> None:
    statistics, rollouts = PromptStatistics(4, 2), drawn([2, 2], [5, 5])
    statistics.update(rollouts)
    assert advantages(statistics, rollouts) == [0, 0, 0, 0]
