"""Progress as a reward: model x accumulator x role.

A progress *model* says how far an observation is (absolute, stage), how far one is ahead of another
(pairwise), or how an episode went as a whole (terminal). An *accumulator* turns its answers over an
episode into one estimate. The estimate then has a *role*: it ends episodes, it rewards, or it judges
at the gate.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError, of_ones_own
from ...families import UNDECLARED, families_of
from ...numbers import Floats
from ...types import Score

logger = logging.getLogger(__name__)

Kind = Literal["absolute", "pairwise", "terminal", "stage"]
Sees = Literal["states", "frames"]
Accumulation = Literal["milestones", "mix_f", "last", "best", "mean", "difference"]
Threshold = float | Mapping[str, float]
"""One for all, or each instruction's own."""
LEAST_THRESHOLD = 0.05
"""A model that says less about a success that it was shown cannot tell when a task is done."""


LEAST_LEFT = 0.05
"""Least share of what was left that an advance is measured by, so that near the end it is not blown up."""


class ProgressModel(Protocol):
    """Estimates [N] for N observations; ``kind`` says of what.

    Observations, initial ones and references are states float32 [N, D], or frames uint8 [N, H, W, 3] where an
    attribute ``sees`` is "frames" (without it a model sees states).

    * "absolute" answers 0..1 for an observation of an episode that began at ``initial``.
    * "pairwise" answers -1..1: from ``references`` to ``observations``, the share of what was left.
    * "stage" answers k + tau in 0..K: stage k, and the share tau of it. An attribute ``shares`` holds the K + 1
      shares of the whole, from 0 to 1, at which stages begin and the last one ends.
    * "terminal" is asked once an episode is over: ``observations`` is a list of N clips [T_i, ...]; 0..1.
    """

    @property
    def kind(self) -> Kind: ...

    def __call__(
        self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None
    ) -> Floats: ...


def sees(model: ProgressModel) -> Sees:
    """Whether a model looks at states or at frames."""
    found: Sees = getattr(model, "sees", "states")
    return found


def ask(
    model: ProgressModel, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None
) -> Floats:
    """A model's answers [N], checked: absolute, terminal and stage ones in 0..1, pairwise ones in -1..1.

    NaN counts as the least answer, and is told in a warning, once per model and instruction.

    Raises:
        UsageError: they are too few or too many, not numbers or out of range, or a function of the user's raised; in
            one line that names the model.
    """
    name = f"the progress model {type(model).__name__}"
    with of_ones_own(name):
        answers = np.asarray(model(observations, initial, instructions, references))
    if answers.shape != (len(instructions),):
        raise UsageError(f"{name} returned shape {answers.shape} for {len(instructions)} observations")
    if answers.dtype.kind not in "fiub":
        raise UsageError(f"{name} returned {answers.dtype}, not numbers")
    shares = _shares(model) if model.kind == "stage" else None
    low, high = (-1.0 if model.kind == "pairwise" else 0.0), (1.0 if shares is None else len(shares) - 1.0)
    if np.isnan(answers).any():
        _warn_of_nan(name, [text for text, lost in zip(instructions, np.isnan(answers), strict=True) if lost])
        answers = np.where(np.isnan(answers), low, answers)
    outside = (answers < low - 1e-4) | (answers > high + 1e-4)
    if outside.any():
        wrong = int(outside.argmax())
        what = f"{name} returned {answers[wrong]}, outside {low:g}..{high:g}"
        raise UsageError(f"{what}, for {instructions[wrong]!r}")
    if shares is not None:
        return np.interp(answers, np.arange(len(shares)), shares).astype(np.float32)
    return answers.astype(np.float32, copy=False)


def _warn_of_nan(name: str, instructions: Sequence[str]) -> None:
    for text in dict.fromkeys(instructions):
        if (name, text) not in _warned:
            _warned.add((name, text))
            logger.warning("%s returned NaN for %r: it counts as the least answer", name, text)


_warned: set[tuple[str, str]] = set()


def _shares(model: ProgressModel) -> list[float]:
    shares = [float(share) for share in getattr(model, "shares", ())]
    rising = all(a <= b for a, b in pairwise(shares))
    if len(shares) < 2 or not rising or abs(shares[0]) > 1e-6 or abs(shares[-1] - 1) > 1e-6:
        raise ValueError(f"a stage model's shares rise from 0 to 1, not {shares}")
    return shares


