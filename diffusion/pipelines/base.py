"""Diffusers pipelines as a denoising policy sees them: a denoiser, what conditions it, and a decoder.

A pipeline's ``__call__`` hides its denoising loop; training needs that loop step by step. An adapter gives
the parts: prompts to conditions, (latents, timestep, condition) to the denoiser's output, latents to pictures or
videos. Each family has one, and with its scheduler it reproduces the family's ``__call__``; that was checked for every
family of this package with diffusers 0.42 in ``tests/test_diffusion_pipelines.py``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ...errors import UsageError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Condition = Mapping[str, Tensor]

DECODED = 2**20
"""Pixels that are decoded at once: one picture of 1,024 x 1,024. A decoder takes some KiB for each."""


class PipelineAdapter:
    """The parts of one pipeline that a policy trains and calls.

    Everything but the denoiser is frozen when the adapter is made. The pipeline's pictures have one size; latents
    are always [B, *latent_shape]. Safety checkers and watermarks are not applied.

    Args:
        height, width: of the pictures in pixels; None takes the pipeline's own default.
        guidance: the scale that a guidance-distilled denoiser is told, and the family's usual scale of
            classifier-free guidance for others; None takes the default of the pipeline's call.
        negative_prompt: what ``unconditional`` encodes.

    Attributes:
        offloads: whether text encoders are on the host but while they encode, see ``offload_text_encoders``.
        latent_shape: (C, h, w) of one picture's latents, (C, f, h, w) of one video's.
        output_shape: (3, H, W) of a picture, (F, 3, H, W) of a video.
        distilled: the denoiser takes the guidance scale as an input, so that guidance costs one call.

    Raises:
        UsageError: a picture size that the pipeline cannot draw; a denoiser that reads more than latents.
    """

    denoiser_name: ClassVar[str] = "unet"
    usual_guidance: ClassVar[float] = 7.5
    needs: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """Parts of the pipeline that may be absent elsewhere and not here."""
    video: ClassVar[bool] = False

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
        self.offloads = self._encodes = False
        self.guidance = self.usual_guidance if guidance is None else guidance
        self.negative_prompt = negative_prompt
        default_height, default_width = self._default_size()
        self.height = default_height if height is None else height
        self.width = default_width if width is None else width
        self._check_channels()
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
    def latent_shape(self) -> tuple[int, ...]:
        scale = self.pipeline.vae_scale_factor
        return self._latent_channels(), self.height // scale, self.width // scale

    @property
    def output_shape(self) -> tuple[int, ...]:
        return 3, self.height, self.width

    @property
    def decoded_at_once(self) -> int:
        """Pictures or videos that are decoded at once: of ``DECODED`` pixels in all, one at least."""
        return max(1, DECODED // (math.prod(self.output_shape) // 3))

    @property
    def text_encoders(self) -> list[nn.Module]:
        parts = self.pipeline.components.items()
        return [part for name, part in parts if name.startswith("text_encoder") and isinstance(part, nn.Module)]

    def offload_text_encoders(self) -> None:
        """Keep the text encoders on the host from now on; ``encoding`` brings them to the device for a while."""
        self.offloads = True
        for part in self.text_encoders:
            part.to("cpu")

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """While it lasts, the text encoders are where the denoiser is."""
        if not self.offloads or self._encodes:
            yield
            return
        self._encodes = True
        try:
            for part in self.text_encoders:
                part.to(self.device)
            yield
        finally:
            self._encodes = False
            self.offload_text_encoders()

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Conditions [B, ...] each, one row per prompt, without gradient; ``stacked`` joins rows of several calls.

        Raises:
            ValueError: a prompt that is no text.
        """
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise ValueError(f"prompt {index} is no text but {type(prompt).__name__}")
        with torch.no_grad(), self.encoding():
            return self._encode(list(prompts))

    @property
    def knows_conditions(self) -> bool:
        """Whether the shapes of conditions are known without text encoders."""
        return self._condition_shapes() is not None

    def blank(self) -> dict[str, Tensor]:
        """One row as ``encode`` gives it, as far as its shape goes; text encoders need not be there where it is known.

        A prompt is taken to be long where its length matters.
        """
        shapes = self._condition_shapes()
        if shapes is None:
            return self.encode(["word " * 64])
        kind = torch.float32 if self.dtype == torch.float32 else torch.bfloat16
        return {name: torch.zeros(1, *shape, dtype=kind, device=self.device) for name, shape in shapes.items()}

    def unconditional(self, count: int) -> dict[str, Tensor]:
        """The condition of the negative (by default the empty) prompt, [count, ...] each.

        Computed anew at every call: keep it.
        """
        with torch.no_grad(), self.encoding():
            return {k: v.expand(count, *v.shape[1:]) for k, v in self._encode_negative().items()}

    def stacked(self, rows: Sequence[Condition]) -> dict[str, Tensor]:
        """Single rows [...] as conditions [B, ...]."""
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

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
            latents: [B, *latent_shape]; cast to the denoiser's dtype, and the output back to theirs.
            timestep: [B] as ``scheduler.timesteps`` has them.
            guidance: what a distilled denoiser is told, by default the adapter's; without effect on others.

        Returns:
            [B, *latent_shape] with graph.
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
        both = self._joined(unconditional, condition)
        out = self.predict(denoise, torch.cat([latents, latents]), torch.cat([timestep, timestep]), both)
        without, prompted = out.chunk(2)
        return self._guided(without, prompted, scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures or videos [B, *output_shape] float32 in 0..1, with graph.

        They are clamped, so values that the decoder sends beyond 0..1 pass no gradient back.
        """
        return torch.cat([self._picture(part) for part in torch.split(latents, self.decoded_at_once)])

    def _picture(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        pictures = self._decoded(self._unscaled(latents).to(vae.dtype))
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [B, *latent_shape] float32 of [B, *output_shape] in 0..1: the posterior's mode, with graph.

        Raises:
            ValueError: pictures of another size than the adapter's.
        """
        if images.shape[1:] != self.output_shape:
            wanted = ", ".join(map(str, self.output_shape))
            raise ValueError(f"pictures have shape {tuple(images.shape)}, not [B, {wanted}]")
        return self._scaled(self._encoded((2 * images - 1).to(self.pipeline.vae.dtype)).float())

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Prepare a scheduler for a number of steps as the pipeline's call does."""
        scheduler.set_timesteps(steps)

    # what families fill in

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        raise NotImplementedError

    def _encode_negative(self) -> dict[str, Tensor]:
        """One row."""
        raise NotImplementedError

    def _condition_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Of a row, where the denoiser's configuration tells."""
        return None

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        raise NotImplementedError

    def _output(self, out: Tensor) -> Tensor:
        return out

    def _guided(self, without: Tensor, prompted: Tensor, scale: float) -> Tensor:
        return without + scale * (prompted - without)

    def _joined(self, first: Condition, second: Condition) -> dict[str, Tensor]:
        """The rows of two conditions, one after the other."""
        return {name: torch.cat([first[name], rows]) for name, rows in second.items()}

    def _decoded(self, latents: Tensor) -> Tensor:
        """What the VAE makes of latents in its own units, in -1..1."""
        return cast(Tensor, self.pipeline.vae.decode(latents, return_dict=False)[0])

    def _encoded(self, pictures: Tensor) -> Tensor:
        return cast(Tensor, self.pipeline.vae.encode(pictures).latent_dist.mode())

    def _unscaled(self, latents: Tensor) -> Tensor:
        """Latents in the units of the VAE."""
        scale, shift, mean, std = self._normalisation(latents)
        return latents * std / scale + (mean + shift)

    def _scaled(self, latents: Tensor) -> Tensor:
        """Latents of the VAE in the units of the denoiser."""
        scale, shift, mean, std = self._normalisation(latents)
        return (latents - (mean + shift)) / std * scale

    def _normalisation(self, like: Tensor) -> tuple[float, float, Tensor | float, Tensor | float]:
        """Scale, shift, mean and standard deviation of the VAE's latents, as far as it has them."""
        config = self.pipeline.vae.config
        scale, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return scale, shift, 0.0, 1.0
        shape = 1, -1, *[1] * (like.ndim - 2)
        mean, std = (torch.tensor(config.get(name)).to(like).view(shape) for name in ("latents_mean", "latents_std"))
        return scale, shift, mean, std

    def _check_channels(self) -> None:
        vae = getattr(self.pipeline, "vae", None)
        held = None if vae is None else vae.config.get("latent_channels", vae.config.get("z_dim"))
        read = self._latent_channels()
        if held is not None and read != held:
            name, kind = type(self.denoiser).__name__, type(self.pipeline).__name__
            raise UsageError(
                f"the {name} of this {kind} reads {read} channels, and latents have {held}: it is one for inpainting, "
                "depth or editing, which reads a picture as well, and there is no adapter for those"
            )

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
        if vae is not None and vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            vae.to(torch.float32)  # overflows in half precision; the pipelines upcast it to decode, too


def shift(scheduler: Any, tokens: int) -> float:
    """mu of dynamic shifting: linear in the number of image tokens."""
    config = scheduler.config
    low, high = config.base_image_seq_len, config.max_image_seq_len
    return float(config.base_shift + (config.max_shift - config.base_shift) * (tokens - low) / (high - low))


def call_default(pipeline: Any, name: str) -> Any:
    """The default of a parameter of the pipeline's call."""
    return inspect.signature(type(pipeline).__call__).parameters[name].default
