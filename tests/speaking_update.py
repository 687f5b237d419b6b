"""One update of a tiny vision-language policy on recorded rollouts, for ``test_vlm_distributed``.

python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.speaking_update FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from autotelic.testing import vlms as tiny_vlms
from autotelic.trainers.advantages import GroupRelative, grpo
from autotelic.trainers.distributed import processes, share
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives import DPO, Entropy, KLPenalty, PPOClip, WeightedImitation
from autotelic.trainers.pairing import best_worst
from autotelic.trainers.runs import checkpoint
from autotelic.trainers.runs.records import rollouts_from_state, rollouts_state
from autotelic.types import Rollout, Task
from autotelic.vlm.conversation import Conversation, Script
from autotelic.vlm.policy import TokenPolicy

LR = 5e-4
CASES = ((3, 1), (1, 1), (3, 8))
"""Groups and minibatches: two processes have two and one of three groups, and one and none of one; of eight minibatches
most hold nothing of either."""
ROUNDED = ("drift/log_probs", "objective/accuracy", "objective/log_ratio_start", "objective/correlation")
"""Metrics that measure rounding, or that tell at the start, where nothing differs from the reference yet, its sign."""


def tiny_policy() -> TokenPolicy:
    """The same weights in every process."""
    return TokenPolicy.of(*tiny_vlms.vlm("qwen2_vl"), horizon=4)


def tasks() -> list[Task]:
    """Questions of unequal length, one of them without an image."""
    pictures = [np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8) for seed in range(2)]
    asked = ("what is red ?", "how many circle in the picture ?", "how many ?")
    shown = [(pictures[0],), (pictures[1],), ()]
    return [Task(f"q{i}", prompt, images) for i, (prompt, images) in enumerate(zip(asked, shown, strict=True))]


def record(folder: Path) -> None:
    """Answers and conversations with scores of their own, which differ within every group."""
    policy = tiny_policy()
    for name, actor in (("answers", policy), ("talks", Conversation(policy, Script(("no .",)), turns=2))):
        rollouts = actor.act(tasks(), 4, key=(1,))  # type: ignore[attr-defined]
        for place, rollout in enumerate(rollouts):
            rollout.output, rollout.scores["total"] = str(rollout.output), float(place % 4) + 0.1 * place
        checkpoint.save(folder / name, rollouts_state(rollouts))


def learners(minibatches: int) -> dict[str, Callable[[TokenPolicy], PolicyLearner]]:
    step = Optimisation(LR, epochs=2, minibatches=minibatches, eps=1e-5)

    def of(objective: Any, **options: Any) -> Callable[[TokenPolicy], PolicyLearner]:
        return lambda policy: PolicyLearner(
            policy, objective, step, references={"start": policy.fork("start")}, **options
        )

    regularised = PPOClip() - 0.01 * Entropy() + 0.1 * KLPenalty("start", "exact")
    return {
        "grpo": of(regularised, advantage=grpo()),
        "dapo": of(PPOClip(clip_high=0.28, aggregate="decision"), advantage=grpo()),
        "turns": of(PPOClip(), advantage=GroupRelative(per_segment=True)),
        "dpo": of(DPO(0.1, "start"), prepare=[best_worst]),
        "imitation": of(WeightedImitation()),
    }


def updates(folder: Path) -> dict[str, Tensor]:
    """Of every method, flat weights after one update on this process's groups, and the update's metrics; and how many
    processes there were."""
    weights = {"processes": torch.tensor(processes())}
    for name in learners(1):
        recorded = rollouts_from_state(checkpoint.load(folder / ("talks" if name == "turns" else "answers")))
        by_task: dict[str, list[Rollout]] = {}
        for rollout in recorded:
            by_task.setdefault(rollout.task.id, []).append(rollout)
        for count, minibatches in CASES:
            policy = tiny_policy()
            learner = learners(minibatches)[name](policy)
            told = learner.update([r for group in share(list(by_task.values())[:count]) for r in group])
            weights[f"{name} on {count} in {minibatches}"] = flat(policy)
            exact = {key: torch.tensor(value) for key, value in told.items() if key not in ROUNDED}
            weights |= {f"{key} of {name} on {count} in {minibatches}": value for key, value in exact.items()}
    return weights


def flat(policy: TokenPolicy) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    save_file(updates(place), place / f"weights-{os.environ['RANK']}.safetensors")