def _check_seen(model: ProgressModel, observations: NDArray[Any]) -> None:
    """Refuse states where frames are seen, and the other way round."""
    frames = observations.ndim == 4 and observations.shape[-1] == 3 and observations.dtype == np.uint8
    if sees(model) == "frames" and not frames:
        what = f"{observations.dtype} {list(observations.shape)}"
        raise ValueError(f"the progress model sees frames, uint8 [N, H, W, 3], and was given {what}")
    if sees(model) == "states" and observations.ndim != 2:
        what = f"{observations.dtype} {list(observations.shape)}"
        raise ValueError(f"the progress model sees states, [N, D], and was given {what}")


@dataclass(frozen=True)
class Accumulator:
    """How answers over an episode become one estimate in 0..1.

    Attributes:
        rule: "milestones" is EVOLVE-VLA's Eq. 1-2 (arXiv 2512.14666, checked against the paper): every
            ``milestone`` checks the observation becomes the new reference and v <- v + (1 - v) c. Between
            milestones the provisional value v + (1 - v) c counts, which the paper leaves open; values are
            clamped to 0..1, which it does not say. "mix_f" is VLAC's rule of that name (checked against its
            code): the same where c > 0; otherwise v <- v + v c where v <= 1/2, and above it
            max(1/10, 1 - max(1 - v, 1/100) / (1 + c)), so that a loss late in the episode costs much.
            "last" takes the newest answer; "best" the highest so far; "mean" the mean so far; "difference" is
            the newest minus the first (potential difference). With a pairwise model all but "milestones" and
            "mix_f" compare with the first observation.
        milestone: checks between milestones; VLAC's own use of "mix_f" has 1.
        check: observations between checks; between them the model is not asked, and the estimate stays.
    """

    rule: Accumulation = "milestones"
    milestone: int = 6
    check: int = 1


class ProgressEstimator:
    """Keeps an estimate for every episode of a batch, and says when one is over.

    Args:
        model: absolute, pairwise or stage. With "milestones" and "mix_f" an absolute model answers for a pair
            by (p_b - p_a) / (1 - p_a).
        threshold: an estimate above it ends the episode; None never does. Of an instruction that it does not name,
            no episode is ended.
        patience: checks in a row that must be above it, so that one wrong answer does not cut an
            episode short.
    """

    def __init__(
        self,
        model: ProgressModel,
        accumulator: Accumulator | None = None,
        *,
        threshold: Threshold | None = None,
        patience: int = 1,
    ) -> None:
        if model.kind == "terminal":
            raise ValueError("a terminal progress model judges episodes that are over: use it in EpisodeProgress")
        self.model, self.accumulator = model, accumulator or Accumulator()
        self.threshold, self.patience = threshold, patience
        self.calls = 0
        self.begin([])

    def begin(self, instructions: Sequence[str]) -> None:
        """Forget all episodes; row i will be an episode with instruction i."""
        self._instructions = list(instructions)
        self._trace: list[list[float]] = [[] for _ in instructions]
        self._first: dict[int, NDArray[Any]] = {}
        self._reference: dict[int, NDArray[Any]] = {}
        self._held = dict.fromkeys(range(len(instructions)), 0.0)
        self._checks = [0] * len(instructions)
        self._above = [0] * len(instructions)  # checks in a row

    def update(self, rows: NDArray[np.int64], observations: NDArray[Any]) -> NDArray[np.bool_]:
        """Take in what the model sees, [n, D] or [n, H, W, 3], of some rows; True [n] where the episode is over.

        The first observation of a row is its initial one: it sets the reference and has no estimate. The model
        is called once for all rows that a check is due for.
        """
        _check_seen(self.model, observations)
        over = np.zeros(len(rows), dtype=bool)
        due = []
        for i, row in enumerate(rows.tolist()):
            if row not in self._first:
                self._first[row] = self._reference[row] = observations[i]
            elif (len(self._trace[row]) + 1) % self.accumulator.check == 0:
                due.append(i)
            else:
                self._trace[row].append(self._trace[row][-1] if self._trace[row] else 0.0)
        if not due:
            return over
        answers = self._ask(rows[due], observations[due])
        for i, answer in zip(due, answers.tolist(), strict=True):
            row = int(rows[i])
            self._checks[row] += 1
            value = self._accumulate(row, answer, observations[i])
            self._trace[row].append(value)
            self._above[row] = self._above[row] + 1 if value > self._end(row) else 0
            over[i] = self._above[row] >= self.patience
        return over

    def _end(self, row: int) -> float:
        if isinstance(self.threshold, Mapping):
            return self.threshold.get(self._instructions[row], math.inf)
        return math.inf if self.threshold is None else self.threshold

    def values(self, row: int) -> list[float]:
        """The estimate after each observation of a row, the initial one left out."""
        return self._trace[row]

    def _ask(self, rows: NDArray[np.int64], observations: NDArray[Any]) -> Floats:
        """Absolute answers in 0..1, or signed advances over each row's reference."""
        first = np.stack([self._first[int(row)] for row in rows])
        reference = np.stack([self._reference[int(row)] for row in rows])
        texts = [self._instructions[int(row)] for row in rows]
        self.calls += len(rows)
        return ask(self.model, observations, first, texts, reference if self.model.kind == "pairwise" else None)

    def _accumulate(self, row: int, answer: float, observation: NDArray[Any]) -> float:
        rule, checks = self.accumulator.rule, self._checks[row]
        pairwise = self.model.kind == "pairwise"
        if rule in ("milestones", "mix_f"):
            held, advance = self._held[row], answer
            if not pairwise:  # as a pair: the held value plays the part of p_a
                advance = float(_ahead(answer, held))
            if rule == "mix_f" and advance <= 0:
                value = _fall(held, advance)
            else:
                value = float(np.clip(held + (1 - held) * advance, 0.0, 1.0))
            if checks % self.accumulator.milestone == 0:
                self._held[row], self._reference[row] = value, observation
            return value
        value = answer
        if rule == "mean":
            self._held[row] += answer
            value = self._held[row] / checks
        elif rule == "best":
            self._held[row] = value = max(self._held[row], answer)
        elif rule == "difference" and not pairwise:
            if checks == 1:
                self._held[row] = answer
            value = answer - self._held[row]
        return float(np.clip(value, 0.0, 1.0))


