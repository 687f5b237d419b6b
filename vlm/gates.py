"""A gate for models that judge themselves: an alarm when held-out answers are surely worse, and not before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..trainers.gates import Scores, look
from ..types import Actor, RewardFunction, Task, Verdict


@dataclass
class Canary:
    """Sound an alarm when the judge's score has fallen by more than ``z`` standard errors, over all probes.

    The fall is the mean of the paired differences on the same probes and keys, against the base and against the last
    promoted policy; views of one question count as one. Without an alarm a candidate is kept if it has not fallen under
    the base at all and not by a standard error under the last promoted one; else the gate waits, so that what a stage
    returns never crept below its start. After an alarm level is not enough, and a candidate is kept if it is a standard
    error above the base: what was seen to fall may be level on 200 probes and a few points lower elsewhere.

    Where ``NonInferiority`` asks for proof that nothing was lost, which takes some 900 probes for a margin of five
    points, this asks for proof that something was: 200 probes see a collapse, and hardly ever cry wolf (one look in 44
    per comparison at z = 2, where nothing has changed). It does not find the better of two candidates a point apart.

    The first alarm is answered by repair (let ``Optimisation.repair_lr`` halve the learning rate), each up to
    ``repairs``; the next one rolls back and ends the stage.

    Attributes:
        probes: tasks that training never samples; with a judge that needs labels, the label account's N.
        judge: a reward function of another family than the training reward, with labels or without.
        z: standard errors of the mean paired difference.
        repairs: alarms answered by repair.
        reward: the training reward, to tell in the evidence where it rose while the judge fell.
        sampling: passed to ``act``.
    """

    probes: Sequence[Task]
    judge: RewardFunction
    z: float = 2.0
    repairs: int = 1
    reward: RewardFunction | None = None
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"greedy": True})
    _known: dict[str, tuple[Scores, Scores]] = field(default_factory=dict, init=False, repr=False)
    failures: int = field(default=0, init=False)

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
        for name, actor in against.items():
            if name not in self._known:
                self._known[name] = self._look(actor)
        judged, proxy = self._look(candidate)
        evidence = {category: self._row(category, judged, proxy) for category in judged}
        fell, level = [], True
        for name, (reference, _) in self._known.items():
            fall, error = paired_fall(reference, judged, self._kin)
            allowed = error if name == "promoted" else -error if self.failures else 0.0
            level = level and fall <= allowed + 1e-12
            if fall > max(self.z * error, 1e-12):
                fell.append(f"{fall:.3g} under {name} (standard error {error:.2g})")
        if not fell and level:
            self._known["promoted"] = (judged, proxy)
            return Verdict("keep", "the judge's score is level or better", evidence=evidence)
        if not fell:
            return Verdict("wait", f"lower, but by less than {self.z:g} standard errors", evidence=evidence)
        self.failures += 1
        reason = f"the judge's score is {' and '.join(fell)}"
        if self.failures <= self.repairs:
            return Verdict("repair", reason, evidence=evidence)
        return Verdict("rollback", f"{reason}; alarm {self.failures}, stopped there", evidence=evidence, stop=True)

    def _row(self, category: str, judged: Scores, proxy: Scores) -> dict[str, float]:
        row = {"candidate": _mean(judged[category])}
        for name, (reference, before) in self._known.items():
            row[name] = _mean(reference[category])
            if proxy:
                row[f"reward_change_from_{name}"] = _mean(proxy[category]) - _mean(before[category])
        return row

    def _look(self, actor: Actor) -> tuple[Scores, Scores]:
        return look(actor, self.probes, self.judge, self.reward, self.sampling)

    def state_dict(self) -> dict[str, Any]:
        return {"failures": self.failures}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Scores of base and promoted are looked up anew: the probes and keys are frozen."""
        self.failures = int(state["failures"])
        self._known.clear()


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


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
