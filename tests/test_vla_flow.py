"""The flow head: its chain against a Gaussian's own flow, its numbers by hand, and that it learns in three ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from autotelic.envs.pool import Pool
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner, backpropagate
from autotelic.trainers.objectives import ForwardNFT, PPOClip, WeightedImitation
from autotelic.trainers.pairing import best_of_group
from autotelic.types import Rollout
from autotelic.vla.actor import RobotActor
from autotelic.vla.chunk_policy import Seen
from autotelic.vla.cloning import Cloning, clone
from autotelic.vla.flow import FlowModel, FlowPolicy

from .point_mass import INSTRUCTION, NAME, distance, point_task, simulators


def make_policy(steps: int = 3, noise: float = 0.6, piece: int | None = None) -> FlowPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FlowModel(4, 2, chunk=4, hidden=32, layers=2)
    return FlowPolicy(model, steps=steps, noise=noise, micro_batch_rows=piece)


def episodes(policy: FlowPolicy, n: int = 2) -> list[Rollout]:
    with simulators() as pool:
        return RobotActor(policy, pool, temperature=1.3).act([point_task(0, 4), point_task(1, 11)], n)


class Known(FlowModel):
    """The exact velocity of actions that are N(0.3, 0.2^2) in every scalar."""

    def velocity(self, context: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[e - a | x_t]: with variance V = (1-t)^2 s^2 + t^2 the regressions of e and a on x have slopes
        t / V and (1-t) s^2 / V."""
        t = t[:, None, None]
        variance = (1 - t) ** 2 * 0.04 + t**2
        gap = x - (1 - t) * 0.3
        return t / variance * gap - (0.3 + (1 - t) * 0.04 / variance * gap)


@pytest.mark.parametrize("noise", [0.05, 0.7])
def test_noise_in_the_chain_changes_no_marginal(noise: float) -> None:
    policy = FlowPolicy(Known(1, 2, chunk=4, hidden=4), steps=100, noise=noise)
    seen = Seen([INSTRUCTION] * 500, torch.zeros(500, 1))
    choice = policy.choose(seen, [torch.Generator().manual_seed(i) for i in range(500)])
    path = choice.stored["path"]
    for step in (30, 60, 80, 100):
        t = 1 - step / 100
        assert float(path[:, step].mean()) == pytest.approx((1 - t) * 0.3, abs=0.03)
        assert float(path[:, step].std()) == pytest.approx(((1 - t) ** 2 * 0.04 + t**2) ** 0.5, rel=0.05)
    greedy = policy.choose(seen, None)
    assert float((greedy.actions - 0.3).abs().max()) < 0.02, "zero noise flows to the middle"


def test_the_steps_are_those_of_the_published_formula() -> None:
    """K = 2, a = 0.6, at t = 0.5 by hand: s^2 = 0.36, x' = x - v / 2 - 0.18 (x + v / 2), std = 0.6 sqrt(0.5)."""
    policy = make_policy(steps=2)
    assert policy.mean_x.tolist() == pytest.approx([1 - 0.72 * 0.5 / 2, 1 - 0.18])
    assert policy.mean_v.tolist() == pytest.approx([-0.5, -0.5 - 0.09])
    assert policy.std.tolist() == pytest.approx([0.6, 0.6 * 0.5**0.5])


def test_log_probabilities_are_those_of_the_chain() -> None:
    policy = make_policy()
    rollouts = episodes(policy)
    batch = policy.collate(rollouts)
    assert batch.mask.sum(-1).tolist() == [3, 3, 9, 9] and batch.dims.unique().tolist() == [8]
    now = policy.evaluate_actions(batch)
    torch.testing.assert_close(now.log_probs, batch.log_probs["behaviour"], atol=1e-4, rtol=1e-5)
    path = rollouts[2].payload["path"]  # [3 chunks, 4, C, A]
    torch.testing.assert_close(path[:, -1].clamp(-1, 1).numpy(), rollouts[2].output.actions)
    context = policy.model(rollouts[2].payload["states"], policy.model.words_of([INSTRUCTION] * 3))
    v = policy.model.velocity(context, path[:, 1], torch.full((3,), 2 / 3))
    mean = path[:, 1] - v / 3 - 0.18 * (path[:, 1] + v / 3)  # s^2 = 0.72
    by_hand = Normal(mean, 1.3 * 0.6 * (2 / 3) ** 0.5).log_prob(path[:, 2]).sum((1, 2)).detach()
    torch.testing.assert_close(now.log_probs[2].view(3, 3)[:, 1], by_hand, atol=1e-4, rtol=1e-5)