def _fall(held: float, advance: float) -> float:
    """VLAC's mix_f for an advance in -1..0; at -1 the limit."""
    if held <= 0.5:
        return float(np.clip(held + held * advance, 0.0, 1.0))
    return max(0.1, 1 - max(1 - held, 0.01) / max(1 + advance, 1e-6))


def shown_threshold(
    model: ProgressModel, demonstrations: Sequence[Any], accumulator: Accumulator | None = None, every: int = 5
) -> float:
    """An estimate above which a task counts as done, taken from demonstrations: no outcome of a policy is read.

    It is the least estimate that any demonstration has where it first succeeded, ``settle`` steps before its
    end: whoever keeps demonstrations that succeed knows when they did. An estimate that says 1 there leaves
    nothing above it; the threshold then lies just below.

    Args:
        demonstrations: with ``instruction``, ``settle``, ``observations`` [N+1, D] and, for models that see them,
            ``frames`` at every step or at chunk ends.
        every: steps between the observations that an estimator is given, as between chunk ends.
    """
    accumulator = accumulator or Accumulator("last")
    every, accumulator = every * accumulator.check, replace(accumulator, check=1)
    episodes = [_until_success(demonstration, every) for demonstration in demonstrations]
    values = EpisodeProgress(model, accumulator)(episodes, [episode.instruction for episode in episodes])
    return min(min(values), 1.0) - 1e-3


def shown_thresholds(
    model: ProgressModel, demonstrations: Sequence[Any], accumulator: Accumulator | None = None, every: int = 5
) -> dict[str, float]:
    """Each instruction's own threshold, by ``shown_threshold``, at least LEAST_THRESHOLD."""
    told = dict.fromkeys(demonstration.instruction for demonstration in demonstrations)
    groups = {text: [d for d in demonstrations if d.instruction == text] for text in told}
    return {t: max(shown_threshold(model, some, accumulator, every), LEAST_THRESHOLD) for t, some in groups.items()}


