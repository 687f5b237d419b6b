"""What is reported of a policy that speaks: accuracy, beside what guessing and sampling reach, and answers to read."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..trainers.scoring import score
from ..types import Rollout, Task
from .conversation import Conversation
from .processing import PIXEL_LIMIT, as_pil

if TYPE_CHECKING:
    from ..trainers.run_folder import RunFolder
    from .setting import Setting

KEY = (2**31,)
"""Evaluation's random numbers; a run's begin with its seed."""


def evaluate(setting: Setting, actor: Any) -> dict[str, Any]:
    """Outcomes per category of greedy answers, with ``figures``: blind, truncated, and mean@k and pass@k if sampled.

    The policy itself answers, at temperature 1 where answers are sampled, whatever its actor does in training. Of a
    conversation the first turn counts; its figures tell how many are right at its end.
    """
    asked = setting.questions.held_out
    verify = setting.questions.verify
    policy = getattr(actor, "policy", actor)  # an actor that shows or tunes something is not what is evaluated
    rollouts = policy.act(asked, 1, key=KEY, greedy=True)
    score(rollouts, verify)
    outcomes: dict[str, Any] = {}
    figures: dict[str, dict[str, float]] = {}
    for rollout in rollouts:
        row = outcomes.setdefault(rollout.task.category, {"success": [], "seeds": []})
        row["success"].append(int(_number(rollout) == 1.0))
        row["seeds"].append(rollout.task.id)
        named = figures.setdefault(rollout.task.category, {"truncated": 0.0})
        named["truncated"] += float(rollout.info.get("truncated", False))
    for category, named in figures.items():
        named["truncated"] /= len(outcomes[category]["success"])
        named["blind"] = setting.questions.blind.get(category, float("nan"))
    if isinstance(actor, Conversation):
        for category, share in _ends(actor, asked, verify).items():
            figures[category]["at the end"] = share
    k = setting.config.samples
    if k:
        for category, values in sampled(policy, asked, k, setting.config.sampled_questions, verify).items():
            figures[category] |= {f"mean@{k}": values[0], f"pass@{k}": values[1]}
    notes = ["blind: the best guess from the question alone."]
    return {"unit": "accuracy", "outcomes": outcomes, "figures": figures, "notes": notes}


def _ends(actor: Conversation, asked: Sequence[Task], verify: Any) -> dict[str, float]:
    """Category -> accuracy of the last words of whole conversations."""
    rollouts = actor.act(asked, 1, key=KEY, greedy=True)
    score(rollouts, verify)
    right: dict[str, list[float]] = defaultdict(list)
    for rollout in rollouts:
        right[rollout.task.category].append(_number(rollout) == 1.0)
    return {category: sum(row) / len(row) for category, row in right.items()}


def sampled(
    policy: Any, tasks: Sequence[Task], k: int, per_category: int, verify: Any
) -> dict[str, tuple[float, float]]:
    """Category -> (mean@k, pass@k) of its first questions: the share of right answers, and of questions with one."""
    by_category: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_category[task.category].append(task)
    chosen = [task for several in by_category.values() for task in several[:per_category]]
    rollouts = policy.act(chosen, k, key=KEY)
    score(rollouts, verify)
    found: dict[str, list[int]] = defaultdict(list)
    for first in range(0, len(rollouts), k):
        some = rollouts[first : first + k]
        found[some[0].task.category].append(sum(_number(r) == 1.0 for r in some))
    return {
        category: (sum(right) / (k * len(right)), sum(r > 0 for r in right) / len(right))
        for category, right in found.items()
    }


def write_answers(setting: Setting, folder: RunFolder) -> None:
    """samples/answers: answers.json with questions, right answers, and what start and present policy say; pictures."""
    asked = list(setting.questions.held_out)
    chosen = asked[:: max(1, len(asked) // max(1, setting.config.shown))][: setting.config.shown]
    sides = {"before": setting.start, "after": setting.policy}
    said = {side: policy.act(chosen, 1, key=KEY, greedy=True) for side, policy in sides.items()}
    for rollouts in said.values():
        score(rollouts, setting.questions.verify)
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
            row[side] = {"said": str(rollouts[number].output), "is right": _number(rollouts[number]) == 1.0}
        rows.append(row)
    (place / "answers.json").write_text(json.dumps(rows, indent=1) + "\n")


def _text(prompt: Any) -> str:
    """A question in one line."""
    return prompt if isinstance(prompt, str) else " ".join(str(message.get("content", "")) for message in prompt)


def _number(rollout: Rollout) -> float:
    value: Any = rollout.scores["total"]
    return float("nan") if value is None else float(value)
