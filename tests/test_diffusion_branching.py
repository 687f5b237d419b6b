"""Pictures of a prompt that begin at the same noise: one deterministic prefix, from which they branch off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from autotelic.diffusion.policy import DenoisingPolicy
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import backpropagate
from autotelic.trainers.objectives import KLPenalty, PPOClip

from .small_drawing import TASKS, Calls, assert_same, gradients, policy_of, scored, shapes_policy

STEPS = 6


def made(family: str) -> DenoisingPolicy:
    """A flow whose last step has no noise, as in the recipe."""
    how: dict[str, Any] = {"kind": "flow_sde"}
    policy = shapes_policy(STEPS, **how) if family == "shapes" else policy_of(family, STEPS, guidance=3.0, **how)
    policy.sampler = policy.sampler.windowed(0, STEPS - 1)
    return policy


def late(n: int = 2) -> Mapping[str, Any]:
    """A window of n steps that begins late: at the last place that it can."""
    return {"window": n, "key": next(k for k in ((i,) for i in range(99)) if _first(k, n) == STEPS - 1 - n)}


def _first(key: tuple[int, ...], n: int) -> int:
    (rollout,) = made("shapes").act(TASKS[:1], 1, key=key, window=n)
    return int(rollout.mask.long().argmax())


@pytest.mark.parametrize("family", ["shapes", "sd3"])
def test_a_shared_prefix_is_what_every_picture_would_have_taken(family: str) -> None:
    """The slow way draws pictures one by one, so that nothing can be shared."""
    policy, sampling = made(family), late()
    fast = policy.act(TASKS, 3, same_latent=True, **sampling)
    policy.sample_rows = 1
    slow = policy.act(TASKS, 3, same_latent=True, **sampling)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one.payload["path"], other.payload["path"], rtol=0, atol=1e-4)
        torch.testing.assert_close(one.output, other.output, rtol=0, atol=1e-4)
        assert torch.equal(one.mask, other.mask)


def test_a_group_is_one_until_the_window_and_differs_after_it() -> None:
    policy, sampling = made("shapes"), late()
    rollouts = policy.act(TASKS, 3, same_latent=True, **sampling)
    first = int(rollouts[0].mask.long().argmax())
    assert first == STEPS - 3 and int(rollouts[0].mask.sum()) == 2
    paths = torch.stack([r.payload["path"] for r in rollouts]).unflatten(0, (2, 3))
    assert torch.equal(paths[:, :1, : first + 1].expand_as(paths[:, :, : first + 1]), paths[:, :, : first + 1])
    assert float((paths[:, 0, first + 1] - paths[:, 1, first + 1]).abs().amax((1, 2, 3)).min()) > 0.01
    assert float((paths[0, :, 0] - paths[1, :, 0]).abs().max()) > 0.1, "prompts begin at noise of their own"
    apart = torch.stack([r.payload["path"][0] for r in policy.act(TASKS, 3, **sampling)])
    assert float(torch.pdist(apart.flatten(1)).min()) > 0.1, "without it every picture does"
    again = policy.act(TASKS, 3, same_latent=True, key=(12345,), window=2)
    assert not torch.equal(again[0].payload["path"][0], rollouts[0].payload["path"][0]), "and every round"


def test_steps_before_the_window_are_taken_once_per_prompt() -> None:
    policy, sampling = made("shapes"), late()
    calls = Calls(policy.module)
    policy.act(TASKS, 3, **sampling)
    apart, before = sum(calls.rows), STEPS - 3
    calls.rows.clear()
    policy.act(TASKS, 3, same_latent=True, **sampling)
    assert apart == 6 * STEPS and sum(calls.rows) == apart - 4 * before


def test_branches_are_learned_from_as_other_pictures_are() -> None:
    """The density of a step that was taken, and its gradient, from the graph of drawing or without it."""
    policy, sampling = made("shapes"), late()
    references = {"start": policy.fork("start")}
    found = []
    for keep in (False, True):
        batch = policy.collate(scored(policy.act(TASKS, 3, same_latent=True, keep_graph=keep, **sampling)))
        now = policy.evaluate_actions(batch).log_probs
        torch.testing.assert_close(now[batch.mask], batch.log_probs["behaviour"][batch.mask], rtol=0, atol=0.01)
        batch.advantages = grpo()(batch)
        backpropagate(policy, PPOClip() + KLPenalty("start", "exact"), batch, references)
        found.append(gradients(policy))
    assert_same(found[1], found[0])


def test_the_lengths_of_steps_are_what_the_released_kl_lacks() -> None:
    """std^2 = (a^2 sigma / (1 - sigma)) dt: the code divides by the bracket alone."""
    chain = made("shapes").sampler
    sigma = chain.levels.sigma.double()
    lengths = torch.tensor(chain.lengths, dtype=torch.float64)
    torch.testing.assert_close(lengths, sigma[:-1] - sigma[1:], rtol=0, atol=1e-6)
    for i in range(1, STEPS - 1):
        rate = 0.7**2 * sigma[i] / (1 - sigma[i])
        assert float(chain.std[i] ** 2) == pytest.approx(float(rate * lengths[i]), rel=1e-4)
