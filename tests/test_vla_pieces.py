"""Long episodes in pieces of chunks: the same numbers and gradient, in memory that does not grow with the episode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.envs.simulator import View
from autotelic.testing.held import Held
from autotelic.testing.vlms import vlm
from autotelic.trainers.policy import collate
from autotelic.types import Batch, Evaluation, Rollout, Task
from autotelic.vla.chunk_policy import ChunkPolicy, Seen
from autotelic.vla.cloning import Cloning, clone
from autotelic.vla.flow import FlowModel, FlowPolicy
from autotelic.vla.openvla import OpenVLAPolicy
from autotelic.vla.policy import ActionModel, ActionPolicy
from autotelic.vla.vision import Vision

LENGTHS = (5, 2, 7, 1)


def gaussian(**options: Any) -> ActionPolicy:
    return ActionPolicy(ActionModel(3, 2, chunk=2, head="gaussian", hidden=16, critic="separate"), **options)


def tokens() -> ActionPolicy:
    return ActionPolicy(ActionModel(3, 2, chunk=2, head="tokens", hidden=16, bins=5))


def looking() -> ActionPolicy:
    return ActionPolicy(ActionModel(3, 2, chunk=2, head="gaussian", hidden=16, vision=Vision(size=32)))


def flowing() -> FlowPolicy:
    return FlowPolicy(FlowModel(3, 2, chunk=2, hidden=16), steps=3)


def speaking(**options: Any) -> OpenVLAPolicy:
    model, processor = vlm("openvla")
    return OpenVLAPolicy(model, processor, chunk=2, action_size=2, bins=8, view=View(32), **options)


def exact() -> ActionPolicy:
    return gaussian(likelihood="exact")


def episodes(policy: ChunkPolicy, lengths: tuple[int, ...] = LENGTHS) -> list[Rollout]:
    """Sampled chunks of unequal episodes, of which the last step of each was not executed."""
    random, made = torch.Generator().manual_seed(0), []
    for index, count in enumerate(lengths):
        told = ["left", "red circle"][index % 2]
        size = 3 if policy.sees == "states" or not isinstance(policy, OpenVLAPolicy) else 0
        states = torch.randn(count + 1, size, generator=random)
        film = torch.randint(0, 256, (count + 1, 32, 32, 3), dtype=torch.uint8, generator=random)
        frames = {"main": film} if policy.sees == "frames" else {}
        seen = Seen([told] * (count + 1), states, frames)
        dice = policy.begin([torch.Generator().manual_seed(index)], [count])
        stored: dict[str, list[Tensor]] = {}
        logs = []
        for chunk in range(count):  # one after the other, since the noise of some is coherent
            choice = policy.choose(seen.select([chunk]), dice)
            logs.append(choice.log_probs)
            for name, tensor in choice.stored.items():
                stored.setdefault(name, []).append(tensor)
        executed = torch.ones(count, 2, dtype=torch.bool)
        executed[-1, -1] = False
        rollout = policy.rollout(
            Task(f"t/{index}", told),
            None,
            seen.select(slice(0, count)),
            {name: torch.cat(parts) for name, parts in stored.items()},
            torch.cat(logs).flatten(),
            executed=executed,
            last=seen.select([count]) if "values" in policy.capabilities else None,
        )
        rollout.scores["total"] = [float(i) for i in range(count)]
        made.append(rollout)
    return made


def evaluated(policy: ChunkPolicy, batch: Batch, needs: set[str], rows: int) -> tuple[dict[str, Tensor], Tensor]:
    """Every tensor of an evaluation, and the gradient of a sum over all of them with weights of its own each."""
    policy.micro_batch_rows = rows
    policy.module.zero_grad()
    start = policy.fork("start")
    for weight in start.trained().values():  # elsewhere, so that the divergence counts
        weight.data += 0.05
    now = policy.evaluate_actions(batch, needs, {"start": start})
    random = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(t.shape, generator=random) for name, t in now.tensors().items()}
    cotangents: Evaluation = now.map(lambda name, _: weights[name])
    policy.backward(batch, cotangents)
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return now.tensors(), gradient


@pytest.mark.parametrize("make", [gaussian, tokens, looking, flowing, speaking, exact])
def test_pieces_give_the_same_numbers_and_gradient(make: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = make()
    needs = {"kl:start"} | ({"entropy"} & policy.capabilities) | ({"values"} & policy.capabilities)
    needs |= {"last_values"} if "values" in policy.capabilities else set()
    batch = policy.collate(episodes(policy))
    whole, gradient = evaluated(policy, batch, needs, 1000)
    assert len(policy.pieces(batch)) == 1 and gradient.norm() > 1e-3
    for rows in (1, 3, 4):
        pieces, same = evaluated(policy, batch, needs, rows)
        count = len(policy.pieces(batch))
        assert count > 1 and (policy.whole_episodes or count == -(-sum(LENGTHS) // rows))
        assert pieces.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(pieces[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
        torch.testing.assert_close(same, gradient, atol=2e-5 * float(gradient.abs().max()), rtol=1e-4)


def test_an_exact_likelihood_keeps_episodes_whole() -> None:
    policy = exact()
    batch = policy.collate(episodes(policy))
    policy.micro_batch_rows = 3
    assert [piece.tolist() for piece in policy.pieces(batch)] == [[0], [1], [2], [3]]
    policy.likelihood = "composite"
    assert [len(piece) for piece in policy.pieces(batch)] == [3] * 5
    assert policy.pieces(batch)[1].tolist() == [[0, 3], [0, 4], [1, 0]]


def test_segments_by_hand() -> None:
    rollouts = [
        Rollout(Task("a", ""), None, {"seen": torch.arange(6.0).view(3, 2), "seed": torch.tensor([7])},
                torch.arange(6.0), torch.ones(6, dtype=torch.bool), torch.arange(3).repeat_interleave(2)),
        Rollout(Task("b", ""), None, {"seen": 10 + torch.arange(2.0).view(1, 2), "seed": torch.tensor([8])},
                10 + torch.arange(2.0), torch.tensor([True, False]), torch.zeros(2, dtype=torch.long)),
    ]  # fmt: skip
    rollouts[0].scores["total"], rollouts[1].scores["total"] = [1.0, 2.0, 3.0], 4.0
    batch = collate(rollouts, [1, 1])
    batch.advantages = batch.log_probs["behaviour"] * 10
    batch.columns["weight"] = torch.tensor([0.5, 2.0])
    part = batch.select(torch.tensor([[1, 0], [0, 2], [0, 1]]))
    assert part.log_probs["behaviour"].tolist() == [[10, 0], [4, 5], [2, 3]]
    assert part.mask.tolist() == [[True, False], [True, True], [True, True]]
    assert part.advantages is not None and part.advantages.tolist() == [[100, 0], [40, 50], [20, 30]]
    assert part.rewards["total"].tolist() == [[4], [3], [2]] and part.segments.tolist() == [[0, 0]] * 3
    assert part.payload["seen"].tolist() == [[[10, 11]], [[4, 5]], [[2, 3]]]
    assert part.payload["seed"].tolist() == [[8], [7], [7]] and part.columns["weight"].tolist() == [2, 0.5, 0.5]
    assert len(part) == 3 and len(part.groups) == 0 and part.decided.tolist() == [[True]] * 3


def test_memory_of_a_piece_does_not_grow_with_the_episode() -> None:
    policy, most = speaking(micro_batch_rows=4), {}
    for chunks in (4, 16, 32):
        batch = policy.collate(episodes(policy, (chunks,)))
        for rows in (4, 1000):
            policy.micro_batch_rows = rows
            with Held(policy.module) as held:
                now = policy.evaluate_actions(batch)
                policy.backward(batch, now)
            most[chunks, rows] = held.most
    assert most[32, 4] <= 1.05 * most[4, 4] and most[32, 1000] > 7 * most[4, 1000]


@pytest.mark.parametrize("make", [tokens, speaking])
def test_cloning_in_pieces_is_cloning_at_once(make: Any) -> None:
    found = {}
    for rows in (1000, 3):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = make()
        rollouts = episodes(policy)
        policy.micro_batch_rows = rows
        with Held(policy.module) as held:
            loss = clone(policy, rollouts, Cloning(steps=2, batch=12, lr=1e-3, shift=2))
        weights = torch.cat([p.detach().flatten() for p in policy.parameters()])
        found[rows] = (weights, loss, held.most)
    whole, pieces = found[1000], found[3]
    assert (pieces[0] - whole[0]).abs().mean() < 1e-6  # of steps of 1e-3, whose signs are rounding where nothing pulls
    assert pieces[1] == pytest.approx(whole[1], rel=1e-4) and pieces[2] < 0.4 * whole[2]
