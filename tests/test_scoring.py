"""Rewards: what they are called with, how they add up, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch

from autotelic.errors import UsageError
from autotelic.rewards.reward import Reward
from autotelic.rewards.text.verifiers import Numeric
from autotelic.trainers.faults import LONGEST, is_machines, unreadable
from autotelic.trainers.scoring import RewardError, score
from autotelic.types import Rollout, Task

NONE = torch.zeros(1)


def attempts(*outputs: Any) -> list[Rollout]:
    tasks = [Task(f"task-{i}", f"say {i}", reference=i, extra={"answer": str(i)}) for i in range(len(outputs))]
    return [Rollout(t, o, {}, NONE, NONE.bool(), NONE.long()) for t, o in zip(tasks, outputs, strict=True)]


def returns(*scores: Any) -> Any:
    def planted(**_: Any) -> Any:
        return list(scores)

    return planted


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 0.0, math.inf], "reward planted returned inf for sample task-2"),
        ([1.0, [0.5, math.nan], 0.0], "returned nan for some segments, for sample task-1"),
        ([torch.tensor(-math.inf), 1.0, 1.0], "returned -inf for sample task-0"),
        ([1.0, [], 0.0], "returned no number, for sample task-1"),
        (["good", 1.0, 1.0], "reward planted returned good for sample task-0"),
        ([1.0, 2.0], "reward planted returned 2 scores for 3 samples"),
    ],
)
def test_what_is_not_a_score_is_refused_by_reward_and_sample(scores: list[Any], message: str) -> None:
    rollouts = attempts("a", "b", "c")
    with pytest.raises(RewardError, match=message):
        score(rollouts, returns(*scores))
    assert all(rollout.scores == {} for rollout in rollouts), "nothing half-scored is left behind"


def test_a_reward_that_returns_no_sequence_is_refused() -> None:
    with pytest.raises(RewardError, match="reward constant returned float, not a sequence"):
        score(attempts("a"), Reward(lambda **_: 1.0, "constant"))


def inverse_length(completions: list[str], **_: Any) -> list[float]:
    return [1 / len(text) for text in completions]


def test_a_reward_that_raises_for_all_is_named_with_the_line_in_its_file() -> None:
    line = rf"raised ZeroDivisionError: division by zero \({Path(__file__).name}, line \d+\)$"
    with pytest.raises(RewardError, match=f"^reward inverse_length {line}"):
        score(attempts("", "", ""), inverse_length)
    with pytest.raises(RewardError, match=f"^reward inverse_length {line}"):
        score(attempts("", ""), 0.5 * Reward(returns(1, 1)) + Reward(inverse_length))
    with pytest.raises(RewardError, match=r"^reward two returned 2 scores for 3 samples"):
        score(attempts("a", "b", "c"), Reward(returns(1, 1), "two") + Reward(returns(1, 1, 1), "three"))


def test_who_broke_the_reward_scores_its_minimum_and_the_others_what_they_score_together() -> None:
    """The others are asked once more, together, so that a reward that compares sees all of them."""
    asked: list[int] = []

    def above_mean(completions: list[str], **_: Any) -> list[float]:
        asked.append(len(completions))
        sizes = [10 / len(text) for text in completions]
        return [size - sum(sizes) / len(sizes) for size in sizes]

    rollouts = attempts("ab", "", "abcd", "")
    metrics = score(rollouts, above_mean)
    assert [r.scores["total"] for r in rollouts] == [1.25, -1.25, -1.25, -1.25]
    assert metrics == {"reward": -0.625, "faults/policy": 0.5}
    assert asked == [4, 1, 1, 1, 1, 1, 1, 2] and "fault" not in rollouts[0].info
    assert str(rollouts[3].info["fault"]).startswith("reward above_mean raised ZeroDivisionError: division by zero")
    rollouts[1].output = "a"
    score(rollouts, above_mean)
    assert "fault" not in rollouts[1].info, "a later scoring tells of itself"


def test_the_minimum_is_the_declared_one_the_sum_of_declared_ones_or_the_lowest_of_the_round() -> None:
    floored = Reward(inverse_length, minimum=-2.0)
    assert (0.5 * floored + 3 * Reward(inverse_length, "other", minimum=1.0)).minimum == 2.0
    assert (0.5 * floored + Reward(returns(1), "open")).minimum is None
    assert (-1 * floored).minimum is None, "what is lowest there is the function's maximum"
    rollouts = attempts("ab", "")
    score(rollouts, floored)
    assert [r.scores for r in rollouts] == [
        {"inverse_length": 0.5, "total": 0.5},
        {"inverse_length": 0.5, "total": -2.0},
    ]


def test_tensors_of_inference_mode_are_scored() -> None:
    with torch.inference_mode():
        made = torch.ones(3, 2, 2)
    rollouts = attempts(made)
    assert score(rollouts, lambda outputs: [float(output.sum()) for output in outputs]) == {"reward": 12.0}


def test_a_collapse_is_told_from_a_mistake_by_an_output_that_was_scored_before() -> None:
    broken = False

    def mine(completions: list[str], **_: Any) -> list[float]:
        if broken:
            raise KeyError("mine")
        return inverse_length(completions)

    with pytest.raises(RewardError, match="ZeroDivisionError"):
        score(attempts("", ""), mine)
    score(attempts("ab", "abc"), mine)
    rollouts = attempts("", "")
    assert score(rollouts, mine) == {"reward": pytest.approx(1 / 3), "faults/policy": 1.0}, "the lowest that was seen"
    broken = True
    with pytest.raises(RewardError, match="KeyError: 'mine'"):
        score(attempts("ab", ""), mine)


def test_a_mistake_is_told_before_every_one_of_many_samples_was_tried() -> None:
    calls = []

    def wrong(completions: list[str], **_: Any) -> list[float]:
        calls.append(len(completions))
        raise KeyError("wrong")

    with pytest.raises(RewardError, match="reward wrong raised KeyError"):
        score(attempts(*"a" * 500), wrong)
    assert len(calls) < 50


def test_a_server_that_is_down_is_not_asked_for_every_sample() -> None:
    calls = []

    def remote(completions: list[str], **_: Any) -> list[float]:
        calls.append(len(completions))
        raise ConnectionRefusedError("refused")

    rollouts = attempts(*"a" * 100)
    assert score(rollouts, remote)["faults/infrastructure"] == 1.0
    assert calls == [100, 100, 1, 1, 1, 1]


def test_a_server_that_fails_on_one_sample_leaves_that_one_without_a_score() -> None:
    def remote(completions: list[str], **_: Any) -> list[float]:
        if "slow" in completions:
            raise TimeoutError("no answer")
        return [1.0] * len(completions)

    rollouts = attempts("a", "slow", "b")
    metrics = score(rollouts, remote)
    assert [r.scores["total"] for r in rollouts] == [1.0, None, 1.0]
    assert metrics == {"reward": 1.0, "faults/infrastructure": pytest.approx(1 / 3)}


class Refused(Exception):
    """As HTTP clients have it."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"HTTP {status_code}")
        self.status_code = status_code


