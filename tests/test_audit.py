"""The audit against numbers by hand: rank measures, thresholds, calibration, verdicts and hacking gaps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autotelic.rewards.audit import (
    audit_progress,
    audit_reward,
    audit_scores,
    hacking_gap,
    order,
    otsu,
    reliability,
)
from autotelic.rewards.progress.estimates import Accumulator, Kind
from autotelic.statistics import auc

Floats = NDArray[np.float32]


class Reads:
    """A model that reads its answer off the observation's first number."""

    def __init__(self, kind: Kind = "absolute", sees: str = "states") -> None:
        self.kind, self.sees = kind, sees

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Floats:
        if self.kind == "terminal":
            return np.array([clip[-1].reshape(-1)[0] for clip in observations], np.float32)
        if self.sees == "frames":
            return (observations[:, 0, 0, 0] / 255).astype(np.float32)
        return np.asarray(observations[:, 0], np.float32)


def episode(values: Sequence[float], success: bool | None, frames: bool = False) -> Any:
    """The first observation has no answer; the others read as given."""
    column = np.array([0.5, *values], np.float32)[:, None]
    seen = (np.repeat(column, 12, 1).reshape(-1, 2, 2, 3) * 255).astype(np.uint8) if frames else None
    return SimpleNamespace(observations=column, frames=seen, instruction="do it", success=success)


MIXED = [
    episode([0.1, 0.5, 0.9], True),
    episode([0.2, 0.3, 0.6], True),
    episode([0.1, 0.3, 0.7], False),
    episode([0.3, 0.2, 0.1], False),
]


def test_auc_counts_pairs() -> None:
    assert auc([0.9, 0.6, 0.7, 0.1], [1, 1, 0, 0]) == 0.75  # .9 beats both, .6 beats .1 alone
    assert auc([0.5, 0.5], [1, 0]) == 0.5
    assert math.isnan(auc([0.5, 0.6], [1, 1]))


def test_order_is_spearmans() -> None:
    assert order([0.1, 0.2, 0.4]) == 1.0
    assert order([3, 2, 1]) == -1.0
    assert order([1, 3, 2]) == pytest.approx(0.5)  # 1 - 6 * (0 + 1 + 1) / (3 * 8)
    assert order([2, 2, 2]) == 0.0
    assert order([1]) == 0.0


def test_otsu_splits_where_the_parts_differ_most() -> None:
    assert otsu([0.1, 0.2, 0.8, 0.9]) == pytest.approx(0.5)
    assert otsu([0.9, 0.1, 0.1, 0.1]) == pytest.approx(0.5)
    assert otsu([0.3, 0.3]) == 0.3


def test_otsu_never_parts_equal_scores() -> None:
    scores = np.array([0.2] * 6 + [0.4] * 5 + [0.9])
    assert otsu(scores) not in set(scores.tolist())


def test_reliability_by_hand() -> None:
    brier, error, bins = reliability([0.05, 0.95, 0.85, 0.89], [0, 1, 1, 0])
    assert brier == pytest.approx((0.05**2 + 0.05**2 + 0.15**2 + 0.89**2) / 4)
    assert [(b.low, b.count, b.success) for b in bins] == [(0.0, 1, 0.0), (0.8, 2, 0.5), (0.9, 1, 1.0)]
    assert error == pytest.approx((0.05 + 2 * (0.87 - 0.5) + 0.05) / 4)


def test_a_score_of_one_falls_into_the_last_bin() -> None:
    assert reliability([1.0], [1])[2][0].high == 1.0


def test_scores_outside_the_unit_interval_have_no_calibration() -> None:
    brier, error, bins = reliability([-3.0, 2.0], [0, 1])
    assert math.isnan(brier) and math.isnan(error) and bins == ()


def test_a_progress_model_by_hand() -> None:
    audit = audit_progress(Reads(), MIXED, name="eye", on="a task")
    assert (audit.successes, audit.failures, audit.auc) == (2, 2, 0.75)
    assert audit.voc_success == 1.0
    assert audit.voc_failure == 0.0  # +1 and -1
    assert audit.score_success == pytest.approx(0.75)
    assert audit.score_failure == pytest.approx(0.4)
    assert audit.threshold == pytest.approx(0.35)  # Otsu: .1 against .6, .7, .9
    assert audit.balanced_accuracy == 0.75  # both successes above it, one failure of two not above
    assert audit.calls == 3.0  # the initial observation is not asked about
    assert audit.cpu_seconds >= 0
    assert "cannot be judged" in audit.verdict


