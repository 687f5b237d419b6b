"""What is reported of a policy that speaks: accuracy, beside what guessing and sampling reach, and answers to read."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..families import name_of
from ..images import as_pil
from ..trainers.distributed import spread
from ..trainers.scoring import score, total_of
from ..types import Actor, Rollout, Task

if TYPE_CHECKING:
    from ..trainers.runs.run_folder import RunFolder
    from .setting import Setting

KEY = (2**31,)
"""Evaluation's random numbers; a run's begin with its seed."""


CHUNK = 256
"""Answers that a process holds at once; of each its score stays."""


def evaluate(setting: Setting, actor: Actor) -> dict[str, Any]:
    """Outcomes per category of greedy answers, with ``figures``: blind, truncated, mean@k and pass@k if sampled, and
    the share that a system adapted to.

    An outcome is what the setting's ``verify`` scores: 1 and 0 for right and wrong, and what lies between where it
    grades. Questions that it does not apply to (None) are left out. What the actor is without what is there for
    training alone answers: of a conversation its end counts. Where that is more than a policy, the figure "policy
    alone" is the mean outcome of the policy in it. Answers are sampled at temperature 1.
    """
    asked, verify = setting.questions.held_out, setting.verify
    system, bare = actor.evaluated(), actor.bare()
    outcomes: dict[str, Any] = {}
    figures: dict[str, dict[str, float]] = {}
    for category, identity, value, info in _graded(system, asked, verify):
        row = outcomes.setdefault(category, {"success": [], "seeds": []})
        row["success"].append(value)
        row["seeds"].append(identity)
        named = figures.setdefault(category, {"truncated": 0.0})
        for name, amount in info.items():
            named[name] = named.get(name, 0.0) + float(amount)
    for category, named in figures.items():
        named |= {name: total / len(outcomes[category]["success"]) for name, total in named.items()}
        named["blind"] = setting.questions.blind.get(category, float("nan"))
    if bare is not system:
        alone: dict[str, list[float]] = defaultdict(list)
        for category, _, value, _ in _graded(bare, asked, verify):
            alone[category].append(value)
        for category, values in alone.items():
            figures[category]["policy alone"] = sum(values) / len(values)
    if k := setting.config.samples:
        for category, (mean, best) in sampled(system, asked, k, setting.config.sampled_questions, verify).items():
            figures[category] |= {f"mean@{k}": mean, f"pass@{k}": best}
    rates = all(value in (0, 1) for row in outcomes.values() for value in row["success"])
    unit = "reward" if setting.questions.verify is None else "accuracy" if rates else "score"
    blind = "best guess without the picture" if setting.questions.small_world else "best guess by category"
    notes = [f"Graded by {name_of(verify)}."]
    return {"unit": unit, "outcomes": outcomes, "figures": figures, "notes": notes, "controls": {"blind": blind}}


def _graded(actor: Any, asked: Sequence[Task], verify: Any) -> list[tuple[str, str, float, dict[str, Any]]]:
    """Category and id of every question that the verifier applies to, with the score of a greedy answer and what is
    told of it."""

    def grade(some: Sequence[Task]) -> list[tuple[str, str, float, dict[str, Any]]]:
        return [
            (rollout.task.category, rollout.task.id, int(value) if value in (0, 1) else value, _told(rollout.info))
            for rollout in _answers(actor, some, verify)
            if (value := total_of(rollout)) is not None
        ]

    return spread(asked, CHUNK, grade)


def _told(info: Mapping[str, Any]) -> dict[str, Any]:
    return {name: info[name] for name in ("truncated", "adapted") if name in info}


def _answers(actor: Any, asked: Sequence[Task], verify: Any) -> list[Rollout]:
    """Greedy answers, scored."""
    rollouts: list[Rollout] = actor.act(asked, 1, key=KEY, mode="evaluate", greedy=True)
    score(rollouts, verify)
    return rollouts


def sampled(
    actor: Actor, tasks: Sequence[Task], k: int, per_category: int, verify: Any
) -> dict[str, tuple[float, float]]:
    """Category -> (mean@k, pass@k) of its first questions: the mean score of k answers, and of the best of them, which
    is the share of questions with a right one where answers are right or wrong."""
    by_category: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_category[task.category].append(task)
    chosen = [task for several in by_category.values() for task in several[:per_category]]

    def grade(some: Sequence[Task]) -> list[tuple[str, list[float]]]:
        rollouts = actor.act(some, k, key=KEY, mode="evaluate")
        score(rollouts, verify)
        values = [
            [v for r in rollouts[i : i + k] if (v := total_of(r)) is not None] for i in range(0, len(rollouts), k)
        ]
        return [(task.category, several) for task, several in zip(some, values, strict=True) if several]

    found: dict[str, list[list[float]]] = defaultdict(list)
    for category, values in spread(chosen, max(1, CHUNK // k), grade):
        found[category].append(values)
    return {
        category: (
            sum(sum(values) / len(values) for values in several) / len(several),
            sum(map(max, several)) / len(several),
        )
        for category, several in found.items()
    }


def write_answers(setting: Setting, folder: RunFolder, actor: Actor) -> None:
    """samples/answers: answers.json with questions, right answers, and what start and actor say; pictures."""
    asked = list(setting.questions.held_out)
    chosen = asked[:: max(1, len(asked) // max(1, setting.config.shown))][: setting.config.shown]
    sides = {"before": setting.start, "after": actor}
    said = {side: _answers(policy, chosen, setting.verify) for side, policy in sides.items()}
    place = folder.samples / "answers"
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, task in enumerate(chosen):
        row: dict[str, Any] = {"question": _text(task.prompt), "right": str(task.extra.get("trace", task.reference))}
        if task.images:
            row["picture"] = f"{number}.png"
            picture = as_pil(task.images[0], task.id)
            picture.resize((128, 128), Image.Resampling.NEAREST).save(place / row["picture"])
        for side, rollouts in said.items():
            row[side] = {"said": str(rollouts[number].output), "is right": total_of(rollouts[number]) == 1.0}
        rows.append(row)
    (place / "answers.json").write_text(json.dumps(rows, indent=1) + "\n")


def _text(prompt: Any) -> str:
    """A question in one line."""
    return prompt if isinstance(prompt, str) else " ".join(str(message.get("content", "")) for message in prompt)
