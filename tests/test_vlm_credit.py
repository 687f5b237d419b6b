"""Credit per turn, by numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch

from autotelic.testing.vlms import text
from autotelic.trainers.advantages import GroupRelative
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives.policy_gradient import Reinforce
from autotelic.trainers.objectives.regularisers import KLPenalty
from autotelic.trainers.policy import collate
from autotelic.trainers.scoring import score
from autotelic.types import Evaluation, Rollout, Task
from autotelic.vlm.conversation import Conversation, Script, Transcript, Turn
from autotelic.vlm.credit import Correction, OnTurns, PerTurn, own_turn
from autotelic.vlm.policy import TokenPolicy


def right(completions: Sequence[str], references: Sequence[str], **columns: Any) -> list[float]:
    return [float(said == reference) for said, reference in zip(completions, references, strict=True)]


def conversation(*texts: str) -> Rollout:
    """Two tokens a turn, and one of the environment between turns."""
    segments = torch.tensor([turn for turn in range(len(texts)) for _ in range(3)])[:-1]
    mask = torch.tensor([True, True, False] * len(texts))[:-1]
    output = Transcript([Turn(text) for text in texts])
    payload = {"tokens": torch.zeros(len(mask))}
    return Rollout(Task("sum", "2 + 2", reference="4"), output, payload, torch.zeros(len(mask)), mask, segments)


ATTEMPTS = [("3", "4"), ("4", "4"), ("4", "5"), ("3", "3"), ("7",)]  # r1, r2: 0 1, 1 1, 1 0, 0 0, 0 -


def test_scores_of_ones_own_sum_up_to_the_credits() -> None:
    scores = own_turn([1.0, -4.0, 2.5])
    assert scores.tolist() == [5.0, -6.5, 2.5]
    assert scores.flip(0).cumsum(0).flip(0).tolist() == [1.0, -4.0, 2.5]
    assert own_turn([3.0]).tolist() == [3.0]


def test_every_turn_is_scored_as_a_completion() -> None:
    rollouts = [conversation(*texts) for texts in ATTEMPTS]
    metrics = score(rollouts, PerTurn(right))
    totals = [torch.as_tensor(r.scores["total"]).tolist() for r in rollouts]
    assert totals == [[0, 1], [1, 1], [1, 0], [0, 0], [0]]
    assert metrics["reward"] == pytest.approx(4 / 5)
    with pytest.raises(ValueError, match="sample 0 is no conversation but str"):
        PerTurn(right)(["4"], references=["4"])


@pytest.mark.parametrize(
    ("stage", "first", "second"),
    [("second", [0, 1, 1, 0, 0], [11, 1, -10, 0]), ("first", [0, 0, 0, 0, 0], [1, 1, 0, 0])],
)
def test_a_correction_pays_each_attempt_its_own(stage: Any, first: list[float], second: list[float]) -> None:
    rollouts = [conversation(*texts) for texts in ATTEMPTS]
    metrics = score(rollouts, Correction(right, stage, alpha=10.0))
    assert metrics["reward/first"] == pytest.approx(2 / 5) and metrics["reward/second"] == pytest.approx(2 / 4)
    assert metrics["reward/gain"] == pytest.approx(0.0) and metrics["reward/copied"] == pytest.approx(2 / 4)
    batch = collate(rollouts, [1] * 5)
    advantages = GroupRelative(scale="none", per_segment=True)(batch)
    centred = torch.tensor(first, dtype=torch.float) - sum(first) / 5
    for token in (0, 1):
        torch.testing.assert_close(advantages[:, token], centred)
    later = torch.tensor(second, dtype=torch.float) - sum(second) / 4
    for token in (3, 4):
        torch.testing.assert_close(advantages[:4, token], later)
    assert not advantages[~batch.mask].any()


def test_without_it_the_first_attempt_would_be_paid_for_failing() -> None:
    """The trap: with reward-to-go of (r1, r2 + alpha (r2 - r1)) being wrong first is worth alpha - 1 = 9 more."""
    rollouts = [conversation("3", "4"), conversation("4", "4")]
    for rollout, scores in zip(rollouts, ([0.0, 11.0], [1.0, 1.0]), strict=True):
        rollout.scores["total"] = scores
    naive = GroupRelative(scale="none", per_segment=True)(collate(rollouts, [1, 1]))
    assert naive[:, 0].tolist() == [4.5, -4.5]
    score(rollouts, Correction(right))
    own = GroupRelative(scale="none", per_segment=True)(collate(rollouts, [1, 1]))
    assert own[:, 0].tolist() == [-0.5, 0.5] and own[:, 3].tolist() == [5.0, -5.0]


def test_a_correction_is_two_turns_and_shows_what_it_is_made_of() -> None:
    with pytest.raises(ValueError, match="sample 0 has 3 turns: a correction is two"):
        Correction(right)([Transcript([Turn("4")] * 3)], references=["4"])
    with pytest.raises(ValueError, match='unknown stage "third"'):
        Correction(right, "third")  # type: ignore[arg-type]


def test_a_term_on_a_turn_sees_its_words_alone() -> None:
    batch = collate([conversation("3", "4"), conversation("7")], [1, 1])
    batch.log_probs["reference"] = torch.zeros(2, 5)
    now = Evaluation(torch.tensor([[0.2, 0.4, 9.0, 0.6, 0.8], [1.0, 2.0, 0.0, 0.0, 0.0]])).leaves()
    whole, _ = KLPenalty(estimator="k2")(now, batch)
    assert whole.item() == pytest.approx(((0.02 + 0.08 + 0.18 + 0.32) / 4 + (0.5 + 2.0) / 2) / 2)
    first, metrics = OnTurns(KLPenalty(estimator="k2"), (0,))(now, batch)
    assert first.item() == pytest.approx(((0.02 + 0.08) / 2 + (0.5 + 2.0) / 2) / 2)
    assert metrics["objective/kl_reference"] == pytest.approx((0.02 + 0.08 + 0.5 + 2.0) / 4)
    gradient = now.gradient_of(first).log_probs
    assert gradient[0].tolist() == pytest.approx([0.05, 0.1, 0.0, 0.0, 0.0])
    per_decision, _ = OnTurns(KLPenalty(estimator="k2", aggregate="decision"), (1,))(now, batch)
    assert per_decision.item() == pytest.approx((0.18 + 0.32) / 6)  # of all six words
    total = Reinforce() + 0.5 * OnTurns(KLPenalty(), (0,))
    assert total.needs == {"advantages", "log_probs:reference"}


def test_two_stages_teach_the_correction_first_and_the_attempt_second() -> None:
    """A model of a few thousand weights names the colour that it was asked about, in one of two attempts."""

    def named(completions: Sequence[str], references: Sequence[str], **_: Any) -> list[float]:
        return [float(said.split()[:1] == [reference]) for said, reference in zip(completions, references, strict=True)]

    policy = TokenPolicy.of(*text("llama"), horizon=1)
    policy.renderer.ends = frozenset(range(100))  # a turn is a word,
    policy.renderer.turn_end = None  # type: ignore[attr-defined]  # which nothing closes
    tasks = [Task(word, f"what is {word} ?", reference=word) for word in ("red", "blue")]
    conversation = Conversation(policy, Script(("no ?",)), turns=2)

    def train(stage: Literal["first", "second"], objective: Any, updates: int) -> dict[str, float]:
        reward = Correction(named, stage)
        learner = PolicyLearner(
            policy,
            Reinforce() + objective,
            Optimisation(lr=5e-3),
            advantage=GroupRelative(per_segment=True),
            references={"reference": policy.fork("reference")},
        )
        for update in range(updates):
            rollouts = conversation.act(tasks, 16, key=(0, update))
            score(rollouts, reward)
            metrics = learner.update(rollouts)
        return metrics | score(conversation.act(tasks, 64, key=(1,)), reward)

    before = score(conversation.act(tasks, 64, key=(1,)), Correction(named))
    first = train("first", 3.0 * OnTurns(KLPenalty(), (0,)), 18)
    second = train("second", 0.01 * KLPenalty(), 18)
    assert max(before["reward/first"], before["reward/second"]) < 0.1
    assert first["reward/second"] > 0.4 and first["reward/first"] < 0.1, first
    assert second["reward/first"] > 0.4 and second["reward/second"] > 0.4, second
