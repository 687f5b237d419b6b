"""Stable Diffusion 1, 2, XL and 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ...errors import UsageError
from .base import Condition, PipelineAdapter, shift

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class StableDiffusionAdapter(PipelineAdapter):
    """Stable Diffusion 1.x and 2.x, and latent consistency models."""

    @property
    def distilled(self) -> bool:
        return cast(Any, self.denoiser).config.time_cond_proj_dim is not None  # latent consistency models

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        states, _ = self.pipeline.encode_prompt(prompts, self.device, 1, False)
        return {"encoder_hidden_states": states}

    def _condition_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"encoder_hidden_states": (_tokens(self.pipeline), cast(Any, self.denoiser).config.cross_attention_dim)}

    def _encode_negative(self) -> dict[str, Tensor]:
        _, states = self.pipeline.encode_prompt("", self.device, 1, True, self.negative_prompt or None)
        return {"encoder_hidden_states": states}

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        return {
            "sample": latents,
            "timestep": timestep,
            "timestep_cond": self._guidance_embedding(latents, scale),
            "encoder_hidden_states": condition["encoder_hidden_states"].to(latents.dtype),
        }

    def _check_channels(self) -> None:
        super()._check_channels()
        config = cast(Any, self.denoiser).config
        if config.out_channels != config.in_channels:
            raise UsageError(
                f"the UNet of this {type(self.pipeline).__name__} has {config.out_channels} channels of output for "
                f"{config.in_channels} of input: it predicts a variance as well, and a step's noise must be fixed"
            )

    def _guidance_embedding(self, latents: Tensor, scale: float) -> Tensor | None:
        """[B, E] of a distilled UNet."""
        if not self.distilled:
            return None
        size = cast(Any, self.denoiser).config.time_cond_proj_dim
        told = torch.full((len(latents),), scale - 1.0)
        return cast(Tensor, self.pipeline.get_guidance_scale_embedding(told, embedding_dim=size).to(latents))


class StableDiffusionXLAdapter(StableDiffusionAdapter):
    """Stable Diffusion XL: two text encoders, and a UNet that is told the picture's size."""

    usual_guidance = 5.0
    needs = ("text_encoder", "text_encoder_2")

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        states, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False
        )
        return self._with_size(states, pooled)

    def _encode_negative(self) -> dict[str, Tensor]:
        _, states, _, pooled = self.pipeline.encode_prompt(
            "", device=self.device, negative_prompt=self.negative_prompt or None
        )
        return self._with_size(states, pooled)

    def _condition_shapes(self) -> dict[str, tuple[int, ...]]:
        config = cast(Any, self.denoiser).config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return super()._condition_shapes() | {"text_embeds": (pooled,), "time_ids": (6,)}

    def _with_size(self, states: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        size = (self.height, self.width)
        ids = torch.tensor([*size, 0, 0, *size], dtype=states.dtype, device=states.device)  # original, crop, target
        return {"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": ids.expand(len(states), -1)}

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        added = {name: condition[name] for name in ("text_embeds", "time_ids")}
        return super()._inputs(latents, timestep, condition, scale) | {"added_cond_kwargs": added}


class StableDiffusion3Adapter(PipelineAdapter):
    """Stable Diffusion 3 and 3.5.

    Args:
        text_length: tokens that the T5 encoder sees; the pipeline's default.
    """

    denoiser_name = "transformer"
    usual_guidance = 7.0
    needs = ("text_encoder", "text_encoder_2")  # the third may be left out

    def __init__(self, pipeline: DiffusionPipeline, *, text_length: int = 256, **options: Any) -> None:
        super().__init__(pipeline, **options)
        self.text_length = text_length

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        states, _, pooled, _ = self._encode_prompt(prompts, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _encode_negative(self) -> dict[str, Tensor]:
        _, states, _, pooled = self._encode_prompt([""], negative_prompt=self.negative_prompt)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _condition_shapes(self) -> dict[str, tuple[int, ...]]:
        config = cast(Any, self.denoiser).config
        tokens = _tokens(self.pipeline) + self.text_length
        return {
            "encoder_hidden_states": (tokens, config.joint_attention_dim),
            "pooled_projections": (config.pooled_projection_dim,),
        }

    def _encode_prompt(self, prompts: list[str], **options: Any) -> Any:
        return self.pipeline.encode_prompt(
            prompts, None, None, device=self.device, max_sequence_length=self.text_length, **options
        )

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        rows = {name: condition[name].to(latents.dtype) for name in ("encoder_hidden_states", "pooled_projections")}
        return {"hidden_states": latents, "timestep": timestep} | rows

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        moved = {}
        if scheduler.config.get("use_dynamic_shifting"):
            moved["mu"] = shift(scheduler, self._patches())
        scheduler.set_timesteps(steps, **moved)

    def _patches(self) -> int:
        _, height, width = self.latent_shape
        size = cast(Any, self.denoiser).config.patch_size
        return int((height // size) * (width // size))

    def _unit(self) -> int:
        return int(self.pipeline.vae_scale_factor * self.pipeline.patch_size)


def _tokens(pipeline: Any) -> int:
    """How many CLIP reads."""
    return 77 if pipeline.tokenizer is None else int(pipeline.tokenizer.model_max_length)