@pytest.mark.parametrize(
    ("error", "machines"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(28, "No space left on device"), True),
        (HTTPError("u", 503, "busy", Message(), None), True),
        (HTTPError("u", 400, "too long", Message(), None), False),
        (HTTPError("u", 429, "later", Message(), None), True),
        (Refused(404), False),
        (FileNotFoundError(2, "prompt.txt"), False),
        (PermissionError(13, "no"), False),
        (ValueError("no"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
    ids=repr,
)
def test_errors_of_machines_are_connections_and_time(error: Exception, machines: bool) -> None:
    assert is_machines(error) is machines


def test_what_is_unreadable_is_told() -> None:
    nan = torch.tensor([0.0, math.nan])
    assert unreadable("plain") is unreadable(torch.ones(2)) is unreadable(None) is unreadable((1, 2)) is None
    assert unreadable("ab\ud800") == "a text with a lone surrogate at character 2"
    assert unreadable("a" * (LONGEST + 1)) == f"a text of {LONGEST + 1} characters, more than {LONGEST}"
    assert unreadable(nan) == unreadable(nan.numpy()) == unreadable(nan.half()) == "values that are not finite"
    assert unreadable(torch.tensor([1, 2])) is None
    episode = SimpleNamespace(observations=np.zeros(3), actions=np.array([np.inf]))
    assert unreadable(episode) == "an episode whose actions are not finite"


def test_what_a_reward_refuses_of_a_person_is_told_as_that() -> None:
    rollouts = attempts("7", "8")
    rollouts[1].task = replace(rollouts[1].task, reference="seven")
    message = r'^reward Numeric: sample \d: the reference "seven" holds no number \(at sample task-1\)$'
    with pytest.raises(UsageError, match=message) as told:
        score(rollouts, Numeric())
    assert isinstance(told.value, RewardError), "a run keeps its rollouts for this too"


def test_none_for_some_samples_does_not_apply_to_them() -> None:
    rollouts = attempts("a", "b", "c")
    assert score(rollouts, returns(1.0, None, 0.0)) == {"reward": 0.5}
    assert [r.scores["total"] for r in rollouts] == [1.0, None, 0.0]
    assert score([], returns()) == {}


def test_none_for_every_sample_is_a_round_without_a_reward() -> None:
    rollouts = attempts("a", "b")
    assert math.isnan(score(rollouts, returns(None, None))["reward"])
    assert [r.scores for r in rollouts] == [{"planted": None, "total": None}] * 2


def test_reward_functions_written_for_trl_work_unchanged() -> None:
    def matches(prompts: list[str], completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
        assert prompts == ["say 0", "say 1"]
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    def length(completions: list[str], **kwargs: Any) -> list[int]:
        return [len(text) for text in completions]

    rollouts = attempts("0", "one")
    assert score(rollouts, matches) == {"reward": 0.5}
    assert score(rollouts, Reward(matches) + 0.1 * Reward(length))["reward"] == pytest.approx((1.1 + 0.3) / 2)
    assert [r.scores["length"] for r in rollouts] == [1, 3]


def test_weighted_sums_by_hand() -> None:
    """0.7 a + 0.3 b; where one does not apply the other counts alone, where none does there is no total."""
    a = Reward(returns(1.0, None, 0.5, None), "a")
    b = Reward(returns(0.0, 1.0, 1.0, None), "b")
    both = 0.7 * a + 0.3 * b
    assert both.name == "0.7 a + 0.3 b"
    rollouts = attempts(*"wxyz")
    metrics = score(rollouts, both)
    assert [r.scores["total"] for r in rollouts] == [0.7, pytest.approx(0.3), pytest.approx(0.65), None]
    assert metrics == pytest.approx({"reward/a": 0.75, "reward/b": 2 / 3, "reward": 1.65 / 3})
    twice = 2 * both + a  # 1.4 a + 0.6 b + 1 a
    assert [weight for weight, _ in twice.terms] == pytest.approx([1.4, 0.6, 1.0])
    assert list(twice(rollouts=rollouts)["total"])[:2] == pytest.approx([2.4, 0.6])


def test_scores_per_segment_and_tensors_are_added() -> None:
    steps = Reward(returns(torch.tensor([0.25, 0.5]), torch.tensor([1.0, 0.0])), "steps")
    rollouts = attempts("a", "b")
    with pytest.raises(RewardError, match="reward steps returned 2 numbers for the 1 segment of sample task-0"):
        score(rollouts, 2 * steps)
    for rollout in rollouts:
        rollout.segments = torch.arange(2)
    assert score(rollouts, 2 * steps)["reward"] == pytest.approx((1.5 + 2.0) / 2)
    gradient = torch.tensor([1.0, 2.0], requires_grad=True)
    differentiable = Reward(lambda **_: gradient, "sharpness", differentiable=True)
    total = (0.5 * differentiable + 0.5 * differentiable)(rollouts=rollouts)["total"]
    sum(total).backward()  # type: ignore[union-attr, arg-type]
    assert gradient.grad is not None and gradient.grad.tolist() == [1.0, 1.0]
    assert (0.5 * differentiable).differentiable and not (differentiable + steps).differentiable


def test_several_named_scores_come_from_one_reward() -> None:
    def judged(outputs: list[str], **_: Any) -> dict[str, list[float]]:
        return {"total": [1.0] * len(outputs), "style": [0.5] * len(outputs)}

    rollouts = attempts("a", "b")
    assert score(rollouts, judged) == {"reward/style": 0.5, "reward": 1.0}
    assert rollouts[0].scores == {"total": 1.0, "style": 0.5}


def test_an_episode_that_could_not_go_on_is_the_environments_and_scores_the_minimum() -> None:
    """A reward does not see it, and it is not counted as the policy's."""
    from types import SimpleNamespace

    seen: list[int] = []

    def reward(episodes: Any, **columns: Any) -> list[float]:
        seen.append(len(episodes))
        return [0.3 + index for index, _ in enumerate(episodes)]

    outputs = [SimpleNamespace(fault=fault) for fault in (None, "reach, seed 3, after step 7: it hung", None)]
    rollouts = [Rollout.plain(Task(f"t{i}", "go"), output) for i, output in enumerate(outputs)]
    metrics = score(rollouts, reward)
    assert seen == [2] and [r.scores["total"] for r in rollouts] == [0.3, 0.3, 1.3]
    assert metrics["faults/environment"] == pytest.approx(1 / 3) and "faults/policy" not in metrics
    assert rollouts[1].info["fault"] == "reach, seed 3, after step 7: it hung"
