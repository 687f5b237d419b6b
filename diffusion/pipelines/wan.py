"""Wan: videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ...errors import UsageError
from .base import Condition, PipelineAdapter, call_default

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class WanAdapter(PipelineAdapter):
    """Wan 2.1 and Wan 2.2 with one denoiser (TI2V-5B): latents are [C, f, h, w], outputs videos [F, 3, H, W] in 0..1.

    Args:
        num_frames: a multiple of the VAE's step in time (4) and one more; None takes that of the pipeline's call.

    Raises:
        UsageError: another number of frames; Wan 2.2 with two denoisers.
    """

    denoiser_name = "transformer"
    usual_guidance = 5.0
    video = True

    def __init__(self, pipeline: DiffusionPipeline, *, num_frames: int | None = None, **options: Any) -> None:
        parts: Any = pipeline
        if parts.config.get("boundary_ratio") is not None or parts.transformer_2 is not None:
            raise UsageError(
                "this WanPipeline has two denoisers, one for each half of the chain, and a policy trains one: take "
                "Wan 2.1 or Wan 2.2 TI2V-5B"
            )
        self.num_frames = call_default(pipeline, "num_frames") if num_frames is None else num_frames
        step = parts.vae_scale_factor_temporal
        if self.num_frames < 1 or (self.num_frames - 1) % step:
            raise UsageError(f"WanPipeline cannot draw {self.num_frames} frames: use a multiple of {step} and one more")
        super().__init__(pipeline, **options)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        time, scale = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        return self._latent_channels(), (self.num_frames - 1) // time + 1, self.height // scale, self.width // scale

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.num_frames, 3, self.height, self.width

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        length = call_default(self.pipeline, "max_sequence_length")
        states, _ = self.pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=length, device=self.device
        )
        return {"encoder_hidden_states": states}

    def _encode_negative(self) -> dict[str, Tensor]:
        return self._encode([self.negative_prompt])

    def _condition_shapes(self) -> dict[str, tuple[int, ...]]:
        length = call_default(self.pipeline, "max_sequence_length")
        return {"encoder_hidden_states": (length, cast(Any, self.denoiser).config.text_dim)}

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        if self.pipeline.config.expand_timesteps:  # one for each token
            _, frames, height, width = self.latent_shape
            timestep = timestep[:, None].expand(-1, frames * (height // 2) * (width // 2))
        told = condition["encoder_hidden_states"].to(latents.dtype)
        return {"hidden_states": latents, "timestep": timestep, "encoder_hidden_states": told}

    def _decoded(self, latents: Tensor) -> Tensor:
        return super()._decoded(latents).transpose(1, 2)

    def _encoded(self, pictures: Tensor) -> Tensor:
        return super()._encoded(pictures.transpose(1, 2))

    def _default_size(self) -> tuple[int, int]:
        return call_default(self.pipeline, "height"), call_default(self.pipeline, "width")

    def _unit(self) -> int:
        return int(self.pipeline.vae_scale_factor_spatial * cast(Any, self.denoiser).config.patch_size[-1])
