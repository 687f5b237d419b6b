"""Low-rank adapters of a denoiser, in the files that diffusers reads; ``trainers.lora`` makes them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..trainers import lora
from ..trainers.lora import ends_with, lora_config, lora_state
from .pipelines import PipelineAdapter

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Every projection of the attention layers; the last four are the text's own, in Stable Diffusion 3 and FLUX."""


def attention(denoiser: nn.Module) -> list[str]:
    """Targets of a LoRA on the attention layers: those of ``ATTENTION`` that the denoiser has."""
    names = [name for name, _ in denoiser.named_modules()]
    return [target for target in ATTENTION if any(ends_with(name, target) for name in names)]


def save_lora(adapter: PipelineAdapter, folder: str | Path) -> Path:
    """Write the adapters where ``pipeline.load_lora_weights(folder)`` of the same pipeline class finds them.

    The file says rank and alpha for diffusers; readers that overlook them assume alpha = rank, the default. Those of a
    pipeline class that knows no adapters are in PEFT's layout, for ``trainers.lora.load_lora(denoiser, folder)``.

    Returns:
        The file, ``pytorch_lora_weights.safetensors`` or PEFT's.

    Raises:
        UsageError: a denoiser without adapters.
    """
    state, pipeline, part = lora_state(adapter.denoiser), adapter.pipeline, adapter.denoiser_name
    if not hasattr(pipeline, "save_lora_weights"):
        return lora.save_lora(adapter.denoiser, folder) / lora.WEIGHTS
    config = lora_config(adapter.denoiser).to_dict()
    layers = {f"{part}_lora_layers": state, f"{part}_lora_adapter_metadata": config}
    pipeline.save_lora_weights(str(folder), **layers)
    return Path(folder) / "pytorch_lora_weights.safetensors"
