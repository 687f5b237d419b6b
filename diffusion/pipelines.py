"""Diffusers pipelines as a denoising policy sees them: a denoiser, what conditions it, and a decoder.

A pipeline's ``__call__`` hides its denoising loop; training needs that loop step by step. An adapter gives
the parts: prompts to conditions, (latents, timestep, condition) to the denoiser's output, latents to pictures.
Each family has one, and with its scheduler it reproduces the family's ``__call__``; that was checked for
Stable Diffusion (noise and velocity prediction), SDXL, Stable Diffusion 3 and FLUX of diffusers 0.42 in
``tests/test_diffusion_pipelines.py``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..plugins import named, names

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Condition = Mapping[str, Tensor]

OWN_PIPELINES: dict[str, str] = {"ShapesPipeline": "autotelic.diffusion.small.shapes_pipeline"}
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

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [B, C, h, w] float32 of pictures [B, 3, H, W] in 0..1: the mode of the VAE's posterior, with graph.

        Raises:
            ValueError: pictures of another size than the adapter's.
        """
        if images.shape[1:] != (3, self.height, self.width):
            raise ValueError(f"pictures have shape {tuple(images.shape)}, not [B, 3, {self.height}, {self.width}]")
        vae = self.pipeline.vae
        return self._scaled(vae.encode((2 * images - 1).to(vae.dtype)).latent_dist.mode().float())

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

    def _scaled(self, latents: Tensor) -> Tensor:
        """Latents of the VAE in the units of the denoiser."""
        config = self.pipeline.vae.config
        return cast(Tensor, (latents - (config.shift_factor or 0.0)) * config.scaling_factor)

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


