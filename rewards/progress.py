"""Progress as a reward: model x accumulator x role.

A progress *model* says how far an observation is (absolute) or how far one is ahead of another
(pairwise). An *accumulator* turns its answers over an episode into one estimate. The estimate then
has a *role*: it ends episodes, it rewards, or it judges at the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..types import Score

Floats = NDArray[np.float32]
Accumulation = Literal["milestones", "last", "best", "mean", "difference"]


class ProgressModel(Protocol):
    """Estimates [N] for observations [N, D]; ``kind`` says of what."""

    @property
    def kind(self) -> Literal["absolute", "pairwise"]: ...

    def __call__(
        self, observations: Floats, initial: Floats, instructions: Sequence[str], references: Floats | None = None
    ) -> Floats: ...


@dataclass(frozen=True)
class Accumulator:
    """How answers over an episode become one estimate in 0..1.

    Attributes:
        rule: "milestones" is EVOLVE-VLA's Eq. 1-2 (arXiv 2512.14666, checked against the paper): every
            ``milestone`` checks the observation becomes the new reference and v <- v + (1 - v) c. Between
            milestones the provisional value v + (1 - v) c counts, which the paper leaves open; values are
            clamped to 0..1, which it does not say. "last" takes the newest answer; "best" the highest so far;
            "mean" the mean so far; "difference" is the newest minus the first (potential difference).
            With a pairwise model all but "milestones" compare with the first observation.
        milestone: checks between milestones.
    """

    rule: Accumulation = "milestones"
    milestone: int = 6


class ProgressEstimator:
    """Keeps an estimate for every episode of a batch, and says when one is over.

    Args:
        model: absolute or pairwise. With "milestones" an absolute model answers for a pair by
            (p_b - p_a) / (1 - p_a).
        threshold: an estimate above it ends the episode; None never does.
        patience: checks in a row that must be above it, so that one wrong answer does not cut an
            episode short.
    """

    def __init__(
        self,
        model: ProgressModel,
        accumulator: Accumulator | None = None,
        *,
        threshold: float | None = None,
        patience: int = 1,
    ) -> None:
        self.model, self.accumulator = model, accumulator or Accumulator()
        self.threshold, self.patience = threshold, patience
        self.calls = 0
        self.begin([])

    def begin(self, instructions: Sequence[str]) -> None:
        """Forget all episodes; row i will be an episode with instruction i."""
        self._instructions = list(instructions)
        self._trace: list[list[float]] = [[] for _ in instructions]
        self._first: dict[int, Floats] = {}
        self._reference: dict[int, Floats] = {}
        self._held = dict.fromkeys(range(len(instructions)), 0.0)

    def update(self, rows: NDArray[np.int64], observations: Floats) -> NDArray[np.bool_]:
        """Take in observations [n, D] of some rows; True [n] where the episode is over.

        The first observation of a row is its initial one: it sets the reference and has no estimate.
        """
        over = np.zeros(len(rows), dtype=bool)
        old = [i for i, row in enumerate(rows.tolist()) if row in self._first]
        for i in sorted(set(range(len(rows))) - set(old)):
            self._first[int(rows[i])] = self._reference[int(rows[i])] = observations[i]
        if not old:
            return over
        answers = self._ask(rows[old], observations[old])
        for i, answer in zip(old, answers.tolist(), strict=True):
            row = int(rows[i])
            value = self._accumulate(row, answer, observations[i])
            self._trace[row].append(value)
            recent = self._trace[row][-self.patience :]
            enough = self.threshold is not None and len(recent) == self.patience
            over[i] = enough and min(recent) > float(self.threshold or 0.0)
        return over

    def values(self, row: int) -> list[float]:
        """The estimate after each observation of a row, the initial one left out."""
        return self._trace[row]

    def _ask(self, rows: NDArray[np.int64], observations: Floats) -> Floats:
        """Absolute answers in 0..1, or signed advances over each row's reference."""
        first = np.stack([self._first[int(row)] for row in rows])
        reference = np.stack([self._reference[int(row)] for row in rows])
        texts = [self._instructions[int(row)] for row in rows]
        self.calls += len(rows)
        pairwise = self.model.kind == "pairwise"
        answers = self.model(observations, first, texts, reference if pairwise else None)
        if answers.shape != (len(rows),):
            raise ValueError(f"the progress model returned shape {answers.shape} for {len(rows)} observations")
        low = -1.0 if pairwise else 0.0
        outside = ~((answers >= low - 1e-4) & (answers <= 1 + 1e-4))  # NaN is outside too
        if outside.any():
            first_wrong = int(outside.argmax())
            what = f"the progress model returned {answers[first_wrong]}, outside {low:g}..1"
            raise ValueError(f"{what}, for {texts[first_wrong]!r}")
        return answers

    def _accumulate(self, row: int, answer: float, observation: Floats) -> float:
        rule, checks = self.accumulator.rule, len(self._trace[row]) + 1
        if rule == "milestones":
            advance = answer
            if self.model.kind == "absolute":  # as a pair: the held value plays the part of p_a
                held = self._held[row]
                advance = float(np.clip((answer - held) / max(1 - held, 0.05), -1, 1))
            value = float(np.clip(self._held[row] + (1 - self._held[row]) * advance, 0.0, 1.0))
            if checks % self.accumulator.milestone == 0:
                self._held[row], self._reference[row] = value, observation
            return value
        value = answer
        if rule == "mean":
            self._held[row] += answer
            value = self._held[row] / checks
        elif rule == "best":
            self._held[row] = value = max(self._held[row], answer)
        elif rule == "difference" and self.model.kind == "absolute":
            if checks == 1:
                self._held[row] = answer
            value = answer - self._held[row]
        return float(np.clip(value, 0.0, 1.0))


