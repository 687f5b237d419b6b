"""What may stay: a candidate against the base and the last promoted policy, on frozen probes.

Rollback alone freezes learning; repair (restore, quarantine what was harmed, hold on to the
demonstrations) lets the rest go on. The judge of a gate is never the reward that trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..statistics import non_inferiority
from ..types import Actor, RewardFunction, Task, Verdict
from .scoring import score

Scores = dict[str, list[float]]


@dataclass
class NonInferiority:
    """Keep a candidate unless some category may have fallen by more than a margin.

    Per category, d is the mean paired fall of the judge's score (reference minus candidate on the same
    probes and keys) and the candidate passes when d + z * se < margin, as in a clinical trial of
    non-inferiority. The reference is the last promoted policy, and the frozen base as well, so that
    small falls cannot add up.

    Attributes:
        probes: tasks that training never samples.
        judge: a reward function of another family than the training reward.
        margin: how much a category may fall, in units of the judge's score.
        level: one-sided confidence of the test per category.
        repairs: how many failures are answered by repair; later ones by rollback alone.
        reward: the training reward, to tell in the evidence where it rose while the judge fell.
        sampling: passed to ``act``.
    """

    probes: Sequence[Task]
    judge: RewardFunction
    margin: float = 0.1
    level: float = 0.9
    repairs: int = 3
    reward: RewardFunction | None = None
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"greedy": True})
    _known: dict[str, tuple[Scores, Scores]] = field(default_factory=dict, init=False, repr=False)
    failures: int = field(default=0, init=False)

    def __call__(self, candidate: Actor, against: Mapping[str, Actor]) -> Verdict:
        for name, actor in against.items():
            if name not in self._known:
                self._known[name] = self._look(actor)
        judged, proxy = self._look(candidate)
        evidence: dict[str, Any] = {}
        harmed: list[str] = []
        for category, scores in judged.items():
            row: dict[str, Any] = {"candidate": _mean(scores)}
            worst = -math.inf
            for name, (reference, before) in self._known.items():
                row[name] = _mean(reference[category])
                lost, kept = [-s for s in scores], [-s for s in reference[category]]
                worst = max(worst, non_inferiority(lost, kept, self.margin, self.level).upper)
                if proxy:
                    row[f"reward_change_from_{name}"] = _mean(proxy[category]) - _mean(before[category])
            row["upper"] = worst
            evidence[category] = row
            if worst >= self.margin:
                harmed.append(category)
        if not harmed:
            self._known["promoted"] = (judged, proxy)
            return Verdict("keep", "no category fell by the margin", evidence=evidence)
        self.failures += 1
        reason = f"{', '.join(harmed)} may have fallen by {self.margin:g} or more in the judge's score"
        decision: Any = "repair" if self.failures <= self.repairs else "rollback"
        return Verdict(decision, reason, tuple(harmed), evidence)

    def _look(self, actor: Actor) -> tuple[Scores, Scores]:
        return look(actor, self.probes, self.judge, self.reward, self.sampling)

    def state_dict(self) -> dict[str, Any]:
        return {"failures": self.failures}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Scores of base and promoted are looked up anew: the probes and keys are frozen."""
        self.failures = int(state["failures"])
        self._known.clear()


@dataclass
class BestSoFar:
    """Keep a candidate that the judge finds better than all before; stop when none was for a while.

    Early stopping on held-out probes, for training that sooner or later goes too far, such as along a reward's own
    gradient. In between the candidate is left alone ("wait"); the run ends with the best one.

    Attributes:
        probes, judge, reward, sampling: as of ``NonInferiority``.
        patience: looks in a row without a new best before the stage stops.
    """

    probes: Sequence[Task]
    judge: RewardFunction
    patience: int = 2
    reward: RewardFunction | None = None
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"greedy": True})
    best: float | None = field(default=None, init=False)
    failures: int = field(default=0, init=False)
    _base: tuple[Scores, Scores] | None = field(default=None, init=False, repr=False)

    def __call__(self, candidate: Actor, against: Mapping[str, Actor]) -> Verdict:
        if self._base is None:
            self._base = self._look(against["base"])
        base, before = self._base
        self.best = _overall(base) if self.best is None else self.best
        judged, proxy = self._look(candidate)
        evidence: dict[str, Any] = {}
        for category, scores in judged.items():
            evidence[category] = {"candidate": _mean(scores), "base": _mean(base[category])}
            if proxy:
                evidence[category]["reward_change_from_base"] = _mean(proxy[category]) - _mean(before[category])
        now, best = _overall(judged), self.best
        if now > best:
            self.best, self.failures = now, 0
            return Verdict(
                "keep", f"the judge's {now:.4g} is better than {best:.4g}, the best so far", evidence=evidence
            )
        self.failures += 1
        done = self.failures >= self.patience
        reason = f"the judge's {now:.4g} is not better than {best:.4g}, the best so far"
        return Verdict("wait", f"{reason}; stopped there" if done else reason, evidence=evidence, stop=done)

    def _look(self, actor: Actor) -> tuple[Scores, Scores]:
        return look(actor, self.probes, self.judge, self.reward, self.sampling)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "failures": self.failures}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The base's scores are looked up anew: the probes and keys are frozen."""
        self.best = None if state["best"] is None else float(state["best"])
        self.failures, self._base = int(state["failures"]), None


def look(
    actor: Actor,
    probes: Sequence[Task],
    judge: RewardFunction,
    reward: RewardFunction | None,
    sampling: Mapping[str, Any],
) -> tuple[Scores, Scores]:
    """The judge's and the training reward's scores per category, in probe order; the latter empty without a reward."""
    rollouts = actor.act(list(probes), 1, key=(0,), **sampling)
    judged: Scores = {}
    proxy: Scores = {}
    if reward is not None:
        score(rollouts, reward)
        for rollout in rollouts:
            proxy.setdefault(rollout.task.category, []).append(_number(rollout.scores["total"]))
    score(rollouts, judge)
    for rollout in rollouts:
        judged.setdefault(rollout.task.category, []).append(_number(rollout.scores["total"]))
    return judged, proxy


def _overall(scores: Scores) -> float:
    """Mean over categories, each counting once."""
    return _mean([_mean(values) for values in scores.values()])


def _number(value: Any) -> float:
    if value is None:
        raise ValueError("a gate's judge must score every probe")
    return float(value) if not isinstance(value, Sequence) else math.fsum(value)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
