"""Diffusers pipelines as a denoising policy sees them: one adapter per family, found by the pipeline's class."""

from .base import PipelineAdapter
from .flux import FluxAdapter, QwenImageAdapter
from .loading import adapter_for, check_dtype, load, preview, text_encoder_weights
from .sana import PixArtAdapter, SanaAdapter
from .stable_diffusion import StableDiffusion3Adapter, StableDiffusionAdapter, StableDiffusionXLAdapter
from .wan import WanAdapter

__all__ = [
    "FluxAdapter",
    "PipelineAdapter",
    "PixArtAdapter",
    "QwenImageAdapter",
    "SanaAdapter",
    "StableDiffusion3Adapter",
    "StableDiffusionAdapter",
    "StableDiffusionXLAdapter",
    "WanAdapter",
    "adapter_for",
    "check_dtype",
    "load",
    "preview",
    "text_encoder_weights",
]
