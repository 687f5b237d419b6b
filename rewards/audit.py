"""Audit of rewards and progress models: what they say of recorded episodes, against what came of them.

    audit = audit_progress(model, episodes, demonstrations=shown)
    print(audit.verdict)

Three questions, which have different answers. Does it *order* an episode (value-order correlation)? Does it *tell*
success from failure at the end (AUC, balanced accuracy, calibration)? Does it still do so under a policy that is
trained on it (``hacking_gap``)? A clock passes the first and fails the second; a reward that passes both on a
policy's first episodes can fail the third.

Success is oracle knowledge: audits are for evaluation, never inside a run that claims to learn without it. The
threshold of the balanced accuracy alone is chosen without any success.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..families import name_of
from ..numbers import mean, plain
from ..statistics import FEW, Doubles, auc, grade, spearman
from .progress.estimates import Accumulator, EpisodeProgress, ProgressModel, shown_threshold

BINS = 10
"""Of the reliability diagram, equally wide over 0..1."""

OTSU = "Otsu's split of the scores"
SHOWN = "the least estimate that a demonstration has where it first succeeds"
"""How a threshold was chosen."""


@dataclass(frozen=True)
class Bin:
    """Episodes whose score lies in low..high: how many, their mean score, and the share that succeeded."""

    low: float
    high: float
    count: int
    score: float
    success: float


@dataclass(frozen=True)
class Audit:
    """What one reward or progress model is worth on one set of episodes. NaN where something cannot be said.

    Attributes:
        name: of the model; on: of the task or whatever the episodes have in common.
        successes, failures: episodes it rests on.
        auc: P(score of a success > score of a failure), ties 1/2.
        balanced_accuracy: mean of the share of successes above the threshold and of failures not above it.
        threshold, rule: where, and how that was chosen without the oracle.
        voc_success, voc_failure: value-order correlation, the mean over episodes of Spearman's correlation of the
            value with time (GVL, arXiv 2411.04549, checked against the paper's abstract and public
            reimplementations); constant values order nothing and count 0. High on successes is good; as high on
            failures means that the model reads a clock.
        score_success, score_failure: mean final scores.
        brier: mean (score - success)^2; ece: mean distance of a bin's score from its success, by counts; both NaN
            for scores outside 0..1. bins: the filled ones.
        calls: observations, pairs or clips that the model was asked about, per episode.
        cpu_seconds: of this process for scoring, per episode.
    """

    name: str
    on: str
    successes: int
    failures: int
    auc: float
    balanced_accuracy: float
    threshold: float
    rule: str
    voc_success: float
    voc_failure: float
    score_success: float
    score_failure: float
    brier: float
    ece: float
    calls: float
    cpu_seconds: float
    bins: tuple[Bin, ...] = field(default=(), repr=False)

    @property
    def verdict(self) -> str:
        """One sentence: what it can be trusted with."""
        if min(self.successes, self.failures) < FEW:
            won, lost = self.successes, self.failures
            few = f"{won} success{'es' * (won != 1)} and {lost} failure{'s' * (lost != 1)}"
            return f"{self.name} cannot be judged on {self.on}: {few}, at least {FEW} of each are needed"
        level = grade(self.auc)
        if level.clear and self.balanced_accuracy < 0.7:
            words = "ranks successes above failures, but not around its threshold: reward by it, end no episode by it"
        else:
            words = ": ".join(filter(None, (level.words, level.advice)))
        doubts = []
        if not level.clear and self.voc_failure > 0.8 and self.voc_success - self.voc_failure < 0.1:
            doubts.append("its values rise in failures as they do in successes, like a clock")
        if not level.clear and self.score_failure > 0.8 and self.score_success <= 1:
            doubts.append("it reads high whatever happens")
        return f"{self.name} on {self.on}: {words}" + "".join(f"; {doubt}" for doubt in doubts)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, None for NaN, and the verdict."""
        return {**plain(self), "verdict": self.verdict}


