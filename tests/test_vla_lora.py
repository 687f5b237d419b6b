"""Adapters on robot policies: they change nothing at first, they alone learn, and they are saved by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.lora import add_lora, load_lora
from autotelic.trainers.objectives import PPOClip
from autotelic.vla.actor import RobotActor
from autotelic.vla.chunk_policy import Seen
from autotelic.vla.cloning import Cloning, clone
from autotelic.vla.flow import FlowModel, FlowPolicy
from autotelic.vla.policy import ActionModel, ActionPolicy

from .point_mass import INSTRUCTION, NAME, distance, point_task, simulators

HEADS = ["tokens", "gaussian", "flow"]
SEEN = Seen([INSTRUCTION] * 5, torch.linspace(-1, 1, 20).view(5, 4))


def make_policy(head: str = "gaussian") -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if head == "flow":
            return FlowPolicy(FlowModel(4, 2, chunk=4, hidden=32, layers=2), steps=2, noise=0.9)
        return ActionPolicy(ActionModel(4, 2, chunk=4, head=head, bins=9, hidden=32, layers=2, std=0.4))  # type: ignore[arg-type]


def out(policy: Any) -> torch.Tensor:
    """What greedy acting reads off, finer than the actions themselves for tokens."""
    if isinstance(policy, FlowPolicy):
        return policy.choose(SEEN, None).actions
    with torch.no_grad():
        return policy.module(SEEN.states, policy.model.words_of(SEEN.instructions))


@pytest.mark.parametrize("head", HEADS)
def test_only_adapters_learn(head: str) -> None:
    policy = make_policy(head)
    before = out(policy)
    add_lora(policy.module, 4)
    assert torch.equal(out(policy), before), "adapters change nothing at first"
    reference = policy.fork("reference")
    held = {name: tensor.clone() for name, tensor in policy.module.state_dict().items()}
    learner = PolicyLearner(policy, PPOClip(), Optimisation(lr=1e-2), advantage=grpo())
    with simulators() as pool:
        rollouts = RobotActor(policy, pool).act([point_task(i) for i in range(4)], 4)
    for rollout in rollouts:
        rollout.scores["total"] = -distance(rollout.output.observations[-1])
    for _ in range(2):  # in the first step the gradient of A is zero
        learner.update(rollouts)
    changed = {name for name, tensor in policy.module.state_dict().items() if not torch.equal(tensor, held[name])}
    assert changed == {name for name in held if "lora_" in name} == set(policy.state_dict())
    assert not torch.allclose(out(policy), before, atol=1e-3)
    assert torch.equal(out(reference), before)
    mine, theirs = (dict(p.module.named_parameters()) for p in (policy, reference))
    assert all((mine[name] is theirs[name]) == ("lora_" not in name) for name in mine), "frozen weights are shared"
    kl = policy.evaluate_actions(policy.collate(rollouts), {"kl:reference"}, {"reference": reference}).kl["reference"]
    assert float(kl.mean()) > 1e-5
    reference.copy_from(policy)
    assert torch.equal(out(reference), out(policy))


def test_adapters_clone_and_learn() -> None:
    """The demonstrations' normalisation is frozen too."""
    policy = make_policy()
    add_lora(policy.module, 8)
    with simulators() as pool:
        shown = pool.demonstrate(NAME, range(8), horizon=20, settle=2)
        clone(policy, policy.encode([point_task(d.seed) for d in shown], shown), Cloning(steps=200, batch=64, lr=1e-2))
        ends = RobotActor(policy, pool).act([point_task(seed, 12) for seed in range(50, 70)], 1, greedy=True)
    assert np.mean([distance(r.output.observations[-1]) for r in ends]) < 0.4
    assert torch.equal(policy.model.mean, torch.zeros(4))


@pytest.mark.parametrize("head", HEADS)
def test_adapters_are_saved_by_themselves(head: str, tmp_path: Path) -> None:
    policy = make_policy(head)
    add_lora(policy.module, 3, ["out", "body.0"], alpha=6)
    for name, parameter in policy.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    policy.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    again = make_policy(head)
    load_lora(again.module, tmp_path)
    assert not torch.allclose(out(again), out(make_policy(head)), atol=1e-2)
    assert torch.equal(out(again), out(policy))
    assert len(list(again.parameters())) == 4 and all(p.requires_grad for p in again.parameters())
    other = make_policy(head)
    add_lora(other.module, 3, ["out", "body.0"], alpha=6)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(out(other), out(policy))
