"""Policies around tiny pipelines with random weights, and what their tests ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler
from torch import Tensor, nn

from autotelic.diffusion.lora import attention
from autotelic.diffusion.pipelines import adapter_for
from autotelic.diffusion.policy import DenoisingPolicy
from autotelic.diffusion.sampler import sampler_for
from autotelic.diffusion.small.pretraining import Pretraining, untrained
from autotelic.testing import pipelines as tiny
from autotelic.trainers.lora import add_lora
from autotelic.types import Batch, Rollout, Task

TASKS = [
    Task("red", "a red square at the top left on a white background"),
    Task("blue", "a blue bar at the bottom right on a black background"),
]


def _euler() -> Any:
    pipeline = tiny.stable_diffusion()
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    return pipeline


FAMILIES: dict[str, Any] = {
    "sd": tiny.stable_diffusion,
    "sd-euler": _euler,
    "sdxl": tiny.stable_diffusion_xl,
    "sd3": tiny.stable_diffusion_3,
    "flux": tiny.flux,
}


def shapes_policy(
    steps: int = 4,
    *,
    rank: int = 0,
    kind: Any = "flow_ancestral",
    noise: float = 0.05,
    eta: float = 1.0,
    **options: Any,
) -> DenoisingPolicy:
    """The small default with one layer of width 32, untrained; every weight differs from its start by some noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter = adapter_for(untrained(Pretraining(width=32, layers=1)))
    shake(adapter.denoiser, noise)  # its last layer is 0, so that nothing before it would have a gradient
    return _policy(adapter, steps, kind, rank, noise if rank else 0.0, options, eta=eta)


def saved_pipeline(folder: str) -> str:
    """The small default's parts, a layer thin and untrained, but for a last layer that is not zero, in a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Any = untrained(Pretraining(width=32, layers=1))
        nn.init.normal_(made.transformer.proj_out.weight, std=0.1)
    made.save_pretrained(folder)
    return folder


def policy_of(
    family: str,
    steps: int = 3,
    *,
    rank: int = 0,
    noise: float = 0.0,
    kind: Any = "auto",
    eta: float = 1.0,
    **options: Any,
) -> DenoisingPolicy:
    return _policy(adapter_for(FAMILIES[family](), height=16, width=16), steps, kind, rank, noise, options, eta=eta)


def _policy(
    adapter: Any, steps: int, kind: Any, rank: int, noise: float, options: dict[str, Any], **sampling: Any
) -> DenoisingPolicy:
    adapter.denoiser.requires_grad_(True)
    if rank:
        add_lora(adapter.denoiser, rank, attention(adapter.denoiser))
    sampler = sampler_for(adapter.scheduler, steps, kind, set_timesteps=adapter.set_timesteps, **sampling)
    policy = DenoisingPolicy(adapter, sampler, **options)
    shake(policy, noise)
    return policy


def shake(policy: DenoisingPolicy | nn.Module, size: float, seed: int = 1) -> None:
    """Move every weight (a policy's trained ones) a little, the same way each time."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += size * torch.randn(parameter.shape, generator=random)


def scored(rollouts: list[Rollout]) -> list[Rollout]:
    """Arbitrary scores that differ within groups."""
    for number, rollout in enumerate(rollouts):
        rollout.scores["total"] = (number * 7 % 11) / 10
    return rollouts


def gradients(policy: DenoisingPolicy) -> list[Tensor]:
    """Of every trained weight (zeros where there is none), and none of them left behind."""
    found = []
    for parameter in policy.parameters():
        found.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None
    return found


def assert_same(mine: Sequence[Tensor], theirs: Sequence[Tensor], share: float = 1e-4) -> None:
    """Equal to a share of the largest entry, which is not zero."""
    largest = max(float(t.abs().max()) for t in theirs)
    assert largest > 0, "nothing is compared"
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=share * largest)


class Calls:
    """Counts the denoiser's calls and rows."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: list[int] = []
        module.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        self.rows.append(len(named.get("hidden_states", named.get("sample"))))


def with_column(batch: Batch, name: str, values: Sequence[float]) -> Batch:
    return replace(batch, columns=batch.columns | {name: torch.tensor(values)})
