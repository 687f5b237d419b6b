"""Diffusers pipelines as a denoising policy sees them: a denoiser, what conditions it, and a decoder.

A pipeline's ``__call__`` hides its denoising loop; training needs that loop step by step. An adapter gives
the parts: prompts to conditions, (latents, timestep, condition) to the denoiser's output, latents to pictures.
Each family has one, and with its scheduler it reproduces the family's ``__call__``; that was checked for
Stable Diffusion (noise and velocity prediction), SDXL, Stable Diffusion 3 and FLUX of diffusers 0.42 in
``tests/test_diffusion_pipelines.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..errors import UsageError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Condition = Mapping[str, Tensor]

OWN_PIPELINES: dict[str, str] = {"ShapesPipeline": "autotelic.diffusion.shapes_pipeline"}
"""Pipeline classes of this project: class name -> module. ``load`` uses them where a model_index.json names them."""


class PipelineAdapter:
    """The parts of one pipeline that a policy trains and calls.

    Everything but the denoiser is frozen when the adapter is made. The pipeline's pictures have one size; latents
    are always [B, C, h, w] of ``latent_shape``. Safety checkers and watermarks are not applied.

    Args:
        height, width: of the pictures in pixels; None takes the pipeline's own default.
        guidance: the scale that a guidance-distilled denoiser is told, and the family's usual scale of
            classifier-free guidance for others; None takes the default of the pipeline's call.
        negative_prompt: what ``unconditional`` encodes.

    Attributes:
        latent_shape: (C, h, w) of one picture's latents.
        distilled: the denoiser takes the guidance scale as an input, so that guidance costs one call.

    Raises:
        UsageError: a picture size that the pipeline cannot draw.
    """

    denoiser_name: ClassVar[str] = "unet"
    usual_guidance: ClassVar[float] = 7.5

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance: float | None = None,
        negative_prompt: str = "",
    ) -> None:
        self.pipeline: Any = pipeline
        self.guidance = self.usual_guidance if guidance is None else guidance
        self.negative_prompt = negative_prompt
        default_height, default_width = self._default_size()
        self.height = default_height if height is None else height
        self.width = default_width if width is None else width
        unit = self._unit()
        if min(self.height, self.width) <= 0 or self.height % unit or self.width % unit:
            name = type(pipeline).__name__
            raise UsageError(f"{name} cannot draw {self.height} x {self.width} pixels: use multiples of {unit}")
        self._freeze()

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer: the part that may be trained."""
        return cast(nn.Module, getattr(self.pipeline, self.denoiser_name))

    @property
    def scheduler(self) -> Any:
        return self.pipeline.scheduler

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        return cast(torch.dtype, cast(Any, self.denoiser).dtype)

    @property
    def distilled(self) -> bool:
        return False

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        scale = self.pipeline.vae_scale_factor
        return self._latent_channels(), self.height // scale, self.width // scale

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Conditions [B, ...] each, one row per prompt, without gradient; rows of any two calls can be stacked.

        Raises:
            ValueError: a prompt that is no text.
        """
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise ValueError(f"prompt {index} is no text but {type(prompt).__name__}")
        with torch.no_grad():
            return self._encode(list(prompts))

    def unconditional(self, count: int) -> dict[str, Tensor]:
        """The condition of the negative (by default the empty) prompt, [count, ...] each.

        Computed anew at every call: keep it.
        """
        with torch.no_grad():
            return {k: v.expand(count, *v.shape[1:]) for k, v in self._encode_negative().items()}

    def predict(
        self,
        denoise: Callable[..., Any],
        latents: Tensor,
        timestep: Tensor,
        condition: Condition,
        guidance: float | None = None,
    ) -> Tensor:
        """The denoiser's output (noise, velocity, …) for latents that the scheduler has already scaled.

        Args:
            denoise: called with the denoiser's keywords and ``return_dict=False``, returns a tuple: the denoiser
                itself, or a wrapper such as a checkpointed call.
            latents: [B, C, h, w]; cast to the denoiser's dtype, and the output back to theirs.
            timestep: [B] as ``scheduler.timesteps`` has them.
            guidance: what a distilled denoiser is told, by default the adapter's; without effect on others.

        Returns:
            [B, C, h, w] with graph.
        """
        scale = self.guidance if guidance is None else guidance
        inputs = self._inputs(latents.to(self.dtype), timestep, condition, scale)
        return self._output(denoise(**inputs, return_dict=False)[0]).to(latents.dtype)

    def predict_guided(
        self,
        denoise: Callable[..., Any],
        latents: Tensor,
        timestep: Tensor,
        condition: Condition,
        unconditional: Condition | None,
        scale: float,
    ) -> Tensor:
        """Classifier-free guidance u + scale (c - u), in one call of twice the batch (Ho and Salimans 2022,
        arXiv 2207.12598, in the form that diffusers uses: checked against diffusers' code, not against the paper).

        Scale 1 needs no unconditional call, and a distilled denoiser is told the scale; both make one call of B.

        Raises:
            ValueError: another scale without an ``unconditional`` condition.
        """
        if self.distilled or scale == 1:
            return self.predict(denoise, latents, timestep, condition, scale)
        if unconditional is None:
            raise ValueError(f"guidance scale {scale} needs the unconditional condition")
        both = {name: torch.cat([unconditional[name], rows]) for name, rows in condition.items()}
        out = self.predict(denoise, torch.cat([latents, latents]), torch.cat([timestep, timestep]), both)
        without, with_prompt = out.chunk(2)
        return without + scale * (with_prompt - without)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] float32 in 0..1, with graph.

        They are clamped, so values that the decoder sends beyond 0..1 pass no gradient back.
        """
        vae = self.pipeline.vae
        pictures = vae.decode(self._unscaled(latents).to(vae.dtype), return_dict=False)[0]
        return cast(Tensor, (pictures.float() / 2 + 0.5).clamp(0, 1))

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Prepare a scheduler for a number of steps as the pipeline's call does."""
        scheduler.set_timesteps(steps, device=self.device)

    # what families fill in

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        raise NotImplementedError

    def _encode_negative(self) -> dict[str, Tensor]:
        """One row."""
        raise NotImplementedError

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        raise NotImplementedError

    def _output(self, out: Tensor) -> Tensor:
        return out

    def _unscaled(self, latents: Tensor) -> Tensor:
        """Latents in the units of the VAE."""
        config = self.pipeline.vae.config
        return cast(Tensor, latents / config.scaling_factor + (config.shift_factor or 0.0))

    def _latent_channels(self) -> int:
        return int(cast(Any, self.denoiser).config.in_channels)

    def _default_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        scale, size = self.pipeline.vae_scale_factor, cast(Any, self.denoiser).config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * scale, width * scale

    def _unit(self) -> int:
        """Heights and widths are multiples of this many pixels."""
        return max(8, int(self.pipeline.vae_scale_factor))

    def _freeze(self) -> None:
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.denoiser_name:
                part.requires_grad_(False).eval()
        vae = getattr(self.pipeline, "vae", None)
        if vae is not None and vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.to(torch.float32)  # overflows in half precision; the pipelines upcast it to decode, too


class StableDiffusionAdapter(PipelineAdapter):
    """Stable Diffusion 1.x and 2.x."""

    @property
    def distilled(self) -> bool:
        return cast(Any, self.denoiser).config.time_cond_proj_dim is not None  # latent consistency models

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        states, _ = self.pipeline.encode_prompt(prompts, self.device, 1, False)
        return {"encoder_hidden_states": states}

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

    def _guidance_embedding(self, latents: Tensor, scale: float) -> Tensor | None:
        """[B, E] of a distilled UNet."""
        if not self.distilled:
            return None
        size = cast(Any, self.denoiser).config.time_cond_proj_dim
        told = torch.full((len(latents),), scale - 1.0)
        return cast(Tensor, self.pipeline.get_guidance_scale_embedding(told, embedding_dim=size).to(latents))


ADAPTERS: dict[str, type[PipelineAdapter]] = {"StableDiffusionPipeline": StableDiffusionAdapter}


def register(pipeline_class: str, adapter: type[PipelineAdapter]) -> None:
    """Use an adapter for a pipeline class (by its name) and for what is derived from it."""
    ADAPTERS[pipeline_class] = adapter


def adapter_for(pipeline: DiffusionPipeline, **options: Any) -> PipelineAdapter:
    """The adapter of a pipeline.

    Args:
        options: of ``PipelineAdapter`` (height, width, guidance, negative_prompt) and of the family's adapter.

    Raises:
        UsageError: a pipeline class without an adapter.
    """
    for base in type(pipeline).__mro__:
        if base.__name__ in ADAPTERS:
            return ADAPTERS[base.__name__](pipeline, **options)
    raise UsageError(
        f"no adapter for {type(pipeline).__name__}: there is one for {', '.join(ADAPTERS)}; "
        "for another, derive from autotelic.diffusion.pipelines.PipelineAdapter and call register(class name, adapter)"
    )
