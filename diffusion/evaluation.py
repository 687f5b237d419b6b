"""What is reported of a policy that draws: judge, reward, fidelity, diversity and drift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..rewards.image.shapes import per_prompt_diversity
from ..trainers.scoring import score, total_of
from ..types import Actor, Rollout, Task

if TYPE_CHECKING:
    from .setting import Setting

KEY = (2**31,)
"""Evaluation's random numbers; a run's begin with its seed."""

SHORTFALL = 0.5
"""In standard deviations of the reward: how far sampled pictures may fall below deterministic ones unremarked."""


def evaluate(setting: Setting, actor: Actor) -> dict[str, Any]:
    """Outcomes per kind of prompt, with ``figures``; the same noise at every call.

    What the actor is without what is there for training alone draws; where that is more than a policy, the figure
    "policy alone" is the judge's of the policy in it.

    "success" is the judge's: 0/1 in the small world (the nearest true render shows the prompt), else its score.
    Figures: reward; judge; distance, the mean squared error to the nearest true render of the prompt (small world);
    diversity; kl from the start in nats per picture, on one picture per prompt; reward_ode, of deterministic drawing.
    """
    system: Any
    system, policy = actor.evaluated(), actor.bare()
    outcomes: dict[str, Any] = {}
    figures: dict[str, dict[str, float]] = {}
    notes = ["Figures at fixed noise; KL in nats per picture, from the start."]
    for name, tasks in (("seen", setting.prompts.seen), ("unseen", setting.prompts.unseen)):
        first = setting.config.eval_offset
        copies = range(first, first + setting.config.eval_episodes)
        rollouts = _draw(system, tasks, copies)
        row, values = _outcome(setting, rollouts)
        pictures = torch.unflatten(torch.stack([r.output for r in rollouts]), 0, (len(tasks), len(copies)))
        if len(copies) > 1:
            values["diversity"] = per_prompt_diversity(pictures.flatten(2, -3))  # frames count as channels
        if system is policy:
            values["kl"] = drift(setting, policy, rollouts[:: len(copies)])
        else:
            values["policy alone"] = _mean(_outcome(setting, _draw(policy, tasks, copies))[0]["success"])
        values["reward_ode"] = _deterministic_reward(setting, system, tasks, first)
        outcomes[name], figures[name] = row, values
        spread = float(torch.tensor(row["score"]).std()) if len(rollouts) > 1 else math.inf
        if values["reward_ode"] - values["reward"] > SHORTFALL * spread:
            notes.append(
                f"On {name} prompts, sampled pictures score {values['reward']:.3g} and deterministic ones "
                f"{values['reward_ode']:.3g}: the sampler's noise hides what the model can do: use less."
            )
    return {"unit": "judge", "outcomes": outcomes, "figures": figures, "notes": notes}


def _draw(policy: Any, tasks: Sequence[Task], copies: Sequence[int], **sampling: Any) -> list[Rollout]:
    """One picture per prompt and copy, grouped by prompt."""
    parts = [policy.act(tasks, 1, key=(*KEY, copy), mode="evaluate", **sampling) for copy in copies]
    return [part[i] for i in range(len(tasks)) for part in parts]


def _outcome(setting: Setting, rollouts: list[Rollout]) -> tuple[dict[str, Any], dict[str, float]]:
    score(rollouts, setting.reward)
    reward = [_score(r) for r in rollouts]
    row: dict[str, Any] = {"score": reward, "seeds": [f"{r.task.id}/{i}" for i, r in enumerate(rollouts)]}
    values = {"reward": _mean(reward)}
    if setting.world is not None:
        named = setting.world([r.output for r in rollouts], [r.task.prompt for r in rollouts])
        row["success"] = [int(v) for v in named["correct"]]
        values |= {"judge": _mean(named["correct"]), "distance": _mean(named["distance"])}
    elif setting.judge is not None:
        score(rollouts, setting.judge)
        row["success"] = [_score(r) for r in rollouts]
        values["judge"] = _mean(row["success"])
    else:
        row["success"] = reward
    return row, values


def drift(setting: Setting, policy: Any, rollouts: Sequence[Rollout]) -> float:
    """Mean over rollouts of sum_t |mu - mu_start|^2 / (2 sigma^2): KL of the two chains, exact on the policy's own."""
    if not any(bool(rollout.mask.any()) for rollout in rollouts):
        return 0.0
    with torch.no_grad():
        now = policy.evaluate_actions(policy.collate(rollouts), {"kl:start"}, {"start": setting.start})
    return float(now.kl["start"].sum(-1).mean())


def _deterministic_reward(setting: Setting, policy: Any, tasks: Sequence[Task], copy: int) -> float:
    rollouts = _draw(policy, tasks, [copy], greedy=True)
    score(rollouts, setting.reward)
    return _mean([_score(r) for r in rollouts])


def _score(rollout: Rollout) -> float:
    value = total_of(rollout)
    return math.nan if value is None else value


def _mean(values: Sequence[float]) -> float:
    kept = [v for v in values if v == v]
    return sum(kept) / len(kept) if kept else float("nan")
