"""Tiny pipelines of the real diffusers classes, made offline in well under a second each, with random weights.

They draw 16 x 16 pixels from 8 x 8 latents. Tokenizers are built from parts: letters and nothing merged.
"""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE = 16
TEXT = 16  # width of every text encoder
NOISE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def clip_tokenizer() -> CLIPTokenizer:
    """Spells every word letter by letter, in at most 16 tokens."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=16)


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


def stable_diffusion(prediction: str = "epsilon", seed: int = 0, **unet_changes: Any) -> StableDiffusionPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=vae(),
            text_encoder=CLIPTextModel(clip_config()).eval(),
            tokenizer=clip_tokenizer(),
            unet=unet(**unet_changes),
            scheduler=DDIMScheduler(**NOISE, clip_sample=False, prediction_type=prediction),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
