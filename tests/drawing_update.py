"""One update of a small drawing policy on recorded rollouts, for ``test_diffusion_distributed``.

python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.drawing_update FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from autotelic.diffusion.beta import PairwiseLearner
from autotelic.diffusion.gradients import RewardGradient, Truncation
from autotelic.diffusion.policy import DenoisingPolicy
from autotelic.diffusion.statistics import PromptStatistics
from autotelic.trainers.advantages import GroupRelative, grpo
from autotelic.trainers.distributed import processes, share
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives import ForwardNFT, KLPenalty, PairwiseRegression, PPOClip
from autotelic.trainers.pairing import all_pairs, optimality
from autotelic.trainers.runs import checkpoint
from autotelic.trainers.runs.records import rollouts_from_state, rollouts_state
from autotelic.types import Rollout, Task

from .small_drawing import TASKS, scored, shapes_policy

LR = 5e-4
CASES = ((3, 1), (1, 1), (3, 8))
"""Groups and minibatches: two processes have two and one of three groups, and one and none of one; of eight minibatches
most hold nothing of either."""
ROUNDED = ("drift/log_probs", "objective/accuracy", "objective/log_ratio_start", "objective/correlation")
"""Metrics that measure rounding, or that tell at the start, where nothing differs from the reference yet, its sign."""


def record(folder: Path) -> None:
    third = Task("green", "a green post at the top right on a grey background")
    checkpoint.save(folder / "rollouts", rollouts_state(scored(shapes_policy().act([*TASKS, third], 4))))


def brightness(images: Tensor, **_: Any) -> Tensor:
    return images.mean((1, 2, 3))


class Tracked(PolicyLearner):
    """With what prompts scored so far, in one learner instead of one before the other."""

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        statistics: Any = self.advantage
        return statistics.update(rollouts) | super().update(rollouts)


def learners(minibatches: int) -> dict[str, Callable[[DenoisingPolicy], PolicyLearner]]:
    step = Optimisation(LR, epochs=2, minibatches=minibatches, eps=1e-5)

    def of(objective: Any, **options: Any) -> Callable[[DenoisingPolicy], PolicyLearner]:
        return lambda policy: PolicyLearner(
            policy, objective, step, references={"start": policy.fork("start")}, **options
        )

    def pairwise(policy: DenoisingPolicy) -> PolicyLearner:
        start = {"start": policy.fork("start")}
        regression = PairwiseRegression(1.0, "start", clip=0.2)
        return PairwiseLearner(policy, regression, step, kappa=20.0, prepare=[all_pairs], references=start)

    return {
        "ppo": of(PPOClip() + 0.1 * KLPenalty("start", "exact"), advantage=grpo()),
        "flow": of(PPOClip(), advantage=GroupRelative("batch", clip_max=1.0)),
        "tracked": lambda policy: Tracked(policy, PPOClip(), step, advantage=PromptStatistics(6, 4, 1.0)),
        "pairwise": pairwise,
        "nft": of(ForwardNFT(), prepare=[optimality]),
        "alignprop": of(RewardGradient(brightness), prepare=[Truncation("fixed", 2)]),
    }


def updates(folder: Path) -> dict[str, Tensor]:
    """Of every method, flat weights after one update on this process's groups, and the update's metrics; and how many
    processes there were."""
    everything = rollouts_from_state(checkpoint.load(folder / "rollouts"))
    by_task: dict[str, list[Rollout]] = {}
    for rollout in everything:
        by_task.setdefault(rollout.task.id, []).append(rollout)
    weights = {"processes": torch.tensor(processes())}
    for name in learners(1):
        for count, minibatches in CASES:
            policy = shapes_policy(sample_rows=16, micro_batch_rows=16)
            learner = learners(minibatches)[name](policy)
            told = learner.update([r for group in share(list(by_task.values())[:count]) for r in group])
            weights[f"{name} on {count} in {minibatches}"] = flat(policy)
            exact = {key: torch.tensor(value) for key, value in told.items() if key not in ROUNDED}
            weights |= {f"{key} of {name} on {count} in {minibatches}": value for key, value in exact.items()}
    return weights


def flat(policy: DenoisingPolicy) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    save_file(updates(place), place / f"weights-{os.environ['RANK']}.safetensors")
