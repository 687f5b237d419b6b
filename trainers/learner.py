"""Gradient learning: rollouts in, better weights out.

The order of an update is fixed: collate; log-probabilities of the reference and of the policy itself ("proximal");
values, where the advantage asks for them; reward shaping, such as a per-token KL; sets, which may overlap; advantages
and what values are fitted to; ``prepare``, such as pairing or selection; then ``epochs * minibatches`` gradient steps.
Minibatches hold whole groups, sets and pairs, or segments drawn from all rollouts. They are drawn over the rollouts of
all processes, gradients are summed over these and metrics are of all together, so that their number changes no step.
Every random choice is keyed by (seed, update), so a resumed run repeats it.

Nothing that is not finite is learned from: neither a rollout without a probability nor a step whose gradient is NaN or
infinite. Both are counted; what to do about many of them is the loop's part.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..errors import UsageError
from ..types import Advantage, Batch, Decisions, Evaluation, Key, Objective, Players, Policy, Rollout, Verdict
from .contracts import Learner, Shaping, advantage_of, require
from .distributed import reduce_counts, reduce_gradients, share
from .drift import EVERY, check_drift
from .metrics import Share, everywhere, of_rows
from .minibatches import ROLLOUT, Minibatches, names
from .precision import check_float32
from .randomness import generator


@dataclass(frozen=True)
class Optimisation:
    """How a batch is turned into gradient steps.

    Attributes:
        lr: learning rate of AdamW.
        epochs: passes over the batch.
        minibatches: gradient steps per pass.
        cut: into whole "groups", or into "segments", as PPO has it: each step learns from a share of the segments of
            all rollouts, which asks for an objective that compares none, and decisions that hang on no other segment.
        max_grad_norm: clipping of the global gradient norm.
        weight_decay, eps: AdamW's. Its step is g / (|g| + eps), so rounding noise in a gradient g near zero
            moves weights; an eps of 1e-5, as many PPO implementations have it, keeps it from doing so.
        decay: updates over which the learning rate falls to a tenth; 0 keeps it.
        schedule: how it falls.
        seed: keys the order of minibatches.
        repair_lr: what a repair multiplies the learning rate by.
    """

    lr: float = 5e-4
    epochs: int = 1
    minibatches: int = 1
    cut: Literal["groups", "segments"] = "groups"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    eps: float = 1e-8
    decay: int = 0
    schedule: Literal["linear", "cosine"] = "linear"
    seed: int = 0
    repair_lr: float = 1.0

    def share(self, updates: int) -> float:
        """What is left of the learning rate after so many updates."""
        if not self.decay:
            return 1.0
        done = min(1.0, updates / self.decay)
        return 1.0 - 0.9 * (done if self.schedule == "linear" else (1 - math.cos(math.pi * done)) / 2)


Change = Callable[[Batch], Batch]


class PolicyLearner(Learner):
    """Trains a policy by an objective.

    Args:
        advantage: fills ``batch.advantages``; None where the objective does not look. A function will do.
        shape: reward shaping, such as ``shaping.PerTokenKL``.
        sets: steps that replace ``batch.groups`` by other comparison sets.
        prepare: further steps on the batch, such as pairing or selection.
        references: frozen policies by the name that the objective asks for. "proximal" is kept by the
            learner itself: the policy as it was when the update began.
        anchors: demonstrations that every step imitates as well.
        players: whose rollouts it learns from, in a game.

    Groups whose members all score the same have no advantage; they count in the divisor, in the KL and in the entropy.
    Leaving them out is a choice of ``prepare`` (``advantages.drop_zero_spread``).
    """

    sees_own_rollouts_only = True  # with several processes: trains on this process's groups

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        optimisation: Optimisation,
        *,
        advantage: Advantage | Callable[[Batch], Tensor] | None = None,
        shape: Sequence[Shaping] = (),
        sets: Sequence[Change] = (),
        prepare: Sequence[Change] = (),
        references: Mapping[str, Policy] | None = None,
        anchors: AnchorSet | None = None,
        players: Players = None,  # noqa: RUF013  None is one of Players
    ) -> None:
        require("policy", policy)
        self.policy, self.objective, self.optimisation = policy, objective, optimisation
        self.advantage = advantage_of(advantage)
        self.shape, self.sets, self.prepare = tuple(shape), tuple(sets), tuple(prepare)
        self.players = players
        self.decisions: Decisions = "forward" if "forward" in objective.needs else "sampled"
        self.references = dict(references or {})
        self.anchors = anchors
        self.updates = self.skipped = 0
        check_float32(policy.parameters(), type(policy).__name__)
        self.optimizer = torch.optim.AdamW(
            list(policy.parameters()), optimisation.lr, eps=optimisation.eps, weight_decay=optimisation.weight_decay
        )
        check_capabilities(policy, objective, self.references, self.advantage, self.shape)
        if optimisation.cut == "segments" and "pairs" in objective.needs:
            raise UsageError(f"{type(objective).__name__} compares pairs of rollouts, which segments tear apart")
        if "kl:proximal" in objective.needs:
            self.references["proximal"] = cast(Policy, policy.fork("proximal"))

    def check(self, group_size: int) -> None:
        if self.advantage is not None:
            self.advantage.check(group_size)

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Learn from rollouts whose ``total`` score applies; returns metrics of the update.

        Among them are "rollouts/not_finite", "steps/skipped" and "steps/skipped_in_a_row", how many of the latest
        steps were not taken.
        """
        whole = {id(rollout) for rollout in rollouts if _is_finite(rollout)}
        applicable = self._applicable(rollouts, whole)
        counts = {"rollouts": len(applicable), "rollouts/not_finite": len(rollouts) - len(whole)}
        metrics = reduce_counts({name: float(count) for name, count in counts.items()})
        if not metrics["rollouts"]:
            lost = float(metrics["rollouts/not_finite"] > 0)
            self.skipped += int(lost)
            return metrics | self._skipped_of(lost) | {"learned": 0.0}
        if self.updates % EVERY == 0 and {"log_probs:old", "log_probs:behaviour"} & self._needs():
            metrics |= check_drift(self.policy, applicable)
        if "proximal" in self.references:
            self.references["proximal"].copy_from(self.policy)
        batch, told = self._batch(applicable)
        anchored = self.anchors is not None and self.anchors.weight > 0
        learned = reduce_counts({"rows": float(batch is not None)})["rows"] > 0 or anchored
        parts = Minibatches(batch, self.optimisation.cut, self.optimisation.minibatches)
        steps = [
            self._step(part, (epoch, index))
            for epoch in range(self.optimisation.epochs)
            for index, part in enumerate(parts.epoch(self.optimisation.seed, self.updates, epoch))
        ]
        taken = [step for step in steps if step is not None]
        self._follow_schedule()
        of_batch, *of_steps = everywhere(told, *taken)
        metrics |= of_batch | _means(of_steps) | self._skipped_of(len(steps) - len(taken))
        return metrics | {"learned": float(learned and bool(taken))}

    def _skipped_of(self, steps: float) -> dict[str, float]:
        return {"steps/skipped": float(steps), "steps/skipped_in_a_row": float(self.skipped)}

    def _follow_schedule(self) -> None:
        """Count the update, and take the next one at the learning rate that is due then."""
        before, after = (self.optimisation.share(n) for n in (self.updates, self.updates + 1))
        for group in self.optimizer.param_groups:
            group["lr"] *= after / before
        self.updates += 1

    def _applicable(self, rollouts: Sequence[Rollout], whole: Collection[int]) -> list[Rollout]:
        """Rollouts with a score and finite, less those that are the only one left of a group that is compared."""
        scored = [r for r in rollouts if id(r) in whole and r.scores.get("total", 0.0) is not None]
        if plain := next((r for r in scored if r.is_plain), None):
            raise UsageError(f"the rollout of {plain.task.id} holds no decision to train {self.policy_name} on")
        if self.advantage is None or not self.advantage.compares:
            return scored
        all_sizes, sizes = (Counter(r.group_key for r in part) for part in (rollouts, scored))
        return [r for r in scored if sizes[r.group_key] > 1 or all_sizes[r.group_key] == 1]

    @property
    def policy_name(self) -> str:
        return type(self.policy).__name__

    def _batch(self, rollouts: Sequence[Rollout]) -> tuple[Batch | None, dict[str, float]]:
        """The batch in the order that the module's docstring tells, and what the advantage tells of it."""
        if not rollouts:
            if self.advantage is not None:
                self.advantage(_empty_batch())  # statistics over processes wait for every one of them
            return None, {}
        batch, told = self.policy.collate(rollouts, self.decisions), dict[str, float]()
        batch.columns[ROLLOUT] = torch.tensor(names(rollouts))
        self._add_log_probs(batch, elsewhere=any(r.train_task is not None for r in rollouts))
        self._add_values(batch)
        changes: tuple[Change, ...] = (*self.shape, *self.sets)
        for change in changes:
            batch = change(batch)
        if self.advantage is not None:
            batch.advantages = self.advantage(batch)
            batch.value_targets = self.advantage.value_targets(batch)
            for rollout, size in zip(rollouts, batch.advantages.abs().amax(1).tolist(), strict=True):
                rollout.info["abs_advantage"] = size
            told = of_rows(self.advantage.metrics(batch), len(batch))
        for change in self.prepare:
            batch = change(batch)
        return batch if len(batch) else None, told

    def _add_log_probs(self, batch: Batch, *, elsewhere: bool) -> None:
        """Evaluate, once, the frozen policies that the objective compares with, and the policy itself as "proximal".

        Rollouts that are trained in another context than they were sampled in have no log-probabilities to compare
        with but the policy's own in that context, and no importance weight.
        """
        wanted = {need.partition(":")[2] for need in self._needs() if need.startswith("log_probs:")}
        if elsewhere and "behaviour" in wanted:
            raise UsageError(
                "these rollouts are trained in another context than they were sampled in: a ratio to the sampling "
                'context ("log_probs:behaviour") means nothing there, clip around "proximal"'
            )
        if elsewhere and "old" in wanted:
            wanted.add("proximal")
        for name in sorted(wanted - {"old", "behaviour"} - batch.log_probs.keys()):
            judge = self.policy if name == "proximal" else self.references[name]
            with torch.no_grad():
                batch.log_probs[name] = judge.evaluate_actions(batch).log_probs

    def _add_values(self, batch: Batch) -> None:
        """What the states are worth to the policy as it is, where the advantage asks."""
        if self.advantage is None or "values" not in self.advantage.needs:
            return
        with torch.no_grad():
            now = self.policy.evaluate_actions(batch, {"values", "last_values"})
        batch.values = now.values
        if now.last_values is not None and batch.truncated is not None:
            batch.last_values = now.last_values * batch.truncated

    def _needs(self) -> frozenset[str]:
        return self.objective.needs.union(*(change.needs for change in self.shape))

    def _step(self, batch: Batch | None, key: tuple[int, int]) -> dict[str, float] | None:
        """One gradient step; a process without rollouts still takes part in the sums. None is a step not taken."""
        self.optimizer.zero_grad(set_to_none=True)
        counts = dict.fromkeys(COUNTED, 0.0) if batch is None else batch.counts()
        totals = reduce_counts(counts)
        anchors = self.anchors if self.anchors is not None and self.anchors.weight > 0 else None
        if anchors is None and not totals["rollouts"]:
            return {}
        metrics: dict[str, float] = {}
        if batch is not None:
            batch.totals = totals
            metrics |= backpropagate(self.policy, self.objective, batch, self.references)
        if anchors is not None:
            metrics |= anchors.backpropagate(self.policy, (self.optimisation.seed, self.updates, *key))
        parameters = list(self.policy.parameters())
        reduce_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.optimisation.max_grad_norm))
        if not math.isfinite(norm):  # of all processes, so that all of them skip the step
            self.skipped += 1
            self.optimizer.zero_grad(set_to_none=True)
            return None
        self.skipped = 0
        self.optimizer.step()
        return metrics | {"objective/grad_norm": norm}

    def slow_down(self, factor: float) -> None:
        """After a divergence: take smaller steps from now on."""
        self.skipped = 0
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def repair(self, verdict: Verdict) -> dict[str, float]:
        """After a rollback: take smaller steps, and hold on to the demonstrations of what was harmed."""
        for group in self.optimizer.param_groups:
            group["lr"] *= self.optimisation.repair_lr
        return {} if self.anchors is None else self.anchors.repair(verdict)

    def state_dict(self) -> dict[str, Any]:
        state = {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "skipped": self.skipped,
            "references": {name: other.state_dict() for name, other in self.references.items()},
        }
        return state if self.anchors is None else state | {"anchors": self.anchors.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.skipped = int(state["updates"]), int(state["skipped"])
        for name, other in self.references.items():
            other.load_state_dict(state["references"][name])
        if self.anchors is not None:
            self.anchors.load_state_dict(state["anchors"])


def _is_finite(rollout: Rollout) -> bool:
    """Whether every decision of it has a probability that can be learned from."""
    return rollout.log_probs is None or bool(rollout.log_probs[rollout.mask].isfinite().all())


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the steps that tell it."""
    told: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.items():
            told.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in told.items()}


def backpropagate(
    policy: Policy, objective: Objective, batch: Batch, references: Mapping[str, Policy] | None = None
) -> dict[str, float]:
    """Add the gradient of an objective on a batch to the policy; returns its metrics, "objective/loss" among them."""
    now: Evaluation = policy.evaluate_actions(batch, objective.needs, references).leaves()
    loss, metrics = objective(now, batch)
    policy.backward(batch, now.gradient_of(loss))
    return of_rows(metrics, len(batch)) | {"objective/loss": Share(loss.detach())}


@dataclass
class AnchorSet:
    """Demonstrations that a learner keeps imitating, so that it does not forget or drift.

    Attributes:
        rollouts: encoded demonstrations.
        objective: how they are imitated.
        weight: strength in every gradient step; 0 switches anchors off until a repair.
        size: demonstrations per gradient step.
        repair_weight: what a repair adds to the weight.
    """

    rollouts: Sequence[Rollout]
    objective: Objective
    weight: float = 0.0
    size: int = 64
    repair_weight: float = 0.1
    categories: tuple[str, ...] = field(default=())

    def backpropagate(self, policy: Policy, key: Key) -> dict[str, float]:
        """Add weight times the imitation gradient of ``size`` random demonstrations; each process has some of them."""
        pool = [r for r in self.rollouts if not self.categories or r.task.category in self.categories]
        drawn = torch.randint(len(pool), (min(self.size, len(pool)),), generator=generator("anchors", *key))
        chosen, told = [pool[i] for i in share(drawn.tolist())], {"anchors/weight": self.weight}
        batch = policy.collate(chosen) if chosen else None
        totals = reduce_counts(dict.fromkeys(COUNTED, 0.0) if batch is None else batch.counts())
        if batch is None:
            return told
        batch.totals = totals
        now = policy.evaluate_actions(batch, self.objective.needs).leaves()
        loss, _ = self.objective(now, batch)
        policy.backward(batch, now.gradient_of(self.weight * loss))
        return told | {"anchors/loss": Share(loss.detach())}

    def repair(self, verdict: Verdict) -> dict[str, float]:
        """Hold on more strongly to demonstrations of what was harmed; to all of them where it has none."""
        self.weight += self.repair_weight
        shown = {rollout.task.category for rollout in self.rollouts}
        self.categories = tuple(dict.fromkeys((*self.categories, *(c for c in verdict.harmed if c in shown))))
        return {"anchors/weight": self.weight}

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "categories": list(self.categories)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight, self.categories = float(state["weight"]), tuple(state["categories"])


def _empty_batch() -> Batch:
    """One row without a decision, a return or a group: the part of a process that has no rollouts."""
    nothing = torch.zeros(1, 1, dtype=torch.long)
    absent = torch.full((1, 1), torch.nan)
    nobody = torch.zeros(0, 1, dtype=torch.bool)
    values = torch.zeros(1, 1)
    return Batch({}, nothing.bool(), nothing, nothing, {}, {"total": absent}, nobody, values=values)


COUNTED = tuple(_empty_batch().counts())
"""What objectives divide by, in the order in which processes add it up."""


PROVIDED = {"log_probs": ("exact", "composite"), "entropy": ("entropy",), "values": ("values",), "kl": ("kl",)}
PROVIDED |= {"forward": ("forward",), "outputs": ("outputs",)}


def check_capabilities(
    policy: Policy,
    objective: Objective,
    references: Mapping[str, Policy],
    advantage: Advantage | None,
    shape: Sequence[Shaping] = (),
) -> None:
    """Refuse, by name, an objective that asks for what the policy or the learner cannot give."""
    who, has = type(policy).__name__, ", ".join(sorted(policy.capabilities))
    forward = "forward" in objective.needs
    parts: list[Objective | Shaping | Advantage] = [*(term for _, term in objective.terms), *shape]
    parts += [] if advantage is None else [advantage]
    for part in parts:
        what = type(part).__name__
        implied = {"log_probs"} if part is not advantage and part.needs <= {"advantages", "pairs"} else set()
        for need in sorted(part.needs | implied):
            kind, _, name = need.partition(":")
            wanted = ("forward",) if forward and kind == "log_probs" else PROVIDED.get(kind, ())
            if wanted and not policy.capabilities & set(wanted):
                asked = " or ".join(wanted)
                raise ValueError(f"{what} needs {need}, which asks for the capability {asked}; {who} has {has}")
            if name and name not in ("behaviour", "old", "proximal", *references):
                raise ValueError(f"{what} needs {need}: pass references={{{name!r}: policy.fork({name!r})}}")
            if kind == "advantages" and advantage is None:
                raise ValueError(f"{what} needs advantages: pass advantage=grpo() or another")
            if kind == "value_targets" and (advantage is None or "values" not in advantage.needs):
                raise ValueError(f"{what} needs value_targets, which GAE and its like set: pass advantage=GAE()")
