"""Published architectures as folders of configurations alone, written from their published numbers: no weight is read.

What a run takes is counted on them (``autotelic.trainers.peak``) where no hub can be reached.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from transformers import CLIPTextConfig, T5Config

CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
T5_XXL |= {"feed_forward_proj": "gated-gelu"}  # type: ignore[dict-item]


def stable_diffusion_3_5_medium(folder: Path) -> Path:
    """Stable Diffusion 3.5 medium: 2.2 billion weights in the denoiser, pictures of 1,024 pixels and fewer."""
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
        vae = _vae(scaling_factor=1.5305, shift_factor=0.0609)
    texts = {
        "text_encoder": ("CLIPTextModelWithProjection", CLIPTextConfig(**CLIP_L)),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIPTextConfig(**CLIP_G)),
        "text_encoder_3": ("T5EncoderModel", T5Config(**T5_XXL)),
    }
    return _written(folder, "StableDiffusion3Pipeline", transformer, vae, texts, shift=3.0)


def flux_1_dev(folder: Path, layers: int = 19, single_layers: int = 38) -> Path:
    """FLUX.1 dev: 11.9 billion weights in the denoiser, guidance-distilled.

    Args:
        layers, single_layers: of its two kinds; what it takes is linear in them, which saves counting all.
    """
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=layers,
            num_single_layers=single_layers,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            guidance_embeds=True,
        )
        vae = _vae(scaling_factor=0.3611, shift_factor=0.1159)
    texts = {
        "text_encoder": ("CLIPTextModel", CLIPTextConfig(**CLIP_L)),
        "text_encoder_2": ("T5EncoderModel", T5Config(**T5_XXL)),
    }
    shift = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    return _written(folder, "FluxPipeline", transformer, vae, texts, **shift)


def _vae(**scaling: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=1024,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
        **scaling,
    )


def _written(
    folder: Path, kind: str, transformer: Any, vae: Any, texts: Mapping[str, tuple[str, Any]], **scheduling: Any
) -> Path:
    index: dict[str, Any] = {"_class_name": kind}
    parts = {"transformer": transformer, "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler(**scheduling)}
    for name, part in parts.items():
        part.save_config(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    for name, (encoder, config) in texts.items():
        config.save_pretrained(folder / name)
        index[name] = ["transformers", encoder]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "PreTrainedTokenizerFast"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def openvla_7b(layers: int = 32, rank: int = 32) -> Any:
    """OpenVLA-7B, 7.5 billion weights in bfloat16 that take no memory, with adapters; ``layers`` of its Llama 2."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ..trainers.lora import add_lora
    from ..trainers.peak import fake
    from ..vla.prismatic import PrismaticConfig, PrismaticVLA

    llama = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32064}
    with torch.device("meta"):
        text = llama | {"model_type": "llama", "num_hidden_layers": layers, "max_position_embeddings": 2048}
        model = PrismaticVLA(PrismaticConfig(text_config=text))
    add_lora(model, rank)
    with FakeTensorMode():
        fake(model, torch.bfloat16)
    return model
