"""Rewards: what they are called with, how they add up, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from autotelic.errors import UsageError
from autotelic.rewards.reward import Reward
from autotelic.rewards.text.verifiers import Numeric
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
        ([1.0, math.nan, 0.0], "reward planted returned nan for sample task-1"),
        ([1.0, 0.0, math.inf], "reward planted returned inf for sample task-2"),
        ([1.0, [0.5, math.nan], 0.0], "for sample task-1"),
        ([torch.tensor(math.nan), 1.0, 1.0], "for sample task-0"),
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


def test_a_reward_that_raises_is_named_with_its_sample() -> None:
    def inverse_length(completions: list[str], **_: Any) -> list[float]:
        return [1 / len(text) for text in completions]

    with pytest.raises(RewardError, match=r"reward inverse_length raised ZeroDivisionError: .* \(at sample task-1\)"):
        score(attempts("a", "", "c"), inverse_length)
    with pytest.raises(RewardError, match=r"reward inverse_length raised .* \(at sample task-1\)"):
        score(attempts("a", "", "c"), 0.5 * Reward(returns(1, 1, 1)) + Reward(inverse_length))
    with pytest.raises(RewardError, match="different numbers of scores: two 2, three 3"):
        score(attempts("a", "b", "c"), Reward(returns(1, 1), "two") + Reward(returns(1, 1, 1), "three"))


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