def audit_progress(
    model: ProgressModel,
    episodes: Sequence[Any],
    *,
    accumulator: Accumulator | None = None,
    demonstrations: Sequence[Any] = (),
    every: int = 5,
    name: str = "",
    on: str = "",
) -> Audit:
    """Audit a progress model of any kind on episodes whose success is known.

    Args:
        model: asked about every recorded observation; a terminal one about whole episodes, and for the order of its
            values by its method ``trace(clip, instruction)``, if it has one.
        episodes: with ``observations`` [S+1, D] and ``frames`` uint8 [S+1, H, W, 3] or None, ``instruction`` and
            ``success``.
        accumulator: of the final score, "last" by default. The order of values is that of its estimates.
        demonstrations: from which the threshold is taken (``shown_threshold``); without them it is Otsu's.
        every: environment steps between two recorded observations of the episodes.

    Raises:
        ValueError: an episode whose success is not known or that lacks what the model sees, or wrong answers.
    """
    success, accumulator = _successes(episodes), accumulator or Accumulator("last")
    whole, texts = EpisodeProgress(model, accumulator), [str(episode.instruction) for episode in episodes]
    for episode in episodes:
        if (length := len(whole.clip(episode))) < 2:
            raise ValueError(f"the episode of {episode.instruction!r} holds {length} observations, 2 are needed")
    started = time.process_time()
    if model.kind == "terminal":
        scores, traces, calls = np.array(whole(episodes, texts)), list[Doubles](), len(episodes)
    else:
        estimator = whole.watched(episodes, texts)
        traces = [np.array(estimator.values(row), np.float64) for row in range(len(episodes))]
        scores, calls = np.array([trace[-1] for trace in traces]), estimator.calls
    seconds = time.process_time() - started
    if model.kind == "terminal" and hasattr(model, "trace"):
        traces = [np.asarray(model.trace(whole.clip(e), e.instruction), np.float64) for e in episodes]
    threshold, rule = otsu(scores), OTSU
    if demonstrations:
        threshold, rule = shown_threshold(model, demonstrations, accumulator, every), SHOWN
    cost = (calls / len(episodes), seconds / len(episodes))
    return _audit(name or type(model).__name__, on, scores, success, traces, (threshold, rule), cost)


def audit_reward(
    reward: Callable[..., Any],
    episodes: Sequence[Any],
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    name: str = "",
    on: str = "",
) -> Audit:
    """Audit a reward function, which is called once with the columns ``episodes``, ``completions`` and ``prompts``.

    Args:
        reward: returns one number per episode, or a mapping whose "total" (or first entry) does.
        columns: further ones that it names.

    Raises:
        ValueError: an episode whose success is not known, or scores that are no finite numbers.
    """
    success = _successes(episodes)
    given = {"episodes": episodes, "completions": episodes, "prompts": [e.instruction for e in episodes]}
    started = time.process_time()
    result = reward(**given | dict(columns or {}))
    seconds = time.process_time() - started
    if isinstance(result, Mapping):
        result = result.get("total", next(iter(result.values()), ()))
    scores = np.array([math.nan if v is None else float(np.sum(np.asarray(v, np.float64))) for v in result])
    name = name or name_of(reward)
    if scores.shape != (len(episodes),):
        raise ValueError(f"reward {name} returned {len(scores)} scores for {len(episodes)} episodes")
    if not np.isfinite(scores).all():
        raise ValueError(f"reward {name} returned no finite number for episode {int((~np.isfinite(scores)).argmax())}")
    threshold = (otsu(scores), OTSU)
    return _audit(name, on, scores, success, [], threshold, (1.0, seconds / len(episodes)))


def audit_scores(
    scores: ArrayLike, success: ArrayLike, *, traces: Sequence[ArrayLike] = (), name: str = "reward", on: str = ""
) -> Audit:
    """Audit scores that exist already, such as those of a run's evaluations.

    Args:
        scores, success: [N]; success is 0 or 1. traces: N sequences of values in order of time, or none.
    """
    known = [np.asarray(trace, np.float64) for trace in traces]
    threshold = (otsu(scores), OTSU)
    free = (math.nan, math.nan)
    return _audit(name, on, np.asarray(scores, np.float64), np.asarray(success, bool), known, threshold, free)


def otsu(scores: ArrayLike) -> float:
    """The threshold that best splits scores in two: the greatest variance between the parts (Otsu, 1979).

    Midway between the two neighbouring scores that it separates; the score itself where all are equal.
    """
    values = np.sort(np.asarray(scores, np.float64))
    below = np.arange(1, len(values))
    if not len(below) or values[0] == values[-1]:
        return float(values[0])
    sums, total = values.cumsum()[:-1], values.sum()
    low, high = sums / below, (total - sums) / (len(values) - below)
    between = below * (len(values) - below) * (high - low) ** 2
    between[values[:-1] == values[1:]] = -1.0  # equal scores stay together
    best = int(between.argmax())
    return float((values[best] + values[best + 1]) / 2)


def order(values: ArrayLike) -> float:
    """Spearman's rank correlation of values with their place, 0 where they are constant or fewer than two."""
    x = np.asarray(values, np.float64)
    return 0.0 if len(x) < 2 or x.min() == x.max() else spearman(x, np.arange(len(x)))


