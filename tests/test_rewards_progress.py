"""Progress estimates against numbers by hand: accumulation, termination, and the same afterwards as live."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from autotelic.rewards.progress.estimates import (
    LEAST_THRESHOLD,
    Accumulation,
    Accumulator,
    EpisodeProgress,
    FinalProgress,
    Kind,
    MeanAdvance,
    MeanProgress,
    ProgressEstimator,
    ask,
    shown_threshold,
    shown_thresholds,
)

Floats = NDArray[np.float32]


class Reads:
    """A model that reads its answer off the observation: [answer, place]; it keeps which places were compared."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.compared: list[tuple[float, float]] = []
        self.told: list[str] = []

    def __call__(
        self, observations: Floats, initial: Floats, instructions: Sequence[str], references: Floats | None = None
    ) -> Floats:
        assert (references is not None) == (self.kind == "pairwise")
        if references is not None:
            self.compared += list(zip(references[:, 1].tolist(), observations[:, 1].tolist(), strict=True))
        self.told += instructions
        return observations[:, 0]


def frames(*answers: float) -> Floats:
    """Observations whose places are 0, 1, 2, ...; the initial one comes first and has no answer."""
    return np.array([[9.0, 0.0], *([a, i] for i, a in enumerate(answers, 1))], np.float32)


def trace(kind: Literal["absolute", "pairwise"], accumulator: Accumulator, *answers: float) -> list[float]:
    estimator = ProgressEstimator(Reads(kind), accumulator)
    estimator.begin(["do it"])
    for frame in frames(*answers):
        estimator.update(np.array([0]), frame[None])
    return estimator.values(0)


def test_milestones_with_pairs_by_hand() -> None:
    """v <- v + (1 - v) c at every second check; in between the same with the held v counts provisionally."""
    values = trace("pairwise", Accumulator("milestones", 2), 0.1, 0.2, 0.5, -0.5, -0.5, 0.5, 1.0)
    by_hand = [0.1, 0.2]  # from v = 0
    by_hand += [0.2 + 0.8 * 0.5, 0.2 + 0.8 * -0.5]  # from v = 0.2; the second falls below 0 and is clamped
    by_hand[3] = 0.0
    by_hand += [0.0, 0.5]  # from v = 0
    by_hand += [0.5 + 0.5 * 1.0]  # the tail after the last milestone counts too
    assert values == pytest.approx(by_hand)


def test_an_advance_may_be_negative() -> None:
    assert trace("pairwise", Accumulator("milestones", 1), 0.5, -0.5, -0.2) == pytest.approx([0.5, 0.25, 0.1])


def test_milestones_are_compared_with_the_last_milestone() -> None:
    model = Reads("pairwise")
    estimator = ProgressEstimator(model, Accumulator("milestones", 3))
    estimator.begin(["do it"])
    for frame in frames(*[0.1] * 7):
        estimator.update(np.array([0]), frame[None])
    assert model.compared == [(0, 1), (0, 2), (0, 3), (3, 4), (3, 5), (3, 6), (6, 7)]


def test_milestones_with_an_absolute_model_follow_it_both_ways() -> None:
    """(p_b - p_a) / (1 - p_a) undoes the rule: the estimate is the newest answer, within one step's reach down."""
    answers = [0.2, 0.4, 0.3, 0.7, 0.6, 0.9]
    assert trace("absolute", Accumulator("milestones", 2), *answers) == pytest.approx(answers, abs=1e-6)
    fallen = trace("absolute", Accumulator("milestones", 1), 0.9, 0.2, 0.2)
    assert fallen == pytest.approx([0.9, 0.9 - 0.1, 0.8 - 0.2], abs=1e-6), "an advance is at least -1"