class StableDiffusionXLAdapter(StableDiffusionAdapter):
    """Stable Diffusion XL: two text encoders, and a UNet that is told the picture's size."""

    usual_guidance = 5.0

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

    def _with_size(self, states: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        size = (self.height, self.width)
        ids = torch.tensor([*size, 0, 0, *size], dtype=states.dtype, device=states.device)  # original, crop, target
        return {"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": ids.expand(len(states), -1)}

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        added = {name: condition[name] for name in ("text_embeds", "time_ids")}
        return super()._inputs(latents, timestep, condition, scale) | {"added_cond_kwargs": added}

    def _normalisation(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Mean and standard deviation of the VAE's latents, where it has them (playground-v2.5)."""
        config = self.pipeline.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return 0.0, 1.0
        mean = torch.tensor(config.latents_mean).to(like).view(1, -1, 1, 1)
        std = torch.tensor(config.latents_std).to(like).view(1, -1, 1, 1)
        return mean, std

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, std = self._normalisation(latents)
        return cast(Tensor, latents * std / self.pipeline.vae.config.scaling_factor + mean)

    def _scaled(self, latents: Tensor) -> Tensor:
        mean, std = self._normalisation(latents)
        return cast(Tensor, (latents - mean) / std * self.pipeline.vae.config.scaling_factor)


class StableDiffusion3Adapter(PipelineAdapter):
    """Stable Diffusion 3 and 3.5.

    Args:
        text_length: tokens that the T5 encoder sees; the pipeline's default.
    """

    denoiser_name = "transformer"
    usual_guidance = 7.0

    def __init__(self, pipeline: DiffusionPipeline, *, text_length: int = 256, **options: Any) -> None:
        super().__init__(pipeline, **options)
        self.text_length = text_length

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        states, _, pooled, _ = self._encode_prompt(prompts, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _encode_negative(self) -> dict[str, Tensor]:
        _, states, _, pooled = self._encode_prompt([""], negative_prompt=self.negative_prompt)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _encode_prompt(self, prompts: list[str], **options: Any) -> Any:
        return self.pipeline.encode_prompt(
            prompts, None, None, device=self.device, max_sequence_length=self.text_length, **options
        )

    def _inputs(self, latents: Tensor, timestep: Tensor, condition: Condition, scale: float) -> dict[str, Any]:
        rows = {name: condition[name].to(latents.dtype) for name in ("encoder_hidden_states", "pooled_projections")}
        return {"hidden_states": latents, "timestep": timestep} | rows

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        shift = {}
        if scheduler.config.get("use_dynamic_shifting"):
            shift["mu"] = _shift(scheduler, self._patches())
        scheduler.set_timesteps(steps, device=self.device, **shift)

    def _patches(self) -> int:
        _, height, width = self.latent_shape
        size = cast(Any, self.denoiser).config.patch_size
        return int((height // size) * (width // size))

    def _unit(self) -> int:
        return int(self.pipeline.vae_scale_factor * self.pipeline.patch_size)


class FluxAdapter(PipelineAdapter):
    """FLUX.1, dev (guidance-distilled) and schnell.

    Latents are [C, h, w] as for every other family; the pipeline's own are packed, 2 x 2 of them in one token, by
    ``pack``. With a scale other than 1, schnell does classifier-free guidance: what the pipeline calls
    ``true_cfg_scale``. For dev the scale is an input of the denoiser, and the negative prompt goes unused.

    Args:
        text_length: tokens that the T5 encoder sees; the pipeline's default. 256 is the most that schnell knows.
    """

    denoiser_name = "transformer"
    usual_guidance = 3.5

    def __init__(self, pipeline: DiffusionPipeline, *, text_length: int = 512, **options: Any) -> None:
        super().__init__(pipeline, **options)
        self.text_length = text_length

    @property
    def distilled(self) -> bool:
        return bool(cast(Any, self.denoiser).config.guidance_embeds)

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

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        states, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.text_length
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _encode_negative(self) -> dict[str, Tensor]:
        return self._encode([self.negative_prompt])

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

    def _output(self, out: Tensor) -> Tensor:
        return self.unpack(out)

    def _places(self, like: Tensor) -> Tensor:
        """[h/2 * w/2, 3]: (0, row, column) of every token."""
        rows, columns = torch.arange(self.latent_shape[1] // 2), torch.arange(self.latent_shape[2] // 2)
        return torch.cartesian_prod(torch.zeros(1, dtype=rows.dtype), rows, columns).to(like)

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        _, height, width = self.latent_shape
        even = None if scheduler.config.get("use_flow_sigmas") else [1 - i / steps for i in range(steps)]
        mu = _shift(scheduler, height * width // 4)
        scheduler.set_timesteps(steps, device=self.device, sigmas=even, mu=mu)

    def _latent_channels(self) -> int:
        return int(cast(Any, self.denoiser).config.in_channels) // 4

    def _default_size(self) -> tuple[int, int]:
        size = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return size, size

    def _unit(self) -> int:
        return int(2 * self.pipeline.vae_scale_factor)


def _shift(scheduler: Any, tokens: int) -> float:
    """mu of dynamic shifting: linear in the number of image tokens."""
    config = scheduler.config
    low, high = config.base_image_seq_len, config.max_image_seq_len
    return float(config.base_shift + (config.max_shift - config.base_shift) * (tokens - low) / (high - low))


def adapter_for(pipeline: DiffusionPipeline, **options: Any) -> PipelineAdapter:
    """The adapter of a pipeline: what is registered as "pipeline" under the name of its class, or of a base of it.

    Args:
        options: of ``PipelineAdapter`` (height, width, guidance, negative_prompt) and of the family's adapter.

    Raises:
        UsageError: a pipeline class without an adapter.
    """
    known = names("pipeline")
    for base in type(pipeline).__mro__:
        if base.__name__ in known:
            adapter: PipelineAdapter = named("pipeline", base.__name__)(pipeline, **options)
            return adapter
    raise UsageError(
        f"no adapter for {type(pipeline).__name__}: there is one for {', '.join(known)}; for another, derive from "
        'autotelic.diffusion.pipelines.PipelineAdapter and call autotelic.plugins.register("pipeline", CLASS, adapter)'
    )


def check_dtype(dtype: torch.dtype | None, place: torch.device) -> None:
    """Refuse float16 on the CPU, with a UsageError."""
    if dtype == torch.float16 and place.type == "cpu":
        raise UsageError("float16 does not train on the CPU: use float32, or bfloat16 to save memory")


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """A pipeline from a folder or from the hub, on a device.

    Weights are read from safetensors alone, and no code that comes with them is run, unless ``options`` say
    otherwise.

    Args:
        name_or_path: a folder with a model_index.json, or a name on the hub such as
            stable-diffusion-v1-5/stable-diffusion-v1-5.
        dtype: None takes bfloat16 on a CUDA device and float32 elsewhere.
        device: None takes the GPU if there is one.
        options: of ``DiffusionPipeline.from_pretrained``.

    Raises:
        UsageError: float16 on the CPU; a path that holds no pipeline, a broken one, or one of an unknown class; a
            name that cannot be fetched.
    """
    import diffusers

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    check_dtype(dtype, place)
    chosen = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
    source = Path(name_or_path).expanduser()
    local = source.exists() or source.is_absolute() or len(source.parts) > 2 or str(name_or_path).startswith((".", "~"))
    kind: Any = _class_of(source) if local and "custom_pipeline" not in options else diffusers.DiffusionPipeline
    settings = {"dtype": chosen, "use_safetensors": True} | options
    try:
        pipeline = kind.from_pretrained(str(source) if local else str(name_or_path), **settings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"cannot load the pipeline {name_or_path}: {told}") from error
    return cast("DiffusionPipeline", pipeline if "device_map" in options else pipeline.to(place))


def _class_of(folder: Path) -> Any:
    """The class that a local folder's model_index.json names."""
    import diffusers

    if folder.is_file():
        raise UsageError(
            f"{folder} is one file: make a folder of it with "
            f"StableDiffusionPipeline.from_single_file(file).save_pretrained(folder), or the class that fits"
        )
    index = folder / "model_index.json"
    if not index.is_file():
        what = "has no model_index.json" if folder.is_dir() else "does not exist"
        raise UsageError(f"{folder} {what}: a pipeline is saved with pipeline.save_pretrained(folder)")
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{index} is broken: {type(error).__name__} {error}") from error
    if name in OWN_PIPELINES:
        return getattr(importlib.import_module(OWN_PIPELINES[name]), name)
    if not hasattr(diffusers, str(name)):
        raise UsageError(f"{index} names the class {name}, which diffusers {diffusers.__version__} does not have")
    return diffusers.DiffusionPipeline