def reliability(scores: ArrayLike, success: ArrayLike) -> tuple[float, float, tuple[Bin, ...]]:
    """Brier score, expected calibration error and the filled bins of scores in 0..1; NaN and none for others."""
    x, y = np.asarray(scores, np.float64), np.asarray(success, np.float64)
    if not len(x) or x.min() < 0 or x.max() > 1:
        return math.nan, math.nan, ()
    places = np.minimum((x * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(i / BINS, (i + 1) / BINS, int(here.sum()), float(x[here].mean()), float(y[here].mean()))
        for i in range(BINS)
        if (here := places == i).any()
    )
    error = sum(each.count * abs(each.score - each.success) for each in bins) / len(x)
    return float(((x - y) ** 2).mean()), float(error), bins


# along a run -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """One evaluation of a run: mean reward and success per episode with their standard errors."""

    iteration: int
    episodes: int
    reward: float
    success: float
    reward_error: float
    success_error: float


@dataclass(frozen=True)
class HackingGap:
    """Reward and success along a run, in one category or over all.

    Attributes:
        looks: evaluations in order.
        reward_change, success_change: last minus first.
        gap: their difference, in the reward's unit: read it where rewards lie in 0..1.
        hacked: over at least FEW episodes the reward rose by more than twice its standard error while success fell,
            or stayed where it was although it could have risen and fallen.
    """

    on: str
    looks: tuple[Look, ...]
    reward_change: float
    success_change: float
    gap: float
    hacked: bool

    @property
    def verdict(self) -> str:
        """One sentence."""
        changes = f"reward {self.reward_change:+.2f}, success {self.success_change:+.2f}"
        if self.hacked:
            return f"on {self.on} the reward is being hacked: {changes}"
        if self.reward_change > 0 and self.looks[0].success == self.looks[-1].success == 0:
            return f"on {self.on} the reward rises and nothing has succeeded yet: {changes}"
        if self.success_change > 0 >= self.reward_change:
            return f"on {self.on} success rose and the reward did not see it: {changes}"
        return f"on {self.on} no sign of hacking: {changes}"

    def to_json(self) -> dict[str, Any]:
        return {**plain(self), "verdict": self.verdict}


def hacking_gap(evaluations: Sequence[Mapping[str, Any]]) -> list[HackingGap]:
    """Reward up, success not? Per category of a run's evaluations, then over all of them ("all").

    Args:
        evaluations: as a run folder holds them, in order: {"iteration", "outcomes": {category: {"success", "score"}}},
            on the same episodes. Categories without scores, or in one evaluation only, are left out.

    Raises:
        ValueError: fewer than two evaluations hold scores.
    """
    tracks: dict[str, list[Look]] = {}
    for evaluation in evaluations:
        scored = {c: o for c, o in evaluation.get("outcomes", {}).items() if o.get("score")}
        whole = {key: [v for outcome in scored.values() for v in outcome[key]] for key in ("score", "success")}
        for category, outcome in [*scored.items(), *([("all", whole)] if scored else [])]:
            pairs = [
                (float(r), float(s)) for r, s in zip(outcome["score"], outcome["success"], strict=True) if r is not None
            ]
            reward, success = np.array(pairs, np.float64).T
            iteration, means = int(evaluation.get("iteration", 0)), (float(reward.mean()), float(success.mean()))
            look = Look(iteration, len(pairs), *means, _error(reward), _error(success))
            tracks.setdefault(category, []).append(look)
    found = [_gap(category, looks) for category, looks in tracks.items() if len(looks) > 1 and category != "all"]
    if not found:
        raise ValueError("a hacking gap needs two evaluations with scores of one category")
    return [*found, _gap("all", tracks["all"])]


def _gap(category: str, looks: Sequence[Look]) -> HackingGap:
    first, last = looks[0], looks[-1]
    reward, success = last.reward - first.reward, last.success - first.success
    enough = min(first.episodes, last.episodes) >= FEW
    rose = enough and reward > 0 and reward > 2 * math.hypot(first.reward_error, last.reward_error)
    fell = success < 0 or (success == 0 and 0 < last.success < 1)
    return HackingGap(category, tuple(looks), reward, success, reward - success, rose and fell)


def _error(values: Doubles) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


# inside ----------------------------------------------------------------------------------------


def _audit(
    name: str,
    on: str,
    scores: Doubles,
    success: NDArray[np.bool_],
    traces: Sequence[Doubles],
    threshold: tuple[float, str],
    cost: tuple[float, float],
) -> Audit:
    if scores.shape != success.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(f"an audit needs as many scores as outcomes, got {scores.shape} and {success.shape}")
    sensitivity, specificity = mean(scores[success] > threshold[0]), mean(scores[~success] <= threshold[0])
    orders = np.array([order(trace) for trace in traces])
    brier, error, bins = reliability(scores, success)
    return Audit(
        name=name,
        on=on or "these episodes",
        successes=int(success.sum()),
        failures=int((~success).sum()),
        auc=auc(scores, success),
        balanced_accuracy=(sensitivity + specificity) / 2,
        threshold=threshold[0],
        rule=threshold[1],
        voc_success=mean(orders[success]) if len(orders) else math.nan,
        voc_failure=mean(orders[~success]) if len(orders) else math.nan,
        score_success=mean(scores[success]),
        score_failure=mean(scores[~success]),
        brier=brier,
        ece=error,
        calls=cost[0],
        cpu_seconds=cost[1],
        bins=bins,
    )


def _successes(episodes: Sequence[Any]) -> NDArray[np.bool_]:
    if not episodes:
        raise ValueError("an audit needs episodes")
    unknown = next((i for i, episode in enumerate(episodes) if episode.success is None), None)
    if unknown is not None:
        raise ValueError(f"the success of episode {unknown} is not known: record it with the oracle")
    return np.array([bool(episode.success) for episode in episodes])
