"""What a run has been shown, and may imitate beside everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..types import Rollout, Task

if TYPE_CHECKING:
    from .policy import TokenPolicy
    from .questions import Questions
    from .setting import LanguageConfig


def encoded(config: LanguageConfig, policy: TokenPolicy, questions: Questions) -> list[Rollout]:
    """Demonstrations as rollouts; those of the small world in many views, each with its scene for people to see."""
    if questions.small_world and config.demonstrations:
        from .small.glimpse_training import all_views, demonstrated

        items, _ = demonstrated(config.demonstrations, config.seed, config.split, config.noise)
        shown = all_views(items, config.seed, config.split)
        tasks = [Task(f"demonstration/{i}", item.prompt, (item.picture,)) for i, item in enumerate(shown)]
        rollouts: list[Rollout] = policy.encode(tasks, [item.answer for item in shown])
        for rollout, item in zip(rollouts, shown, strict=True):
            rollout.info["scene"] = item.scene
        return rollouts
    pairs = questions.demonstrations
    return policy.encode([task for task, _ in pairs], [said for _, said in pairs])