def test_mix_f_by_hand() -> None:
    """VLAC's rule: a rise as with milestones; a fall by v c below a half, and by the inverse of a rise above it."""
    answers = [0.4, -0.5, 0.0, 0.75, -0.2, -1.0, 1.0, 0.0]
    by_hand = [0.4, 0.4 - 0.4 * 0.5, 0.2, 0.2 + 0.8 * 0.75, 1 - 0.2 / 0.8, 0.1, 1.0, 1 - 0.01]
    assert trace("pairwise", Accumulator("mix_f", 1), *answers) == pytest.approx(by_hand)
    held = trace("pairwise", Accumulator("mix_f", 2), 0.5, 0.6, -0.5, 0.5)
    assert held == pytest.approx([0.5, 0.6, 1 - 0.4 / 0.5, 0.8]), "v is held between milestones"


def test_stages_become_shares_of_the_whole() -> None:
    """k + tau between the shares at which stage k begins and ends; then as an absolute model."""

    class Stages(Reads):
        shares = (0.0, 0.2, 0.8, 1.0)

    estimator = ProgressEstimator(Stages("stage"), Accumulator("last"))
    estimator.begin(["do it"])
    for frame in frames(0.5, 1.5, 2.0, 3.0):
        estimator.update(np.array([0]), frame[None])
    assert estimator.values(0) == pytest.approx([0.1, 0.5, 0.8, 1.0])
    with pytest.raises(ValueError, match=r"^the progress model .+ returned 3.5, outside 0..3, for 'do it'$"):
        estimator.update(np.array([0]), frames(3.5)[1:])
    for wrong in ((), (0.0, 0.5), (0.0, 0.7, 0.3, 1.0)):
        Stages.shares = wrong  # type: ignore[assignment]
        with pytest.raises(ValueError, match="a stage model's shares rise from 0 to 1"):
            estimator.update(np.array([0]), frames(0.5)[1:])


@pytest.mark.parametrize(
    ("rule", "kind", "expected"),
    [
        ("last", "absolute", [0.2, 0.6, 0.4, 0.8]),
        ("best", "absolute", [0.2, 0.6, 0.6, 0.8]),
        ("mean", "absolute", [0.2, 0.4, 0.4, 0.5]),
        ("difference", "absolute", [0.0, 0.4, 0.2, 0.6]),
        ("last", "pairwise", [0.2, 0.6, 0.4, 0.8]),
        ("difference", "pairwise", [0.2, 0.6, 0.4, 0.8]),
    ],
)
def test_the_other_rules_by_hand(
    rule: Accumulation, kind: Literal["absolute", "pairwise"], expected: list[float]
) -> None:
    assert trace(kind, Accumulator(rule), 0.2, 0.6, 0.4, 0.8) == pytest.approx(expected)


def test_other_rules_clamp_and_compare_with_the_first_observation() -> None:
    assert trace("absolute", Accumulator("difference"), 0.5, 0.2, 0.9) == pytest.approx([0.0, 0.0, 0.4])
    assert trace("pairwise", Accumulator("last"), -0.5, 0.5) == pytest.approx([0.0, 0.5])
    model = Reads("pairwise")
    estimator = ProgressEstimator(model, Accumulator("mean"))
    estimator.begin(["do it"])
    for frame in frames(0.1, 0.2, 0.3):
        estimator.update(np.array([0]), frame[None])
    assert model.compared == [(0, 1), (0, 2), (0, 3)]


# the estimator


def ends(estimator: ProgressEstimator, answers: Sequence[float]) -> list[bool]:
    estimator.begin(["do it"])
    return [bool(estimator.update(np.array([0]), frame[None])[0]) for frame in frames(*answers)][1:]