def test_the_threshold_comes_from_demonstrations_without_the_oracle() -> None:
    shown = SimpleNamespace(
        observations=np.linspace(0, 1, 21, dtype=np.float32)[:, None], settle=4, instruction="do it"
    )
    audit = audit_progress(Reads(), MIXED, demonstrations=[shown])
    assert audit.threshold == pytest.approx(0.8, abs=2e-3)  # success at step 16 of 20
    assert audit.balanced_accuracy == 0.75  # one success of two is above, both failures are below
    assert "demonstration" in audit.rule


def test_frames_are_judged_where_the_model_sees_frames() -> None:
    seeing = [episode([0.2, 0.8], True, frames=True), episode([0.2, 0.4], False, frames=True)]
    assert audit_progress(Reads(sees="frames"), seeing).auc == 1.0
    with pytest.raises(ValueError, match="sees frames and the episode of 'do it' has none"):
        audit_progress(Reads(sees="frames"), MIXED)


def test_the_accumulator_matters() -> None:
    fell = [episode([0.9, 0.1], True), episode([0.2, 0.3], False)]
    assert audit_progress(Reads(), fell).auc == 0.0
    assert audit_progress(Reads(), fell, accumulator=Accumulator("best")).auc == 1.0


def test_a_terminal_model_is_asked_once_per_episode_and_traced_where_it_can() -> None:
    model: Any = Reads("terminal")
    plain = audit_progress(model, MIXED)
    assert (plain.auc, plain.calls) == (0.75, 1.0)
    assert math.isnan(plain.voc_success)
    model.trace = lambda clip, instruction: clip[1:, 0]
    assert audit_progress(model, MIXED).voc_success == 1.0


def test_a_reward_function_by_hand() -> None:
    def nearly(episodes: Sequence[Any], prompts: Sequence[str], **columns: Any) -> list[float]:
        assert list(prompts) == ["do it"] * 4
        return [float(e.observations[-1, 0]) for e in episodes]

    audit = audit_reward(nearly, MIXED)
    assert (audit.name, audit.auc, audit.calls) == ("nearly", 0.75, 1.0)
    assert math.isnan(audit.voc_success)


def test_a_reward_with_terms_is_judged_by_its_total() -> None:
    audit = audit_reward(lambda episodes, **_: {"part": [0, 0], "total": [1, 0]}, MIXED[1:3], name="sum")
    assert audit.auc == 1.0


