"""Weights of published scorers: found, read without pickle, and renamed to transformers' layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError


@contextmanager
def loading(name: str) -> Iterator[None]:
    """One clear line instead of a library's trace when a model or file is not to be had."""
    try:
        yield
    except UsageError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(
            f'cannot load "{name}" ({reason}): give a local folder or file, or the id of a model on a hub that this '
            "machine reaches"
        ) from error


def find(name_or_path: str, file: str) -> Path:
    """A weights file: the path itself, a file in a local folder, or one downloaded from a hub repository."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / file).is_file():
            raise UsageError(f'cannot load "{name_or_path}": the folder holds no {file}')
        return path / file
    from huggingface_hub import hf_hub_download

    with loading(f"{name_or_path}/{file}"):
        return Path(hf_hub_download(name_or_path, file))


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, by name; "state_dict" and "module." wrappings are taken off.

    A torch file is read with ``weights_only``: one that needs code to be run is refused.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError and EOFError, by the damage
        raise UsageError(f"cannot read {path} as plain tensors: {str(error).splitlines()[0]}") from error
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds a {type(content).__name__}, not tensors by name")
    return {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}


def linear_stack(state: Mapping[str, Tensor]) -> nn.Sequential:
    """Linear layers one after another, without activations, from ``PREFIX.N.weight`` and ``PREFIX.N.bias``.

    Numbers may have gaps, where a published head had dropout, and any prefix or none. The widths are the weights'.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if match := re.search(r"(?:^|\.)(\d+)\.(weight|bias)$", name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor
    layers: list[nn.Module] = []
    for number in sorted(found):
        if set(found[number]) != {"weight", "bias"} or found[number]["weight"].ndim != 2:
            raise UsageError(f"layer {number} of the head is no linear layer with weight and bias")
        layer = nn.Linear(found[number]["weight"].shape[1], found[number]["weight"].shape[0])
        layer.load_state_dict(found[number])
        layers.append(layer)
    if not layers:
        raise UsageError(f"the head's file names no linear layer; it holds {', '.join(sorted(state)[:4])}")
    return nn.Sequential(*layers)


_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OPEN_CLIP_TOP = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}


def clip_from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's CLIP with two transformers -> the names and layouts of transformers' ``CLIPModel``.

    Checked against the code: embeddings of a random open_clip 3.3.0 model and of the converted one agree to 1e-5.

    Raises:
        UsageError: a tensor that this layout does not have; the line names it.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _OPEN_CLIP_TOP:
            renamed[_OPEN_CLIP_TOP[name]] = tensor
        elif name in ("visual.proj", "text_projection"):  # open_clip multiplies from the right
            renamed["visual_projection.weight" if name == "visual.proj" else "text_projection.weight"] = tensor.T
        elif match := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name):
            layer = f"{'vision' if match[1] else 'text'}_model.encoder.layers.{match[2]}"
            if match[3] == "attn.in_proj":
                for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"{layer}.self_attn.{part}_proj.{match[4]}"] = rows
            elif match[3] in _OPEN_CLIP_LAYER:
                renamed[f"{layer}.{_OPEN_CLIP_LAYER[match[3]]}.{match[4]}"] = tensor
            else:
                raise UsageError(f"{name} has no place in a CLIPModel")
        elif name != "attn_mask":  # a constant that older checkpoints saved
            raise UsageError(f"{name} has no place in a CLIPModel")
    return renamed


_BLIP_VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def blip_vision(state: Mapping[str, Tensor]) -> Any:
    """BLIP's own vision transformer -> transformers' ``BlipVisionModel``; sizes are read off the weights.

    Heads are 64 wide, as in every ViT that BLIP published. Checked against the code: see ``blip_text``.
    """
    from transformers import BlipVisionConfig, BlipVisionModel

    renamed = {}
    for name, tensor in state.items():
        for pattern, new in _BLIP_VISION:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    width, patch = _size(state, "patch_embed.proj.weight")[0], _size(state, "patch_embed.proj.weight")[-1]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=_size(state, "blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=_layers(state, r"blocks\.(\d+)\."),
        num_attention_heads=width // 64,
        image_size=round((_size(state, "pos_embed")[1] - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    return _filled(BlipVisionModel(config), renamed)


def blip_text(state: Mapping[str, Tensor]) -> Any:
    """BLIP's text encoder with cross-attention -> transformers' ``BlipTextModel``, whose names are the same.

    Checked against the code: a random ``BLIP_Pretrain`` (vision and text together) and its converted twin
    give the same hidden states to 1e-5.
    """
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    vocabulary, width = _size(state, "embeddings.word_embeddings.weight")
    config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=_size(state, "encoder.layer.0.crossattention.self.key.weight")[1],
        intermediate_size=_size(state, "encoder.layer.0.intermediate.dense.weight")[0],
        num_hidden_layers=_layers(state, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=width // 64,
        max_position_embeddings=_size(state, "embeddings.position_embeddings.weight")[0],
    )
    kept = {name: tensor for name, tensor in state.items() if name != "embeddings.position_ids"}
    return _filled(BlipTextModel(config, add_pooling_layer=False), kept)


def _size(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise UsageError(f"the checkpoint has no {name}: it is not in BLIP's layout")
    return tuple(state[name].shape)


def _layers(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in state if (match := re.match(pattern, name)))


def _filled(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise UsageError(f"the checkpoint does not fit {type(model).__name__}: {said[:300]}") from error
    return model


def filled_clip(config: Any, state: Mapping[str, Tensor]) -> nn.Module:
    """A ``CLIPModel`` of this configuration with open_clip's weights."""
    from transformers import CLIPModel

    return _filled(CLIPModel(config), clip_from_open_clip(state))
