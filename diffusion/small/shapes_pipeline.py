"""The small default: a text-to-image pipeline of real parts that draws the world of ``envs.toys.shapes``.

A Stable Diffusion 3 transformer (four layers, patches of 4 x 4 pixels instead of latents), a flow-matching scheduler
and a text encoder that is CLIP's embedding table, whose tokens are added up: word order says nothing in this world,
and a deeper encoder takes longer to learn than everything else. It is saved and loaded as a pipeline folder.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.loaders.lora_pipeline import SanaLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from ..pipelines.base import PipelineAdapter

STEPS = 6
"""Denoising steps of a picture."""


class ShapesPipeline(DiffusionPipeline, SanaLoraLoaderMixin):
    """Draws a caption in a few steps; no guidance, no VAE.

    Args:
        tokenizer: one token per word.
        text_encoder: a CLIPTextModel; its token states are added up.
        transformer: predicts the flow in pixel space, values in -1..1.
    """

    model_cpu_offload_seq: Any = "text_encoder->transformer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        text_encoder: CLIPTextModel,
        transformer: SD3Transformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ) -> None:
        super().__init__()
        parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "transformer": transformer}
        cast(Any, self).register_modules(**parts, scheduler=scheduler)

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """[B, D] one vector per prompt: the sum of its tokens' states over the root of their number; 0 for no words."""
        most = {"truncation": True, "max_length": self.text_encoder.config.max_position_embeddings}
        told = self.tokenizer(list(prompts), padding=True, return_tensors="pt", **most).to(self.text_encoder.device)
        if not told.input_ids.numel():  # the empty prompt
            return torch.zeros(len(prompts), self.text_encoder.config.hidden_size, device=self.text_encoder.device)
        states = self.text_encoder(told.input_ids, attention_mask=told.attention_mask).last_hidden_state
        weight = told.attention_mask[..., None].to(states.dtype)
        return cast(Tensor, (states * weight).sum(1) / weight.sum(1).clamp(min=1).sqrt())

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_inference_steps: int = STEPS,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> Any:
        """Pictures of captions: ``output.images``, a list of PIL images, or a float array [B, H, W, 3] for "np"."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        told, config = self.encode_prompt(prompts), self.transformer.config
        shape = (len(prompts), config.in_channels, config.sample_size, config.sample_size)
        x = randn_tensor(shape, generator=generator, device=told.device, dtype=told.dtype)
        set_even_timesteps(self.scheduler, num_inference_steps, told.device)
        for t in self.scheduler.timesteps:
            flow = self.transformer(
                hidden_states=x,
                timestep=t.expand(len(x)),
                encoder_hidden_states=told[:, None],
                pooled_projections=told,
                return_dict=False,
            )[0]
            x = self.scheduler.step(flow, t, x, return_dict=False)[0]
        pictures = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return ImagePipelineOutput(cast(Any, self).numpy_to_pil(pictures) if output_type == "pil" else pictures)


class ShapesAdapter(PipelineAdapter):
    """Latents are the pixels themselves, in -1..1."""

    denoiser_name = "transformer"
    usual_guidance = 1.0

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        return {"told": self.pipeline.encode_prompt(prompts)}

    def _encode_negative(self) -> dict[str, Tensor]:
        return self._encode([self.negative_prompt])

    def _condition_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"told": (cast(Any, self.denoiser).config.pooled_projection_dim,)}

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Any, scale: float) -> dict[str, Any]:
        told = condition["told"].to(latents.dtype)
        return {
            "hidden_states": latents,
            "timestep": timestep,
            "encoder_hidden_states": told[:, None],
            "pooled_projections": told,
        }

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.float() / 2 + 0.5).clamp(0, 1)

    def encode_images(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.latent_shape:
            raise ValueError(f"pictures have shape {tuple(images.shape)}, not [B, {self.latent_shape}]")
        return 2 * images - 1

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self._latent_channels(), self.height, self.width

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        set_even_timesteps(scheduler, steps, torch.device("cpu"))

    def _default_size(self) -> tuple[int, int]:
        side = int(cast(Any, self.denoiser).config.sample_size)
        return side, side

    def _unit(self) -> int:
        return int(cast(Any, self.denoiser).config.patch_size)


def set_even_timesteps(scheduler: Any, steps: int, device: torch.device) -> None:
    """Levels 1, (T - 1) / T, ... 1 / T: the scheduler's own list ends a thousandth before the picture."""
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device=device)
