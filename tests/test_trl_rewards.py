"""Every reward function that comes with TRL, called by ``score``, gives what it gives when TRL's trainer calls it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from autotelic.calling import require_columns
from autotelic.trainers.scoring import score, total_of
from autotelic.types import Rollout, Task

pytest.importorskip("math_verify")
rewards: Any = pytest.importorskip("trl.rewards")

FUNCTIONS = {
    "accuracy_reward": lambda: rewards.accuracy_reward,
    "reasoning_accuracy_reward": lambda: rewards.reasoning_accuracy_reward,
    "think_format_reward": lambda: rewards.think_format_reward,
    "get_cosine_scaled_reward": lambda: rewards.get_cosine_scaled_reward(max_len=12),
    "get_repetition_penalty_reward": lambda: rewards.get_repetition_penalty_reward(ngram_size=2),
    "get_soft_overlong_punishment": lambda: rewards.get_soft_overlong_punishment(10, 4),
}
PARTS = (
    *("<think>", "</think>", r"</think> \boxed{7}", r"\boxed{7}", r"\boxed{8}", r"$\frac{14}{2}$"),
    *("seven", "so", "7", "\n", "", "no answer"),
)
SOLUTIONS = ("7", "$7$", r"\frac{7}{1}", "words that are no mathematics")


def attempts(count: int) -> list[Rollout]:
    """Chats with random answers of random lengths in tokens, and solutions of which some cannot be read."""
    random = np.random.default_rng(0)
    found = []
    for row in range(count):
        prompt = [{"role": "user", "content": f"what is {row}?"}]
        task = Task(f"task-{row}", prompt, extra={"solution": SOLUTIONS[random.integers(len(SOLUTIONS))]})
        text = " ".join(PARTS[i] for i in random.integers(0, len(PARTS), random.integers(0, 6)))
        ids = torch.from_numpy(random.integers(0, 4, random.integers(1, 15)))
        found.append(Rollout(task, text, {"tokens": ids}, ids * 0.0, ids >= 0, ids * 0))
    return found


def test_all_of_them_are_tried_here() -> None:
    named = {name for names in rewards._import_structure.values() for name in names}
    assert named == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_gives_what_it_gives_in_trl(name: str) -> None:
    rollouts, function = attempts(60), FUNCTIONS[name]()
    logged: dict[str, list[Any]] = {}
    theirs = function(
        prompts=[r.task.prompt for r in rollouts],
        completions=[[{"role": "assistant", "content": r.output}] for r in rollouts],
        completion_ids=[r.payload["tokens"].tolist() for r in rollouts],
        solution=[r.task.extra["solution"] for r in rollouts],
        trainer_state=None,
        log_extra=lambda column, values: logged.setdefault(column, list(values)),
        log_metric=lambda metric, value: None,
    )
    require_columns(function, [r.task for r in rollouts], tokens=True)
    metrics = score(rollouts, function)
    assert [total_of(r) for r in rollouts] == pytest.approx(theirs)
    assert len({value for value in theirs if value is not None}) > 1, "it tells answers apart"
    applying = [value for value in theirs if value is not None]
    assert metrics == {"reward": pytest.approx(math.fsum(applying) / len(applying))}
    for column, values in logged.items():
        assert [r.info[f"logged/{column}"] for r in rollouts] == values
