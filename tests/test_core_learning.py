"""Every objective improves a token policy and a denoising policy through the same core, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.trainers.advantages import ReinforcePlusPlus, dr_grpo, grpo, rloo
from autotelic.trainers.learner import Optimisation, PolicyLearner, backpropagate
from autotelic.trainers.objectives import (
    DPO,
    NFT,
    Entropy,
    ForwardNFT,
    KLPenalty,
    PairwiseRegression,
    PPOClip,
    Reinforce,
    Term,
    WeightedImitation,
)
from autotelic.trainers.pairing import all_pairs, best_of_group, best_worst, preference_pairs, threshold
from autotelic.trainers.policy import TorchPolicy
from autotelic.types import Advantage, Batch, Decisions, Evaluation, Rollout, Task

from .toys import DenoiserToy, TokenToy, drawing_reward, drawing_tasks, spelling_reward, spelling_tasks


@dataclass(frozen=True)
class Problem:
    """A toy, its tasks and reward, and from which return on an attempt counts as right."""

    policy: type[TokenToy] | type[DenoiserToy]
    tasks: list[Task]
    reward: Callable[[Rollout], float]
    lr: float
    right: float
    gain: float
    """What learning must add: the untrained means are 0.27 of 1 and -1.77 of about -0.35."""


SPELLING = Problem(TokenToy, spelling_tasks(), spelling_reward, lr=0.1, right=0.5, gain=0.5)
DRAWING = Problem(DenoiserToy, drawing_tasks(), drawing_reward, lr=0.02, right=-1.0, gain=0.8)
PROBLEMS = [pytest.param(SPELLING, id="spelling"), pytest.param(DRAWING, id="drawing")]


@dataclass(frozen=True)
class Method:
    """An objective with what has to be prepared for it."""

    objective: Term
    advantage: Advantage | None = None
    prepare: tuple[Callable[[Batch], Batch], ...] = ()
    epochs: int = 2
    minibatches: int = 1


def above_mean(batch: Batch) -> Batch:
    return threshold(batch, batch.returns.mean().item())


METHODS = {
    "reinforce": Method(Reinforce(), rloo(), epochs=1),
    "grpo": Method(PPOClip() + 0.01 * KLPenalty(), grpo(), minibatches=2),
    "grpo-floor": Method(PPOClip(dual_clip=3.0), grpo(std_floor=0.1)),
    "dr-grpo": Method(PPOClip(aggregate=3), dr_grpo()),
    "dapo": Method(PPOClip(clip_high=0.28, aggregate="decision"), grpo()),
    "gspo": Method(PPOClip(level="sequence"), grpo()),
    "segments": Method(PPOClip(level="segment", importance_cap=2.0), grpo()),
    "reinforce++": Method(PPOClip(), ReinforcePlusPlus()),
    "exact-kl": Method(PPOClip() + 0.01 * KLPenalty(estimator="exact"), grpo()),
    "copg": Method(PairwiseRegression(0.05), prepare=(all_pairs,), epochs=4),
    "prdp": Method(PairwiseRegression(0.05, clip=0.3), prepare=(all_pairs,), epochs=4),
    "dpo": Method(DPO(), prepare=(best_worst,)),
    "dpo-soft": Method(DPO(), prepare=(partial(preference_pairs, temperature=0.2),)),
    "raft": Method(WeightedImitation(), prepare=(partial(best_of_group, k=2),)),
    "filtered": Method(WeightedImitation(), prepare=(above_mean,)),
}
FORWARD = {
    "forward-nft": Method(ForwardNFT()),
    "forward-raft": Method(WeightedImitation(decisions="forward"), prepare=(partial(best_of_group, k=2),)),
    "forward-dpo": Method(DPO(1.0, decisions="forward"), prepare=(best_worst,)),
    "forward-regression": Method(PairwiseRegression(0.05, decisions="forward"), prepare=(all_pairs,)),
}


def cases() -> list[Any]:
    chosen: list[tuple[Problem, str, Method]] = []
    for problem in (SPELLING, DRAWING):
        chosen += [(problem, name, method) for name, method in METHODS.items()]
        chosen += [(problem, "nft", Method(NFT(threshold=problem.right)))]
        chosen += [(problem, "nft-std", Method(NFT("std", threshold=problem.right)))]
    chosen += [(SPELLING, "entropy", Method(PPOClip() - 0.001 * Entropy(), grpo()))]
    chosen += [(DRAWING, name, method) for name, method in FORWARD.items()]
    return [pytest.param(problem, method, id=f"{problem.policy.__name__}-{name}") for problem, name, method in chosen]


def learner_of(problem: Problem, method: Method) -> PolicyLearner:
    policy = problem.policy(len(problem.tasks))
    reference = policy.fork("reference")
    return PolicyLearner(
        policy,
        method.objective,
        Optimisation(lr=problem.lr, epochs=method.epochs, minibatches=method.minibatches),
        advantage=method.advantage,
        prepare=method.prepare,
        references={"reference": reference},
    )


def train(problem: Problem, learner: PolicyLearner, updates: int, sign: float = 1.0) -> float:
    """How much the mean reward rose, by the same random numbers before and after."""
    policy: Any = learner.policy

    def mean_reward() -> float:
        rollouts = policy.act(problem.tasks, 32, key=(-1,))
        return sum(map(problem.reward, rollouts)) / len(rollouts)

    before = mean_reward()
    for update in range(updates):
        rollouts = policy.act(problem.tasks, 8, key=(update,))
        for rollout in rollouts:
            rollout.scores["total"] = sign * problem.reward(rollout)
        learner.update(rollouts)
    return mean_reward() - before


@pytest.mark.parametrize(("problem", "method"), cases())
def test_reward_rises_and_follows_its_sign(problem: Problem, method: Method) -> None:
    assert train(problem, learner_of(problem, method), 25) > problem.gain
    assert train(problem, learner_of(problem, method), 6, sign=-1.0) < 0.05


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", ["grpo", "reinforce++", "copg", "dpo", "dpo-soft"])
def test_a_constant_reward_teaches_nothing(problem: Problem, name: str) -> None:
    learner = learner_of(problem, METHODS[name])
    assert abs(train(problem, learner, 8, sign=0.0)) < 0.02
    if name == "grpo":
        rollouts = learner.policy.act(problem.tasks, 2)  # type: ignore[attr-defined]
        for rollout in rollouts:
            rollout.scores["total"] = 1.0
        assert learner.update(rollouts)["groups/zero_spread"] == 1


@pytest.mark.parametrize("name", ["sampled", "forward"])
def test_demonstrations_are_imitated(name: Decisions) -> None:
    """Right answers from outside, encoded by the policy, without log-probabilities."""
    problem = SPELLING if name == "sampled" else DRAWING
    learner = learner_of(problem, Method(WeightedImitation(decisions=name)))
    policy: Any = learner.policy
    answers = [t.reference if name == "sampled" else t.reference.tolist() for t in problem.tasks]
    before = sum(map(problem.reward, policy.act(problem.tasks, 32)))
    for _ in range(30):
        learner.update(policy.encode(problem.tasks * 4, answers * 4))
    assert sum(map(problem.reward, policy.act(problem.tasks, 32))) - before > problem.gain * 32 * len(problem.tasks)


@dataclass(frozen=True)
class RewardGradient(Term):
    """The distance to the points itself, differentiated through the whole chain: AlignProp in three lines."""

    points: Tensor

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"outputs"})

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        assert now.outputs is not None
        distance = (now.outputs - self.points[batch.payload["task"][:, 0]]).norm(dim=-1)
        return distance.sum() / batch.total("rollouts"), {}


def test_outputs_are_regenerated_and_carry_reward_gradients() -> None:
    objective = RewardGradient(torch.stack([task.reference for task in DRAWING.tasks]))
    learner = learner_of(DRAWING, Method(objective))
    rollouts = learner.policy.act(DRAWING.tasks, 2)  # type: ignore[attr-defined]
    again = learner.policy.evaluate_actions(learner.policy.collate(rollouts), {"outputs"}).outputs
    assert torch.allclose(again, torch.stack([r.output for r in rollouts]), atol=1e-6)
    assert train(DRAWING, learner, 30) > DRAWING.gain


COUPLED: Sequence[Term] = [
    PPOClip(level="sequence") + 0.1 * KLPenalty(estimator="exact"),
    PairwiseRegression(0.5),
    PairwiseRegression(0.5, clip=0.01),
    DPO(),
    NFT(threshold=0.3),
    WeightedImitation() + 0.2 * KLPenalty(),
]


def gradients(
    policy: TorchPolicy, objective: Term, batch: Batch, references: Mapping[str, TorchPolicy], piece: int
) -> list[Tensor]:
    policy.micro_batch_rows = piece
    for parameter in policy.parameters():
        parameter.grad = None
    backpropagate(policy, objective, batch, references)
    return [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("objective", COUPLED, ids=repr)
def test_backward_in_pieces_is_exact(problem: Problem, objective: Term) -> None:
    """Pieces of 5 rows cut every group and pair of 8 apart; the gradient is still the whole one's."""
    policy = problem.policy(len(problem.tasks))
    references = {"reference": policy.fork("reference")}
    rollouts = policy.act(problem.tasks, 8)
    for number, rollout in enumerate(rollouts):
        rollout.scores["total"] = (number * 7 % 11) / 10
    batch = all_pairs(best_of_group(policy.collate(rollouts), 3))
    random = torch.Generator().manual_seed(0)
    batch = replace(batch, log_probs={"reference": batch.log_probs["behaviour"]} | batch.log_probs)
    batch.advantages = grpo()(batch)
    with torch.no_grad():  # away from the reference, so that every term has a gradient
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    whole = gradients(policy, objective, batch, references, piece=256)
    pieces = gradients(policy, objective, batch, references, piece=5)
    assert max(float(g.abs().max()) for g in whole) > 1e-3
    for one, many in zip(whole, pieces, strict=True):
        assert torch.allclose(one, many, atol=1e-6, rtol=1e-5)
