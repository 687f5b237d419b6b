"""Token policies from models of transformers, and back into folders."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import UsageError
from ..json_files import read_object
from ..plugins import named, names
from ..rewards.models.weights import loading
from ..trainers.lora import CONFIG, Targets, add_lora, ends_with, load_lora, save_pretrained
from ..trainers.peak import recomputed_share
from .processing import ProcessorRenderer
from .renderer import Renderer
from .transformers_backbone import TransformersBackbone

if TYPE_CHECKING:
    from .policy import TokenPolicy

log = logging.getLogger(__name__)

P = TypeVar("P", bound="TokenPolicy")


def assemble(
    kind: type[P],
    model: Any,
    processor: Any,
    *,
    lora_rank: int | None = None,
    lora_targets: Targets | None = None,
    lora_alpha: float | None = None,
    freeze_vision: bool = False,
    gradient_checkpointing: float | None = None,
    feature_bytes: int = 2**30,
    seed: int = 0,
    renderer: str | Callable[..., Renderer] | None = None,
    **options: Any,
) -> P:
    """A policy of a loaded model. What requires gradients is trained.

    Args:
        processor: a processor, or a tokenizer for a model of text alone.
        lora_rank: freeze the model and train adapters of this rank; None trains the model.
        lora_targets: ends of names of layers ("q_proj", "mlp.up_proj"), or "all-linear"; None takes every linear layer
            in the language model, none in the vision tower. Experts in one stack are no linear layers.
        lora_alpha: the adapters' factor is alpha / rank; None takes the rank.
        freeze_vision: train the language model alone, whatever layers ``lora_targets`` names in the tower; features of
            images are then kept over epochs.
        gradient_checkpointing: share of the layers that are recomputed in the backward pass; None: all of them in
            models above a billion parameters, none below.
        feature_bytes: limit of the kept features.
        seed: of the adapters.
        renderer: a class of processor and model, its name or place; None: that of the model's type. Options are
            bound to it: ``partial(ProcessorRenderer, chat=False)``.
        options: of the policy: sample_tokens, micro_batch_tokens, horizon, mask_truncated, autocast, decoder.

    Raises:
        UsageError: targets that are no layers, or layers of the vision tower alone while it is frozen.
    """
    reader = _renderer_class(model, renderer)(processor, model)
    model.eval()
    if lora_rank is not None:
        if lora_targets is None or (freeze_vision and lora_targets == "all-linear"):
            lora_targets = of_language(model)
        elif freeze_vision:
            lora_targets = _outside_the_tower(model, lora_targets)
        add_lora(model, lora_rank, lora_targets, alpha=lora_alpha, seed=seed)
        _tell_of_experts(model)
    elif lora_targets is not None or lora_alpha is not None:
        raise UsageError("lora_targets and lora_alpha shape adapters: give a lora_rank with them")
    share = recomputed_share(model, gradient_checkpointing)
    backbone = TransformersBackbone(model, reader, feature_bytes=feature_bytes, checkpointing=share)
    if freeze_vision:
        for parameter in backbone.vision_parameters():
            parameter.requires_grad_(False)
    return kind(backbone, reader, **options)


def _renderer_class(model: Any, given: str | Callable[..., Renderer] | None) -> Callable[..., Renderer]:
    """The one given or named, or that of the model's type where one is registered for it."""
    if given is None:
        family = str(model.config.model_type)
        given = family if family in names("renderer") else ProcessorRenderer
    return named("renderer", given) if isinstance(given, str) else given


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

    adapters = Path(name) / CONFIG
    source = base_of(adapters) if adapters.is_file() else name
    if Path(source).is_dir():
        source = str(Path(source).resolve())  # adapters name it, and are read from anywhere
    with loading(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    auto, sees = model_class(config, source)
    named = {"attn_implementation": attn_implementation, "device_map": device_map}
    given = {key: value for key, value in named.items() if value is not None}
    with loading(source):
        model = auto.from_pretrained(source, dtype=dtype, trust_remote_code=trust_remote_code, **given)
    with loading(name):
        reader = AutoProcessor if sees else AutoTokenizer
        processor = reader.from_pretrained(name, trust_remote_code=trust_remote_code)
        if adapters.is_file():
            load_lora(model, name)
    return model if device is None else model.to(device), processor, rest


def base_of(adapters: Path) -> str:
    """The model that adapters are of: a folder, as it stands or beside theirs, or a hub name."""
    source = read_object(adapters).get("base_model_name_or_path")
    if not source or not isinstance(source, str):
        raise UsageError(f"{adapters} does not say of which model it is: write its base_model_name_or_path")
    for place in (Path(source), adapters.parent / source):
        if place.is_dir():
            return str(place)
    if Path(source).is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise UsageError(f"{source} is not there, of which {adapters} is: mend its base_model_name_or_path")
    return source


def model_class(config: Any, source: str) -> tuple[Any, bool]:
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


def of_language(model: Any) -> list[str]:
    """Full names of the linear layers of the language model."""
    parts = {id(part) for part in model.get_decoder().modules()}
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and id(part) in parts]


def _outside_the_tower(model: Any, targets: Targets) -> list[str]:
    """Full names of the layers that targets name and that are not the vision tower's."""
    text = {id(part) for part in model.get_decoder().modules()}
    tower = {id(part) for part in model.base_model.modules()} - text
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d) and name}
    chosen: list[str] = []
    for target in targets:
        named = [name for name in layers if ends_with(name, target)]
        outside = [name for name in named if id(layers[name]) not in tower]
        if named and not outside:
            raise UsageError(
                f"lora_targets: {target} names layers of the vision tower alone ({named[0]}, ...), and freeze_vision "
                "leaves that as it is: 0 of its adapters would train; leave one of the two out"
            )
        chosen += outside or [target]  # what names nothing is told of there
    return chosen


def _tell_of_experts(model: Any) -> None:
    """Say which weights LoRA cannot adapt."""
    stacks = [
        (f"{name}.{own}", weight.numel())
        for name, part in model.get_decoder().named_modules()
        if not isinstance(part, _ConvNd)
        for own, weight in part.named_parameters(recurse=False)
        if weight.ndim == 3
    ]
    if stacks:
        share = sum(size for _, size in stacks) / sum(weight.numel() for weight in model.parameters())
        log.warning(
            "LoRA adapts linear layers: the experts (%d stacks such as %s, %.0f %% of the weights) get no adapters and "
            "stay as they are",
            len(stacks),
            stacks[0][0],
            100 * share,
        )


def save(policy: TokenPolicy, folder: Path) -> Path:
    """Adapters where there are any, else the whole model, and what reads questions."""
    folder.mkdir(parents=True, exist_ok=True)
    save_pretrained(policy.module, folder)
    policy.renderer.save(folder)
    return folder
