"""A learner that learns nothing of the task: it watches what a run of answers says about itself."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..rewards.log_ratio import Scorer
from ..rewards.text.agreement import kendall_tau
from ..trainers.contracts import Learner
from ..trainers.metrics import Mean, Share, everywhere
from ..types import Players, Rollout
from .conversation import Transcript

logger = logging.getLogger(__name__)


class Watch(Learner):
    """What becomes of a policy's answers, each update.

    Metrics, over all of an update's rollouts or the mean over its groups, of all processes together:

    ==========================  ==================================================================================
    answers/length              tokens that the policy wrote
    answers/truncated, _count   the share of answers that hit a limit, and how many so far
    answers/entropy, _first     mean of -log p over the tokens that were sampled, and over the first of each answer:
                                an estimate of the entropy, free of cost, at the sampling temperature
    answers/pass@k              the chance that one of k answers of a group scores above ``right``, unbiased
    answers/distinct            different answers in a group, as a share of its size
    answers/gap                 best less worst score of a group: what chosen and rejected answers differ by
    answers/tau                 Kendall's tau of the two ``rankings`` of a group; a judge that does not agree with
                                itself of a round ago drifts
    ==========================  ==================================================================================

    Each of three troubles is warned of once: more than half of the answers truncated, entropy below a fifth of the
    first update's, tau below ``least_tau``.

    Args:
        passes: the k of pass@k; a group that is smaller takes no part. Without any it is the whole group
            ("answers/pass@group").
        right: above this a score counts as right.
        score: the name of the score that is looked at.
        answer: a rollout -> what makes it the same answer as another.
        rankings: how the policy ranks now, and how it ranked before, such as ``scorer(policy)`` and
            ``scorer(previous)`` of ``rewards.log_ratio``; asked about the update's own rollouts. Let the watch stand
            behind the learner that keeps ``previous``.
    """

    players: Players = "all"
    sees_own_rollouts_only = True

    def __init__(
        self,
        *,
        passes: Sequence[int] = (),
        right: float = 0.5,
        score: str = "total",
        answer: Callable[[Rollout], str] = lambda rollout: str(rollout.output).strip(),
        rankings: tuple[Scorer, Scorer] | None = None,
        least_tau: float = 0.2,
    ) -> None:
        self.passes, self.right, self.score, self.answer = tuple(passes), right, score, answer
        self.rankings, self.least_tau = rankings, least_tau
        self.truncated = 0
        self.first_entropy: float | None = None
        self.warned: set[str] = set()

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        own: dict[str, float] = {}
        if rollouts:
            cut = [float(bool(rollout.info.get("truncated"))) for rollout in rollouts]
            own = {
                "answers/length": Mean.of_numbers([_length(rollout) for rollout in rollouts]),
                "answers/truncated": Mean.of_numbers(cut),
                "answers/truncated_count": Share(sum(cut)),
            }
            own |= _surprise(rollouts) | self._groups(rollouts) | self._faults(rollouts)
        (metrics,) = everywhere(own)
        if not metrics:
            return {}
        self.truncated += int(metrics["answers/truncated_count"])
        metrics["answers/truncated_count"] = float(self.truncated)
        if not metrics["tools/calls"]:
            metrics = {name: value for name, value in metrics.items() if "tools" not in name}
        if not metrics["faults/environment"]:
            del metrics["faults/environment"]
        self._warn(metrics)
        return metrics

    def _faults(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Calls per conversation, the shares of calls that failed and in which a tool broke down, and the shares of
        rollouts in which a tool or the environment did."""
        calls = [
            [call for turn in _turns(r) if turn.reply for call in turn.reply.info.get("calls", ())] for r in rollouts
        ]
        everyone = [call for own in calls for call in own]
        for name in sorted({name for name, _, _ in everyone if name} - self.warned):
            outcomes = [outcome for called, _, outcome in everyone if called == name]
            if all(outcomes):
                self.warned.add(name)
                logger.warning(
                    "the tool %s broke down in all of its %d calls of a round: %s",
                    name,
                    len(outcomes),
                    outcomes[-1][:200],
                )
        return {
            "tools/calls": Mean(len(everyone), len(rollouts)),
            "tools/failed": Mean.of_numbers([float(failed) for _, failed, _ in everyone]),
            "tools/broken": Mean.of_numbers([float(bool(outcome)) for _, _, outcome in everyone]),
            "faults/tools": Mean.of_numbers([float(any(outcome for _, _, outcome in own)) for own in calls]),
            "faults/environment": Mean.of_numbers([float(bool(rollout.info.get("broke"))) for rollout in rollouts]),
        }

    def _groups(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Means over groups of two or more."""
        groups: dict[str, list[Rollout]] = defaultdict(list)
        for rollout in rollouts:
            groups[rollout.group_key].append(rollout)
        found: dict[str, list[float]] = defaultdict(list)
        for members in groups.values():
            if len(members) > 1:
                found["distinct"].append(len({self.answer(member) for member in members}) / len(members))
            scores = [s for s in (_number(member.scores.get(self.score)) for member in members) if s is not None]
            if len(scores) > 1:
                found["gap"].append(max(scores) - min(scores))
                right = sum(score > self.right for score in scores)
                for k in self.passes or (len(scores),):
                    if k <= len(scores):
                        found[f"pass@{k if self.passes else 'group'}"].append(pass_at_k(len(scores), right, k))
        if self.rankings is not None:
            found["tau"] = self._taus([members for members in groups.values() if len(members) > 1])
        return {f"answers/{name}": Mean.of_numbers(values) for name, values in found.items() if values}

    def _taus(self, groups: Sequence[Sequence[Rollout]]) -> list[float]:
        asked = [member for members in groups for member in members]
        if not asked or self.rankings is None:
            return []
        now, before = ([float(value) for value in ranking(asked)] for ranking in self.rankings)
        taus, start = [], 0
        for members in groups:
            part = slice(start, start := start + len(members))
            taus.append(kendall_tau(now[part], before[part]))
        return taus

    def _warn(self, metrics: Mapping[str, float]) -> None:
        entropy, tau = metrics.get("answers/entropy"), metrics.get("answers/tau")
        if self.first_entropy is None:
            self.first_entropy = entropy
        troubles = {}
        if metrics["answers/truncated"] > 0.5:
            troubles["truncated"] = f"{metrics['answers/truncated']:.0%} of the answers hit the limit of their length"
        if entropy is not None and self.first_entropy is not None and entropy < 0.2 * self.first_entropy:
            troubles["entropy"] = f"entropy is {entropy / self.first_entropy:.0%} of what it was at the start"
        if tau is not None and tau < self.least_tau:
            troubles["tau"] = f"the policy's ranking has little to do with the one before (Kendall's tau {tau:.2f})"
        for name, line in troubles.items():
            if name not in self.warned:
                self.warned.add(name)
                logger.warning("%s", line)

    def state_dict(self) -> dict[str, Any]:
        return {"truncated": self.truncated, "first_entropy": self.first_entropy, "warned": sorted(self.warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What was counted and said stays so after a rollback."""
        self.truncated = max(self.truncated, int(state["truncated"]))
        self.first_entropy = state["first_entropy"]
        self.warned |= set(state["warned"])


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k of n answers, drawn without replacement, hold a right one: 1 - C(n - right, k) / C(n, k).

    Unbiased for k fresh answers (Chen et al., arXiv 2107.03374, eq. 1; derived, not checked).
    """
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ValueError(f"pass@k draws 1 to n answers: k = {k}, n = {n}, {right} right")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def _turns(rollout: Rollout) -> Sequence[Any]:
    return rollout.output.turns if isinstance(rollout.output, Transcript) else ()


def _length(rollout: Rollout) -> float:
    """Tokens that the policy wrote; where all are masked for having been truncated, all there are."""
    return float(int(rollout.mask.sum()) or len(rollout.mask))


def _surprise(rollouts: Sequence[Rollout]) -> dict[str, float]:
    found = [-r.log_probs[r.mask] for r in rollouts if r.log_probs is not None and bool(r.mask.any())]
    if not found:
        return {}
    return {
        "answers/entropy": Mean.of(torch.cat(found)),
        "answers/entropy_first": Mean.of_numbers([float(values[0]) for values in found]),
    }


def _number(score: Any) -> float | None:
    return None if score is None else float(torch.as_tensor(score, dtype=torch.float32).sum())