def test_an_episode_ends_above_the_threshold() -> None:
    answers = [0.5, 0.95, 0.7, 0.95, 0.95, 0.95]
    at = ProgressEstimator(Reads("absolute"), Accumulator("last"), threshold=0.9)
    assert ends(at, answers) == [False, True, False, True, True, True]
    patient = ProgressEstimator(Reads("absolute"), Accumulator("last"), threshold=0.9, patience=2)
    assert ends(patient, answers) == [False, False, False, False, True, True]
    assert ends(patient, [0.95, 0.95]) == [False, True], "a single check is not two"
    exactly = ProgressEstimator(Reads("absolute"), Accumulator("last"), threshold=0.5)
    assert ends(exactly, [0.5, 0.75]) == [False, True], "above it, not at it"
    assert not any(ends(ProgressEstimator(Reads("absolute"), Accumulator("last")), [1.0, 1.0]))
    own = ProgressEstimator(Reads("absolute"), Accumulator("last"), threshold={"do it": 0.5})
    assert ends(own, [0.4, 0.75]) == [False, True]
    another = ProgressEstimator(Reads("absolute"), Accumulator("last"), threshold={"do that": 0.5})
    assert not any(ends(another, [1.0, 1.0]))


def test_rows_are_kept_apart() -> None:
    """Rows that begin at different times and are asked about in changing company equal rows asked about alone."""
    random = np.random.default_rng(0)
    stories = [random.uniform(-0.3, 0.5, length).astype(np.float32) for length in (5, 9, 7)]
    starts, model = [0, 2, 4], Reads("pairwise")
    estimator = ProgressEstimator(model, Accumulator("milestones", 3), threshold=0.5, patience=2)
    estimator.begin(["red", "green", "blue"])
    over: list[list[bool]] = [[], [], []]
    for time in range(12):
        rows = [r for r in range(3) if 0 <= time - starts[r] <= len(stories[r])]
        rows = rows[::-1] if time % 2 else rows
        if rows:
            seen = np.stack([frames(*stories[r])[time - starts[r]] for r in rows])
            for row, end in zip(rows, estimator.update(np.array(rows), seen), strict=True):
                over[row].append(bool(end))
    for row, story in enumerate(stories):
        assert estimator.values(row) == pytest.approx(trace("pairwise", Accumulator("milestones", 3), *story))
        alone = ProgressEstimator(Reads("pairwise"), Accumulator("milestones", 3), threshold=0.5, patience=2)
        assert over[row][1:] == ends(alone, story)
    assert {text: model.told.count(text) for text in set(model.told)} == {"red": 5, "green": 9, "blue": 7}
    assert estimator.calls == 21


@pytest.mark.parametrize(
    ("kind", "answers", "line"),
    [
        ("absolute", [0.5, 1.5], "the progress model .+ returned 1.5, outside 0..1, for 'b'"),
        ("absolute", [-0.25, 0.5], "the progress model .+ returned -0.25, outside 0..1, for 'a'"),
        ("pairwise", [-1.5, 0.5], "the progress model .+ returned -1.5, outside -1..1, for 'a'"),
        ("pairwise", [-np.inf, 0.5], "the progress model .+ returned -inf, outside -1..1, for 'a'"),
        ("absolute", [0.5], r"the progress model .+ returned shape \(1,\) for 2 observations"),
        ("absolute", [[0.5], [0.5]], r"the progress model .+ returned shape \(2, 1\) for 2 observations"),
    ],
)
def test_an_answer_that_is_none_is_refused_in_one_line(
    kind: Literal["absolute", "pairwise"], answers: list[Any], line: str
) -> None:
    class Answers(Reads):
        def __call__(self, *_: Any, **__: Any) -> Floats:
            return np.array(answers, np.float32)

    estimator = ProgressEstimator(Answers(kind))
    estimator.begin(["a", "b"])
    estimator.update(np.array([0, 1]), np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=f"^{line}$"):
        estimator.update(np.array([0, 1]), np.ones((2, 2), np.float32))


