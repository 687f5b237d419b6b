"""Does a real pretrained language model improve its arithmetic by its own attempts? With its controls.

    python benchmarks/text_self_improvement.py [--quick] [--json FILE] [--runs FOLDER] [--seeds 0 1 2] [--arms ...]
                                               [--jobs 1]

SmolLM2-135M-Instruct with LoRA of rank 16 in bfloat16 answers "What is 47 + 25? Answer with the number only." for sums
and differences of two-digit numbers. Arms:

  grpo     the recipe vlm/arithmetic: 8 questions x 8 attempts per step, a verifier's reward, a gate with 200 labels.
  raft     vlm/raft with the same settings: imitating the attempts that were right.
  format   vlm/arithmetic paid for answers that are a number and nothing else, which knows nothing of what is right.

Accuracies are greedy, on held-out questions whose pairs of numbers occur in no training question, in either order or
operation; mean@8 and pass@8 at temperature 1 on some of them. "rephrased" is the start, untrained, asked in words that
it answers better ("Calculate 47 + 25. Reply with just the number.", the best of four tried on split 1). Comparisons and
two-step word problems ("others") are never trained on: they show what happens to the rest. Split 0 and seeds 0-2 were
looked at for nothing else: settings were chosen on split 1 with seeds from 100 on. Runs that stand finished in the
folder are read, not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from common import Study

from autotelic.envs.toys import arithmetic
from autotelic.sweep import MEAN, Results, Sweep
from autotelic.trainers.config import fixed
from autotelic.types import Task
from autotelic.vlm.recipes import arithmetic as recipe
from autotelic.vlm.recipes import raft

TRAINED, OTHERS = ("sum", "difference"), ("comparison", "two_steps")
REPHRASED = "Calculate {}. Reply with just the number."


def number_alone(completions: Sequence[str], **_: Any) -> list[float]:
    """1 for an answer that is a whole number and nothing else."""
    return [float(re.fullmatch(r"\s*-?\d+\.?\s*", text) is not None) for text in completions]


def shared_settings() -> dict[str, Any]:
    """What vlm/arithmetic sets, as far as vlm/raft has it and sets something else."""
    ours, theirs = recipe.Config(), raft.Config()
    names = {field.name for field in fields(ours)} & {field.name for field in fields(theirs)} - fixed(raft.Config)
    return {name: vars(ours)[name] for name in sorted(names) if vars(ours)[name] != vars(theirs)[name]}


def accuracy(model: str, asked: Sequence[Task]) -> dict[str, float]:
    """Greedy accuracy per category of the model of vlm/arithmetic, or of the one in a folder."""
    from autotelic.rewards.text.verifiers import Numeric
    from autotelic.trainers.scoring import score
    from autotelic.vlm.setting import load_policy

    rollouts = load_policy(replace(recipe.Config(), model=model)).act(asked, 1, greedy=True)
    score(rollouts, Numeric())
    right: dict[str, list[float]] = {}
    for rollout in rollouts:
        right.setdefault(rollout.task.category, []).append(rollout.scores["total"])
    return {category: round(sum(values) / len(values), 4) for category, values in right.items()}


def questions(kinds: Sequence[str], count: int) -> list[Task]:
    return [task for kind in kinds for task in arithmetic.tasks(arithmetic.problems(kind, count))]


def further(sweep: Sweep, results: Results) -> dict[str, Any]:
    """Accuracy of the start on rephrased questions, and of start and arms on kinds that nobody trained on."""
    count = len(next(iter(results.runs.values()))[0].after["outcomes"]["sum"]["success"])
    pairs = [(task, re.search(r"\d+ [-+] \d+", str(task.prompt))) for task in questions(TRAINED, count)]
    better = [replace(task, prompt=REPHRASED.format(match[0])) for task, match in pairs if match]
    others = questions(OTHERS, max(1, count // 6))
    found: dict[str, Any] = {"rephrased": accuracy(recipe.Config().model, better)}
    found["others"] = {"start": accuracy(recipe.Config().model, others)}
    for arm, runs in results.runs.items():
        found["others"][arm] = [accuracy(str(sweep.path(arm, run.seed) / "policy"), others) for run in runs]
    return found


STUDY = Study(
    recipe="vlm/arithmetic",
    arms={
        "format": {"rewards": f"{__file__}:number_alone", "gate": "none"},
        "grpo": {},
        "raft": {"recipe": "vlm/raft"} | shared_settings(),
    },
    seeds=(0, 1, 2),
    base="format",
    quick={"max_steps": 1, "tasks_per_step": 2, "group_size": 4, "gate_labels": 4, "eval_episodes": 4, "samples": 0},
    quick_arms=("format", "grpo"),
    flags={"eval_episodes": 300, "samples": 8, "sampled_questions": 25},
    measures=(MEAN, *TRAINED),
    further=further,
)

if __name__ == "__main__":
    STUDY.main(__doc__)