@dataclass(frozen=True, eq=False)
class _Shown:
    instruction: str
    observations: NDArray[Any]
    frames: NDArray[Any] | None


def _until_success(demonstration: Any, every: int) -> _Shown:
    """A demonstration up to where it first succeeded, seen at that step and every ``every`` steps before it."""
    steps = len(demonstration.observations) - 1
    success = steps - demonstration.settle
    kept = np.unique([0, *range(success, 0, -every), success])
    observations, frames = np.asarray(demonstration.observations), getattr(demonstration, "frames", None)
    if frames is None:
        return _Shown(demonstration.instruction, observations[kept], None)
    between = steps / max(len(frames) - 1, 1)  # steps from frame to frame
    shown = np.asarray(frames)[np.unique(np.ceil(kept / between - 1e-6).astype(int))]
    return _Shown(demonstration.instruction, observations[kept], shown)


class FinalProgress:
    """The reward of an episode from its last estimate v: (1 - w) * min(v / threshold, 1) + w * [v > threshold].

    Reads the score "progress" that the environment's estimator left on the rollout. The second term
    tells almost there from there, which a share of the way alone hardly does. An episode that was over before it began
    has no estimate, and one that a fault ended (a policy that answered NaN) counts as having none: v is 0.

    Args:
        threshold: the estimate at which the episode would have ended; every instruction has one.
        completion: w, the weight of having got there.
        hindsight: computes v from the recorded episode instead, where no estimator sat in the environment.
        model: the estimator's, which says of what family the reward is.
    """

    def __init__(
        self,
        threshold: Threshold = 1.0,
        completion: float = 0.0,
        hindsight: EpisodeProgress | None = None,
        *,
        model: ProgressModel | None = None,
    ) -> None:
        self.threshold, self.completion, self.hindsight, self.model = threshold, completion, hindsight, model

    @property
    def families(self) -> frozenset[str]:
        if self.hindsight is None and self.model is None:
            return frozenset({f"{UNDECLARED}:the environment's estimator"})
        return families_of(*(part for part in (self.hindsight, self.model) if part is not None))

    def __call__(self, rollouts: Sequence[Any], prompts: Sequence[Any], **columns: Any) -> list[Score]:
        if self.hindsight is not None:
            values = self.hindsight(prompts=prompts, **columns)
        else:
            values = [_last(rollout.scores["progress"], getattr(rollout, "output", None)) for rollout in rollouts]
        return [self._reward(value, str(prompt)) for value, prompt in zip(values, prompts, strict=True)]

    def _reward(self, value: float, instruction: str) -> float:
        enough = self.threshold[instruction] if isinstance(self.threshold, Mapping) else self.threshold
        return (1 - self.completion) * min(value / enough, 1.0) + self.completion * (value > enough)


def _last(values: Sequence[float], episode: Any) -> float:
    """An episode's last estimate; 0 where it was over before it began, and where a fault ended it."""
    return float(values[-1]) if values and getattr(episode, "fault", None) is None else 0.0


class _Mean:
    """Several models that see the same, asked together.

    Attributes:
        sees: "states" or "frames", the same for all.
    """

    def __init__(self, models: Sequence[ProgressModel]) -> None:
        name = type(self).__name__
        if not models or any(model.kind == "terminal" for model in models):
            raise ValueError(f"{name} takes one or more absolute, stage or pairwise models")
        if len({sees(model) for model in models}) > 1:
            raise ValueError(f"{name} takes models that all see states or all see frames")
        self.models = list(models)
        self.sees: Sees = sees(models[0])

    @property
    def families(self) -> frozenset[str]:
        return families_of(*self.models)


class MeanProgress(_Mean):
    """The mean of several models as one absolute model: one that sees the approach, one that sees the end.

    A pairwise model says how far an observation is ahead of the episode's first one; behind it counts as 0.
    """

    kind: Literal["absolute"] = "absolute"

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Floats:
        answers = [
            ask(model, observations, initial, instructions, initial if model.kind == "pairwise" else None)
            for model in self.models
        ]
        result: Floats = np.mean(np.maximum(answers, 0), axis=0, dtype=np.float32)
        return result


