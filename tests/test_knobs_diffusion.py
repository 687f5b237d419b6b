"""Every knob of the recipes for pictures is felt: in the weights, in the pictures, or in the mechanism's own metric.

Two runs differ in the knob alone: they start from the same weights, draw with the same random numbers and are scored
alike. Learning rates are large, so that a few updates reach what clips and references are there for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.diffusion.small.pretraining import quiet
from autotelic.recipes import all_recipes
from autotelic.trainers.actors import Actor
from autotelic.types import Rollout

from .small_drawing import saved_pipeline

TASKS, PICTURES = 4, 4
FELT = 1e-3
"""Of an update's norm: the least by which weights differ."""


@pytest.fixture(scope="module", autouse=True)
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An untrained pipeline; what runs learned is kept, since many knobs turn on the same run."""
    quiet()
    global _source
    _source = saved_pipeline(str(tmp_path_factory.mktemp("pipeline")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOTELIC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield _source
    learned.cache_clear()


_source = ""


def scores(rollouts: list[Rollout], round_: int) -> None:
    """Of the place in a group alone, one far above all others; prompts differ in level and in spread."""
    for number, rollout in enumerate(rollouts):
        prompt, place = divmod(number, PICTURES)
        value = (place * 7 + round_) % 11 / 10
        rollout.scores = {"total": prompt + value * (1 + prompt) + 20 * (number == 1)}


@cache
def learned(
    recipe: str, rounds: int, changes: tuple[tuple[str, Any], ...]
) -> tuple[Tensor, list[dict[str, float]], Tensor]:
    """What a recipe's learners did: the change of all trained weights, the metrics of each round, and the pictures of
    the first."""
    module = all_recipes()[f"diffusion/{recipe}"].load()
    fields = {"model": _source, "rewards": ("sharpness",), "num_inference_steps": 5, "gate": "none", "grid": 0}
    fields |= {"lr": 0.01, "tasks_per_step": TASKS, "group_size": PICTURES, "lora_rank": 4}
    config = module.Config(**fields | dict(changes))
    (stage,) = module.build(config, None).stages
    policy, actor = stage.learners["policy"].policy, stage.actor
    assert isinstance(actor, Actor)
    before = {name: tensor.detach().clone() for name, tensor in policy.trained().items()}
    metrics, first = [], None
    for number in range(rounds):
        tasks = stage.curriculum.sample(TASKS)
        rollouts = actor.act(tasks, PICTURES, key=(config.seed, number), **stage.sampling)
        scores(rollouts, number)
        first = torch.stack([r.output for r in rollouts]) if first is None else first
        told = [learner.update(rollouts) for name, learner in stage.learners.items() if name != "watch"]
        metrics.append({name: float(value) for each in told for name, value in each.items()})
    moved = torch.cat([(tensor.detach() - before[name]).flatten() for name, tensor in policy.trained().items()])
    assert first is not None and float(moved.norm()) > 0
    return moved, metrics, first


def run(recipe: str, rounds: int = 2, **changes: Any) -> tuple[Tensor, list[dict[str, float]], Tensor]:
    return learned(recipe, rounds, tuple(sorted(changes.items())))


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


LEARNING: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ddpo minibatches": ({}, {"minibatches": 1}),
    "ddpo epochs": ({}, {"epochs": 2}),
    "ddpo clip_low": ({}, {"clip_low": 0.9}),
    "ddpo clip_high": ({}, {"clip_high": 9.0}),
    "ddpo kl_coef": ({}, {"kl_coef": 1.0}),
    "ddpo adv_clip_max": ({}, {"adv_clip_max": 0.3}),
    "ddpo std_floor": ({}, {"std_floor": 2.0}),
    "ddpo per_prompt_stat_tracking": ({}, {"per_prompt_stat_tracking": True}),
    "ddpo stat_min_count": ({"per_prompt_stat_tracking": True}, {"stat_min_count": 2}),
    "ddpo stat_buffer_size": ({"per_prompt_stat_tracking": True, "stat_min_count": 2}, {"stat_buffer_size": 3}),
    "flow_grpo minibatches": ({}, {"minibatches": 1}),
    "flow_grpo clip_low": ({}, {"clip_low": 0.9}),
    "flow_grpo clip_high": ({}, {"clip_high": 9.0}),
    "flow_grpo scale_rewards": ({}, {"scale_rewards": "group"}),
    "flow_grpo scale_rewards none": ({"scale_rewards": "none"}, {"scale_rewards": "group"}),
    "flow_grpo adv_clip_max": ({}, {"adv_clip_max": 0.3}),
    "flow_grpo kl_estimator": ({"kl_coef": 1.0}, {"kl_estimator": "exact"}),
    "flow_grpo kl_coef": ({}, {"kl_coef": 1.0}),
    "flow_grpo reference": ({"kl_coef": 1.0}, {"reference": "proximal"}),
    "prdp minibatches": ({}, {"minibatches": 1}),
    "prdp epochs": ({}, {"epochs": 2}),
    "prdp clip": ({}, {"clip": None}),
    "prdp kappa": ({}, {"kappa": 4.0}),
    "nft beta": ({}, {"beta": 0.3}),
    "nft optimality": ({}, {"optimality": "stretched"}),
    "nft scale_rewards": ({}, {"scale_rewards": "group"}),
    "nft adv_clip_max": ({}, {"adv_clip_max": 0.5}),
    "nft kl_coef": ({}, {"kl_coef": 1.0}),
    "nft forward_draws": ({}, {"forward_draws": 4}),
    "nft epochs": ({}, {"epochs": 1}),
    "raft best": ({}, {"best": 2}),
    "raft select": ({}, {"select": "threshold"}),
    "raft threshold": ({"select": "threshold"}, {"threshold": 2.0}),
    "raft forward_draws": ({}, {"forward_draws": 2}),
    "raft epochs": ({}, {"epochs": 1}),
    "raft sft_coef": ({}, {"sft_coef": 1.0}),
    "dpo beta": ({}, {"beta": 50.0}),
    "dpo forward_draws": ({}, {"forward_draws": 1}),
    "d3po minibatches": ({}, {"minibatches": 1}),
    "d3po beta": ({"ratio_clip": None}, {"beta": 500.0}),
    "d3po ratio_clip": ({"lr": 0.1, "ratio_clip": 1e-3}, {"ratio_clip": None}),
    "alignprop truncation": ({"last_steps": 2}, {"truncation": "fixed"}),
    "alignprop last_steps": ({}, {"last_steps": 4}),
    "alignprop most_steps": ({}, {"most_steps": 1}),
    "alignprop target": ({}, {"target": -99.0}),
    "draft last_steps": ({}, {"last_steps": 3}),
    "draft renoised": ({}, {"renoised": 2}),
    "refl first": ({}, {"first": 0.9}),
    "refl ceiling": ({}, {"ceiling": -99.0}),
    "refl sft_coef": ({}, {"sft_coef": 0.0}),
}


@pytest.mark.parametrize("knob", LEARNING)
def test_a_knob_of_learning_is_felt_in_the_weights(knob: str) -> None:
    recipe, base, turned = knob.split()[0], *LEARNING[knob]
    (one, _, drawn), (other, _, drawn_too) = run(recipe, **base), run(recipe, **base | turned)
    assert torch.equal(drawn, drawn_too), "the first round's pictures are the same"
    assert apart(one, other) > FELT


DRAWING: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "flow_grpo window": ({}, {"window": 2}),
    "flow_grpo same_latent": ({"window": 2}, {"same_latent": False}),
    "flow_grpo sampler": ({}, {"sampler": "flow_ancestral"}),
    "flow_grpo noise_level": ({}, {"noise_level": 0.4}),
    "d3po same_latent": ({}, {"same_latent": False}),
    "ddpo eta": ({}, {"eta": 0.5}),
}


@pytest.mark.parametrize("knob", DRAWING)
def test_a_knob_of_drawing_is_felt_in_the_pictures(knob: str) -> None:
    recipe, base, turned = knob.split()[0], *DRAWING[knob]
    (one, _, drawn), (other, _, drawn_too) = run(recipe, **base), run(recipe, **base | turned)
    assert float((drawn - drawn_too).abs().max()) > 1e-2
    assert apart(one, other) > FELT


@pytest.mark.parametrize("recipe", ["ddpo", "flow_grpo", "prdp"])
def test_by_default_a_round_is_several_steps_and_its_clip_acts(recipe: str) -> None:
    """With a single step ratios are 1 and nothing is clipped."""
    default, single = (run(recipe, **how)[1] for how in ({}, {"minibatches": 1}))
    assert min(row["objective/clip_fraction"] for row in default) > 0
    assert max(row["objective/clip_fraction"] for row in single) == 0


def test_metrics_tell_what_a_mechanism_did() -> None:
    clamped, free = (run("d3po", lr=0.1, ratio_clip=clip)[1][-1] for clip in (1e-3, None))
    assert clamped["objective/clip_fraction"] > 0 and "objective/clip_fraction" not in free
    strong = run("d3po", lr=0.1, ratio_clip=None, beta=500.0)[1][-1]
    assert abs(strong["objective/margin"]) > 10 * abs(free["objective/margin"])
    own = run("ddpo", per_prompt_stat_tracking=True, stat_min_count=2)[1]
    assert own[0]["prompts/own_statistics"] == 1
    assert run("ddpo", per_prompt_stat_tracking=True)[1][0]["prompts/own_statistics"] == 0, "4 are fewer than 16"
    released, stretched = (run("nft", **how)[1][0]["objective/optimality"] for how in ({}, {"optimality": "stretched"}))
    assert released != stretched
    assert run("flow_grpo")[1][-1]["objective/kl_start"] > 0


def test_held_in_memory_one_step_at_a_time_or_all_is_the_same_gradient() -> None:
    """``step_by_step`` and ``keep_graph`` trade memory for time, and learn the same."""
    for recipe, knob in (("alignprop", "step_by_step"), ("ddpo", "keep_graph")):
        (one, _, _), (other, _, _) = (run(recipe, rounds=1, **{knob: value}) for value in (True, False))
        assert apart(one, other) < 0.05