@pytest.mark.parametrize(("kind", "least"), [("absolute", 0.0), ("pairwise", -1.0)])
def test_nan_is_the_least_answer_and_said_once(
    kind: Literal["absolute", "pairwise"], least: float, caplog: pytest.LogCaptureFixture
) -> None:
    class Sometimes(Reads):
        def __call__(self, *_: Any, **__: Any) -> Floats:
            return np.array([0.5, np.nan], np.float32)

    zeros = np.zeros((2, 2), np.float32)
    for _ in range(2):
        told = f"b, {kind}"
        assert ask(Sometimes(kind), zeros, zeros, ["a", told], zeros).tolist() == [0.5, least]
    assert [f"Sometimes returned NaN for '{told}'" in line for line in caplog.messages] == [True]


# rewards


def test_final_progress_by_hand() -> None:
    """(1 - w) min(v / threshold, 1) + w [v > threshold]"""
    rollouts = [SimpleNamespace(scores={"progress": [0.3, last]}) for last in (0.0, 0.4, 0.8, 0.9)]
    assert FinalProgress()(rollouts, ["a"] * 4) == pytest.approx([0.0, 0.4, 0.8, 0.9])
    assert FinalProgress(0.8, 0.25)(rollouts, ["a"] * 4) == pytest.approx([0.0, 0.375, 0.75, 1.0])
    each = FinalProgress({"a": 0.8, "b": 0.5}, 0.25)
    assert each(rollouts, ["a", "b", "a", "b"]) == pytest.approx([0.0, 0.6, 0.75, 1.0])


def test_final_progress_in_hindsight_reads_the_episode() -> None:
    episodes = [SimpleNamespace(observations=frames(0.9, 0.4)), SimpleNamespace(observations=frames(0.9))]
    hindsight = FinalProgress(0.8, 0.25, EpisodeProgress(Reads("absolute")))
    found = hindsight(rollouts=[SimpleNamespace(scores={})] * 2, episodes=episodes, prompts=["a", "b"])
    assert found == pytest.approx([0.375, 1.0])


@pytest.mark.parametrize("rule", ["milestones", "mix_f", "last", "best", "mean", "difference"])
@pytest.mark.parametrize("kind", ["absolute", "pairwise"])
def test_episode_progress_equals_the_estimator_run_live(
    rule: Accumulation, kind: Literal["absolute", "pairwise"]
) -> None:
    random = np.random.default_rng(1)
    stories = [random.uniform(0, 1, length) for length in (8, 3, 13, 1)]
    episodes = [SimpleNamespace(observations=frames(*story).astype(np.float64)) for story in stories]
    found = EpisodeProgress(Reads(kind), Accumulator(rule, 3))(episodes=episodes, prompts=["a", "b", "a", "c"])
    live = [trace(kind, Accumulator(rule, 3), *story)[-1] for story in stories]
    assert found == pytest.approx(live)


def test_the_mean_of_models_by_hand() -> None:
    class Half(Reads):
        def __call__(self, observations: Floats, *_: Any, **__: Any) -> Floats:
            return np.full(len(observations), 0.5, np.float32)

    both = MeanProgress([Reads("absolute"), Half("absolute")])
    assert both(frames(0.1, 0.9)[1:], frames()[:1], ["a", "a"]).tolist() == pytest.approx([0.3, 0.7])
    pairs = Reads("pairwise")
    both = MeanProgress([pairs, Half("absolute")])  # what is behind the beginning has made no progress
    assert both(frames(-0.6, 0.9)[1:], frames(0.0)[:1].repeat(2, 0), ["a", "a"]).tolist() == pytest.approx([0.25, 0.7])
    assert pairs.compared == [(0, 1), (0, 2)]
    for models in ([], [Reads("absolute"), Clips()]):
        with pytest.raises(ValueError, match="MeanProgress takes one or more absolute, stage or pairwise models"):
            MeanProgress(models)


class Clips:
    """A terminal model: the mean of the places of a clip, divided by 10."""

    kind: Literal["terminal"] = "terminal"

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []

    def __call__(self, observations: Any, initial: Floats, instructions: Sequence[str], references: Any = None) -> Any:
        assert references is None
        assert initial.shape == (len(observations), 2)
        self.lengths.append([len(clip) for clip in observations])
        return [float(clip[:, 1].mean()) / 10 for clip in observations]


