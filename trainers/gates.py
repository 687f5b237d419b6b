"""What may stay: a candidate against the base, the last promoted policy and the best promoted, on frozen probes.

Rollback alone freezes learning; repair (restore, quarantine what was harmed, hold on to the demonstrations) lets the
rest go on. The judge of a gate is never of a family that trains. One base looks at actors; three gates decide:
``NonInferiority`` wants proof that nothing was lost, ``Canary`` that something was, ``BestSoFar`` that something was
won.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..families import GROUND_TRUTH, families_of, labels_of, needs_of
from ..statistics import non_inferiority
from ..types import Actor, RewardFunction, Task, Verdict
from .distributed import gather, spread
from .scoring import score, total_of

Scores = dict[str, list[float]]

CHUNK = 64
"""Attempts at probes that are held at once."""


class JudgeFailed(RuntimeError):
    """A machine that a judge asks failed twice; the loop then waits for the next look."""


class Gate(ABC):
    """Whatever answers keep, wait, repair or roll back.

    Attributes:
        judge: the reward function that it decides by; None for a gate that asks none.
        labels: how many labels it reads.
    """

    judge: RewardFunction | None = None
    labels: int = 0

    @abstractmethod
    def __call__(self, candidate: Actor, against: Mapping[str, Actor]) -> Verdict:
        """The verdict on a candidate, given {"base", "promoted"}."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Checkpoints restore a gate too."""


