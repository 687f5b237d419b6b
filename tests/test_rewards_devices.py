"""Critics on a GPU that is not there: fake tensors say where everything stands, and refuse to mix devices."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorDeviceMismatchError, FakeTensorMode

from autotelic.rewards.progress import critics, frame_critics, pretrained_critics
from autotelic.rewards.progress.critics import CriticTraining, ProgressCritic
from autotelic.rewards.progress.features import RelationFeatures
from autotelic.rewards.progress.frame_critics import FrameCritic, FrameTraining
from autotelic.rewards.progress.pretrained_critics import PretrainedCritic, Pretraining

LAYOUT = {"hand": slice(0, 3), "gripper": slice(3, 4), "object": slice(4, 7), "object_rotation": slice(7, 11)}
LAYOUT |= {"second": slice(11, 14), "second_rotation": slice(14, 18), "goal": slice(18, 21)}


def shown(count: int = 4) -> list[Any]:
    random = np.random.default_rng(0)
    made = []
    for index in range(count):
        frames = random.integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
        seen = random.normal(size=(9, 21)).astype(np.float32)
        made.append(SimpleNamespace(frames=frames, observations=seen, instruction="ab"[index % 2], settle=2))
    return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device of fake tensors. Who asks for their numbers gets ones, and steps of a fit look at no number."""
    monkeypatch.setattr(FakeTensor, "numpy", lambda self: np.ones(self.shape, np.float32), raising=False)
    monkeypatch.setattr(FakeTensor, "__int__", lambda self: 0, raising=False)
    monkeypatch.setattr(FakeTensor, "__float__", lambda self: 1.0, raising=False)
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    for module in (critics, frame_critics, pretrained_critics):
        monkeypatch.setattr(module, "fit", one_step)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda", 0)


def moved(module: torch.nn.Module, device: Any) -> torch.nn.Module:
    """As ``Module.to``, which refuses fake tensors."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part.register_parameter(name, torch.nn.Parameter(parameter.detach().to(device)))
    return module


def one_step(network: Any, loss: Any, rates: Any, **_: Any) -> float:
    found = [loss(0), *network.parameters()]  # no backward pass, which would ask for a real GPU
    assert {tensor.device.type for tensor in found} == {"cuda"}
    return 0.0


def states(kind: Any) -> ProgressCritic:
    return ProgressCritic(kind, RelationFeatures(LAYOUT), CriticTraining(steps=1, batch=8))


def frames(kind: Any) -> FrameCritic:
    return FrameCritic(kind, FrameTraining(steps=1, batch=4))


@pytest.mark.parametrize("kind", ["absolute", "pairwise"])
@pytest.mark.parametrize("make", [states, frames])
def test_a_critic_learns_and_answers_on_its_device(make: Any, kind: Any, gpu: torch.device) -> None:
    critic = make(kind).to(gpu)
    critic.fit(shown())
    assert on(critic) == {"cuda"}
    each = shown(1)[0]
    given = each.frames if make is frames else each.observations
    assert critic(given[1:4], given[:3], ["a"] * 3, given[:3]).shape == (3,)
    critic.members[0].to("cpu")
    with pytest.raises(FakeTensorDeviceMismatchError):  # so that the test can fail
        critic(given[1:4], given[:3], ["a"] * 3, given[:3])


@pytest.mark.parametrize("make", [states, frames])
def test_weights_come_back_to_the_device(make: Any, gpu: torch.device) -> None:
    critic = make("absolute")
    with pytest.raises(AssertionError):
        critic.fit(shown())  # on the CPU, where a critic is unless it is told
    critic.to(gpu).fit(shown())
    other = make("absolute").to(gpu)
    other.load_state_dict(critic.state_dict())
    assert on(other) == {"cuda"}


def test_a_pretrained_critic_learns_and_answers_on_its_device(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PretrainedCritic, "_few", lambda self, shown, random: list(shown))
    table = pretrained_critics._Table
    monkeypatch.setattr(table, "draw", lambda self, n, r: (self.now[:n], self.initial[:n], self.success[:n]))
    episodes = [SimpleNamespace(observations=each.observations, success=i % 2) for i, each in enumerate(shown())]
    critic = PretrainedCritic(LAYOUT, Pretraining(steps=1, batch=4)).to(gpu)
    critic.pretrain([SimpleNamespace(demonstrations=shown(), episodes=episodes)])
    adapted, each = critic.adapt(shown()), shown(1)[0]
    assert on(adapted) == {"cuda"}
    assert adapted(each.observations[1:4], each.observations[:3], ["a"] * 3).shape == (3,)


def test_frames_travel_as_bytes_and_once(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    critic = frames("pairwise").to(gpu)
    critic.fit(shown())
    moved: list[tuple[str, int]] = []
    to = torch.Tensor.to

    def spied(self: Any, *where: Any, **how: Any) -> Any:
        made = to(self, *where, **how)
        if made.device != self.device and self.ndim == 4:
            moved.append((str(self.dtype), len(self)))
        return made

    monkeypatch.setattr(torch.Tensor, "to", spied)
    film = shown(1)[0].frames
    critic(film[1:4], film[:3], ["a"] * 3, film[:3])
    assert moved == [("torch.uint8", 3)] * 3  # first, reference and now, whatever the number of members
    assert len(critic.members) == 2


def on(critic: Any) -> set[str]:
    return {parameter.device.type for member in critic.members for parameter in member.parameters()}