def test_a_terminal_model_is_asked_once_for_all_episodes() -> None:
    model = Clips()
    episodes = [SimpleNamespace(observations=frames(*[0.0] * n)) for n in (2, 0, 4)]
    assert EpisodeProgress(model)(episodes=episodes, prompts=["a", "b", "c"]) == pytest.approx([0.1, 0.0, 0.2])
    assert model.lengths == [[3, 1, 5]]
    with pytest.raises(ValueError, match=r"^a terminal progress model judges episodes that are over"):
        ProgressEstimator(model)
    far = [SimpleNamespace(observations=frames(*[0.0] * 30))]
    with pytest.raises(ValueError, match=r"^the progress model .+ returned 1.5, outside 0..1, for 'a'$"):
        EpisodeProgress(model)(episodes=far, prompts=["a"])


# frames


class Brightness:
    """How bright a frame is, or how much brighter than the reference."""

    sees: Literal["frames"] = "frames"

    def __init__(self, kind: Kind = "absolute") -> None:
        self.kind = kind
        self.batches: list[int] = []

    def __call__(
        self, observations: NDArray[np.uint8], initial: Any, instructions: Sequence[str], references: Any = None
    ) -> Floats:
        self.batches.append(len(observations))
        bright = observations.mean((1, 2, 3)) / 255
        return (bright if references is None else bright - references.mean((1, 2, 3)) / 255).astype(np.float32)


def film(*brightness: int) -> NDArray[np.uint8]:
    return np.stack([np.full((4, 4, 3), b, np.uint8) for b in brightness])


@pytest.mark.parametrize("kind", ["absolute", "pairwise"])
def test_frames_are_read_where_the_model_sees_them(kind: Kind) -> None:
    films = [film(0, 51, 102), film(0, 204)]
    episodes = [SimpleNamespace(observations=np.zeros((len(f), 7), np.float32), frames=list(f)) for f in films]
    found = EpisodeProgress(Brightness(kind), Accumulator("last"))(episodes=episodes, prompts=["a", "b"])
    assert found == pytest.approx([0.4, 0.8])
    live = ProgressEstimator(Brightness(kind), Accumulator("last"), threshold=0.7)
    live.begin(["a", "b"])
    over = [live.update(np.array([0, 1]), np.stack([f[i] for f in films])).tolist() for i in range(2)]
    assert over == [[False, False], [False, True]]
    assert [live.values(row) for row in range(2)] == [pytest.approx([0.2]), pytest.approx([0.8])]


def test_frames_that_are_missing_or_not_frames_are_refused_in_one_line() -> None:
    blind = [SimpleNamespace(instruction="a", observations=np.zeros((2, 7), np.float32), frames=None)]
    with pytest.raises(ValueError, match=r"^the model sees frames and the episode of .* has none"):
        EpisodeProgress(Brightness())(episodes=blind, prompts=["a"])
    estimator = ProgressEstimator(Brightness())
    estimator.begin(["a"])
    for wrong in (np.zeros((1, 7), np.float32), np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"^the progress model sees frames, uint8 \[N, H, W, 3\], and was given"):
            estimator.update(np.array([0]), wrong)
    states = ProgressEstimator(Reads("absolute"))
    states.begin(["a"])
    with pytest.raises(ValueError, match=r"^the progress model sees states, \[N, D\], and was given uint8"):
        states.update(np.array([0]), film(1))
    with pytest.raises(ValueError, match="all see states or all see frames"):
        MeanProgress([Reads("absolute"), Brightness()])


# a threshold without an oracle


