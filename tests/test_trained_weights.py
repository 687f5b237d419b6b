"""What is trained is a policy's own, all else is shared: forks, copies and checkpoints of every modality."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autotelic.errors import UsageError
from autotelic.trainers.lora import add_lora
from autotelic.trainers.policy import TorchPolicy
from autotelic.trainers.weights import trained_names
from autotelic.vla.policy import ActionModel, ActionPolicy
from autotelic.vlm.policy import TokenPolicy

from . import test_vla_openvla as openvla
from . import tiny_vlms
from .small_drawing import policy_of


def made(kind: str) -> Any:
    """A policy of which a part is frozen."""
    torch.manual_seed(0)
    if kind == "openvla":
        policy: Any = openvla.policy()
    elif kind == "vlm":
        return TokenPolicy.of(*tiny_vlms.vlm("qwen2_vl"), freeze_vision=True)
    elif kind == "tower":
        vision = {"name": "test_resnet", "size": 32, "stride": 16}
        policy = ActionPolicy(ActionModel(4, 2, chunk=4, hidden=32, layers=2, vision=vision))
        policy.freeze_tower()
        return policy
    elif kind == "diffusion":
        policy = policy_of("sd")
    else:
        policy = ActionPolicy(ActionModel(4, 2, chunk=4, hidden=32, layers=2))
    add_lora(policy.module, 2)
    return policy


def shaken(policy: Any) -> None:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += torch.randn(parameter.shape, generator=random)


KINDS = ["vlm", "openvla", "tower", "robot", "diffusion"]


@pytest.mark.parametrize("kind", KINDS)
def test_forks_share_what_is_frozen_and_own_what_is_trained(kind: str) -> None:
    policy = made(kind)
    learning = {name for name, p in policy.module.named_parameters() if p.requires_grad}
    assert 0 < len(learning) < len(dict(policy.module.named_parameters()))
    buffers = {"mean", "std"} if kind == "tower" else set()  # the root's normalisation goes with what is trained
    assert set(policy.trained()) == learning | buffers
    fork = policy.fork("fork")
    for copy in (fork, fork.fork("fork of the fork")):
        assert set(copy.trained()) == set(policy.trained()) and list(copy.parameters()) == []
        mine, its = (p.module.state_dict() for p in (policy, copy))
        its |= copy.state_dict()
        shared = {name for name in mine if its[name].data_ptr() == mine[name].data_ptr() and mine[name].numel()}
        assert shared == {name for name in mine if name not in policy.trained() and mine[name].numel()}
    before = {name: t.clone() for name, t in fork.state_dict().items()}
    shaken(policy)
    assert all(torch.equal(t, before[name]) for name, t in fork.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_mixes_are_of_trained_weights_alone(kind: str) -> None:
    policy = made(kind)
    start = policy.fork("start")
    shaken(policy)
    now = {name: t.clone() for name, t in policy.state_dict().items()}
    then = {name: t.clone() for name, t in start.state_dict().items()}
    assert set(now) == set(then) == set(policy.trained())
    frozen = {name: t.clone() for name, t in policy.module.state_dict().items() if name not in now}
    start.copy_from(policy, mix=0.25)
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * then[name] + 0.25 * now[name])
    policy.load_state_dict(then)
    assert all(torch.equal(t, then[name]) for name, t in policy.state_dict().items())
    assert all(torch.equal(policy.module.state_dict()[name], t) for name, t in frozen.items())
    start.copy_from(policy)
    assert all(torch.equal(t, then[name]) for name, t in start.state_dict().items())


@pytest.mark.parametrize("kind", ["vlm", "diffusion"])
def test_weights_of_another_policy_are_refused_by_name_and_change_nothing(kind: str) -> None:
    policy = made(kind)
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    other = {name: t + 1 for name, t in before.items()}
    one = min(before)
    with pytest.raises(UsageError, match=f"they lack {one}"):
        policy.load_state_dict({name: t for name, t in other.items() if name != one})
    with pytest.raises(UsageError, match=r"unheard\.of has no counterpart"):
        policy.load_state_dict(other | {"unheard.of": torch.zeros(1)})
    with pytest.raises(UsageError, match=rf"{one} is \[3\] there and \["):
        policy.load_state_dict(other | {one: torch.zeros(3)})
    assert all(torch.equal(t, before[name]) for name, t in policy.state_dict().items())


def test_statistics_go_with_the_layers_around_them() -> None:
    body, head = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
    module = nn.ModuleDict({"body": body, "head": head, "norm": nn.BatchNorm1d(2, affine=False)})
    body.requires_grad_(False)
    buffers = {"running_mean", "running_var", "num_batches_tracked"}
    expected = {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"}
    expected |= {f"{part}.{name}" for part in ("head.1", "norm") for name in buffers}
    assert trained_names(module) == expected
    policy = TorchPolicy(module)
    other = policy.fork("other")
    head(torch.randn(8, 2))
    assert other.module["head"][1].num_batches_tracked == 0  # type: ignore[index]
    other.copy_from(policy, mix=0.5)
    assert other.module["head"][1].num_batches_tracked == 1, "whole numbers are copied"  # type: ignore[index]


def test_tied_weights_are_copied_once_and_stay_tied() -> None:
    module = nn.ModuleDict({"read": nn.Embedding(4, 3), "write": nn.Linear(3, 4, bias=False)})
    module["write"].weight = module["read"].weight  # type: ignore[assignment]
    fork = TorchPolicy(module).fork("fork")
    its: Any = fork.module
    assert its["read"].weight is its["write"].weight is not module["read"].weight
    assert len(fork.state_dict()) == 1


def test_a_tower_that_is_frozen_after_loading_leaves_the_checkpoints() -> None:
    """The start holds the whole policy; what is frozen afterwards does not stand in later states."""
    whole = ActionPolicy(ActionModel(4, 2, chunk=4, vision={"name": "test_resnet", "size": 32, "stride": 16}))
    start = whole.state_dict()
    assert any(name.startswith("tower.") for name in start)
    whole.load_state_dict(start)
    whole.freeze_tower()
    assert set(whole.state_dict()) == {name for name in start if not name.startswith("tower.")}
    with pytest.raises(UsageError, match=r"tower\..* has no counterpart"):
        whole.load_state_dict(start)
