"""Token policies from models of transformers, and back into folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from ..errors import UsageError, unknown
from ..rewards.weights import loading
from .processing import ProcessorSpeech, end_ids, placeholder_ids
from .transformers_backbone import TransformersBackbone

if TYPE_CHECKING:
    from .policy import TokenPolicy

P = TypeVar("P", bound="TokenPolicy")
NAME = "default"


def assemble(
    kind: type[P],
    model: Any,
    processor: Any,
    *,
    lora_rank: int | None = None,
    lora_targets: Sequence[str] | None = None,
    lora_alpha: float | None = None,
    freeze_vision: bool = False,
    gradient_checkpointing: bool = False,
    feature_bytes: int = 2**30,
    seed: int = 0,
    speech: dict[str, Any] | None = None,
    **options: Any,
) -> P:
    """A policy of a loaded model. What requires gradients is trained.

    Args:
        processor: a processor, or a tokenizer for a model of text alone.
        lora_rank: freeze the model and train adapters of this rank; None trains the model.
        lora_targets: ends of names of linear layers ("q_proj", "mlp.up_proj"); None takes every one in the language
            model, none in the vision tower.
        lora_alpha: the adapters' factor is alpha / rank; None takes the rank.
        freeze_vision: train the language model alone; features of images are then kept over epochs.
        gradient_checkpointing: recompute layers in the backward pass, at the price of reading every completion with
            its prompt in training.
        feature_bytes: limit of the kept features.
        seed: of the adapters.
        speech: options of ``ProcessorSpeech``: chat, pixel_limit, keep.
        options: of the policy: piece, horizon, at_once, mask_truncated, autocast.
    """
    ends = end_ids(model, processor)
    model.eval()
    if lora_rank is not None:
        add_lora(model, lora_rank, lora_targets, lora_alpha, seed)
    elif lora_targets is not None or lora_alpha is not None:
        raise UsageError("lora_targets and lora_alpha shape adapters: give a lora_rank with them")
    banned = placeholder_ids(model.config, processor, ends)
    backbone = TransformersBackbone(model, banned, feature_bytes=feature_bytes, checkpointing=gradient_checkpointing)
    if freeze_vision:
        for parameter in backbone.vision_parameters():
            parameter.requires_grad_(False)
    voice = ProcessorSpeech(processor, ends, image_token=backbone.image_token, **(speech or {}))
    return kind(backbone, voice, **options)


def load(
    name: str,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    **rest: Any,
) -> tuple[Any, Any, dict[str, Any]]:
    """Model, processor and the options that are left, from a folder, an adapters' folder, or a hub.

    Args:
        dtype: "auto" is that of the checkpoint.
        device: where the model goes; ``device_map`` spreads it over several instead.

    Raises:
        UsageError: nothing there, or nothing that continues text; one line.
    """
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer

    adapters = Path(name) / "adapter_config.json"
    source = json.loads(adapters.read_text())["base_model_name_or_path"] if adapters.is_file() else name
    if not source:
        raise UsageError(f"{adapters} does not say of which model it is: write its base_model_name_or_path")
    with loading(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    auto, sees = _model_class(config, source)
    named = {"attn_implementation": attn_implementation, "device_map": device_map}
    given = {key: value for key, value in named.items() if value is not None}
    with loading(source):
        model = auto.from_pretrained(source, dtype=dtype, trust_remote_code=trust_remote_code, **given)
    with loading(name):
        reader = AutoProcessor if sees else AutoTokenizer
        processor = reader.from_pretrained(name, trust_remote_code=trust_remote_code)
        if adapters.is_file():
            model.load_adapter(name, adapter_name=NAME, is_trainable=True)
            _only_adapters(model)
    return model if device is None else model.to(device), processor, rest


def _model_class(config: Any, source: str) -> tuple[Any, bool]:
    """The auto class of a configuration, and whether it takes images."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    remote = getattr(config, "auto_map", None) or {}
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or "AutoModelForImageTextToText" in remote:
        return AutoModelForImageTextToText, True
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in remote:
        return AutoModelForCausalLM, False
    raise UsageError(
        f'"{source}" is a {config.model_type}: a token policy needs a model that continues text (image-text-to-text '
        "or causal)"
    )


def add_lora(
    model: Any, rank: int, targets: Sequence[str] | None = None, alpha: float | None = None, seed: int = 0
) -> None:
    """Freeze a model and give it trainable low-rank adapters (LoRA, arXiv 2106.09685), which change nothing yet.

    They are float32 whatever the model is: steps of a small learning rate would be lost in half precision.

    Raises:
        UsageError: a target that is no linear layer of the model, or a rank below 1.
    """
    from peft import LoraConfig

    if rank < 1:
        raise UsageError(f"a LoRA has a rank of at least 1, not {rank}")
    chosen = _layers(model, targets)
    config = LoraConfig(r=rank, lora_alpha=cast(Any, rank if alpha is None else alpha), target_modules=chosen)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(config, adapter_name=NAME)
    _only_adapters(model)


def _layers(model: Any, targets: Sequence[str] | None) -> list[str]:
    """Full names of linear layers: those that end like a target, or all of the language model."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if targets is None:
        text = {id(module) for module in model.get_decoder().modules()}
        return [name for name in linear if id(model.get_submodule(name)) in text]
    for target in targets:
        if not any(_ends(name, target) for name in linear):
            raise unknown("LoRA target", target, {name.split(".")[-1] for name in linear})
    return [name for name in linear if any(_ends(name, target) for target in targets)]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _only_adapters(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save(policy: TokenPolicy, folder: Path) -> Path:
    """Adapters where there are any, else the whole model, and what reads questions."""
    folder.mkdir(parents=True, exist_ok=True)
    cast(Any, policy.module).save_pretrained(folder)
    policy.speech.save(folder)
    return folder
