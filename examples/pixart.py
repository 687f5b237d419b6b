"""A diffusers family: PixArt-alpha, whose transformer reads T5 and is told which of its tokens are padding.

autotelic run diffusion/prdp --use examples/pixart.py --model PixArt-alpha/PixArt-XL-2-512x512 \
    --data prompts.txt --rewards clip
"""

from autotelic import PipelineAdapter, register


@register("pipeline", "PixArtAlphaPipeline")
class PixArtAlphaAdapter(PipelineAdapter):
    """Draws what ``PixArtAlphaPipeline.__call__`` draws without its binning of resolutions."""

    denoiser_name = "transformer"
    usual_guidance = 4.5

    def _encode(self, prompts):
        states, mask, _, _ = self.pipeline.encode_prompt(
            prompts, False, device=self.device, clean_caption=True, max_sequence_length=120
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _encode_negative(self):
        return self._encode([self.negative_prompt])

    def _inputs(self, latents, timestep, condition, scale):
        states = condition["encoder_hidden_states"].to(latents.dtype)
        sizes = {"resolution": None, "aspect_ratio": None}
        return {"hidden_states": latents, "timestep": timestep, "added_cond_kwargs": sizes} | {
            **condition,
            "encoder_hidden_states": states,
        }

    def _output(self, out):
        return out[:, : self._latent_channels()]  # what is left is a variance, which the pipeline drops too

    def _unit(self):
        return self.pipeline.vae_scale_factor * self.denoiser.config.patch_size
