"""Low-rank adapters of a denoiser, in the files that diffusers reads; ``trainers.lora`` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..errors import UsageError
from ..trainers import lora
from ..trainers.lora import NAME, Targets, adapters_alone, ends_with, has_lora, lora_config, lora_state
from .pipelines import PipelineAdapter

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Every projection of the attention layers; the last four are the text's own, in Stable Diffusion 3 and FLUX."""


def attention(denoiser: nn.Module) -> list[str]:
    """Targets of a LoRA on the attention layers: those of ``ATTENTION`` that the denoiser has."""
    names = [name for name, _ in denoiser.named_modules()]
    return [target for target in ATTENTION if any(ends_with(name, target) for name in names)]


def targets_of(denoiser: nn.Module, named: Sequence[str]) -> Targets:
    """What ``--lora-targets`` stands for in a denoiser.

    Raises:
        UsageError: nothing is named, or "attention" where there are no such layers.
    """
    if not named:
        raise UsageError("--lora-targets names nothing to train: give ends of layers' names, attention or all-linear")
    if tuple(named) == ("all-linear",):
        return "all-linear"
    if tuple(named) != ("attention",):
        return list(named)
    if not (found := attention(denoiser)):
        raise UsageError(f"{type(denoiser).__name__} has no attention layers of known names: name --lora-targets")
    return found


def load_lora(adapter: PipelineAdapter, place: str | Path) -> list[nn.Parameter]:
    """Adapters of a folder, a file or the hub on a denoiser that has none; they alone go on being trained, in float32.

    Rank, alpha and targets are the file's.

    Raises:
        UsageError: no adapters there, those of another network, or some of the text encoder too.
    """
    source, pipeline, denoiser = Path(place).expanduser(), adapter.pipeline, adapter.denoiser
    if not hasattr(pipeline, "load_lora_weights"):
        return lora.load_lora(denoiser, source)
    file = {"weight_name": source.name} if source.is_file() else {}
    where = str(source.parent if file else source) if source.exists() else str(place)
    try:
        found = pipeline.lora_state_dict(where, **file)
        names = found[0] if isinstance(found, tuple) else found
        if others := sorted({name.partition(".")[0] for name in names if name.startswith("text_encoder")}):
            raise UsageError(f"the LoRA {place} adapts the {others[0]} as well, which is not trained: fuse it first")
        pipeline.load_lora_weights(where, adapter_name=NAME, **file)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, IndexError) as error:
        told = " ".join(str(error).split())[:200]
        raise UsageError(f"cannot load the LoRA {place} on this {type(pipeline).__name__}: {told}") from error
    if not has_lora(denoiser):
        raise UsageError(f"the LoRA {place} has nothing for the {type(denoiser).__name__} of this pipeline")
    return adapters_alone(denoiser)


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
