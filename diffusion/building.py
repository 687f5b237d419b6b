"""From a config to the policy that learns: a pipeline, what of it is trained, and the chain that is sampled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UsageError
from ..trainers.config import flag
from ..trainers.distributed import device, is_main
from ..trainers.lora import add_lora, layers_for
from ..trainers.peak import fake
from ..trainers.precision import autocast_of
from ..working import LONG, working
from .economy import compile_blocks, recompute_layers, tile
from .lora import load_lora, targets_of
from .memory import Plan, memory_plan
from .pipelines import PipelineAdapter, adapter_for, load, preview, text_encoder_weights
from .policy import DenoisingPolicy
from .sampler import Sampler, sampler_for
from .schedulers import kind_for
from .schedulers import replaced as stands_in

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
    options = options_of(config)
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
    spare(config, adapter)
    if config.compile:
        compile_blocks(adapter)
    scale, looked_at = guidances(config, adapter)
    if config.negative_prompt and (adapter.distilled or scale == looked_at == 1):
        logger.warning("--negative-prompt changes nothing where there is no guidance: give --guidance-scale too")
    if is_main() and (line := stands_in(adapter.scheduler, kind_for(adapter.scheduler, config.sampler))):
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


def spare(config: DiffusionConfig, adapter: PipelineAdapter) -> None:
    """Save memory as the config says.

    Raises:
        UsageError: layers or tiles are asked for, and the pipeline has none.
    """
    recompute_layers(adapter, config.gradient_checkpointing)
    tile(adapter, config.vae_tiling)
    if config.offload_text_encoders:
        adapter.offload_text_encoders()


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


def plan(config: DiffusionConfig, adapter: PipelineAdapter, compute: torch.dtype, texts: int | None = None) -> Plan:
    """What training will take, for a line before it begins; of an adapter without data that of the real one.

    Args:
        texts: bytes of the text encoders, where the adapter stands without them.
    """
    pictures, steps = config.tasks_per_step * config.group_size, config.num_inference_steps
    return memory_plan(
        adapter,
        drawn=min(config.sample_rows, pictures),
        learned=min(config.micro_batch_rows, pictures if config.through_decoder else pictures * steps)
        * config.steps_held,
        steps=steps,
        guided=any(scale != 1.0 for scale in guidances(config, adapter)),
        decoded=config.through_decoder,
        dtype=autocast_of(compute),
        forks=1 + 2 * (config.gate != "none") + bool(config.ema),  # the start, a gate's two, an average
        texts=texts,
    )


def skeleton_of(config: DiffusionConfig, source: str, compute: torch.dtype) -> tuple[PipelineAdapter, int] | None:
    """An adapter whose networks are as a run's and hold no data, and the bytes of its text encoders, which are absent.

    Returns:
        None where the pipeline's configurations do not tell what its networks and conditions are.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    seen = preview(source, **options_of(config))
    if seen is None or not seen.knows_conditions:
        return None
    _choose_trained(replace(config, lora_path=""), seen)
    spare(config, seen)
    with FakeTensorMode():
        for part in seen.pipeline.components.values():
            if isinstance(part, nn.Module):
                fake(part, compute)
    return seen, text_encoder_weights(source) * compute.itemsize


def plan_unloaded(config: DiffusionConfig, source: str, compute: torch.dtype) -> Plan:
    """The plan of a pipeline of which no weight is read: by its configurations alone.

    Raises:
        UsageError: a pipeline class whose networks, or conditions, configurations do not tell.
    """
    found = skeleton_of(config, source, compute)
    if found is None:
        raise UsageError(f"what {source} takes cannot be told before it is loaded: start the run, which tells it")
    return plan(config, found[0], compute, found[1])


def rows_within(config: DiffusionConfig, source: str, compute: torch.dtype, budget: int) -> dict[str, int]:
    """``sample_rows`` and ``micro_batch_rows`` that a budget in bytes holds; nothing where nobody can tell.

    What is taken is linear in the rows, so that two counts tell.

    Raises:
        UsageError: one row is too much.
    """
    found = skeleton_of(config, source, compute)
    if found is None:
        return {}
    rows, most = {}, config.tasks_per_step * config.group_size
    two, four = (plan(replace(config, sample_rows=n, micro_batch_rows=n), found[0], compute, found[1]) for n in (2, 4))
    limits = {"sample_rows": ("drawing", most), "micro_batch_rows": ("learning", most * config.num_inference_steps)}
    for name, (phase, most) in limits.items():
        each = (four.phases[phase] - two.phases[phase]) / 2
        room = budget - two.always - (two.phases[phase] - 2 * each)
        if room < each:
            raise UsageError(
                f"{phase} one row takes {(two.always + two.phases[phase] - each) / 1e9:.2g} GB, and there are "
                f"{budget / 1e9:.2g}: give --offload-text-encoders, --gradient-checkpointing 1, smaller --height and "
                "--width, or a smaller --lora-rank"
            )
        rows[name] = max(1, min(most, int(room / max(1.0, each))))
    return rows


def options_of(config: DiffusionConfig) -> dict[str, Any]:
    """Of the pipeline's adapter."""
    options: dict[str, Any] = {"guidance": config.guidance_scale, "negative_prompt": config.negative_prompt}
    options |= {"height": config.height, "width": config.width}
    return options if config.num_frames is None else options | {"num_frames": config.num_frames}


def guidances(config: DiffusionConfig, adapter: PipelineAdapter) -> tuple[float, float]:
    """The scales of classifier-free guidance in training, and where pictures are looked at."""
    scale = config.guidance_scale
    if scale is None:
        scale = adapter.guidance if adapter.distilled else 1.0
    return scale, scale if config.eval_guidance_scale is None else config.eval_guidance_scale
