"""Low-rank adapters (LoRA, arXiv 2106.09685) on a denoiser, made by PEFT and saved as diffusers reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..errors import UsageError, unknown
from .pipelines import PipelineAdapter

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Every projection of the attention layers; the last four are the text's own, in Stable Diffusion 3 and FLUX."""
NAME = "default"


def add_lora(
    denoiser: nn.Module,
    rank: int,
    targets: Sequence[str] | Literal["all-linear"] | None = None,
    alpha: float | None = None,
    seed: int = 0,
) -> list[nn.Parameter]:
    """Freeze a denoiser and give it trainable low-rank adapters, which change nothing yet.

    The added weights are W + alpha / rank B A, with B = 0 at the start. They are float32 whatever the denoiser is:
    steps of a small learning rate would be lost in half precision.

    Args:
        denoiser: a diffusers model, changed in place.
        targets: ends of module names, such as "to_q" or "ff.net.2"; None takes ``ATTENTION``, "all-linear" every
            linear layer.
        alpha: None takes the rank, a factor of 1.
        seed: of A; the global random generators are left as they were.

    Returns:
        The trainable parameters.

    Raises:
        UsageError: a target that is no layer of the denoiser, or a rank below 1.
    """
    from peft import LoraConfig

    if rank < 1:
        raise UsageError(f"a LoRA has a rank of at least 1, not {rank}")
    layers = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    chosen = _all_linear(denoiser) if targets == "all-linear" else list(ATTENTION if targets is None else targets)
    missing = [target for target in chosen if not any(_ends(layer, target) for layer in layers)]
    if missing and (targets is not None or len(missing) == len(chosen)):
        raise unknown("LoRA target", missing[0], {_short(layer) for layer in layers})
    config = LoraConfig(r=rank, lora_alpha=cast(Any, rank if alpha is None else alpha), target_modules=chosen)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        cast(Any, denoiser).add_adapter(config, adapter_name=NAME)  # freezes everything else
    trainable = [p for p in denoiser.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.data = parameter.data.float()
    return trainable


def lora_state(denoiser: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by PEFT's names (``….lora_A.weight``), detached; they share memory with the denoiser.

    Raises:
        UsageError: a denoiser without adapters of ``add_lora``.
    """
    from peft import get_peft_model_state_dict

    if NAME not in getattr(denoiser, "peft_config", {}):
        raise UsageError(f"{type(denoiser).__name__} has no LoRA: call add_lora first")
    return {name: tensor.detach() for name, tensor in get_peft_model_state_dict(denoiser, adapter_name=NAME).items()}


def save_lora(adapter: PipelineAdapter, folder: str | Path) -> Path:
    """Write the adapters where ``pipeline.load_lora_weights(folder)`` of the same pipeline class finds them.

    The file says rank and alpha for diffusers; readers that overlook them assume alpha = rank, the default.

    Returns:
        The file, ``pytorch_lora_weights.safetensors``.

    Raises:
        UsageError: a denoiser without adapters, or a pipeline class that cannot save any.
    """
    state, pipeline, part = lora_state(adapter.denoiser), adapter.pipeline, adapter.denoiser_name
    if not hasattr(pipeline, "save_lora_weights"):
        raise UsageError(f"{type(pipeline).__name__} has no save_lora_weights: save the whole pipeline instead")
    config = cast(Any, adapter.denoiser).peft_config[NAME].to_dict()
    layers = {f"{part}_lora_layers": state, f"{part}_lora_adapter_metadata": config}
    pipeline.save_lora_weights(str(folder), **layers)
    return Path(folder) / "pytorch_lora_weights.safetensors"


def _all_linear(denoiser: nn.Module) -> list[str]:
    return [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]


def _ends(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")


def _short(layer: str) -> str:
    """The end of a name that says something: ``to_out.0`` rather than ``0``."""
    parts = layer.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])
