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
from ..rewards.text.agreement import consistency
from ..trainers.actors import TrainingWrapper
from ..trainers.learner import Optimisation, PolicyLearner
from ..trainers.objectives.base import sequence_sum
from ..trainers.objectives.preference import DPO
from ..trainers.pairing import best_worst
from ..trainers.policy import TorchPolicy
from ..trainers.scoring import score
from ..types import Batch, Key, RewardFunction, Rollout, Task

Agreement = Callable[[Sequence[float], Sequence[float]], float]
"""How far two rankings of the same things agree, in 0..1."""


def consistent_pairs(
    batch: Batch,
    now: Tensor,
    before: Tensor,
    *,
    per: Literal["batch", "group"] = "batch",
    clamp: bool = False,
    agreement: Agreement = consistency,
) -> Batch:
    """The best and the worst of each group as ranked now, labelled by how far the ranking before agrees.

    CREAM (arXiv 2410.12735; checked against a description of the released code): a label C makes the DPO loss
    C l(best, worst) + (1 - C) l(worst, best), whose optimal margin is log(C / (1 - C)), and negative below C = 1/2.

    Args:
        now, before: [B] scores of this and of the last round's judge; rows where either is not finite take no part.
        per: the mean C of all groups for every pair, or to each pair its own group's.
        clamp: no label below 1/2, so that no preference is turned round. The released code does not clamp.
        agreement: ``same_extremes`` is the paper's variant of 0 or 1; rank correlations take part as (r + 1) / 2.
    """
    if per not in ("batch", "group"):
        raise unknown("scope of a consistency", per, ("batch", "group"))
    pairs, labels, everywhere = [], [], []
    finite = now.isfinite() & before.isfinite()
    for group in batch.groups:
        members = (group & finite).nonzero().flatten()
        if len(members) < 2:
            continue
        ranked = now[members]
        agreed = float(agreement(ranked.tolist(), before[members].tolist()))
        everywhere.append(agreed)
        best, worst = members[ranked.argmax()], members[ranked.argmin()]
        if now[best] > now[worst]:
            pairs.append(torch.stack([best, worst]))
            labels.append(agreed)
    stacked = torch.stack(pairs) if pairs else batch.segments.new_zeros(0, 2)
    values = torch.tensor(labels)
    if per == "batch" and labels:
        values = torch.full_like(values, math.fsum(everywhere) / len(everywhere))
    return replace(batch, pairs=stacked, labels=values.clamp(min=0.5) if clamp else values)


class Cream:
    """A learner's ``prepare``: ranks each group by the policy's own reward, and softens by the last round's.

    The reward is log pi - log pi_reference of a whole answer, the one that DPO is implicitly about; a judge that is
    still the reference itself ranks by its log-likelihood per decision, as the released code does. A round is an
    update: at its end ``previous`` becomes the policy as it was when it judged. Hand both to the learner as
    ``references``, so that checkpoints hold them, and use ``DPO(reference="reference")``::

        cream = Cream(policy, previous, reference)
        PolicyLearner(policy, DPO(), ..., prepare=[cream], references={"reference": reference, "previous": previous})

    Args:
        previous: frozen; the first round's counterpart (M_0), later overwritten.
        reference: frozen.
        per, clamp, agreement: as of ``consistent_pairs``.

    Attributes:
        consistency: the mean label of the last update, an alarm of drift when it nears 1/2.
    """

    def __init__(
        self,
        policy: TorchPolicy,
        previous: TorchPolicy,
        reference: TorchPolicy,
        *,
        per: Literal["batch", "group"] = "batch",
        clamp: bool = False,
        agreement: Agreement = consistency,
    ) -> None:
        self.policy, self.previous, self.reference = policy, previous, reference
        self.per, self.clamp, self.agreement = per, clamp, agreement
        self.consistency = float("nan")

    def __call__(self, batch: Batch) -> Batch:
        with torch.no_grad():
            now, before, reference = (
                judge.evaluate_actions(batch).log_probs for judge in (self.policy, self.previous, self.reference)
            )
        batch.log_probs["reference"] = reference
        scores = [_implicit_reward(log_probs, reference, batch) for log_probs in (now, before)]
        scope: Any = {"per": self.per, "clamp": self.clamp, "agreement": self.agreement}
        paired = consistent_pairs(batch, *scores, **scope)
        assert paired.labels is not None
        self.consistency = float(paired.labels.mean())
        self.previous.copy_from(self.policy)
        return paired


def _implicit_reward(log_probs: Tensor, reference: Tensor, batch: Batch) -> Tensor:
    """[B] log-ratio, or the log-likelihood per decision of a policy that is the reference."""
    ratios = torch.where(batch.mask, log_probs - reference, 0.0)
    if float(ratios.abs().max()) < 1e-5:  # rounding is no opinion
        return sequence_sum(log_probs, batch) / batch.mask.sum(-1).clamp(min=1)
    return ratios.sum(-1)


class PastAndFuture(TrainingWrapper):
    """An actor whose attempts are pairs from different times: Temporal Self-Rewarding (arXiv 2508.06026; checked
    against notes on the paper, not against it).

    The judge scores n answers of the policy and n of the ``past`` model. Chosen is the policy's best; rejected is the
    past's worst where that is worse than the policy's own worst, else the latter. On these pairs a copy of the policy
    takes one DPO update, as a look at the future, answers n times, and is dropped; its best becomes chosen where it is
    better. Two rollouts per task come out, where chosen is better than rejected.

    Gates and evaluations see the policy alone. A stage sets ``reward=kept_score`` and the learner
    ``PolicyLearner(policy, DPO(beta, reference="proximal"), ..., prepare=[best_worst])``: DPO's reference is the policy
    as the round began (not checked).

    Args:
        past: frozen; the model as it was at the start.
        judge: scores all of it, a number for each; the paper's is the policy itself, asked to judge.
        optimisation: of the update that makes the future.
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
        learner: Any = PolicyLearner(future, objective, self.optimisation, prepare=[best_worst])
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