class FinalProgress:
    """The reward of an episode from its last estimate v: (1 - w) * min(v / threshold, 1) + w * [v > threshold].

    Reads the score "progress" that the environment's estimator left on the rollout. The second term
    tells almost there from there, which a share of the way alone hardly does.

    Args:
        threshold: the estimate at which the episode would have ended.
        completion: w, the weight of having got there.
        hindsight: computes v from the recorded episode instead, where no estimator sat in the environment.
    """

    def __init__(
        self, threshold: float = 1.0, completion: float = 0.0, hindsight: EpisodeProgress | None = None
    ) -> None:
        self.threshold, self.completion, self.hindsight = threshold, completion, hindsight

    def __call__(self, rollouts: Sequence[Any], **columns: Any) -> list[Score]:
        if self.hindsight is not None:
            return [self._reward(value) for value in self.hindsight(**columns)]
        return [self._reward(float(rollout.scores["progress"][-1])) for rollout in rollouts]

    def _reward(self, value: float) -> float:
        return (1 - self.completion) * min(value / self.threshold, 1.0) + self.completion * (value > self.threshold)


class MeanProgress:
    """The mean of several absolute models: one that sees the approach, one that sees the end."""

    kind: Literal["absolute"] = "absolute"

    def __init__(self, models: Sequence[ProgressModel]) -> None:
        pairwise = [model for model in models if model.kind != "absolute"]
        if pairwise or not models:
            raise ValueError("MeanProgress takes one or more absolute models")
        self.models = list(models)

    def __call__(
        self, observations: Floats, initial: Floats, instructions: Sequence[str], references: Floats | None = None
    ) -> Floats:
        answers = [model(observations, initial, instructions) for model in self.models]
        result: Floats = np.mean(answers, axis=0, dtype=np.float32)
        return result


class EpisodeProgress:
    """Scores whole episodes afterwards by a model and an accumulator, whoever estimated during them.

    Used where the judge is not the estimator that sat in the environment: at the gate and in the audit.
    """

    def __init__(self, model: ProgressModel, accumulator: Accumulator | None = None) -> None:
        self.model, self.accumulator = model, accumulator or Accumulator("last")

    def __call__(self, episodes: Sequence[Any], prompts: Sequence[Any], **columns: Any) -> list[float]:
        estimator = ProgressEstimator(self.model, self.accumulator)
        estimator.begin([str(prompt) for prompt in prompts])
        longest = max(len(episode.observations) for episode in episodes)
        for time in range(longest):
            rows = np.array([i for i, e in enumerate(episodes) if time < len(e.observations)])
            estimator.update(rows, np.stack([episodes[i].observations[time] for i in rows]).astype(np.float32))
        return [estimator.values(row)[-1] for row in range(len(episodes))]