@dataclass
class ProbeGate(Gate):
    """A gate that looks at actors on frozen probes by a judge, once each at base and promoted.

    Attributes:
        probes: tasks that training never samples; with a judge that needs labels, the label account's N.
        judge: a reward function of another family than the training reward.
        reward: the training reward, to tell in the evidence where it rose while the judge fell.
        sampling: passed to ``act``, beside mode "evaluate".
    """

    probes: Sequence[Task]
    judge: RewardFunction = field()  # without the base's default
    reward: RewardFunction | None = field(default=None, kw_only=True)
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"greedy": True}, kw_only=True)
    failures: int = field(default=0, init=False)
    _known: dict[str, tuple[Scores, Scores]] = field(default_factory=dict, init=False, repr=False)

    @property
    def labels(self) -> int:  # type: ignore[override]
        """Probes with a right answer, or with what else the judge ``needs`` (tests of programs), where it reads it.

        A judge that brings its labels along (``families.labels_of``) reads one for every probe that differs.
        """
        if GROUND_TRUTH not in families_of(self.judge):
            return 0
        if labels_of(self.judge):
            return len({str(probe.prompt) for probe in self.probes})
        columns = needs_of(self.judge)
        return sum(t.reference is not None or any(t.extra.get(c) is not None for c in columns) for t in self.probes)

    def look(self, actor: Actor) -> tuple[Scores, Scores]:
        """The judge's and the training reward's scores per category, in probe order; the latter empty without one.

        Several processes look at a part of the probes each, a few at a time: of an attempt its scores stay.
        """
        rewards = [reward for reward in (self.reward, self.judge) if reward is not None]
        unasked = False

        def ask(some: Sequence[Task]) -> list[list[float | None]]:
            nonlocal unasked
            rollouts = actor.act(some, 1, key=(0,), mode="evaluate", **self.sampling)
            if len(rollouts) != len(some):
                raise UsageError(f"an actor answered {len(some)} probes by {len(rollouts)} rollouts: one each")
            values: list[list[float | None]] = [[] for _ in some]
            for reward in rewards:
                metrics = score(rollouts, reward)
                unasked = unasked or (reward is self.judge and "faults/infrastructure" in metrics)
                for row, rollout in zip(values, rollouts, strict=True):
                    row.append(total_of(rollout))
            return values

        told = spread(self.probes, CHUNK, ask)
        if any(gather([unasked])):
            raise JudgeFailed("the judge could not be asked about every probe: a connection failed, or a server did")
        sides: list[Scores] = [{} for _ in rewards]
        for probe, row in zip(self.probes, told, strict=True):
            for scores, value in zip(sides, row, strict=True):
                if value is None and scores is not sides[-1]:  # the reward applies to some probes only
                    continue
                if value is None:
                    raise UsageError(f"a gate's judge must score every probe, and gave None to {probe.id}")
                scores.setdefault(probe.category, []).append(value)
        return sides[-1], sides[0] if len(sides) > 1 else {}

    def remember(self, against: Mapping[str, Actor]) -> None:
        """Look at base and promoted, where that was not done; a resumed gate holds all in the order of a new one."""
        looked = {name: self._known.get(name) or self.look(actor) for name, actor in against.items()}
        self._known = looked | {name: scores for name, scores in self._known.items() if name not in looked}

    def evidence(self, judged: Scores, proxy: Scores) -> dict[str, Any]:
        """Per category the candidate's mean score, that of whom it is compared with, and how the reward changed."""
        rows: dict[str, Any] = {}
        for category, scores in judged.items():
            rows[category] = row = {"candidate": _mean(scores)}
            for name, (reference, before) in self._known.items():
                row[name] = _mean(reference[category])
                if category in proxy and category in before:
                    row[f"reward_change_from_{name}"] = _mean(proxy[category]) - _mean(before[category])
        return rows

    def promote(self, judged: Scores, proxy: Scores, *, whole: bool) -> None:
        """The candidate is what is promoted now, and the best promoted so far where none before was as good.

        Args:
            whole: the best is one policy, by its mean over all probes; else each category's best stands by itself.
        """
        best, rewards = self._known.get("best") or self._known.get("promoted") or ({}, {})
        parts = [list(judged)] if whole else [[category] for category in judged]
        for names in parts:
            now, before = ([s for name in names for s in scores.get(name, ())] for scores in (judged, best))
            if not before or _mean(now) > _mean(before):
                best, rewards = (
                    old | {name: new[name] for name in names if name in new}
                    for old, new in ((best, judged), (rewards, proxy))
                )
        self._known |= {"promoted": (judged, proxy), "best": (best, rewards)}

    def state_dict(self) -> dict[str, Any]:
        return {"failures": self.failures, "best_promoted": self._known.get("best")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Scores of base and promoted are looked up anew: the probes and keys are frozen."""
        self.failures = int(state["failures"])
        self._known.clear()
        if state["best_promoted"] is not None:
            scores, rewards = state["best_promoted"]
            self._known["best"] = scores, rewards


@dataclass
class NonInferiority(ProbeGate):
    """Keep a candidate unless some category may have fallen by more than a margin.

    Per category, d is the mean paired fall of the judge's score (reference minus candidate on the same
    probes and keys) and the candidate passes when d + z * se < margin, as in a clinical trial of
    non-inferiority, against the frozen base and the last promoted policy. So that small falls cannot add up, it is also
    compared with the best that was ever promoted, category by category, where d itself has to stay under the margin:
    the best of many looks is partly luck, and proof against it would in time refuse every candidate.

    Attributes:
        margin: how much a category may fall, in units of the judge's score.
        level: one-sided confidence of the test per category.
        repairs: how many failures are answered by repair; later ones by rollback alone.
    """

    margin: float = 0.1
    level: float = 0.9
    repairs: int = 3

    def __call__(self, candidate: Actor, against: Mapping[str, Actor]) -> Verdict:
        self.remember(against)
        judged, proxy = self.look(candidate)
        evidence = self.evidence(judged, proxy)
        for category, scores in judged.items():
            lost = [-s for s in scores]
            for name, (reference, _) in self._known.items():
                tested = non_inferiority(lost, [-s for s in reference[category]], self.margin, self.level)
                fell = tested.difference if name == "best" else tested.upper
                evidence[category]["upper"] = max(fell, evidence[category].get("upper", fell))
        harmed = [category for category, row in evidence.items() if row["upper"] >= self.margin]
        if not harmed:
            self.promote(judged, proxy, whole=False)
            return Verdict("keep", "no category fell by the margin", evidence=evidence)
        self.failures += 1
        reason = f"{', '.join(harmed)} may have fallen by {self.margin:g} or more in the judge's score"
        decision: Any = "repair" if self.failures <= self.repairs else "rollback"
        return Verdict(decision, reason, tuple(harmed), evidence)


@dataclass
class BestSoFar(ProbeGate):
    """Keep a candidate that the judge finds better than all before; stop when none was for a while.

    Early stopping on held-out probes, for training that sooner or later goes too far, such as along a reward's own
    gradient. In between the candidate is left alone ("wait"); the run ends with the best one.

    Attributes:
        patience: looks in a row without a new best before the stage stops.
    """

    patience: int = 2
    best: float | None = field(default=None, init=False)

    def __call__(self, candidate: Actor, against: Mapping[str, Actor]) -> Verdict:
        self.remember({"base": against["base"]})
        base, _ = self._known["base"]
        self.best = _overall(base) if self.best is None else self.best
        judged, proxy = self.look(candidate)
        evidence = self.evidence(judged, proxy)
        now, best = _overall(judged), self.best
        if now > best:
            self.best, self.failures = now, 0
            reason = f"the judge's {now:.4g} is better than {best:.4g}, the best so far"
            return Verdict("keep", reason, evidence=evidence)
        self.failures += 1
        done = self.failures >= self.patience
        reason = f"the judge's {now:.4g} is not better than {best:.4g}, the best so far"
        return Verdict("wait", f"{reason}; stopped there" if done else reason, evidence=evidence, stop=done)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.best = None if state["best"] is None else float(state["best"])


@dataclass
class Canary(ProbeGate):
    """Sound an alarm when the judge's score has fallen by more than ``z`` standard errors, over all probes.

    The fall is the mean of the paired differences on the same probes and keys, against the base, the last promoted
    policy and the best that was promoted; views of one question count as one. Without an alarm a candidate is kept if
    it has not fallen under the base at all and not by a standard error under the two promoted ones; else the gate
    waits, so that what a stage returns never crept below its start, nor far below its best. After an alarm level is not
    enough, and a candidate is kept if it is a standard error above the base: what was seen to fall may be level on 200
    probes and a few points lower elsewhere.

    Where ``NonInferiority`` asks for proof that nothing was lost, which takes some 900 probes for a margin of five
    points, this asks for proof that something was: 200 probes see a collapse, and hardly ever cry wolf (one look in 44
    per comparison at z = 2, where nothing has changed). It does not find the better of two candidates a point apart.

    The first alarm is answered by repair (let ``Optimisation.repair_lr`` halve the learning rate), each up to
    ``repairs``; the next one rolls back and ends the stage.

    Attributes:
        z: standard errors of the mean paired difference.
        repairs: alarms answered by repair.
    """

    z: float = 2.0
    repairs: int = 1

    def __post_init__(self) -> None:
        if len(self.probes) < 2:
            raise ValueError(f"a canary compares 2 or more probes, not {len(self.probes)}; 200 see a fall of 7 points")

    @property
    def _kin(self) -> dict[str, list[str]]:
        """Per category, in probe order, the question that each probe is a view of."""
        kin: dict[str, list[str]] = {}
        for task in self.probes:
            kin.setdefault(task.category, []).append(task.parent or task.id)
        return kin

    def __call__(self, candidate: Actor, against: Mapping[str, Actor]) -> Verdict:
        self.remember(against)
        judged, proxy = self.look(candidate)
        evidence = self.evidence(judged, proxy)
        fell, level = [], True
        for name, (reference, _) in self._known.items():
            fall, error = paired_fall(reference, judged, self._kin)
            allowed = error if name != "base" else -error if self.failures else 0.0
            level = level and fall <= allowed + 1e-12
            if fall > max(self.z * error, 1e-12):
                fell.append(f"{fall:.3g} under {name} (standard error {error:.2g})")
        if not fell and level:
            self.promote(judged, proxy, whole=True)
            return Verdict("keep", "the judge's score is level or better", evidence=evidence)
        if not fell:
            return Verdict("wait", f"lower, but by less than {self.z:g} standard errors", evidence=evidence)
        self.failures += 1
        reason = f"the judge's score is {' and '.join(fell)}"
        if self.failures <= self.repairs:
            return Verdict("repair", reason, evidence=evidence)
        return Verdict("rollback", f"{reason}; alarm {self.failures}, stopped there", evidence=evidence, stop=True)


def paired_fall(
    reference: Scores, candidate: Scores, kin: Mapping[str, Sequence[str]] | None = None
) -> tuple[float, float]:
    """The mean of (reference - candidate) over all probes, and its standard error.

    ``kin`` names, per category and probe, what it is a view of: views of one question count as one observation.
    """
    falls: dict[object, list[float]] = {}
    for category, scores in candidate.items():
        names = range(len(scores)) if kin is None else kin[category]
        for name, after, before in zip(names, scores, reference[category], strict=True):
            falls.setdefault((category, name), []).append(before - after)
    means = [_mean(several) for several in falls.values()]
    mean = _mean(means)
    variance = math.fsum((fall - mean) ** 2 for fall in means) / max(1, len(means) - 1)
    return mean, math.sqrt(variance / len(means))


def _overall(scores: Scores) -> float:
    """Mean over categories, each counting once."""
    return _mean([_mean(values) for values in scores.values()])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