def test_forward_decisions_are_drawn_once() -> None:
    policy = make_policy()
    rollouts = episodes(policy)
    batch = policy.collate(rollouts, "forward")
    again = policy.collate(rollouts, "forward")
    assert torch.equal(batch.payload["noise"], again.payload["noise"]) and batch.mask.shape == (4, 12)
    time, noise, clean = (batch.payload[name][2, 0] for name in ("time", "noise", "clean"))
    assert ((time * 4).floor() == torch.arange(4)).all(), "one in each quarter"
    context = policy.model(rollouts[2].payload["states"][:1], policy.model.words_of([INSTRUCTION])).expand(4, -1)
    t = time[:, None, None]
    gap = noise - clean - policy.model.velocity(context, (1 - t) * clean + t * noise, time)
    by_hand = -gap.square().sum((1, 2)).detach() / 2
    torch.testing.assert_close(policy.evaluate_actions(batch).log_probs[2, :4], by_hand)


def test_divergences_are_those_of_the_gaussians() -> None:
    policy = make_policy()
    other = policy.fork("reference")
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    rollouts = episodes(policy)
    now = policy.evaluate_actions(policy.collate(rollouts), {"kl:reference"}, {"reference": other})
    path, words = rollouts[2].payload["path"], policy.model.words_of([INSTRUCTION] * 3)
    velocities = [
        p.model.velocity(p.model(rollouts[2].payload["states"], words), path[:, 1], torch.full((3,), 2 / 3))
        for p in (policy, other)
    ]
    gap = float(policy.mean_v[1]) * (velocities[0] - velocities[1]) / (1.3 * float(policy.std[1]))
    by_hand = gap.square().sum((1, 2)).detach() / 2
    assert float(by_hand.min()) > 1e-4
    torch.testing.assert_close(now.kl["reference"][2].view(3, 3)[:, 1], by_hand, atol=1e-5, rtol=1e-4)


def test_backward_in_pieces_equals_backward_at_once() -> None:
    gradients = []
    for piece in (None, 1):
        policy = make_policy(piece=piece)
        references = {"proximal": policy.fork("proximal")}
        for parameter in policy.parameters():
            parameter.data += 0.05
        rollouts = episodes(make_policy())
        for rollout, score in zip(rollouts, (0.0, 1.0, 1.0, 0.0), strict=True):
            rollout.scores["total"] = score
        backpropagate(policy, ForwardNFT(), policy.collate(rollouts, "forward"), references)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert float(gradients[0].norm()) > 1e-4
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_a_saved_policy_comes_back(tmp_path: Path) -> None:
    policy = make_policy()
    policy.normalise(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) + 1)
    policy.save_pretrained(tmp_path)
    again = FlowPolicy.from_pretrained(str(tmp_path))
    assert torch.equal(again.std, policy.std) and FlowPolicy.from_pretrained(str(tmp_path), steps=5).steps == 5
    seen = Seen([INSTRUCTION] * 5, torch.rand(5, 4))
    assert torch.equal(again.choose(seen, None).actions, policy.choose(seen, None).actions)


def test_demonstrations_are_imitated() -> None:
    policy = make_policy()
    with simulators() as pool:
        shown = pool.demonstrate(NAME, range(12), horizon=20, settle=2)
        encoded = policy.encode([point_task(d.seed) for d in shown], shown)
        clone(policy, encoded, Cloning(steps=150, batch=64, lr=8e-3))
        ends = RobotActor(policy, pool).act([point_task(seed, 12) for seed in range(50, 70)], 1, greedy=True)
    assert np.mean([distance(r.output.observations[-1]) for r in ends]) < 0.3
    with pytest.raises(ValueError, match="demonstrations have forward decisions only"):
        policy.collate([*encoded, *episodes(policy)])


WAYS = {
    "grpo": (PPOClip(), {"advantage": grpo()}, 12),
    "nft": (ForwardNFT(), {}, 10),
    "raft": (WeightedImitation(decisions="forward"), {"prepare": (best_of_group,)}, 20),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_learns(way: str) -> None:
    """From about 1 from the mark; with the reward negated it does not come nearer."""
    with simulators() as pool:
        good, bad = (remaining(way, pool, sign) for sign in (1, -1))
    assert good < 0.85 and bad > 1.2, (good, bad)


def remaining(way: str, pool: Pool, sign: float) -> float:
    policy = make_policy(steps=2, noise=0.9)
    objective, how, updates = WAYS[way]
    learner = PolicyLearner(policy, objective, Optimisation(lr=1e-2, epochs=2, minibatches=2), **how)  # type: ignore[arg-type]
    actor = RobotActor(policy, pool)
    for step in range(updates):
        rollouts = actor.act([point_task(100 * step + i) for i in range(8)], 8, key=(step,))
        for rollout in rollouts:
            rollout.scores["total"] = -sign * distance(rollout.output.observations[-1])
        learner.update(rollouts)
    ends = actor.act([point_task(10_000 + seed) for seed in range(20)], 1, greedy=True)
    return sum(distance(r.output.observations[-1]) for r in ends) / len(ends)
