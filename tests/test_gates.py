"""Gates against numbers worked out by hand, and alarms on planted trouble."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from autotelic.errors import UsageError
from autotelic.families import GROUND_TRUTH, of_family
from autotelic.rewards.reward import Reward
from autotelic.trainers import gates
from autotelic.trainers.gates import BestSoFar, NonInferiority
from autotelic.trainers.loop import train
from autotelic.trainers.runs.alarms import Alarm, AlarmLimits, Watcher, check_evidence
from autotelic.types import Rollout, Task

from .toy_run import build, folder_at, honest, spelled

PROBES = [Task(f"{category}-{i}", i, category=category) for category in ("reach", "push") for i in range(4)]


@dataclass
class Performer:
    """Scores what it is told to, per category; counts how often it is asked."""

    scores: dict[str, Sequence[float]]
    asked: int = 0
    how: dict[str, Any] = field(default_factory=dict)

    def act(self, tasks: Sequence[Task], n: int, **how: Any) -> list[Rollout]:
        self.asked += 1
        self.how = how
        none = torch.zeros(1)
        return [Rollout(t, self.scores[t.category][t.prompt], {}, none, none.bool(), none.long()) for t in tasks]


def level(reach: float, push: float) -> Performer:
    return Performer({"reach": [reach] * 4, "push": [push] * 4})


def judge(outputs: list[float], **_: Any) -> list[float]:
    return outputs


def flattery(outputs: list[float], **_: Any) -> list[float]:
    return [1 - x for x in outputs]


def test_the_bound_by_hand() -> None:
    """Falls of 0.2, 0, 0, 0.2: mean 0.1, standard error 0.1 / 2, and z(0.9) = 1.28155 gives 0.16408."""
    base = level(1.0, 1.0)
    candidate = Performer({"reach": [0.8, 1.0, 1.0, 0.8], "push": [1.0] * 4})
    against = {"base": base, "promoted": level(0.5, 0.5)}
    kept = NonInferiority(PROBES, judge, margin=0.1641, level=0.9)(candidate, against)
    assert kept.decision == "keep" and kept.harmed == ()
    assert kept.evidence["reach"]["upper"] == pytest.approx(0.164078, abs=1e-6)
    row = {"candidate": 0.9, "base": 1.0, "promoted": 0.5}
    assert {k: kept.evidence["reach"][k] for k in row} == pytest.approx(row)
    refused = NonInferiority(PROBES, judge, margin=0.1640, level=0.9)(candidate, against)
    assert (refused.decision, refused.harmed) == ("repair", ("reach",))
    assert "reach may have fallen by 0.164 or more" in refused.reason


def test_a_slow_drift_is_stopped_by_the_base() -> None:
    """0.06 per look is under a margin of 0.1 each time, but not against where it all began."""
    gate = NonInferiority(PROBES, judge, margin=0.1)
    against = {"base": level(1.0, 1.0), "promoted": level(0.5, 0.5)}
    assert [gate(level(1.0, height), against).decision for height in (0.94, 0.88, 0.82)] == ["keep", "repair", "repair"]


def test_a_slow_drift_from_the_best_promoted_is_stopped() -> None:
    """Well above the base, and each time within the margin of the last promoted: .9, .83, .76."""
    against = {"base": level(0.5, 0.5), "promoted": level(0.5, 0.5)}
    gate = NonInferiority(PROBES, judge, margin=0.1)
    assert gate(level(0.5, 0.9), against).decision == "keep"
    assert gate(level(0.5, 0.83), against).decision == "keep"
    drifted = gate(level(0.5, 0.76), against)
    assert (drifted.decision, drifted.harmed) == ("repair", ("push",))
    assert drifted.evidence["push"] == pytest.approx(
        {"candidate": 0.76, "base": 0.5, "promoted": 0.83, "best": 0.9, "upper": 0.14}
    )
    resumed = NonInferiority(PROBES, judge, margin=0.1)
    resumed.load_state_dict(json.loads(json.dumps(gate.state_dict())))
    again = resumed(level(0.5, 0.76), {"base": level(0.5, 0.5), "promoted": level(0.5, 0.83)})
    assert again.evidence == drifted.evidence and list(again.evidence["push"]) == list(drifted.evidence["push"])


def test_of_the_best_the_mean_fall_counts_and_not_its_bound() -> None:
    """Falls of .3, 0, 0, 0 from the best: mean .075 and bound .171, margin .1; from the last promoted nothing fell."""
    against = {"base": level(0.0, 0.0), "promoted": level(0.0, 0.0)}
    gate = NonInferiority(PROBES, judge, margin=0.1)
    assert gate(level(1.0, 1.0), against).decision == "keep"
    fallen = Performer({"reach": [0.7, 1.0, 1.0, 1.0], "push": [1.0] * 4})
    gate._known["promoted"] = (fallen.scores, {})
    verdict = gate(fallen, against)
    assert verdict.decision == "keep" and verdict.evidence["reach"]["upper"] == pytest.approx(0.075)


def test_the_best_of_each_category_is_held_by_itself() -> None:
    """Reach was best in one promoted policy, push in another; equal scores leave the first one."""
    against = {"base": level(0.0, 0.0), "promoted": level(0.0, 0.0)}
    gate = NonInferiority(PROBES, judge, margin=0.1, reward=flattery)
    for reach, push in ((0.9, 0.8), (0.85, 0.85), (0.85, 0.85)):
        assert gate(level(reach, push), against).decision == "keep"
    verdict = gate(level(0.78, 0.78), against)
    assert verdict.harmed == ("reach",)
    assert {name: row["best"] for name, row in verdict.evidence.items()} == pytest.approx({"reach": 0.9, "push": 0.85})
    assert verdict.evidence["reach"]["reward_change_from_best"] == pytest.approx(0.12)


def test_the_last_promoted_is_compared_too() -> None:
    """Better than the base is not enough after something better still was let through."""
    gate = NonInferiority(PROBES, judge, margin=0.1)
    against = {"base": level(0.2, 0.2), "promoted": level(0.2, 0.2)}
    assert gate(level(0.8, 0.8), against).decision == "keep"
    worse = gate(level(0.8, 0.5), against)
    assert (worse.decision, worse.harmed) == ("repair", ("push",))


def test_after_its_repairs_a_gate_only_rolls_back_and_remembers_that() -> None:
    against = {"base": level(1.0, 1.0), "promoted": level(1.0, 1.0)}
    gate = NonInferiority(PROBES, judge, repairs=2)
    assert [gate(level(0.0, 1.0), against).decision for _ in range(3)] == ["repair", "repair", "rollback"]
    usual = NonInferiority(PROBES, judge)
    assert [usual(level(0.0, 1.0), against).decision for _ in range(4)] == ["repair"] * 3 + ["rollback"]
    resumed = NonInferiority(PROBES, judge, repairs=2)
    resumed.load_state_dict(gate.state_dict())
    assert resumed(level(0.0, 1.0), against).decision == "rollback"
    assert resumed(level(1.0, 1.0), against).decision == "keep"


def test_frozen_policies_are_looked_at_once() -> None:
    base, promoted = level(0.5, 0.5), level(0.5, 0.5)
    gate = NonInferiority(PROBES, judge)
    for _ in range(3):
        gate(level(0.6, 0.6), {"base": base, "promoted": promoted})
    assert (base.asked, promoted.asked) == (1, 1)


def test_every_look_is_the_same_look() -> None:
    """The keys are frozen as the probes are: a resumed run, and another version, draw what this one drew."""
    base, candidate = level(0.5, 0.5), level(0.6, 0.6)
    gate = BestSoFar(PROBES, judge)
    for _ in range(2):
        gate(candidate, {"base": base})
        assert base.how == candidate.how == {"key": (0,), "mode": "evaluate", "greedy": True}
    BestSoFar(PROBES, judge, sampling={"temperature": 0.5})(candidate, {"base": base})
    assert candidate.how == {"key": (0,), "mode": "evaluate", "temperature": 0.5}


def test_the_judge_decides_and_the_training_reward_is_only_told() -> None:
    """The reward rose by 0.3 where the judge fell by 0.3: evidence, and an alarm."""
    gate = NonInferiority(PROBES, judge, margin=0.5, reward=flattery)
    verdict = gate(level(0.7, 1.0), {"base": level(1.0, 1.0), "promoted": level(1.0, 1.0)})
    assert verdict.decision == "keep"
    assert verdict.evidence["reach"]["reward_change_from_base"] == pytest.approx(0.3)
    (alarm,) = check_evidence(verdict.evidence, AlarmLimits())
    assert alarm.alarm == "reward hacking" and alarm.detail.startswith("reach: the reward rose by 0.30")
    assert check_evidence(gate(level(1.0, 1.0), {}).evidence, AlarmLimits()) == []


def test_a_judge_must_score_every_probe() -> None:
    def picky(outputs: list[float], **_: Any) -> list[float | None]:
        return [None, *outputs[1:]]

    with pytest.raises(ValueError, match="judge must score every probe"):
        NonInferiority(PROBES, picky)(level(1.0, 1.0), {})


def test_many_probes_are_looked_at_a_few_at_a_time_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counting(outputs: list[float], **_: Any) -> list[float]:
        sizes.append(len(outputs))
        return outputs

    monkeypatch.setattr(gates, "CHUNK", 3)
    performer = Performer({"reach": [0.1, 0.2, 0.3, 0.4], "push": [0.5, 0.6, 0.7, 0.8]})
    gate = NonInferiority(PROBES, counting, reward=flattery)
    judged, proxy = gate.look(performer)
    assert judged == performer.scores and sizes == [3, 3, 2] and performer.asked == 3
    assert proxy["push"] == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_labels_are_counted_by_what_the_judge_reads() -> None:
    tested = [Task(f"t{i}", i, extra={"tests": ["assert f(1)"] if i < 2 else None}) for i in range(4)]
    answered = [Task(f"a{i}", i, reference=1) for i in range(3)]

    class Tests:
        families = frozenset({GROUND_TRUTH})
        needs = ("tests",)

        def __call__(self, outputs: list[float], **_: Any) -> list[float]:
            return outputs

    for probes, reader, count in (
        (tested, Tests(), 2),
        (tested, Reward(Tests()), 2),
        (tested, 0.5 * Reward(Tests()), 2),
        ([*tested, *answered], Tests(), 5),
        (answered, of_family(GROUND_TRUTH)(lambda outputs, **_: outputs), 3),
        ([*tested, *answered], of_family("a proxy")(lambda outputs, **_: outputs), 0),
    ):
        assert BestSoFar(probes, reader).labels == count


# ------------------------------------------------------------------------------------- the best so far


def answers(gate: BestSoFar, heights: Sequence[float], base: float = 0.5) -> list[str]:
    """Decisions on candidates that score so much everywhere, "!" where the stage ends."""
    against = {"base": level(base, base), "promoted": level(base, base)}
    verdicts = [gate(level(height, height), against) for height in heights]
    return [verdict.decision + "!" * verdict.stop for verdict in verdicts]


def test_a_new_best_is_kept_and_patience_counts_looks_without_one() -> None:
    assert answers(BestSoFar(PROBES, judge), [0.6, 0.5, 0.7, 0.6, 0.69]) == ["keep", "wait", "keep", "wait", "wait!"]
    assert answers(BestSoFar(PROBES, judge, patience=1), [0.6, 0.6]) == ["keep", "wait!"], "as good is not better"
    assert answers(BestSoFar(PROBES, judge, patience=3), [0.5, 0.4, 0.5]) == ["wait", "wait", "wait!"]


def test_every_category_counts_once_however_many_probes_it_has() -> None:
    """Base (0.9 + 0.3) / 2 = 0.6, candidate (0.5 + 0.6) / 2 = 0.55; over all four probes it would be 0.45 and 0.575."""
    probes = [PROBES[0], *PROBES[4:7]]
    verdict = BestSoFar(probes, judge)(level(0.5, 0.6), {"base": level(0.9, 0.3)})
    assert (verdict.decision, verdict.stop) == ("wait", False)
    assert verdict.reason == "the judge's 0.55 is not better than 0.6, the best so far"
    assert BestSoFar(probes, judge)(level(0.9, 0.4), {"base": level(0.9, 0.3)}).decision == "keep"


def test_the_best_gate_remembers_its_best_and_its_patience() -> None:
    gate = BestSoFar(PROBES, judge)
    assert answers(gate, [0.8, 0.7]) == ["keep", "wait"]
    resumed = BestSoFar(PROBES, judge)
    resumed.load_state_dict(gate.state_dict())
    assert answers(resumed, [0.75]) == ["wait!"], "better than the base, not than the best"
    fresh = BestSoFar(PROBES, judge)
    fresh.load_state_dict(BestSoFar(PROBES, judge).state_dict())
    assert answers(fresh, [0.75]) == ["keep"], "before its first look it knows no best"


def test_the_best_gate_looks_at_the_base_once_and_tells_what_it_saw() -> None:
    base = level(1.0, 0.6)
    gate = BestSoFar(PROBES, judge, reward=flattery)
    verdict = gate(level(0.7, 1.0), {"base": base})
    assert verdict.decision == "keep", "0.85 on average, after 0.8"
    row = {"candidate": 0.7, "base": 1.0, "reward_change_from_base": 0.3}
    assert verdict.evidence["reach"] == pytest.approx(row)
    assert verdict.evidence["push"]["reward_change_from_base"] == pytest.approx(-0.4)
    assert [alarm.detail[:5] for alarm in check_evidence(verdict.evidence, AlarmLimits())] == ["reach"]
    gate(level(0.7, 1.0), {"base": base})
    assert base.asked == 1
    assert "reward_change_from_base" not in BestSoFar(PROBES, judge)(base, {"base": base}).evidence["reach"]


# ------------------------------------------------------------------------------------------------ alarms


def watched(history: Sequence[dict[str, float]], limits: AlarmLimits) -> list[Alarm]:
    """Alarms of the newest of these iterations."""
    watcher = Watcher(limits)
    return [watcher.check(metrics) for metrics in history][-1]


CLEAN = {"groups/zero_spread": 0.3, "objective/kl_reference": 0.1, "objective/entropy": 1.0, "objective/kl": 9.0}


@pytest.mark.parametrize(
    ("trouble", "alarm", "detail"),
    [
        ({"groups/zero_spread": 0.96}, "no signal", "96% of groups"),
        ({"objective/kl_reference": 1.5}, "drift", "1.50 nats per decision away from reference"),
        ({"objective/entropy": 0.1}, "entropy collapse", "10% of what it was"),
        ({"faults/policy": 0.06}, "faults", "6% of rollouts are spoilt by the policy"),
        ({"rollouts": 94.0, "rollouts/not_finite": 6.0}, "faults", "6% of rollouts have no finite probability"),
    ],
)
def test_planted_trouble_is_told(trouble: dict[str, float], alarm: str, detail: str) -> None:
    limits = AlarmLimits(window=3)
    history = [CLEAN, CLEAN] + [CLEAN | trouble] * 3
    (found,) = watched(history, limits)
    assert found.alarm == alarm and detail in found.detail
    assert watched(history[:3], limits) == [], "one of three iterations is not yet a trend"
    assert watched(history[-2:], limits) == [], "too early to tell"


def test_a_step_that_was_not_taken_is_told_at_once() -> None:
    (found,) = watched([{"steps/skipped": 1.0}], AlarmLimits())
    assert found.alarm == "skipped step"
    assert watched([{"steps/skipped": 0.0}], AlarmLimits()) == []


def test_a_leap_within_a_round_is_told_at_once() -> None:
    (found,) = watched([CLEAN | {"objective/kl": 489_299.0}], AlarmLimits())
    assert found.alarm == "leap" and "489,299" not in found.detail and "4.89e+05 nats per decision" in found.detail
    (found,) = watched([{"speaker/objective/kl": 101.0}], AlarmLimits())
    assert found.about == "speaker"
    assert watched([{"objective/kl": 99.0, "objective/kl_reference": 900.0}], AlarmLimits()) == []


def test_a_kind_of_faults_is_told_by_its_rate() -> None:
    rare = [CLEAN] * 4 + [CLEAN | {"faults/environment": 0.2}]
    assert watched(rare, AlarmLimits()) == [], "4 % of the window"
    (found,) = watched([*rare[:3], *[CLEAN | {"faults/environment": 0.2}] * 2], AlarmLimits())
    assert (found.about, found.detail) == ("environment", "8% of rollouts are spoilt by the environment")
    assert watched([CLEAN | {"rollouts": 95.0, "rollouts/not_finite": 5.0}] * 5, AlarmLimits()) == []


def test_clean_metrics_raise_no_alarm() -> None:
    assert watched([CLEAN] * 20, AlarmLimits()) == []
    assert watched([{"reward": float("nan")}] * 20, AlarmLimits()) == []
    below_zero = [{"objective/entropy": -1.0}] * 5 + [{"objective/entropy": -0.5}] * 5
    assert watched(below_zero, AlarmLimits()) == [], "the entropy of a density may be negative"


# ------------------------------------------------------------------------------------------------ judges that fail


def test_a_judge_whose_machine_fails_is_told_from_one_that_does_not_apply(tmp_path: Path) -> None:
    """The loop waits for the first, and the second ends the run."""
    down = [True, True, False]

    def remote(completions: list[Any], tasks: list[Task], **columns: Any) -> list[float]:
        if down[0]:
            raise ConnectionError("no server there")
        return spelled(completions, tasks)

    remote.families = frozenset({"remote"})  # type: ignore[attr-defined]

    def wakes(completions: list[Any], tasks: list[Task], **columns: Any) -> list[float]:
        if not tasks[0].id.startswith("probe"):
            down.pop(0) if len(down) > 1 else None
        return honest(completions=completions, tasks=tasks)

    def made(probes: Any, judge: Any, **options: Any) -> Any:
        return BestSoFar(probes, remote, patience=9)

    folder = folder_at(tmp_path / "run")
    train(build(wakes, 3, made, gate_every=1), folder)
    reasons = [row["reason"] for row in folder.read("gate")]
    assert reasons[0].startswith("the judge could not be asked") and "the judge's" in reasons[-1]
    with pytest.raises(UsageError, match="a gate's judge must score every probe"):
        BestSoFar(PROBES, lambda tasks, **_: [None] * len(tasks)).look(level(1.0, 1.0))


def test_a_training_reward_that_does_not_apply_to_a_probe_is_left_out_of_the_evidence() -> None:
    def partly(tasks: Sequence[Task], **columns: Any) -> list[float | None]:
        return [None if task.category == "push" else 1.0 for task in tasks]

    base = level(1.0, 0.6)
    verdict = BestSoFar(PROBES, judge, reward=partly)(level(0.7, 1.0), {"base": base})
    assert "reward_change_from_base" in verdict.evidence["reach"]
    assert "reward_change_from_base" not in verdict.evidence["push"]
