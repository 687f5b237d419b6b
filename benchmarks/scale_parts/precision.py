"""Figures of precision, and of the memory of pictures; ``benchmarks/scale.py`` collects them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from autotelic.config_files import read_config
from autotelic.diffusion.building import plan_unloaded
from autotelic.diffusion.recipes import flow_grpo
from autotelic.diffusion.sampler import sampler_for
from autotelic.testing import vlms
from autotelic.testing.published import flux_1_dev, stable_diffusion_3_5_medium
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives import PPOClip
from autotelic.types import Task
from autotelic.vlm.policy import TokenPolicy

LR, UPDATES = 1e-6, 10
GIB = 2**30
QUESTIONS = ("what is red ?", "how many circle in the picture ?", "how many ?", "is the square left of the circle ?")


def figures(quick: bool) -> dict[str, Any]:
    """What half precision and large pictures take and lose; each figure beside what it was, or has to be."""
    return {
        "bf16_change_ratio": change_ratios(2 if quick else 8),
        "flux_plan_gib": flux_plan(quick),
        "sd3_plan_gib": {} if quick else shipped_plan("sd3.5-medium-80gb", stable_diffusion_3_5_medium),
        "log_ratio_error_nats": log_ratio_errors(8 if quick else 64),
    }


# --- pictures in memory ---------------------------------------------------------------------------


def flux_plan(quick: bool) -> dict[str, Any]:
    """FLUX.1 dev at 1,024 pixels as it ships for 80 GB; a quick count is of a few of its layers, and linear in them."""
    if not quick:
        return shipped_plan("flux-dev-80gb", flux_1_dev)
    few, more, more_single = (
        planned("flux-dev-80gb", lambda folder, layers=layers: flux_1_dev(folder, *layers))[1]
        for layers in ((2, 2), (3, 2), (2, 3))
    )
    return told((few + 17 * (more - few) + 36 * (more_single - few)) / GIB, planned_rows("flux-dev-80gb"))


def shipped_plan(name: str, architecture: Callable[[Path], Path]) -> dict[str, Any]:
    """The plan of a config of configs/ on the architecture that it names, and what it would be without recomputing."""
    text, total = planned(name, architecture)
    _, kept = planned(name, architecture, gradient_checkpointing=0.0)
    return told(total / GIB, planned_rows(name)) | {"layers kept": kept / GIB, "plan": text}


def told(gib: float, rows: int) -> dict[str, Any]:
    return {"gib": gib, "rows at once": rows, "required": 70.0}


def config_named(name: str, **changes: Any) -> flow_grpo.Config:
    file = read_config(str(Path(__file__).parents[2] / "configs" / f"{name}.yaml"))
    return flow_grpo.Config(**(dict(file.values) | changes)).resolved(small=False)


def planned_rows(name: str) -> int:
    return int(config_named(name).micro_batch_rows)


def planned(name: str, architecture: Callable[..., Path], **changes: Any) -> tuple[str, int]:
    """The plan in words, and its total in bytes; counted on configurations alone."""
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_unloaded(config_named(name, **changes), str(architecture(Path(folder))), torch.bfloat16)
    return str(plan), plan.total


def log_ratio_errors(draws: int) -> dict[str, float]:
    """Largest error of a difference of two log-densities of 262,144 scalars, against exact arithmetic."""
    chain = sampler_for(FlowMatchEulerDiscreteScheduler(), 10, "flow_sde")
    step, std = torch.tensor([3]), chain.std[3].double()
    errors: dict[str, float] = {"now": 0.0, "in single precision": 0.0}
    for seed in range(draws):
        random = torch.Generator().manual_seed(seed)
        mean, noise, shift = torch.randn(3, 1, 16, 128, 128, generator=random).unbind(0)
        x, other = mean + chain.std[3] * noise, mean + 1e-3 * chain.std[3] * shift
        right = float(((x - mean).double() ** 2 - (x - other).double() ** 2).sum() / (2 * std**2))
        now, then = chain.log_prob(step, x, other), chain.log_prob(step, x, mean)
        errors["now"] = max(errors["now"], abs(float(now - then) - right))
        single = abs(float(now.float() - then.float()) - right)
        errors["in single precision"] = max(errors["in single precision"], single)
    return errors


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
