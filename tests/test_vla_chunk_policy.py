"""A policy from outside in three methods: it learns, its wrong answers are named, and recorded numbers stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from autotelic.errors import UsageError
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives import PPOClip, WeightedImitation
from autotelic.types import Evaluation
from autotelic.vla.actor import RobotActor
from autotelic.vla.chunk_policy import ChunkPolicy, Seen

from .point_mass import NAME, distance, point_task, simulators


class Straight(ChunkPolicy):
    """A linear Gaussian policy, as somebody outside might write it."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), chunk=4, action_size=2, decisions=4, dims=2)

    def actions(self, seen: Seen) -> Normal:
        return Normal(torch.tanh(self.module(seen.states)).view(-1, 4, 2), 0.4)

    def decide(self, seen: Seen, randomness: Sequence[Any] | None, temperature: float) -> Any:
        chosen = self.actions(seen).mean
        if randomness is not None:
            chosen = chosen + 0.4 * torch.stack([torch.randn(4, 2, generator=random) for random in randomness])
        return chosen.clamp(-1, 1), {"chosen": chosen}, None

    def score(self, seen: Seen, stored: Any) -> Evaluation:
        return Evaluation(self.actions(seen).log_prob(stored["chosen"]).sum(-1))

    def imitate(self, seen: Seen, actions: Tensor) -> dict[str, Tensor]:
        return {"chosen": actions}


def straight() -> Straight:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Straight()


@pytest.mark.parametrize(("sign", "low", "high"), [(1, 0.0, 0.5), (-1, 1.3, 9.0)])
def test_a_policy_in_three_methods_learns(sign: int, low: float, high: float) -> None:
    """By GRPO; without an update it stays about 1 from the mark, and with the reward negated it flees."""
    policy = straight()
    learner = PolicyLearner(policy, PPOClip(), Optimisation(lr=2e-2, epochs=2, minibatches=2), advantage=grpo())
    with simulators() as pool:
        actor = RobotActor(policy, pool)
        for step in range(25):
            rollouts = actor.act([point_task(100 * step + i) for i in range(8)], 8, key=(step,))
            for rollout in rollouts:
                rollout.scores["total"] = -sign * distance(rollout.output.observations[-1])
            learner.update(rollouts)
        ends = actor.act([point_task(10_000 + seed) for seed in range(20)], 1, greedy=True)
    assert low < np.mean([distance(r.output.observations[-1]) for r in ends]) < high


def test_log_probabilities_are_those_of_the_score() -> None:
    policy = straight()
    with simulators() as pool:
        rollouts = RobotActor(policy, pool).act([point_task(0, 4), point_task(1, 11)], 2)
    batch = policy.collate(rollouts)
    assert batch.mask.sum(-1).tolist() == [4, 4, 12, 12] and batch.dims.unique().tolist() == [2]
    assert batch.segments[2].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    now = policy.evaluate_actions(batch)
    torch.testing.assert_close(now.log_probs, batch.log_probs["behaviour"], atol=1e-5, rtol=0)
    first = rollouts[2].payload
    by_hand = Normal(torch.tanh(policy.module(first["states"])).view(3, 4, 2), 0.4).log_prob(first["chosen"]).sum(-1)
    torch.testing.assert_close(now.log_probs[2], by_hand.detach().flatten())


def test_demonstrations_are_imitated() -> None:
    policy = straight()
    learner = PolicyLearner(policy, WeightedImitation(), Optimisation(lr=3e-2, epochs=60))
    with simulators() as pool:
        shown = pool.demonstrate(NAME, range(6), horizon=20, settle=2)
        learner.update(policy.encode([point_task(d.seed) for d in shown], shown))
        ends = RobotActor(policy, pool).act([point_task(seed, 12) for seed in range(50, 70)], 1, greedy=True)
    assert np.mean([distance(r.output.observations[-1]) for r in ends]) < 0.35


WRONG = {
    "chunk": "Straight makes chunks of 3 actions of size 2; point-mass takes chunks of 4, size 2",
    "action_size": "Straight makes chunks of 4 actions of size 7; point-mass takes chunks of 4, size 2",
    "actions": r"Straight: actions are float32 \[2, 2, 4\]; expected float \[2, 4, 2\]",
    "dtype": r"Straight: actions are int64 \[2, 4, 2\]; expected float \[2, 4, 2\]",
    "log_probs": r"Straight: log_probs are float32 \[2, 8\]; expected float \[2, 4\]",
    "stored": r"Straight stores 'chosen' as \[1, 4, 2\]; expected a tensor \[2, ...\]",
    "taken": "Straight stores 'states', a name that is taken",
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_answer_names_the_policy(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, right = straight(), Straight.decide

    def wrong(self: Straight, seen: Seen, randomness: Any, temperature: float) -> Any:
        actions, stored, _ = right(self, seen, randomness, temperature)
        log_probs = self.score(seen, stored).log_probs
        answers = {
            "actions": (actions.transpose(1, 2), stored, log_probs),
            "dtype": (actions.long(), stored, log_probs),
            "log_probs": (actions, stored, log_probs.repeat(1, 2)),
            "stored": (actions, {"chosen": stored["chosen"][:1]}, log_probs),
            "taken": (actions, {"states": actions}, log_probs),
        }
        return answers[fault]

    if fault in ("chunk", "action_size"):
        setattr(policy, fault, 3 if fault == "chunk" else 7)
    else:
        monkeypatch.setattr(Straight, "decide", wrong)
    with simulators() as pool, pytest.raises(ValueError, match=WRONG[fault]):
        RobotActor(policy, pool).act([point_task(0)], 2)


def test_what_a_policy_cannot_do_is_refused() -> None:
    policy = straight()
    with simulators() as pool:
        rollouts = RobotActor(policy, pool).act([point_task(0)], 2)
    with pytest.raises(ValueError, match="Straight has no forward decisions"):
        policy.collate(rollouts, "forward")
    with pytest.raises(ValueError, match="Straight knows no exact divergence"):
        policy.evaluate_actions(policy.collate(rollouts), {"kl:reference"}, {"reference": policy.fork("reference")})
    with pytest.raises(UsageError, match="Straight sees frames: give it a view"):
        ChunkPolicy.__init__(policy, policy.module, chunk=4, action_size=2, decisions=4, sees="frames")
