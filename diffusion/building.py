"""From a config to the policy that learns: a pipeline, what of it is trained, and the chain that is sampled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UsageError
from ..trainers.config import flag
from ..trainers.distributed import device, is_main
from ..trainers.lora import add_lora, layers_for
from ..trainers.precision import autocast_of
from ..working import LONG, working
from .lora import load_lora, targets_of
from .memory import memory_plan
from .pipelines import PipelineAdapter, adapter_for, load, preview
from .policy import DenoisingPolicy
from .sampler import Sampler, sampler_for
from .schedulers import kind_for, replaced

if TYPE_CHECKING:
    from .setting import DiffusionConfig

logger = logging.getLogger(__name__)


def build_policy(
    config: DiffusionConfig,
    source: str,
    compute: torch.dtype = torch.float32,
    *,
    forward_draws: int = 2,
    check: Callable[[PipelineAdapter], None] = lambda adapter: None,
) -> DenoisingPolicy:
    """The policy of a run. All that can be refused without the pipeline's weights is refused before they are read.

    Args:
        source: the pipeline's folder or hub name.
        compute: what the pipeline's weights are, but for those that are trained, and what is computed in.
        check: what else has to be true of the adapter.

    Raises:
        UsageError: anything of the pipeline, its scheduler or the adapters that cannot be had.
    """
    options: dict[str, Any] = {"guidance": config.guidance_scale, "negative_prompt": config.negative_prompt}
    options |= {"height": config.height, "width": config.width}
    if config.num_frames is not None:
        options["num_frames"] = config.num_frames
    seen = preview(source, **options)
    if seen is not None:
        check(seen)
        sampler(config, seen)
        if config.lora_rank and not config.lora_path:
            layers_for(seen.denoiser, targets_of(seen.denoiser, config.lora_targets))
    with working(f"loading {config.model or 'the small default pipeline'}", after=LONG):
        pipeline = load(source, dtype=compute, device=device(), exact=not config.lora_rank)
    adapter = adapter_for(pipeline, **options)
    check(adapter)
    _choose_trained(config, adapter)
    scale = config.guidance_scale
    if scale is None:
        scale = adapter.guidance if adapter.distilled else 1.0
    looked_at = scale if config.eval_guidance_scale is None else config.eval_guidance_scale
    if config.negative_prompt and (adapter.distilled or scale == looked_at == 1):
        logger.warning("--negative-prompt changes nothing where there is no guidance: give --guidance-scale too")
    if is_main() and (line := replaced(adapter.scheduler, kind_for(adapter.scheduler, config.sampler))):
        print(line)
    return DenoisingPolicy(
        adapter,
        sampler(config, adapter),
        guidance=scale,
        evaluation_guidance=looked_at,
        sample_rows=config.sample_rows,
        micro_batch_rows=config.micro_batch_rows,
        forward_draws=forward_draws,
        autocast=autocast_of(compute),
    )


def _choose_trained(config: DiffusionConfig, adapter: PipelineAdapter) -> None:
    """Let adapters, or all weights of the denoiser, require gradients."""
    denoiser = adapter.denoiser
    if config.lora_path:
        if not config.lora_rank:
            told = "fuse it into the pipeline and save that"
            raise UsageError(f"{flag('lora_path')} starts from adapters, and --lora-rank 0 trains all weights: {told}")
        load_lora(adapter, config.lora_path)
    elif config.lora_rank:
        targets = targets_of(denoiser, config.lora_targets)
        add_lora(denoiser, config.lora_rank, targets, alpha=config.lora_alpha or None, seed=config.seed)
    else:
        denoiser.requires_grad_(True)


def check_learns(policy: DenoisingPolicy) -> None:
    """One call of the denoiser, to see that something of what is trained has a part in what it predicts.

    Raises:
        UsageError: none of it has, such as adapters on layers whose output is dropped.
    """
    trained, adapter = list(policy.parameters()), policy.adapter
    x = torch.randn(1, *adapter.latent_shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
    told, time = policy.conditions([""]), policy.sampler.levels.timesteps[:1].to(policy.device)
    with policy.mixed():
        out = adapter.predict(policy.module, x, time, told)
    reached = torch.autograd.grad(out.sum(), trained, allow_unused=True) if out.requires_grad else []
    if not any(gradient is not None and bool(gradient.any()) for gradient in reached):
        raise UsageError(
            f"none of the {len(trained)} trained tensors of this {type(policy.module).__name__} has a part in what it "
            "predicts: name other --lora-targets"
        )


def sampler(config: DiffusionConfig, adapter: PipelineAdapter) -> Sampler:
    """The chain that a config asks for."""
    noise: Any = {"eta": config.eta, "noise_level": config.noise_level}
    return sampler_for(
        adapter.scheduler, config.num_inference_steps, config.sampler, **noise, set_timesteps=adapter.set_timesteps
    )


def plan(config: DiffusionConfig, policy: DenoisingPolicy, differentiable: bool) -> Any:
    """What training will take, for a line before it begins."""
    pictures = config.tasks_per_step * config.group_size
    steps = policy.sampler.steps
    return memory_plan(
        policy.adapter,
        batch=min(config.micro_batch_rows, pictures if differentiable else pictures * steps),
        steps=steps,
        grad_steps=steps if differentiable else 1,
        guided=policy.guidance != 1.0,
        decoded=differentiable,
        dtype=policy.autocast,
        forks=1 + 2 * (config.gate != "none") + bool(config.ema),  # the start, a gate's two, an average
    )
