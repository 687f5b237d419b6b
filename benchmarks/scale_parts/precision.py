"""Figures of precision, and of the memory of pictures; ``benchmarks/scale.py`` collects them."""

from __future__ import annotations

from typing import Any, Literal

import torch

from autotelic.testing import vlms
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives import PPOClip
from autotelic.types import Task
from autotelic.vlm.policy import TokenPolicy

LR, UPDATES = 1e-6, 10
QUESTIONS = ("what is red ?", "how many circle in the picture ?", "how many ?", "is the square left of the circle ?")


def figures(quick: bool) -> dict[str, Any]:
    """``bf16_change_ratio``: what full fine-tuning in bfloat16 moves weights by, over what float32 moves them by.

    Beside it stands what it is where the weights themselves are bfloat16.
    """
    return {"bf16_change_ratio": change_ratios(2 if quick else 8)}


# --- full fine-tuning in half precision -----------------------------------------------------------


def change_ratios(seeds: int) -> dict[str, Any]:
    """Mean |change| of every weight after some updates of GRPO at a small learning rate, over float32's."""
    changes = {how: [change(how, seed) for seed in range(seeds)] for how in ("fp32", "bf16", "bf16 weights")}
    means = {how: sum(values) / len(values) for how, values in changes.items()}
    return {
        "ratio": means["bf16"] / means["fp32"],
        "ratio, bf16 weights": means["bf16 weights"] / means["fp32"],
        "mean |change|": means,
        "lr": LR,
        "updates": UPDATES,
        "seeds": seeds,
    }


def change(how: Literal["fp32", "bf16", "bf16 weights"], seed: int) -> float:
    """Mean |change| of a tiny language model's weights; the rollouts are the same for all."""
    tasks = [Task(f"q{i}", text) for i, text in enumerate(QUESTIONS)]
    start = TokenPolicy.of(*vlms.text("llama", seed), horizon=8)
    rounds = [start.act(tasks, 8, key=(seed, update)) for update in range(UPDATES)]
    for recorded in rounds:
        for rollout in recorded:
            rollout.scores["total"] = float(str(rollout.output).count("red") + len(str(rollout.output)) % 5)
    model, processor = vlms.text("llama", seed)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    if how != "fp32":
        model.to(torch.bfloat16)
        before = {name: weight.detach().float().clone() for name, weight in model.named_parameters()}
    policy = TokenPolicy.of(model, processor, horizon=8)
    policy.hold_in_float32()
    learner = PolicyLearner(policy, PPOClip(), Optimisation(LR), advantage=grpo())
    if how == "bf16 weights":  # as it would be without a copy in float32
        for weight in model.parameters():
            weight.data = weight.data.to(torch.bfloat16)
        policy.autocast = None
    for recorded in rounds:
        learner.update(recorded)
    moved = [(weight.detach().float() - before[name]).abs().sum() for name, weight in model.named_parameters()]
    return float(sum(moved)) / sum(weight.numel() for weight in model.parameters())
