"""FLUX.1 and Qwen-Image, whose denoisers read 2 x 2 latents as one token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .base import Condition, PipelineAdapter, shift

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class PackedAdapter(PipelineAdapter):
    """Latents are [C, h, w] as for every other family; the denoiser reads 2 x 2 of them as one token, by ``pack``.

    Levels are even, and shifted by the number of tokens.
    """

    denoiser_name = "transformer"

    def pack(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, h/2 * w/2, 4 C] tokens."""
        size, channels, height, width = latents.shape
        patches = latents.reshape(size, channels, height // 2, 2, width // 2, 2)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(size, -1, 4 * channels)

    def unpack(self, tokens: Tensor) -> Tensor:
        """The inverse of ``pack``."""
        channels, height, width = self.latent_shape
        patches = tokens.reshape(len(tokens), height // 2, width // 2, channels, 2, 2)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)

    @property
    def distilled(self) -> bool:
        return bool(cast(Any, self.denoiser).config.guidance_embeds)

    def _encode_negative(self) -> dict[str, Tensor]:
        return self._encode([self.negative_prompt])

    def _output(self, out: Tensor) -> Tensor:
        return self.unpack(out)

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        _, height, width = self.latent_shape
        even = None if scheduler.config.get("use_flow_sigmas") else [1 - i / steps for i in range(steps)]
        scheduler.set_timesteps(steps, sigmas=even, mu=shift(scheduler, height * width // 4))

    def _latent_channels(self) -> int:
        return int(cast(Any, self.denoiser).config.in_channels) // 4

    def _default_size(self) -> tuple[int, int]:
        size = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return size, size

    def _unit(self) -> int:
        return int(2 * self.pipeline.vae_scale_factor)


class FluxAdapter(PackedAdapter):
    """FLUX.1, dev (guidance-distilled) and schnell.

    With a scale other than 1, schnell does classifier-free guidance: what the pipeline calls ``true_cfg_scale``. For
    dev the scale is an input of the denoiser, and the negative prompt goes unused.

    Args:
        text_length: tokens that the T5 encoder sees; the pipeline's default. 256 is the most that schnell knows.
    """

    usual_guidance = 3.5
    needs = ("text_encoder", "text_encoder_2")

    def __init__(self, pipeline: DiffusionPipeline, *, text_length: int = 512, **options: Any) -> None:
        super().__init__(pipeline, **options)
        self.text_length = text_length

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        states, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.text_length
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _condition_shapes(self) -> dict[str, tuple[int, ...]]:
        config = cast(Any, self.denoiser).config
        return {
            "encoder_hidden_states": (self.text_length, config.joint_attention_dim),
            "pooled_projections": (config.pooled_projection_dim,),
        }

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        rows = {name: condition[name].to(latents.dtype) for name in ("encoder_hidden_states", "pooled_projections")}
        told = torch.full((len(latents),), scale, device=latents.device) if self.distilled else None
        return rows | {
            "hidden_states": self.pack(latents),
            "timestep": timestep.to(latents.dtype) / 1000,
            "guidance": told,
            "txt_ids": latents.new_zeros(rows["encoder_hidden_states"].shape[1], 3),
            "img_ids": self._places(latents),
        }

    def _places(self, like: Tensor) -> Tensor:
        """[h/2 * w/2, 3]: (0, row, column) of every token."""
        rows, columns = torch.arange(self.latent_shape[1] // 2), torch.arange(self.latent_shape[2] // 2)
        return torch.cartesian_prod(torch.zeros(1, dtype=rows.dtype), rows, columns).to(like)


class QwenImageAdapter(PackedAdapter):
    """Qwen-Image. Guidance keeps the norm of each token's prediction; texts are as long as they are, and masked."""

    usual_guidance = 4.0

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        states, mask = self.pipeline.encode_prompt(prompts, self.device)
        if mask is None:
            mask = torch.zeros(len(states), 0, dtype=torch.long, device=states.device)  # nothing is padding
        return {"encoder_hidden_states": states, "encoder_hidden_states_mask": mask}

    def stacked(self, rows: Sequence[Condition]) -> dict[str, Tensor]:
        texts, masks = ([row[name] for row in rows] for name in ("encoder_hidden_states", "encoder_hidden_states_mask"))
        padded = len({len(text) for text in texts}) > 1 or any(len(mask) for mask in masks)
        if padded:
            whole = [torch.ones(len(text), dtype=torch.long, device=text.device) for text in texts]
            masks = [mask if len(mask) else ones for mask, ones in zip(masks, whole, strict=True)]
        return {
            "encoder_hidden_states": pad_sequence(texts, batch_first=True),
            "encoder_hidden_states_mask": pad_sequence(masks, batch_first=True),
        }

    def _joined(self, first: Condition, second: Condition) -> dict[str, Tensor]:
        parts = [*zip(*first.values(), strict=True), *zip(*second.values(), strict=True)]
        return self.stacked([dict(zip(second, rows, strict=True)) for rows in parts])

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        _, height, width = self.latent_shape
        mask = condition["encoder_hidden_states_mask"]
        return {
            "hidden_states": self.pack(latents),
            "timestep": timestep.to(latents.dtype) / 1000,
            "guidance": torch.full((len(latents),), scale, device=latents.device) if self.distilled else None,
            "encoder_hidden_states": condition["encoder_hidden_states"].to(latents.dtype),
            "encoder_hidden_states_mask": mask if mask.shape[1] else None,
            "img_shapes": [[(1, height // 2, width // 2)]] * len(latents),
        }

    def _guided(self, without: Tensor, prompted: Tensor, scale: float) -> Tensor:
        tokens, guided = self.pack(prompted), self.pack(super()._guided(without, prompted, scale))
        return self.unpack(guided * (tokens.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)))

    def _unscaled(self, latents: Tensor) -> Tensor:
        return super()._unscaled(latents)[:, :, None]

    def _decoded(self, latents: Tensor) -> Tensor:
        return super()._decoded(latents)[:, :, 0]

    def _encoded(self, pictures: Tensor) -> Tensor:
        return super()._encoded(pictures[:, :, None])[:, :, 0]
