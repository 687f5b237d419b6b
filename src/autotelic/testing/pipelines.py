"""Tiny pipelines of the real diffusers classes, made offline in well under a second each, with random weights.

They draw 16 x 16 pixels from 8 x 8 latents where nothing else is said. Tokenizers are built from parts: letters and
nothing merged.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

SIZE = 16
TEXT = 16  # width of the text encoders


def clip_tokenizer() -> CLIPTokenizer:
    """Spells every word letter by letter, in at most 16 tokens."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=16)


def t5_tokenizer() -> T5Tokenizer:
    """Knows letters; words are spelt with them."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in string.ascii_lowercase + string.digits]
    return T5Tokenizer(vocab=special + letters, extra_ids=0)


def t5(width: int) -> T5EncoderModel:
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(t5_tokenizer()), **sizes)).eval()


def clip_config() -> CLIPTextConfig:
    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT,
        intermediate_size=32,
        projection_dim=TEXT,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def vae(**changes: Any) -> AutoencoderKL:
    """[B, 4, 8, 8] latents, [B, 3, 16, 16] pictures."""
    settings: dict[str, Any] = {"latent_channels": 4, "scaling_factor": 0.5} | changes
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=SIZE,
        **settings,
    )


def unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {"cross_attention_dim": TEXT} | changes
    return UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **settings,
    )


def ddim(prediction: str = "epsilon") -> DDIMScheduler:
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    return DDIMScheduler(**noise, clip_sample=False, prediction_type=prediction)


def _seeded(build: Callable[..., Any]) -> Callable[..., Any]:
    """A builder with a further keyword ``seed``, which fixes the weights and leaves the global generator alone."""

    def seeded(*args: Any, seed: int = 0, **kwargs: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            pipeline = build(*args, **kwargs)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return seeded


@_seeded
def stable_diffusion(prediction: str = "epsilon", **unet_changes: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        unet=unet(**unet_changes),
        scheduler=ddim(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@_seeded
def stable_diffusion_xl(**vae_changes: Any) -> StableDiffusionXLPipeline:
    sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return StableDiffusionXLPipeline(
        vae=vae(**vae_changes),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(cross_attention_dim=2 * TEXT, projection_class_embeddings_input_dim=TEXT + 6 * 4, **sizes),
        scheduler=ddim(),
        add_watermarker=False,
    )


@_seeded
def stable_diffusion_3(t5_encoder: bool = True, dynamic: bool = False) -> StableDiffusion3Pipeline:
    """``dynamic``: the scheduler's shift depends on the picture's size."""
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * TEXT,
        caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
        vae=vae(shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(2 * TEXT) if t5_encoder else None,
        tokenizer_3=t5_tokenizer() if t5_encoder else None,
    )


@_seeded
def flux(distilled: bool = True) -> FluxPipeline:
    """``distilled`` as FLUX.1-dev, otherwise as schnell."""
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        guidance_embeds=distilled,
        axes_dims_rope=(2, 2, 4),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=distilled),
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(TEXT),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def pixart_parts() -> dict[str, Any]:
    transformer = PixArtTransformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=TEXT,
        use_additional_conditions=False,
    )
    text = {"tokenizer": t5_tokenizer(), "text_encoder": t5(TEXT)}
    return text | {"vae": vae(), "transformer": transformer, "scheduler": ddim()}


@_seeded
def pixart_sigma() -> PixArtSigmaPipeline:
    """Its transformer predicts a variance as well."""
    return PixArtSigmaPipeline(**pixart_parts())


@_seeded
def pixart_alpha() -> PixArtAlphaPipeline:
    """Has no adapter in this package: for tests of one's own."""
    return PixArtAlphaPipeline(**pixart_parts())


@_seeded
def sana() -> SanaPipeline:
    """[B, 4, 16, 16] latents of 32 x 32 pixels; its call takes multiples of 32."""
    sizes = {"hidden_size": TEXT, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 64}
    text = Gemma2Config(vocab_size=len(t5_tokenizer()), **sizes, **heads)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=TEXT,
        sample_size=16,
    )
    coder = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    scales = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    return SanaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=Gemma2Model(text).eval(),
        vae=AutoencoderDC(latent_channels=4, attention_head_dim=8, scaling_factor=0.4, **coder, **layers, **scales),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


LATENTS = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 1.5, 2.0, 2.5]}


@_seeded
def qwen_image() -> QwenImagePipeline:
    """[B, 4, 4, 4] latents of 32 x 32 pixels."""
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 6, 6),
    )
    coder = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1, "dim_mult": [1, 1, 1, 1]}
    text: dict[str, Any] = {"hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"vocab_size": len(t5_tokenizer())}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}}
    seen = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": TEXT}
    reader = Qwen2_5_VLConfig(text_config=text, vision_config=seen)
    return QwenImagePipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(reader).eval(),
        vae=AutoencoderKLQwenImage(**coder, **LATENTS),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


@_seeded
def wan(expand_timesteps: bool = False) -> WanPipeline:
    """[B, 4, 2, 4, 4] latents of five frames of 32 x 32 pixels; ``expand_timesteps`` as Wan 2.2 TI2V-5B."""
    transformer = WanTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=12,
        num_attention_heads=2,
        text_dim=TEXT,
        freq_dim=16,
        ffn_dim=32,
    )
    coder = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1, "dim_mult": [1, 1, 1, 1]}
    sizes = {"d_model": TEXT, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(vocab_size=len(t5_tokenizer()), **sizes)).eval(),
        vae=AutoencoderKLWan(**coder, **LATENTS),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        expand_timesteps=expand_timesteps,
    )
