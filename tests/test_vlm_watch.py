"""What a run of answers says of itself, and the canary: by hand."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from autotelic.trainers.gates import Canary, paired_fall
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives.policy_gradient import Reinforce
from autotelic.trainers.runs.alarms import AlarmLimits, check_evidence
from autotelic.types import Rollout, Task, Verdict
from autotelic.vlm.conversation import Reply, Transcript, Turn
from autotelic.vlm.watch import Watch, pass_at_k

from .toys import TokenToy


def answer(task: str, text: str, total: Any, log_probs: Sequence[float], truncated: bool = False) -> Rollout:
    mask = torch.ones(len(log_probs), dtype=torch.bool)
    info = {"truncated": truncated}
    return Rollout(
        Task(task, ""), text, {}, torch.tensor(log_probs), mask, mask.long() * 0, scores={"total": total}, info=info
    )


ANSWERS = [
    answer("a", "4", 1.0, [-1.0, -2.0]),
    answer("a", " 4 ", 1.0, [-3.0]),
    answer("a", "5", 0.0, [-0.5, -0.5, -1.0], truncated=True),
    answer("a", "6", 0.25, [-1.0]),
    answer("b", "7", [0.0, 0.5], [-1.0, -1.0]),
    answer("b", "7", 0.0, [-2.0]),
    answer("c", "8", None, [-4.0]),
]


def test_metrics_by_hand() -> None:
    metrics = Watch(passes=(1, 2, 4)).update(ANSWERS)
    assert metrics == pytest.approx(
        {
            "answers/length": 11 / 7,
            "answers/truncated": 1 / 7,
            "answers/truncated_count": 1.0,
            "answers/entropy": 17 / 11,
            "answers/entropy_first": (1 + 3 + 0.5 + 1 + 1 + 2 + 4) / 7,
            "answers/distinct": (3 / 4 + 1 / 2) / 2,
            "answers/gap": (1.0 + 0.5) / 2,
            "answers/pass@1": (2 / 4 + 0) / 2,
            "answers/pass@2": (1 - 1 / 6 + 0) / 2,
            "answers/pass@4": 1.0,
        }
    )
    whole = Watch(right=0.4).update(ANSWERS)
    assert whole["answers/pass@group"] == 1.0
    assert Watch().update([]) == {}


def test_calls_that_break_down_are_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def conversation(*calls: tuple[str, bool, str], broke: str = "") -> Rollout:
        turns = [Turn("look", Reply(info={"calls": calls})), Turn("4")]
        rollout = answer("a", "", 1.0, [-1.0])
        rollout.output, rollout.info = Transcript(turns), rollout.info | {"broke": broke}
        return rollout

    gone, bad = ("search", True, "search broke down: ConnectionError"), ("crop", True, "")
    rollouts = [conversation(gone, bad), conversation(("crop", False, "")), conversation(gone), conversation(broke="x")]
    watch = Watch()
    with caplog.at_level(logging.WARNING):
        metrics = [watch.update(rollouts) for _ in range(2)][-1]
    assert metrics["tools/calls"] == 4 / 4 and metrics["tools/failed"] == 3 / 4 and metrics["tools/broken"] == 2 / 4
    assert metrics["faults/tools"] == 2 / 4 and metrics["faults/environment"] == 1 / 4
    assert caplog.messages == ["the tool search broke down in all of its 2 calls of a round: search broke down: "
                               "ConnectionError"]  # fmt: skip
    assert not {name for name in Watch().update([answer("a", "4", 1.0, [-1.0])]) if "tools" in name or "faults" in name}


def test_pass_at_k_is_the_mean_over_all_draws() -> None:
    for n, right, k in [(5, 2, 3), (6, 1, 2), (4, 0, 2), (4, 4, 1), (7, 3, 5)]:
        draws = list(itertools.combinations([1] * right + [0] * (n - right), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))
    with pytest.raises(ValueError, match="k = 5, n = 4"):
        pass_at_k(4, 1, 5)


def test_masked_answers_have_a_length_and_no_entropy() -> None:
    cut = answer("a", "4", 0.0, [0.0, 0.0, 0.0], truncated=True)
    cut.mask[:] = False
    metrics = Watch().update([cut])
    assert metrics["answers/length"] == 3 and "answers/entropy" not in metrics


def test_rankings_are_compared_group_by_group() -> None:
    now = {"4": 3.0, " 4 ": 1.0, "5": 2.0, "6": 0.0, "7": 1.0}
    before = {"4": 2.0, " 4 ": 1.0, "5": 3.0, "6": 0.0, "7": 1.0}
    asked: list[int] = []

    def ranking(values: dict[str, float]) -> Any:
        def score(rollouts: Sequence[Rollout]) -> list[float]:
            asked.append(len(rollouts))
            return [values[r.output] for r in rollouts]

        return score

    watch = Watch(rankings=(ranking(now), ranking(before)))
    metrics = watch.update(ANSWERS)
    assert asked == [6, 6]  # the group of one is not ranked
    assert metrics["answers/tau"] == pytest.approx((4 / 6 + 0) / 2)  # one of six pairs turned round; all tied


def test_trouble_is_warned_of_once_and_stays_said(caplog: pytest.LogCaptureFixture) -> None:
    wild = [answer("a", "1", 0.0, [-4.0]), answer("a", "2", 1.0, [-4.0])]
    tame = [answer("a", "1", 0.0, [-0.2], True), answer("a", "2", 1.0, [-0.2], True)]
    up, down = (lambda rollouts: list(range(len(rollouts)))), (lambda rollouts: list(range(len(rollouts), 0, -1)))
    watch = Watch(rankings=(up, down))
    with caplog.at_level(logging.WARNING):
        watch.update(wild)
        assert [r.message for r in caplog.records] == [
            "the policy's ranking has little to do with the one before (Kendall's tau -1.00)"
        ]
        watch.update(tame)
        said = [r.message for r in caplog.records[1:]]
        assert said == [
            "100% of the answers hit the limit of their length",
            "entropy is 5% of what it was at the start",
        ]
        restored = Watch(rankings=(up, down))
        restored.load_state_dict(watch.state_dict())
        restored.update(tame)
        watch.update(tame)
    assert len(caplog.records) == 3
    assert restored.truncated == watch.truncated == 4


# --- the canary --------------------------------------------------------------------------------------------------

PROBES = [Task(f"{kind}-{i}", i, category=kind) for kind in ("count", "chain") for i in range(4)]


@dataclass
class Performer:
    scores: dict[str, Sequence[float]]

    def act(self, tasks: Sequence[Task], n: int, *, key: tuple[int, ...] = (0,), **_: Any) -> list[Rollout]:
        none = torch.zeros(1)
        return [Rollout(t, self.scores[t.category][t.prompt], {}, none, none.bool(), none.long()) for t in tasks]


def judge(outputs: list[float], **_: Any) -> list[float]:
    return outputs


START = Performer({"count": [1, 1, 1, 0], "chain": [1, 0, 1, 0]})
BETTER = Performer({"count": [1, 1, 1, 1], "chain": [1, 1, 1, 0]})
WORSE = Performer({"count": [1, 0, 0, 0], "chain": [1, 0, 0, 0]})
"""Under START by 1 in three of eight probes: mean 3/8, standard error sqrt(8 x (3/8 x 5/8) / 7 / 8) = 0.18298."""


def test_a_fall_is_an_alarm_beyond_z_standard_errors() -> None:
    against = {"base": START, "promoted": START}
    assert Canary(PROBES, judge, z=2.05)(WORSE, against).decision == "wait"
    assert Canary(PROBES, judge)(WORSE, against).decision == "repair", "two, where nothing is said"
    verdict = Canary(PROBES, judge, z=2.049)(WORSE, against)
    assert verdict.decision == "repair" and not verdict.stop and verdict.harmed == ()
    assert "0.375 under base (standard error 0.18) and 0.375 under promoted" in verdict.reason
    assert verdict.evidence["count"] == {"candidate": 0.25, "base": 0.75, "promoted": 0.75}


def test_the_second_alarm_stops_the_stage_and_what_was_kept_becomes_the_measure() -> None:
    gate = Canary(PROBES, judge, z=2.0)
    against = {"base": START, "promoted": START}
    assert gate(BETTER, against).decision == "keep"
    first = gate(START, {"base": START, "promoted": BETTER})
    assert first.decision == "wait"  # under the promoted by 2/8, standard error 0.164: not beyond two
    again = Canary(PROBES, judge, z=1.5)
    again(BETTER, against)
    assert again(START, against).decision == "repair"  # but beyond one and a half
    restored = Canary(PROBES, judge, z=1.5)
    restored.load_state_dict(again.state_dict())
    last = restored(WORSE, {"base": START, "promoted": BETTER})
    assert (last.decision, last.stop) == ("rollback", True) and "alarm 2, stopped there" in last.reason


def test_a_canary_sees_small_falls_that_add_up() -> None:
    """From 30 right answers of 32 by one at a time, each time by one standard error of the fall."""
    probes = [Task(f"q{i}", i, category="one") for i in range(32)]

    def right(count: int) -> Performer:
        return Performer({"one": [float(i < count) for i in range(32)]})

    against = {"base": right(16), "promoted": right(16)}
    gate = Canary(probes, judge, z=1.6)
    assert gate(right(30), against).decision == "keep"
    assert gate(right(29), against).decision == "keep"  # a fall of 1/32, standard error 1/32
    last = gate(right(28), against)  # from 29 by one more; from 30 by 2/32, standard error .043
    assert last.decision == "wait" and last.evidence["one"]["best"] == 30 / 32
    seen = gate(right(27), against)  # from 30 by 3/32, standard error .052: 1.79 of them
    assert seen.decision == "repair" and "0.0938 under best" in seen.reason


def test_a_canary_holds_one_policy_and_not_the_best_of_each_category() -> None:
    against = {"base": Performer({"count": [0] * 4, "chain": [0] * 4})}
    gate = Canary(PROBES, judge, z=1.2)
    assert gate(Performer({"count": [1, 1, 1, 1], "chain": [0, 0, 0, 0]}), against).decision == "keep"
    assert gate(Performer({"count": [1, 1, 1, 0], "chain": [1, 1, 0, 0]}), against).decision == "keep"
    verdict = gate(Performer({"count": [1, 1, 1, 0], "chain": [1, 0, 0, 0]}), against)
    assert verdict.evidence["count"]["best"] == 0.75 and verdict.evidence["chain"]["best"] == 0.5


def test_after_an_alarm_level_is_not_enough() -> None:
    outcomes = {kind: list(scores) for kind, scores in START.scores.items()}
    outcomes["count"].reverse()  # as many right, but others: a difference of 0 with a standard error
    level = Performer(outcomes)
    assert level.scores["count"] != START.scores["count"]
    against = {"base": START, "promoted": START}
    assert Canary(PROBES, judge)(level, against).decision == "keep"
    gate = Canary(PROBES, judge, z=2.0)
    assert gate(WORSE, against).decision == "repair"
    assert gate(level, against).decision == "wait"
    assert gate(BETTER, against).decision == "keep"  # by 0.25, standard error 0.164


def test_an_equal_fall_everywhere_has_no_error_and_is_seen() -> None:
    level = [Performer({"count": [value] * 4, "chain": [value] * 4}) for value in (0.5, 0.4)]
    assert Canary(PROBES, judge)(level[1], {"base": level[0]}).decision == "repair"
    assert Canary(PROBES, judge)(level[0], {"base": level[0]}).decision == "keep"


def test_evidence_shows_a_reward_that_rises_while_the_judge_falls() -> None:
    gate = Canary(PROBES, judge, reward=lambda outputs, **_: [1.0 - x for x in outputs])
    verdict = gate(WORSE, {"base": START})
    alarms = check_evidence(verdict.evidence, AlarmLimits())
    assert [alarm.about for alarm in alarms] == ["count", "chain"]
    with pytest.raises(ValueError, match="compares 2 or more probes, not 1"):
        Canary(PROBES[:1], judge)
    two = Performer({"count": [1, 0]})
    assert Canary(PROBES[:2], judge)(two, {"base": two}).decision == "keep"


def test_a_false_alarm_is_as_rare_as_it_says() -> None:
    """200 probes, a tenth of them changed by chance either way: 2.3 % of looks cry wolf, a collapse is always seen."""
    random = torch.Generator().manual_seed(0)

    def right(share: float) -> torch.Tensor:
        return (torch.rand(200, generator=random) < share).float()

    alarms, seen, looks = 0, 0, 400
    for _ in range(looks):
        before = right(0.35)
        after = torch.where(right(0.1).bool(), right(0.35), before)
        fall, error = paired_fall({"all": before.tolist()}, {"all": after.tolist()})
        alarms += fall > 2 * error
        fall, error = paired_fall({"all": before.tolist()}, {"all": (before * right(0.7)).tolist()})
        seen += fall > 2 * error
    assert 0.005 < alarms / looks < 0.04 and seen == looks, (alarms, seen)


def test_a_repair_takes_smaller_steps_from_then_on() -> None:
    learner = PolicyLearner(
        TokenToy(1), Reinforce(), Optimisation(lr=0.1, repair_lr=0.5), advantage=lambda b: b.mask * 1.0
    )
    learner.repair(Verdict("repair"))
    assert learner.optimizer.param_groups[0]["lr"] == 0.05
    other = PolicyLearner(
        TokenToy(1), Reinforce(), Optimisation(lr=0.1, repair_lr=0.5), advantage=lambda b: b.mask * 1.0
    )
    other.load_state_dict(learner.state_dict())
    other.repair(Verdict("repair"))
    assert other.optimizer.param_groups[0]["lr"] == 0.025
    plain = PolicyLearner(TokenToy(1), Reinforce(), Optimisation(lr=0.1), advantage=lambda b: b.mask * 1.0)
    plain.repair(Verdict("repair"))
    assert plain.optimizer.param_groups[0]["lr"] == 0.1