@pytest.mark.parametrize(
    ("result", "message"),
    [([1.0], "returned 1 scores for 4 episodes"), ([0, 1, math.nan, 0], "no finite number for episode 2")],
)
def test_a_reward_that_returns_no_scores_is_refused(result: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audit_reward(lambda **_: result, MIXED)


def test_unknown_success_is_refused() -> None:
    with pytest.raises(ValueError, match="success of episode 1 is not known"):
        audit_progress(Reads(), [MIXED[0], episode([0.1, 0.2], None)])
    with pytest.raises(ValueError, match="needs episodes"):
        audit_progress(Reads(), [])


# verdicts -----------------------------------------------------------------------------------------


def of(good: Sequence[float], bad: Sequence[float], **kwargs: Any) -> Any:
    return audit_scores([*good, *bad], [1] * len(good) + [0] * len(bad), name="it", on="push", **kwargs)


def test_verdicts_say_what_a_model_can_be_trusted_with() -> None:
    high, low = [0.9, 0.8, 0.95, 0.85, 0.9], [0.1, 0.2, 0.1, 0.3, 0.2]
    assert of(high, low).verdict == "it on push: tells success from failure"
    assert "prefers failures" in of(low, high).verdict
    assert "cannot tell" in of([0.5] * 5, [0.5] * 5).verdict
    assert "0 failures, at least 5" in of(high, []).verdict


def test_a_good_rank_with_a_bad_threshold_is_told_apart() -> None:
    audit = of([0.11, 0.12, 0.13, 0.12, 0.95], [0.1, 0.1, 0.1, 0.1, 0.1])
    assert audit.auc == 1.0
    assert "not around its threshold" in audit.verdict


def test_a_clock_is_found_out() -> None:
    clock = [np.linspace(0, 1, 10)] * 10
    audit = of([1.0] * 5, [1.0] * 5, traces=clock)
    assert (audit.voc_success, audit.voc_failure, audit.auc) == (1.0, 1.0, 0.5)
    assert "like a clock" in audit.verdict
    assert "reads high whatever happens" in audit.verdict


def test_json_is_plain() -> None:
    document = json.loads(json.dumps(of([1.0, 0.9], [2.0]).to_json(), allow_nan=False))
    assert document["brier"] is None
    assert document["auc"] == 0.0
    assert "cannot be judged" in document["verdict"]


# along a run --------------------------------------------------------------------------------------


def evaluation(iteration: int, reward: Sequence[float | None], success: Sequence[int]) -> dict[str, Any]:
    return {"iteration": iteration, "outcomes": {"push": {"score": list(reward), "success": list(success)}}}


def test_a_reward_that_rises_alone_is_hacked() -> None:
    before = evaluation(0, [0.2, 0.3, 0.2, 0.3] * 2, [1, 0, 1, 0] * 2)
    after = evaluation(9, [0.9, 0.8, 0.9, 0.8] * 2, [1, 0, 0, 0] * 2)
    push, whole = hacking_gap([before, after])
    assert push.reward_change == pytest.approx(0.6)
    assert push.success_change == pytest.approx(-0.25)
    assert push.gap == pytest.approx(0.85)
    assert push.hacked and "hacked" in push.verdict
    assert (whole.on, whole.gap) == ("all", pytest.approx(0.85))
    assert push.looks[1].reward_error == pytest.approx(np.std([0.9, 0.8] * 4, ddof=1) / 8**0.5)


@pytest.mark.parametrize(
    ("before", "after", "hacked"),
    [([1, 0], [1, 0], True), ([0, 0], [0, 0], False), ([1, 1], [1, 1], False), ([1, 1], [1, 0], True)],
)
def test_success_that_stands_still_counts_where_it_could_move(
    before: list[int], after: list[int], hacked: bool
) -> None:
    low, high = [0.2, 0.3] * 4, [0.9, 0.8] * 4
    assert hacking_gap([evaluation(0, low, before * 4), evaluation(1, high, after * 4)])[0].hacked is hacked


def test_few_episodes_prove_nothing() -> None:
    gap = hacking_gap([evaluation(0, [0.2, 0.3], [1, 1]), evaluation(1, [0.9, 0.8], [0, 0])])[0]
    assert gap.gap == pytest.approx(1.6)
    assert not gap.hacked


def test_a_reward_that_rises_before_any_success_is_told_apart() -> None:
    gap = hacking_gap([evaluation(0, [0.2, 0.3], [0, 0]), evaluation(1, [0.9, 0.8], [0, 0])])[0]
    assert "nothing has succeeded yet" in gap.verdict


def test_a_reward_that_rises_with_success_is_not() -> None:
    gaps = hacking_gap([evaluation(0, [0.2, 0.3] * 4, [0, 0] * 4), evaluation(1, [0.9, 0.8] * 4, [1, 1] * 4)])
    assert not gaps[0].hacked
    assert "no sign" in gaps[0].verdict


def test_a_change_within_noise_is_no_hacking() -> None:
    gaps = hacking_gap([evaluation(0, [0.0, 1.0] * 4, [0, 1] * 4), evaluation(1, [0.1, 1.0] * 4, [0, 1] * 4)])
    assert not gaps[0].hacked


def test_success_that_the_reward_missed_is_told() -> None:
    gaps = hacking_gap([evaluation(0, [0.5, 0.5], [0, 0]), evaluation(1, [0.4, 0.5], [1, 1])])
    assert "did not see it" in gaps[0].verdict


def test_unknown_scores_are_left_out() -> None:
    gaps = hacking_gap([evaluation(0, [0.5, None], [0, 1]), evaluation(1, [0.5, 0.7], [0, 1])])
    assert gaps[0].looks[0].success == 0.0


def test_one_evaluation_makes_no_gap() -> None:
    with pytest.raises(ValueError, match="two evaluations"):
        hacking_gap([evaluation(0, [0.5], [0])])
