"""PixArt-Sigma and SANA: linear readers of T5 or Gemma, which are told what of a text is padding."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from .base import Condition, PipelineAdapter, call_default


class PixArtAdapter(PipelineAdapter):
    """PixArt-Sigma: draws what its call draws without the binning of resolutions."""

    denoiser_name = "transformer"
    usual_guidance = 4.5

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        states, mask, _, _ = self.pipeline.encode_prompt(prompts, False, device=self.device, **self._told())
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _encode_negative(self) -> dict[str, Tensor]:
        _, _, states, mask = self.pipeline.encode_prompt(
            [""], True, negative_prompt=self.negative_prompt, device=self.device, **self._told()
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _told(self) -> dict[str, Any]:
        """What else the pipeline's call tells its encoder."""
        return {name: call_default(self.pipeline, name) for name in ("clean_caption", "max_sequence_length")}

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        return {
            "hidden_states": latents,
            "timestep": timestep,
            "encoder_hidden_states": condition["encoder_hidden_states"].to(latents.dtype),
            "encoder_attention_mask": condition["encoder_attention_mask"],
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    def _output(self, out: Tensor) -> Tensor:
        return out[:, : self._latent_channels()]  # what is left is a variance, which the pipeline drops too

    def _unit(self) -> int:
        return int(self.pipeline.vae_scale_factor * cast(Any, self.denoiser).config.patch_size)


class SanaAdapter(PixArtAdapter):
    """SANA: its texts follow an instruction to Gemma, the negative one alone does not."""

    def _told(self) -> dict[str, Any]:
        return super()._told() | {
            "complex_human_instruction": call_default(self.pipeline, "complex_human_instruction"),
        }

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        inputs = super()._inputs(latents, timestep, condition, scale)
        del inputs["added_cond_kwargs"]
        return inputs | {"timestep": timestep * cast(Any, self.denoiser).config.timestep_scale}

    def _encoded(self, pictures: Tensor) -> Tensor:
        return cast(Tensor, self.pipeline.vae.encode(pictures, return_dict=False)[0])
