"""What is reported of a policy that draws: judge, reward, fidelity, diversity and drift."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..rewards.image.shapes import per_prompt_diversity
from ..splitting import Part, deal
from ..trainers.distributed import spread
from ..trainers.scoring import score, total_of
from ..types import Actor, Rollout, Task

if TYPE_CHECKING:
    from .setting import Setting

KEY = (2**31,)
"""Evaluation's random numbers; a run's begin with its seed."""

SHORTFALL = 0.5
"""In standard deviations of the reward: how far sampled pictures may fall below deterministic ones unremarked."""


def evaluate(setting: Setting, actor: Actor) -> dict[str, Any]:
    """Outcomes per kind of prompt, with ``figures``; the same prompts and the same noise at every call.

    Of each kind ``eval_prompts`` are drawn, chosen by their content and from every category of theirs, a few at a time;
    of a picture its scores stay. What the actor is without what is there for training alone draws; where that is more
    than a policy, the figure "policy alone" is the judge's of the policy in it.

    "success" is the judge's: 0/1 in the small world (the nearest true render shows the prompt), else its score.
    Figures: reward; judge; distance, the mean squared error to the nearest true render of the prompt (small world);
    diversity; kl from the start in nats per picture, on one picture per prompt; reward_ode, of deterministic drawing.
    """
    system: Any
    system, policy = actor.evaluated(), actor.bare()
    outcomes: dict[str, Any] = {}
    figures: dict[str, dict[str, float]] = {}
    notes = ["Figures at fixed noise; KL in nats per picture, from the start."]
    first = setting.config.eval_offset
    copies = range(first, first + setting.config.eval_episodes)
    at_once = max(1, setting.config.sample_rows // max(1, len(copies)))
    for name, several in (("rewarded", setting.prompts.rewarded), ("unrewarded", setting.prompts.unrewarded)):
        tasks = some(several, setting.config.eval_prompts)
        if len(tasks) < len(several):
            notes.append(f"Of {len(several)} {name} prompts {len(tasks)} are drawn.")
        seen = _Sums()
        for part in spread(tasks, at_once, lambda few: [_looked(setting, system, policy, few, copies)]):
            seen.add(part)
        values = {figure: _mean(listed) for figure, listed in seen.figures.items()}
        names = [f"{task}/{row}" for row, task in enumerate(seen.tasks)]
        outcomes[name] = {"score": seen.reward, "seeds": names, "success": seen.success}
        figures[name] = values
        deviation = float(torch.tensor(seen.reward).std()) if len(seen.reward) > 1 else math.inf
        if values["reward_ode"] - values["reward"] > SHORTFALL * deviation:
            notes.append(
                f"On {name} prompts, sampled pictures score {values['reward']:.3g} and deterministic ones "
                f"{values['reward_ode']:.3g}: the sampler's noise hides what the model can do: use less."
            )
    return {"unit": unit_of(setting), "outcomes": outcomes, "figures": figures, "notes": notes}


def unit_of(setting: Setting) -> str:
    """What outcomes are: a judge's, or where nobody judges the training reward itself."""
    return "training reward" if setting.world is None and setting.judge is None else "judge"


def some(tasks: Sequence[Task], count: int) -> Sequence[Task]:
    """``count`` of the tasks, in their order: always the same ones, from every category that their rows name."""
    if len(tasks) <= count:
        return tasks
    categories = [str(task.extra.get("category") or "") for task in tasks]
    chosen, _ = deal([{str(task.prompt)} for task in tasks], categories, [Part(1.0, total=count)])
    return [tasks[row] for row in chosen]


@dataclass
class _Sums:
    """What stays of pictures that were looked at."""

    reward: list[float] = field(default_factory=list)
    success: list[float] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, others: _Sums) -> None:
        """Those of further pictures."""
        self.reward += others.reward
        self.success += others.success
        self.tasks += others.tasks
        for figure, values in others.figures.items():
            self.figures[figure] += values


def _looked(setting: Setting, system: Any, policy: Any, tasks: Sequence[Task], copies: Sequence[int]) -> _Sums:
    """Draw and judge some prompts; a figure that is a mean over prompts counts once for each."""
    rollouts, seen = _draw(system, tasks, copies), _Sums()
    seen.tasks += [rollout.task.id for rollout in rollouts]
    _judge(setting, rollouts, seen)
    pictures = torch.unflatten(torch.stack([r.output for r in rollouts]), 0, (len(tasks), len(copies)))
    if len(copies) > 1:
        seen.figures["diversity"] += [per_prompt_diversity(pictures.flatten(2, -3))] * len(tasks)
    if system is policy:
        seen.figures["kl"] += [drift(setting, policy, rollouts[:: len(copies)])] * len(tasks)
    else:
        alone = _Sums()
        _judge(setting, _draw(policy, tasks, copies), alone)
        seen.figures["policy alone"] += alone.success
    plain = _draw(system, tasks, copies[:1], greedy=True)
    score(plain, setting.reward)
    seen.figures["reward_ode"] += map(_score, plain)
    return seen


def _draw(policy: Any, tasks: Sequence[Task], copies: Sequence[int], **sampling: Any) -> list[Rollout]:
    """One picture per prompt and copy, grouped by prompt."""
    parts = [policy.act(tasks, 1, key=(*KEY, copy), mode="evaluate", **sampling) for copy in copies]
    return [part[i] for i in range(len(tasks)) for part in parts]


def _judge(setting: Setting, rollouts: list[Rollout], seen: _Sums) -> None:
    """Reward and judge of some pictures."""
    score(rollouts, setting.reward)
    reward = [_score(r) for r in rollouts]
    seen.reward += reward
    seen.figures["reward"] += reward
    if setting.world is not None:
        score(rollouts, setting.world)
        right = [int(total_of(r, "correct") or 0) for r in rollouts]
        distances = [math.nan if (d := total_of(r, "distance")) is None else d for r in rollouts]
        seen.success += right
        seen.figures["judge"] += map(float, right)
        seen.figures["distance"] += distances
    elif setting.judge is not None:
        score(rollouts, setting.judge)
        judged = [_score(r) for r in rollouts]
        seen.success += judged
        seen.figures["judge"] += judged
    else:
        seen.success += reward


def drift(setting: Setting, policy: Any, rollouts: Sequence[Rollout]) -> float:
    """Mean over rollouts of sum_t |mu - mu_start|^2 / (2 sigma^2): KL of the two chains, exact on the policy's own."""
    if not any(bool(rollout.mask.any()) for rollout in rollouts):
        return 0.0
    with torch.no_grad():
        now = policy.evaluate_actions(policy.collate(rollouts), {"kl:start"}, {"start": setting.start})
    return float(now.kl["start"].sum(-1).mean())


def _score(rollout: Rollout) -> float:
    value = total_of(rollout)
    return math.nan if value is None else value


def _mean(values: Sequence[float]) -> float:
    kept = [v for v in values if v == v]
    return sum(kept) / len(kept) if kept else float("nan")
