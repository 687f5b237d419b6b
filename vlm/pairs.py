"""Preferences that a policy makes of its own answers: softened by doubt (CREAM), or drawn apart in time.

Both fill ``batch.pairs`` and ``batch.labels`` for ``DPO``, or attempts from which ``pairing.best_worst`` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import unknown
from ..numbers import rows_by_key
from ..rewards.text.agreement import ordinal_consistency
from ..trainers.actors import TrainingWrapper
from ..trainers.contracts import Learner
from ..trainers.learner import Optimisation, PolicyLearner
from ..trainers.metrics import Mean, everywhere
from ..trainers.objectives.preference import DPO
from ..trainers.pairing import best_worst, paired
from ..trainers.policy import TorchPolicy
from ..trainers.scoring import score, total_of
from ..types import Batch, Key, RewardFunction, Rollout, Task

Agreement = Callable[[Sequence[float], Sequence[float]], float]
"""How far two rankings of the same things agree, in 0..1."""


def consistent_pairs(
    batch: Batch, now: Tensor, before: Tensor, *, agreement: Agreement = ordinal_consistency, label: float | None = None
) -> Batch:
    """The best and the worst of each group as ranked now, labelled by how far the ranking before agrees.

    CREAM (arXiv 2410.12735; read beside the released code): a label C makes the DPO loss
    C l(best, worst) + (1 - C) l(worst, best), whose optimal margin is log(C / (1 - C)), and negative below C = 1/2. The
    code does not clamp it.

    Args:
        now, before: [B] scores of this and of the last round's judge; rows where either is not finite take no part.
        agreement: ``same_extremes`` is the paper's variant of 0 or 1; rank correlations take part as (r + 1) / 2.
        label: every pair's, such as the mean over all groups; None is each pair's own group's.
    """
    pairs, labels = [], []
    for members in _ranked(batch, now, before):
        ranked = now[members]
        best, worst = members[ranked.argmax()], members[ranked.argmin()]
        if now[best] > now[worst]:
            pairs.append(torch.stack([best, worst]))
            own = label is None
            labels.append(float(agreement(ranked.tolist(), before[members].tolist())) if own else float(label or 0.0))
    stacked = torch.stack(pairs) if pairs else batch.segments.new_zeros(0, 2)
    return replace(batch, pairs=stacked, labels=torch.tensor(labels))


def _ranked(batch: Batch, now: Tensor, before: Tensor) -> list[Tensor]:
    """Row numbers of each group's members that both judges ranked, where they are two or more."""
    finite = now.isfinite() & before.isfinite()
    rows = ((group & finite).nonzero().flatten() for group in batch.groups)
    return [members for members in rows if len(members) > 1]