def test_the_threshold_is_what_demonstrations_read_where_they_first_succeeded() -> None:
    shown = [  # seven steps each, the last two after success: chunk ends are steps 0, 2, 5 and 0, 1, 3, 5
        SimpleNamespace(instruction="a", observations=frames(0.1, 0.2, 0.3, 0.4, 0.6, 0.9, 1.0), settle=2),
        SimpleNamespace(instruction="a", observations=frames(0.8, 0.2, 0.3, 0.4, 0.7, 0.9, 1.0), settle=2),
    ]
    assert shown_threshold(Reads("absolute"), shown) == pytest.approx(0.6 - 1e-3)
    model = Reads("pairwise")
    found = shown_threshold(model, shown[:1], Accumulator("milestones", 1), every=3)
    assert found == pytest.approx(0.2 + 0.8 * 0.6 - 1e-3)
    assert model.compared == [(0, 2), (2, 5)]
    filmed = SimpleNamespace(**vars(shown[0]), frames=film(0, 0, 0, 0, 0, 102, 255, 255))
    assert shown_threshold(Brightness(), [filmed]) == pytest.approx(0.4 - 1e-3)
    lost = SimpleNamespace(instruction="b", observations=frames(0.5, 0.1, 0.0), settle=1)
    lost.observations[:] = 0.0  # a success of which the model sees nothing
    assert shown_thresholds(Reads("absolute"), [*shown, lost]) == pytest.approx({"a": 0.599, "b": LEAST_THRESHOLD})


# checks that are farther apart, and several models as one that compares


def test_between_checks_the_model_is_not_asked_and_the_estimate_stays() -> None:
    """Checks at every second observation, milestones at every second check."""
    model = Reads("pairwise")
    estimator = ProgressEstimator(model, Accumulator("milestones", 2, 2), threshold=0.55)
    estimator.begin(["do it"])
    seen = frames(0.9, 0.4, 0.9, 0.5, 0.9, 0.5)
    ends = [bool(estimator.update(np.array([0]), frame[None])[0]) for frame in seen]
    assert estimator.values(0) == pytest.approx([0.0, 0.4, 0.4, 0.5, 0.5, 0.75])
    assert model.compared == [(0, 2), (0, 4), (4, 6)] and estimator.calls == 3
    assert ends == [False] * 6 + [True]


def test_patience_counts_checks() -> None:
    estimator = ProgressEstimator(Reads("absolute"), Accumulator("last", check=2), threshold=0.5, patience=2)
    estimator.begin(["do it"])
    ends = [bool(estimator.update(np.array([0]), frame[None])[0]) for frame in frames(0.9, 0.9, 0.9, 0.9)]
    assert ends == [False, False, False, False, True]


def test_the_threshold_is_that_of_the_same_checks() -> None:
    shown = SimpleNamespace(instruction="a", observations=frames(*np.arange(0.1, 1.05, 0.1)), settle=0)
    every = shown_threshold(Reads("absolute"), [shown], Accumulator("mean"), every=1)
    fewer = shown_threshold(Reads("absolute"), [shown], Accumulator("mean", check=5), every=1)
    assert every == pytest.approx(0.55 - 1e-3) and fewer == pytest.approx(0.75 - 1e-3)


def test_the_mean_of_what_models_are_ahead_by_hand() -> None:
    """Absolute: (.8 - .6) / (1 - .6) = .5; pairwise .8; near the end what was left counts as .05 at least."""
    both = MeanAdvance([Reads("absolute"), Reads("pairwise")])
    assert both.kind == "pairwise"
    first, earlier, now = (frames(answer)[1:] for answer in (0.0, 0.6, 0.8))
    assert both(now, first, ["do it"], earlier) == pytest.approx([0.65])
    assert MeanAdvance([Reads("absolute")])(frames(1.0)[1:], first, ["do it"], frames(0.98)[1:]) == pytest.approx([0.4])
    with pytest.raises(ValueError, match="absolute, stage or pairwise"):
        MeanAdvance([])
    with pytest.raises(ValueError, match="all see states or all see frames"):
        MeanAdvance([Reads("absolute"), Brightness()])