class MeanAdvance(_Mean):
    """The mean of several models as one pairwise model: how far an observation is ahead of a reference.

    A model that is not pairwise is asked of both, and says (p - p_ref) / (1 - p_ref), clamped to -1..1.
    """

    kind: Literal["pairwise"] = "pairwise"

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Floats:
        answers = [self._advance(model, observations, initial, instructions, references) for model in self.models]
        result: Floats = np.mean(answers, axis=0, dtype=np.float32)
        return result

    def _advance(
        self, model: ProgressModel, observations: Any, initial: Any, instructions: Sequence[str], references: Any
    ) -> Floats:
        if model.kind == "pairwise":
            return ask(model, observations, initial, instructions, references)
        then = ask(model, references, initial, instructions)
        return _ahead(ask(model, observations, initial, instructions), then)


def _ahead(now: Any, then: Any) -> Floats:
    """How far one absolute estimate is ahead of another, as a share of what was left; -1..1."""
    result: Floats = np.clip((now - then) / np.maximum(1 - then, LEAST_LEFT), -1, 1)
    return result


class EpisodeProgress:
    """Scores whole episodes afterwards by a model and an accumulator, whoever estimated during them.

    Used where the judge is not the estimator that sat in the environment: at the gate and in the audit. The model
    is called once per check for all episodes; a terminal one once in all, and then the accumulator says nothing.

    Episodes have ``observations`` [S + 1, D], and ``frames`` [S + 1, H, W, 3] for models that see them.
    """

    def __init__(self, model: ProgressModel, accumulator: Accumulator | None = None) -> None:
        self.model, self.accumulator = model, accumulator or Accumulator("last")

    @property
    def families(self) -> frozenset[str]:
        return families_of(self.model)

    def __call__(self, episodes: Sequence[Any], prompts: Sequence[Any], **columns: Any) -> list[float]:
        """An estimate per episode, in 0..1; 0 where it was over before it began, and where a fault ended it.

        Raises:
            ValueError: frames are needed and were not kept, or the model's answers are none.
        """
        if not episodes:
            return []
        if self.model.kind == "terminal":
            clips, texts = [self.clip(episode) for episode in episodes], [str(prompt) for prompt in prompts]
            answers = ask(self.model, clips, np.stack([clip[0] for clip in clips]), texts).tolist()
            return [_last([answer], episode) for answer, episode in zip(answers, episodes, strict=True)]
        return [_last(trace, each) for trace, each in zip(self.traces(episodes, prompts), episodes, strict=True)]

    def traces(self, episodes: Sequence[Any], prompts: Sequence[Any]) -> list[list[float]]:
        """The estimate after each observation of each episode, the initial one left out."""
        estimator = self.watched(episodes, prompts)
        return [estimator.values(row) for row in range(len(episodes))]

    def watched(self, episodes: Sequence[Any], prompts: Sequence[Any]) -> ProgressEstimator:
        """An estimator that has seen every observation of every episode."""
        estimator = ProgressEstimator(self.model, self.accumulator)
        estimator.begin([str(prompt) for prompt in prompts])
        clips = [self.clip(episode) for episode in episodes]
        for time in range(max(len(clip) for clip in clips)):
            rows = np.array([i for i, clip in enumerate(clips) if time < len(clip)])
            estimator.update(rows, np.stack([clips[i][time] for i in rows]))
        return estimator

    def clip(self, episode: Any) -> NDArray[Any]:
        """What the model sees of an episode: states [S + 1, D] or frames [S + 1, H, W, 3]."""
        if sees(self.model) == "states":
            return np.asarray(episode.observations, np.float32)
        if getattr(episode, "frames", None) is None:
            raise ValueError(f"the model sees frames and the episode of {episode.instruction!r} has none: record them")
        return np.asarray(episode.frames)


class ProgressGain(EpisodeProgress):
    """What the estimate rises by in every chunk of an episode, a dense reward whose sum is the last estimate.

    A terminal model says nothing of chunks: its answer is the reward of the whole.
    """

    def __call__(self, episodes: Sequence[Any], prompts: Sequence[Any], **columns: Any) -> list[Score]:  # type: ignore[override]
        """The gains [S] of each episode; 0 for one that was over before it began."""
        if not episodes or self.model.kind == "terminal":
            return list(super().__call__(episodes, prompts, **columns))
        return [np.diff(trace, prepend=0.0).tolist() or [0.0] for trace in self.traces(episodes, prompts)]