class Judges(Learner):
    """Three checkpoints of a policy, two of which judge: CREAM's reward, its pairs, and who judges the next round.

    As a reward it scores answers by M_t, the policy as it is, and under "before" by M_{t-1}: each by its own reward,
    the summed log pi_t - log pi_{t-1} of a whole answer, against the policy that its round of DPO began from and was
    held to. A judge that is its own reference (M_0, or where a round changed nothing) ranks by its log-likelihood per
    decision, as the released code does where there is no reference. As a learner it takes over, at the round's end, the
    policy as it judged, so it stands before the learner that trains it::

        judges = Judges(policy, first)
        learner = PolicyLearner(policy, DPO(reference="proximal"), ..., prepare=[judges.pairs, paired])
        Stage(..., reward=judges, learners={"judges": judges, "policy": learner})

    Args:
        first: M_0, which stays as it is; the policy is M_1.
        per: a pair's label is the mean consistency of the round's groups, or its own group's.
        soften: label pairs by consistency; without it they are certain.
        agreement: as of ``consistent_pairs``.

    Attributes:
        consistency: mean of the last round over all processes, also the metric "cream/consistency"; an alarm of drift
            when it nears 1/2.
    """

    players = "all"
    sees_own_rollouts_only = True
    families = frozenset({"policy:self"})

    def __init__(
        self,
        policy: TorchPolicy,
        first: TorchPolicy,
        *,
        per: Literal["round", "question"] = "round",
        soften: bool = True,
        agreement: Agreement = ordinal_consistency,
    ) -> None:
        if per not in ("round", "question"):
            raise unknown("scope of a consistency", per, ("round", "question"))
        self.policy, self.previous, self.earlier = policy, first.fork("previous"), first.fork("earlier")
        self.per, self.soften, self.agreement = per, soften, agreement
        self.consistency = float("nan")

    def __call__(self, rollouts: Sequence[Rollout], **columns: Any) -> Mapping[str, list[float]]:
        batch = self.policy.collate(rollouts)
        with torch.no_grad():
            now, previous, earlier = (
                judge.evaluate_actions(batch).log_probs for judge in (self.policy, self.previous, self.earlier)
            )
        found = {"total": _own_reward(now, previous, batch), "before": _own_reward(previous, earlier, batch)}
        return {name: scores.tolist() for name, scores in found.items()}

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        groups = rows_by_key([rollout.group_key for rollout in rollouts]).values()
        judged = [[total_of(rollout, name) for rollout in rollouts] for name in ("total", "before")]
        agreed = []
        for rows in groups:
            ranked = [row for row in rows if None not in (judged[0][row], judged[1][row])]
            if len(ranked) > 1:
                agreed.append(float(self.agreement(*([float(each[row] or 0.0) for row in ranked] for each in judged))))
        (told,) = everywhere({"cream/consistency": Mean.of_numbers(agreed, empty=float("nan"))})
        self.consistency = told["cream/consistency"]
        self.earlier.copy_from(self.previous)
        self.previous.copy_from(self.policy)
        return told if math.isfinite(self.consistency) else {}

    def pairs(self, batch: Batch) -> Batch:
        """``consistent_pairs`` by this round's scores: a learner's ``prepare``."""
        before = torch.where(batch.returns.isfinite(), batch.rewards["before"].nansum(-1), torch.nan)
        label = 1.0 if not self.soften else self.consistency if self.per == "round" else None
        return consistent_pairs(batch, batch.returns, before, agreement=self.agreement, label=label)

    def state_dict(self) -> dict[str, Any]:
        return {"previous": self.previous.state_dict(), "earlier": self.earlier.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.previous.load_state_dict(state["previous"])
        self.earlier.load_state_dict(state["earlier"])


def _own_reward(log_probs: Tensor, reference: Tensor, batch: Batch) -> Tensor:
    """[B] log-ratio, or the log-likelihood per decision of a policy that is the reference; in steps of 1e-4 nats, as
    rounding is no opinion."""
    ratios = torch.where(batch.mask, log_probs - reference, 0.0)
    if float(ratios.abs().max()) < 1e-5:
        ratios = torch.where(batch.mask, log_probs, 0.0) / batch.mask.sum(-1, keepdim=True).clamp(min=1)
    return ratios.sum(-1).round(decimals=4)


class PastAndFuture(TrainingWrapper):
    """An actor whose attempts are pairs from different times: Temporal Self-Rewarding (arXiv 2508.06026; checked
    against notes on the paper, not against it).

    The judge scores n answers of the policy and n of the ``past`` model. Chosen is the policy's best; rejected is the
    past's worst where that is worse than the policy's own worst, else the latter. On these pairs a copy of the policy
    takes a whole DPO run, from the policy and with it as reference, as a look at the future, answers n times, and is
    dropped; its best becomes chosen where it is better. Two rollouts per task come out, where chosen is better than
    rejected.

    Gates and evaluations see the policy alone. A stage sets ``reward=kept_score`` and the learner
    ``PolicyLearner(policy, DPO(beta, reference="proximal"), ..., prepare=[best_worst])``: DPO's reference is the policy
    as the round began (not checked).

    Args:
        past: frozen; the model as it was at the start.
        judge: scores all of it, a number for each; the paper's is the policy itself, asked to judge.
        optimisation: of the DPO run that makes the future; with one gradient step its reference has no effect.
        beta: of its DPO.
        guided: look at the future; without it rejected answers come from the past and chosen ones from now.
    """

    def __init__(
        self,
        policy: TorchPolicy,
        past: TorchPolicy,
        judge: RewardFunction,
        optimisation: Optimisation,
        *,
        beta: float = 0.1,
        guided: bool = True,
    ) -> None:
        super().__init__(policy)
        self.past, self.judge = past, judge
        self.optimisation, self.beta, self.guided = optimisation, beta, guided

    def attempt(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        """A chosen and a rejected attempt per task, in task order."""
        mine = self._scored(self.policy, "policy", tasks, n, key, sampling)
        old = self._scored(self.past, "past", tasks, n, (*key, 1), sampling)
        chosen = [max(row, key=_judged) for row in mine]
        rejected = [min(*row, *earlier, key=_judged) for row, earlier in zip(mine, old, strict=True)]
        if self.guided:
            later = self._scored(self._future(chosen, rejected), "future", tasks, n, (*key, 2), sampling)
            chosen = [max(first, *row, key=_judged) for first, row in zip(chosen, later, strict=True)]
        return _pairs(chosen, rejected)

    def _scored(
        self,
        policy: Any,
        source: str,
        tasks: Sequence[Task],
        n: int,
        key: Key,
        sampling: Mapping[str, Any],
    ) -> list[list[Rollout]]:
        """n judged attempts for each task."""
        rollouts: list[Rollout] = policy.act(tasks, n, key=key, **sampling)
        score(rollouts, self.judge)
        for rollout in rollouts:
            rollout.info |= {"source": source, "judged": rollout.scores["total"]}
        return [rollouts[row * n : (row + 1) * n] for row in range(len(tasks))]

    def _future(self, chosen: Sequence[Rollout], rejected: Sequence[Rollout]) -> TorchPolicy:
        """The policy after an update on the pairs."""
        future: TorchPolicy = self.policy.trainable("future")
        objective = DPO(self.beta, reference="proximal")
        learner: Any = PolicyLearner(future, objective, self.optimisation, prepare=[best_worst, paired])
        learner.update(_pairs(chosen, rejected))
        return future


def kept_score(rollouts: Sequence[Rollout], **columns: Any) -> list[float]:
    """The reward of a stage whose actor has had its attempts judged already."""
    return [float(rollout.info["judged"]) for rollout in rollouts]


def _judged(rollout: Rollout) -> float:
    value = rollout.info["judged"]
    if value is None:
        raise ValueError(f"task {rollout.task.id}: a judge of pairs scores every attempt")
    return float(value)


def _pairs(chosen: Sequence[Rollout], rejected: Sequence[Rollout]) -> list[Rollout]:
    """Chosen and rejected, each pair a group of its own, where chosen is better."""
    found: list[Rollout] = []
    for place, (better, worse) in enumerate(zip(chosen, rejected, strict=True)):
        if _judged(better) > _judged(worse):
            group = f"{better.task.id}#{place}"
            found += [replace(attempt, group=group, scores=dict(attempt.scores)) for attempt in (better, worse)]
    return found
