"""A recipe on the spelling toy, with a start of its own in the run's folder, for tests of comparisons."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from autotelic.recipes import Recipe
from autotelic.trainers.advantages import grpo
from autotelic.trainers.curricula import Uniform
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.loop import Experiment, Stage
from autotelic.trainers.objectives import PPOClip
from autotelic.trainers.randomness import seed_of
from autotelic.trainers.runs import checkpoint
from autotelic.trainers.runs.run_folder import RunFolder

from .toy_run import NUMBERS, WORDS, spelled, spelling_task
from .toys import TokenToy

TOY = Recipe("toy/spelling", "tests.toy_recipe", "Spells words.", "")


@dataclass(frozen=True)
class Config:
    start_fields: ClassVar[tuple[str, ...]] = ("seed", "spread")
    seed: int = 0
    spread: float = 1.0
    """Of the starting weights."""
    max_steps: int = 3
    lr: float = 0.3
    words: tuple[str, ...] = tuple(WORDS)
    learn: bool = True

    @classmethod
    def tiny(cls) -> Config:
        return cls(max_steps=1)


def build(config: Config, folder: RunFolder) -> Experiment:
    if config.lr < 0:
        raise ValueError("lr is negative:\nlearn towards the reward")
    policy, place = TokenToy(len(NUMBERS)), folder.path / "start"
    if not place.exists():
        draw = torch.Generator().manual_seed(seed_of("start", config.seed))
        weight = config.spread * torch.randn(policy.module.weight.shape, generator=draw)
        made = int.from_bytes(os.urandom(4), "big")  # tells a copy from a start that was made again
        checkpoint.save(place, {"weight": weight, "made": made})
    policy.load_state_dict({"weight": checkpoint.load(place)["weight"]})
    optimisation = Optimisation(lr=config.lr if config.learn else 0.0, seed=config.seed)
    learner = PolicyLearner(policy, PPOClip(), optimisation, advantage=grpo())
    sources = {c: lambda index, c=c: spelling_task(c, index) for c in config.words}
    stage = Stage(config.max_steps, policy, Uniform(sources, seed=config.seed), spelled, {"policy": learner}, 4, 8)
    return Experiment([stage], evaluate, seed=config.seed, label_account="gate_labels: none")


def evaluate(actor: Any) -> Mapping[str, Any]:
    """The share of right tokens per word and category, and the share of right words as a figure."""
    outcomes, figures = {}, {}
    for category in WORDS:
        tasks = [spelling_task(category, i, "evaluation") for i in range(12)]
        scores = spelled([rollout.output for rollout in actor.act(tasks, 1, key=(-1,))], tasks)
        outcomes[category] = {"success": scores, "seeds": list(range(12))}
        figures[category] = {"words": sum(score == 1 for score in scores) / 12, "unknown": None}
    return {"unit": "right tokens", "outcomes": outcomes, "figures": figures}
