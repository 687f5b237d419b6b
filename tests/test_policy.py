"""What every policy inherits: exact backward in pieces, forks, copies, mixed precision, state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.trainers.learner import backpropagate
from autotelic.trainers.objectives import Entropy, KLPenalty, WeightedImitation
from autotelic.trainers.policy import TorchPolicy
from autotelic.types import Batch, Task
from autotelic.vla.policy import ActionModel, ActionPolicy

from .toys import DenoiserToy, TokenToy, drawing_tasks, spelling_tasks

OBSERVATION = 6


def robot(head: Any = "tokens", seed: int = 0) -> ActionPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ActionPolicy(ActionModel(OBSERVATION, head=head, hidden=16, chunk=3, bins=8))


def make(kind: str) -> tuple[Any, Batch]:
    """A policy of each kind with a batch of rollouts of different lengths."""
    if kind == "spelling":
        policy: Any = TokenToy(4)
        return policy, policy.collate(policy.act(spelling_tasks(), 3))
    if kind == "drawing":
        policy = DenoiserToy(4)
        return policy, policy.collate(policy.act(drawing_tasks(), 3))
    policy = robot(kind)
    draw = torch.Generator().manual_seed(1)
    demonstrations = [
        SimpleNamespace(
            observations=torch.randn(steps + 1, OBSERVATION, generator=draw),
            actions=torch.rand(steps, 4, generator=draw) * 2 - 1,
        )
        for steps in (2, 5, 3, 7)
    ]
    tasks = [Task(f"t{i}", f"open drawer {i}" + " now" * i) for i in range(4)]
    return policy, policy.collate(policy.encode(tasks, demonstrations))


KINDS = ["spelling", "drawing", "tokens", "gaussian"]


def gradients(policy: TorchPolicy, objective: Any, batch: Batch, piece: int, references: Any = None) -> list[Tensor]:
    policy.micro_batch_rows = piece
    for parameter in policy.parameters():
        parameter.grad = None
    backpropagate(policy, objective, batch, references)
    return [p.grad.clone() for p in policy.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_give_the_evaluation_and_the_gradient_of_the_whole(kind: str) -> None:
    policy, batch = make(kind)
    references = {"reference": policy.fork("reference")}
    with torch.no_grad():  # away from the reference, so that the divergence has a gradient
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    objective = WeightedImitation() + 0.5 * KLPenalty(estimator="exact")
    if "entropy" in policy.capabilities:
        objective = objective - 0.1 * Entropy()
    policy.micro_batch_rows = 256
    whole_now = policy.evaluate_actions(batch, objective.needs, references).tensors()
    policy.micro_batch_rows = 3
    for name, tensor in policy.evaluate_actions(batch, objective.needs, references).tensors().items():
        assert torch.allclose(tensor, whole_now[name], atol=1e-5), name
    whole = gradients(policy, objective, batch, piece=256, references=references)
    assert max(float(g.abs().max()) for g in whole) > 1e-3
    for piece in (1, 3):
        for one, many in zip(whole, gradients(policy, objective, batch, piece, references), strict=True):
            assert torch.allclose(one, many, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_is_frozen_and_goes_its_own_way(kind: str) -> None:
    policy, batch = make(kind)
    fork = policy.fork("copy")
    assert list(fork.parameters()) == []
    before = fork.evaluate_actions(batch).log_probs
    assert torch.equal(before, policy.evaluate_actions(batch).log_probs)
    backpropagate(policy, WeightedImitation(), batch)
    assert all(p.grad is None for p in fork.module.parameters())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 0.1 * parameter.grad if parameter.grad is not None else 0.0
    assert torch.equal(fork.evaluate_actions(batch).log_probs, before)
    assert not torch.equal(policy.evaluate_actions(batch).log_probs, before)


def test_copies_mix_weights() -> None:
    one, other = robot(seed=1), robot(seed=2)
    mine = {name: value.clone() for name, value in one.state_dict().items()}
    theirs = other.state_dict()
    one.copy_from(other, mix=0.25)
    for name, value in one.state_dict().items():
        assert torch.allclose(value, 0.75 * mine[name] + 0.25 * theirs[name], atol=1e-7), name
    one.copy_from(other)
    assert all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())
    with torch.no_grad():
        one.model.out.weight += 1
    assert not torch.equal(one.model.out.weight, other.model.out.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_state_is_the_same_policy(kind: str) -> None:
    policy, batch = make(kind)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1
    other, _ = make(kind)
    other.load_state_dict({name: value.clone() for name, value in policy.state_dict().items()})
    assert torch.equal(other.evaluate_actions(batch).log_probs, policy.evaluate_actions(batch).log_probs)


@pytest.mark.parametrize("kind", ["drawing", "tokens", "gaussian"])
def test_mixed_precision_evaluates_and_learns_on_the_cpu(kind: str) -> None:
    policy, batch = make(kind)
    exact = policy.evaluate_actions(batch).log_probs
    whole = gradients(policy, WeightedImitation(), batch, piece=256)
    policy.autocast = torch.bfloat16
    rough = policy.evaluate_actions(batch).log_probs
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).abs().max()) < 0.05 * float(exact.abs().max())
    for one, other in zip(whole, gradients(policy, WeightedImitation(), batch, piece=256), strict=True):
        assert other.dtype == torch.float32
        assert float((one - other).norm()) < 0.1 * float(one.norm()) + 1e-4


def test_a_model_is_built_without_memory() -> None:
    with torch.device("meta"):
        policy = robot("gaussian")
    assert {p.device.type for p in policy.parameters()} == {"meta"}
    assert policy.state_dict().keys() == robot("gaussian").state_dict().keys()


def test_demonstrations_are_encoded_with_a_chunk_at_every_step() -> None:
    """Two steps are two chunks of three steps of four tokens, of which those shown count: two steps and one."""
    _, batch = make("tokens")
    assert batch.mask.sum(-1).tolist() == [(2 + 1) * 4, (3 * 3 + 2 + 1) * 4, (3 + 2 + 1) * 4, (5 * 3 + 2 + 1) * 4]
    assert batch.segments[0, :24].tolist() == [0] * 12 + [1] * 12
    assert batch.log_probs["behaviour"].abs().max() == 0
    assert batch.groups.sum(-1).tolist() == [1, 1, 1, 1]
