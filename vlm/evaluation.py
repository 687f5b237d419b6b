"""What is reported of a policy that speaks: accuracy, beside what guessing and sampling reach, and answers to read."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..trainers.scoring import score, total_of
from ..types import Actor, Rollout, Task
from .processing import PIXEL_LIMIT, as_pil

if TYPE_CHECKING:
    from ..trainers.runs.run_folder import RunFolder
    from .setting import Setting

KEY = (2**31,)
"""Evaluation's random numbers; a run's begin with its seed."""


def evaluate(setting: Setting, actor: Actor) -> dict[str, Any]:
    """Outcomes per category of greedy answers, with ``figures``: blind, truncated, mean@k and pass@k if sampled, and
    the share that a system adapted to.

    What the actor is without what is there for training alone answers: of a conversation its end counts. Where that is
    more than a policy, the figure "policy alone" is the accuracy of the policy in it. Answers are sampled at
    temperature 1.
    """
    asked, verify = setting.questions.held_out, setting.questions.verify
    system, bare = actor.evaluated(), actor.bare()
    rollouts = _answers(system, asked, verify)
    outcomes: dict[str, Any] = {}
    figures: dict[str, dict[str, float]] = {}
    for rollout in rollouts:
        row = outcomes.setdefault(rollout.task.category, {"success": [], "seeds": []})
        row["success"].append(int(total_of(rollout) == 1.0))
        row["seeds"].append(rollout.task.id)
        named = figures.setdefault(rollout.task.category, {"truncated": 0.0})
        for name in ("truncated", "adapted"):
            if name in rollout.info:
                named[name] = named.get(name, 0.0) + float(rollout.info[name])
    for category, named in figures.items():
        named |= {name: total / len(outcomes[category]["success"]) for name, total in named.items()}
        named["blind"] = setting.questions.blind.get(category, float("nan"))
    if bare is not system:
        right: dict[str, list[float]] = defaultdict(list)
        for rollout in _answers(bare, asked, verify):
            right[rollout.task.category].append(float(total_of(rollout) == 1.0))
        for category, values in right.items():
            figures[category]["policy alone"] = sum(values) / len(values)
    k = setting.config.samples
    if k:
        for category, (mean, best) in sampled(system, asked, k, setting.config.sampled_questions, verify).items():
            figures[category] |= {f"mean@{k}": mean, f"pass@{k}": best}
    controls = {
        "blind": "best guess without the picture" if setting.questions.small_world else "best guess by category"
    }
    return {"unit": "accuracy", "outcomes": outcomes, "figures": figures, "controls": controls}


def _answers(actor: Actor, asked: Sequence[Task], verify: Any) -> list[Rollout]:
    """Greedy answers, scored."""
    rollouts = actor.act(asked, 1, key=KEY, mode="evaluate", greedy=True)
    score(rollouts, verify)
    return rollouts


def sampled(
    actor: Actor, tasks: Sequence[Task], k: int, per_category: int, verify: Any
) -> dict[str, tuple[float, float]]:
    """Category -> (mean@k, pass@k) of its first questions: the share of right answers, and of questions with one."""
    by_category: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_category[task.category].append(task)
    chosen = [task for several in by_category.values() for task in several[:per_category]]
    rollouts = actor.act(chosen, k, key=KEY, mode="evaluate")
    score(rollouts, verify)
    found: dict[str, list[int]] = defaultdict(list)
    for first in range(0, len(rollouts), k):
        some = rollouts[first : first + k]
        found[some[0].task.category].append(sum(total_of(r) == 1.0 for r in some))
    return {
        category: (sum(right) / (k * len(right)), sum(r > 0 for r in right) / len(right))
        for category, right in found.items()
    }


def write_answers(setting: Setting, folder: RunFolder, actor: Actor) -> None:
    """samples/answers: answers.json with questions, right answers, and what start and actor say; pictures."""
    asked = list(setting.questions.held_out)
    chosen = asked[:: max(1, len(asked) // max(1, setting.config.shown))][: setting.config.shown]
    sides = {"before": setting.start, "after": actor}
    said = {side: _answers(policy, chosen, setting.questions.verify) for side, policy in sides.items()}
    place = folder.samples / "answers"
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, task in enumerate(chosen):
        row: dict[str, Any] = {"question": _text(task.prompt), "right": str(task.extra.get("trace", task.reference))}
        if task.images:
            row["picture"] = f"{number}.png"
            picture = as_pil(task.images[0], task.id, PIXEL_LIMIT)
            picture.resize((128, 128), Image.Resampling.NEAREST).save(place / row["picture"])
        for side, rollouts in said.items():
            row[side] = {"said": str(rollouts[number].output), "is right": total_of(rollouts[number]) == 1.0}
        rows.append(row)
    (place / "answers.json").write_text(json.dumps(rows, indent=1) + "\n")


def _text(prompt: Any) -> str:
    """A question in one line."""
    return prompt if isinstance(prompt, str) else " ".join(str(message.get("content", "")) for message in prompt)
