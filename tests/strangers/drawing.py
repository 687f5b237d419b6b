"""Pipelines, schedulers, adapters and pictures of other people, and what a denoiser emits."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from autotelic.testing import pipelines as tiny
from autotelic.types import Task

from .cases import Gives, GoesOn, Refuses, autotelic, case

CAPTIONS = ("a red cat", "a red dog", "a green cat", "a green dog", "a blue cat", "a blue dog")
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
MEAN, SPREAD = 0.5, 0.3
TASKS = [Task("red", "a red cat"), Task("blue", "a blue dog")]


# --- schedulers ------------------------------------------------------------------------------------


def scheduler_of(name: str, **settings: Any) -> Any:
    """A scheduler of diffusers as latent models are trained with it, whatever of that it knows."""
    kind = getattr(diffusers, name)
    known = kind._get_init_keys(kind)
    return kind(**{key: value for key, value in (LATENT | {"clip_sample": False}).items() if key in known} | settings)


class PerfectDenoiser:
    """Knows that pictures are N(0.5, 0.3^2), and of the noise what it is told: the timestep alone."""

    def __init__(self, flow: bool) -> None:
        self.flow = flow
        self.products = diffusers.DDPMScheduler(**{k: v for k, v in LATENT.items() if k != "steps_offset"})
        self.products = self.products.alphas_cumprod.double()

    def level(self, timestep: float) -> tuple[float, float]:
        if self.flow:
            return 1 - timestep / 1000, timestep / 1000
        low = int(timestep)
        share, high = timestep - low, min(low + 1, 999)
        product = float(self.products[low] * (1 - share) + self.products[high] * share)
        return math.sqrt(product), math.sqrt(1 - product)

    def __call__(self, seen: Tensor, timestep: float) -> Tensor:
        alpha, sigma = self.level(timestep)
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        clean = MEAN + gain * (seen - alpha * MEAN)
        noise = (seen - alpha * clean) / max(sigma, 1e-6)
        return noise - clean if self.flow else noise


def drawn_by(scheduler: Any, kind: str, steps: int = 30, **options: Any) -> Tensor:
    """Scalars that a chain draws with the perfect denoiser."""
    from autotelic.diffusion.sampler import sampler_for

    chain = sampler_for(scheduler, steps, kind, **options)  # type: ignore[arg-type]
    denoiser, random = PerfectDenoiser(chain.levels.prediction == "flow"), torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=random) * chain.levels.start
    for i in range(chain.steps):
        told = denoiser(x * chain.levels.input_scale[i], float(chain.levels.timesteps[i]))
        mean = chain.mean(torch.full((len(x),), i), x, told.float())
        x = mean + chain.std[i] * torch.randn(x.shape, generator=random)
    return x


def is_right(x: Tensor) -> bool:
    """The Gaussian that the perfect denoiser knows, as nearly as thirty steps can."""
    return abs(float(x.mean()) - MEAN) < 0.05 and abs(float(x.std()) - SPREAD) < 0.08


FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
KNOWN: list[tuple[str, dict[str, Any]]] = [
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    ("PNDMScheduler", {}),
    ("DDIMScheduler", {}),
    ("DDIMParallelScheduler", {}),
    ("DDPMScheduler", {}),
    ("DDPMParallelScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("DEISMultistepScheduler", {}),
    ("SASolverScheduler", {}),
    ("DPMSolverMultistepScheduler", FLOW_SIGMAS),
    ("DPMSolverSinglestepScheduler", FLOW_SIGMAS),
    ("UniPCMultistepScheduler", FLOW_SIGMAS),
    ("DEISMultistepScheduler", FLOW_SIGMAS),
    ("SASolverScheduler", FLOW_SIGMAS),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
]
"""Schedulers that pipelines are published with, and settings."""

for _name, _settings in KNOWN:

    @case(
        f"diffusion M2, section 5: {_name} {_settings or ''} with --sampler auto and a perfect denoiser",
        kind="schedulers",
        modality="diffusion",
        entry="scheduler",
        required=Gives(True),
        by="user",
    )
    def known_scheduler(folder: Path, name: str = _name, settings: dict[str, Any] = _settings) -> object:
        return is_right(drawn_by(scheduler_of(name, **settings), "auto"))


for _name, _settings in (
    ("LCMScheduler", {"original_inference_steps": 50}),
    ("TCDScheduler", {"original_inference_steps": 50}),
    ("FlowMatchLCMScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
):

    @case(
        f"diffusion M4: a step of {_name} {_settings} is the scheduler's own",
        kind="schedulers",
        modality="diffusion",
        entry="scheduler",
        required=Gives(True),
        by="user",
    )
    def consistency_step(folder: Path, name: str = _name, settings: dict[str, Any] = _settings) -> object:
        from autotelic.diffusion.sampler import sampler_for

        scheduler = scheduler_of(name, **settings)
        how = {"eta": 0.3} if name.startswith("TCD") else {}
        chain = sampler_for(scheduler, 4, "auto", least_std=0.0, **how)
        x, near = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), []
        for i, t in enumerate(scheduler.timesteps):
            told = torch.randn(x.shape, generator=torch.Generator().manual_seed(100 + i))
            theirs = scheduler.step(told, t, x, generator=torch.Generator().manual_seed(i), **how).prev_sample
            fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
            mine = chain.mean(torch.full((2,), i), x, told) + chain.std[i] * fresh
            near.append(float((mine - theirs).abs().max()) < 1e-3 * float(theirs.abs().max()))
            x = theirs
        return all(near) and chain.decides.tolist() == [True, True, True, False]


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    *(
        ("B10", name, {}, "euler_ancestral")
        for name in (
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "UniPCMultistepScheduler",
            "DEISMultistepScheduler",
            "SASolverScheduler",
            "EDMEulerScheduler",
            "EDMDPMSolverMultistepScheduler",
            "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
        )
    ),
    *(
        ("B10", name, {}, kind)
        for name in (
            "EDMEulerScheduler",
            "EDMDPMSolverMultistepScheduler",
            "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "DPMSolverMultistepInverseScheduler",
            "DDIMInverseScheduler",
            "RePaintScheduler",
        )
        for kind in ("auto", "ddim")
    ),
    *(
        ("section 5", name, {}, "auto")
        for name in ("IPNDMScheduler", "SCMScheduler", "CMStochasticIterativeScheduler", "ScoreSdeVeScheduler")
    ),
    ("brother", "UniPCMultistepScheduler", FLOW_SIGMAS, "ddim"),
    ("brother", "DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "euler_ancestral"),
]
"""Where it was reported, class, settings and sampler."""

for _place, _name, _settings, _kind in REFUSED:

    @case(
        f"diffusion {_place}: {_name} {_settings or ''} with --sampler {_kind}",
        kind="schedulers",
        modality="diffusion",
        entry="scheduler",
        required=Refuses(_name),
        by="user",
    )
    def refused_scheduler(
        folder: Path, name: str = _name, settings: dict[str, Any] = _settings, kind: str = _kind
    ) -> object:
        from autotelic.diffusion.sampler import sampler_for

        return sampler_for(scheduler_of(name, **settings), 10, kind).std.tolist()  # type: ignore[arg-type]


def flow_chain(*sigmas: float) -> Any:
    """The chain of a flow-matching scheduler that passes these levels."""
    from autotelic.diffusion.sampler import sampler_for

    def prepare(scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(sigmas=list(sigmas))

    return sampler_for(scheduler_of("FlowMatchEulerDiscreteScheduler"), len(sigmas), "flow_sde", set_timesteps=prepare)


@case(
    "diffusion B11: a level without noise before the end",
    kind="schedulers",
    modality="diffusion",
    entry="scheduler",
    required=Gives([1.0, 0.75, 0.5, 0.25, 0.0]),
    by="user",
)
def zero_level(folder: Path) -> object:
    chain = flow_chain(1.0, 0.75, 0.5, 0.25, 0.0)  # the scheduler adds a further 0
    assert bool(chain.mean_x.isfinite().all() and chain.mean_p.isfinite().all())
    return chain.levels.sigma.tolist()


@case(
    "diffusion B11: levels that are there twice, as of FlowMatchHeun",
    kind="schedulers",
    modality="diffusion",
    entry="scheduler",
    required=Gives([1.0, 0.75, 0.5, 0.25, 0.0]),
    by="user",
)
def twice_level(folder: Path) -> object:
    return flow_chain(1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25).levels.sigma.tolist()


@case(
    "diffusion B11: levels that rise again",
    kind="schedulers",
    modality="diffusion",
    entry="scheduler",
    required=Refuses("levels|noise"),
    by="user",
)
def rising_levels(folder: Path) -> object:
    return flow_chain(1.0, 0.5, 0.75, 0.25).std.tolist()


for _steps, _settings in ((1000, {}), (1001, {}), (5000, {"timestep_spacing": "trailing"})):

    @case(
        f"diffusion B17: --num-inference-steps {_steps} of a table of 1,000 {_settings or ''}",
        kind="schedulers",
        modality="diffusion",
        entry="--num-inference-steps",
        required=Refuses(f"{_steps}"),
        by="user",
    )
    def too_many_steps(folder: Path, steps: int = _steps, settings: dict[str, Any] = _settings) -> object:
        from autotelic.diffusion.sampler import sampler_for

        return sampler_for(scheduler_of("DDIMScheduler", **settings), steps, "auto").steps


# --- pipelines -------------------------------------------------------------------------------------


def saved(folder: Path, made: Any) -> Path:
    place = folder / "pipeline"
    made.save_pretrained(place)
    return place


def without_weights(place: Path) -> Path:
    """The same folder as it is before its weights have been downloaded."""
    for file in [*place.rglob("*.safetensors"), *place.rglob("*.bin")]:
        file.unlink()
    return place


def changed(place: Path, file: str, **values: Any) -> Path:
    content = json.loads((place / file).read_text())
    (place / file).write_text(json.dumps(content | values))
    return place


def config_of(recipe: str, folder: Path, model: Path | str, **changes: Any) -> Any:
    """A debug preset on a pipeline and six prompts."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS))
    kind = import_module(f"autotelic.diffusion.recipes.{recipe}").Config
    options = {"model": str(model), "data": str(prompts), "rewards": ("sharpness",), "num_inference_steps": 3}
    return kind.tiny(**options | {"lora_rank": 2, "lr": 1e-3, "gate": "none"} | changes)


def built(recipe: str, folder: Path, model: Path | str | None = None, **changes: Any) -> Any:
    """The experiment of a recipe."""
    place = saved(folder, tiny.stable_diffusion()) if model is None else model
    config = config_of(recipe, folder, place, **changes)
    return import_module(f"autotelic.diffusion.recipes.{recipe}").build(config, None)


def started(folder: Path, model: Path | str | None = None, **changes: Any) -> Any:
    """The setting that recipes build on."""
    from autotelic.diffusion.setting import start

    place = saved(folder, tiny.stable_diffusion()) if model is None else model
    return start(config_of("ddpo", folder, place, **changes))


@case(
    "diffusion M7: a pipeline without an adapter is told before its weights are read",
    kind="schedulers",
    modality="diffusion",
    entry="--model",
    required=Refuses("no adapter for KandinskyV22Pipeline"),
    by="user",
)
def no_adapter(folder: Path) -> object:
    place = without_weights(saved(folder, tiny.stable_diffusion()))
    return built("ddpo", folder, changed(place, "model_index.json", _class_name="KandinskyV22Pipeline"))


@case(
    "diffusion M7: a scheduler without a Gaussian step is told before the weights are read",
    kind="schedulers",
    modality="diffusion",
    entry="--model",
    required=Refuses("EDMEulerScheduler"),
    by="user",
)
def no_scheduler(folder: Path) -> object:
    made = tiny.stable_diffusion()
    made.scheduler = diffusers.EDMEulerScheduler()
    return built("ddpo", folder, without_weights(saved(folder, made)))


@case(
    "diffusion M7: a LoRA target that the denoiser lacks is told before the weights are read",
    kind="schedulers",
    modality="diffusion",
    entry="--lora-targets",
    required=Refuses('unknown LoRA target "to_x"'),
    by="user",
)
def no_target(folder: Path) -> object:
    place = without_weights(saved(folder, tiny.stable_diffusion()))
    return built("ddpo", folder, place, lora_targets=("to_q", "to_x"))


@case(
    "diffusion M7: a size that the pipeline cannot draw is told before the weights are read",
    kind="schedulers",
    modality="diffusion",
    entry="--height",
    required=Refuses("multiples of 8"),
    by="user",
)
def no_size(folder: Path) -> object:
    return built("ddpo", folder, without_weights(saved(folder, tiny.stable_diffusion())), height=18)


for _what, _changes, _pattern in (
    ("an inpainting UNet of nine channels", {"in_channels": 9}, "9 channels"),
    ("a UNet with learned variance", {"out_channels": 8}, "variance"),
):

    @case(
        f"diffusion B17: {_what}",
        kind="schedulers",
        modality="diffusion",
        entry="--model",
        required=Refuses(_pattern),
        by="user",
    )
    def channels(folder: Path, changes: dict[str, Any] = _changes) -> object:
        return built("ddpo", folder, saved(folder, tiny.stable_diffusion(**changes)))


@case(
    "diffusion B17: FLUX without its T5",
    kind="schedulers",
    modality="diffusion",
    entry="--model",
    required=Refuses("text_encoder_2"),
    by="user",
)
def flux_without_t5(folder: Path) -> object:
    made = tiny.flux()
    made.text_encoder_2 = made.tokenizer_2 = None
    return built("ddpo", folder, saved(folder, made), height=16, width=16)


@case(
    "diffusion B17: SDXL's refiner, which has one text encoder",
    kind="schedulers",
    modality="diffusion",
    entry="--model",
    required=Refuses("text_encoder"),
    by="user",
)
def refiner(folder: Path) -> object:
    made = tiny.stable_diffusion_xl()
    made.text_encoder = made.tokenizer = None
    return built("ddpo", folder, saved(folder, made))


@case(
    "diffusion section 6: Stable Diffusion 3 without its T5 is complete",
    kind="schedulers",
    modality="diffusion",
    entry="--model",
    required=GoesOn(),
    by="user",
)
def sd3_without_t5(folder: Path) -> object:
    return built("ddpo", folder, saved(folder, tiny.stable_diffusion_3(t5_encoder=False)))


@case(
    "diffusion M2: SD 1.5 as it is published, with PNDM, and the line that says what takes its place",
    kind="schedulers",
    modality="diffusion",
    entry="--model",
    required=Gives(True),
    by="user",
    slow=True,
)
def published_sd(folder: Path) -> object:
    made = tiny.stable_diffusion()
    made.scheduler = scheduler_of("PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False)
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS))
    words = ["run", "diffusion/ddpo", "--debug", "--model", saved(folder, made), "--data", "prompts.txt"]
    words += ["--rewards", "sharpness", "--num-inference-steps", 4, "--output-dir", folder / "run"]
    said = autotelic(*words, folder=folder)
    return "PNDMScheduler" in said and "ddim" in said and (folder / "run/policy").is_dir()


OWN_SIZE = {"height": 32, "width": 64}


@torch.no_grad()
def as_its_pipeline(made: Any, adapted: dict[str, Any], called: dict[str, Any], scale: float) -> bool:
    """Whether an adapter's steps draw what the pipeline's own call draws from the same noise."""
    from autotelic.diffusion.pipelines import adapter_for

    adapter: Any = adapter_for(made, **OWN_SIZE, negative_prompt="ugly", **adapted)
    prompts = ["a red circle", "two blue squares"]
    x = noise = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(0))
    adapter.set_timesteps(adapter.scheduler, 3)
    told, without = adapter.encode(prompts), adapter.unconditional(2)
    for t in adapter.scheduler.timesteps:
        out = adapter.predict_guided(adapter.denoiser, x, t.expand(2), told, without, scale)
        x = adapter.scheduler.step(out, t, x, return_dict=False)[0]
    start = adapter.pack(noise) if hasattr(adapter, "pack") else noise
    theirs = made(prompts, num_inference_steps=3, latents=start, output_type="pt", **OWN_SIZE, **called)
    theirs = theirs.frames if hasattr(theirs, "frames") else theirs.images
    return adapter.decode(x).shape == theirs.shape and float((adapter.decode(x) - theirs).abs().max()) < 1e-4


GUIDED = {"guidance_scale": 3.0, "negative_prompt": ["ugly", "ugly"]}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "SANA": ("sana", {}, {**GUIDED, "negative_prompt": "ugly", "use_resolution_binning": False}),
    "PixArt-Sigma": ("pixart_sigma", {}, {**GUIDED, "negative_prompt": "ugly", "use_resolution_binning": False}),
    "Qwen-Image": ("qwen_image", {}, {"true_cfg_scale": 3.0, "negative_prompt": ["ugly", "ugly"]}),
    "Wan 2.1": ("wan", {"num_frames": 5}, {**GUIDED, "num_frames": 5}),
}
"""Builder in ``autotelic.testing.pipelines``, options of the adapter, options of the pipeline's call."""

for _name, (_builder, _adapted, _called) in FAMILIES.items():

    @case(
        f"diffusion section 5: {_name} draws what its pipeline draws",
        kind="schedulers",
        modality="diffusion",
        entry="--model",
        required=Gives(True),
        by="user",
    )
    def family(
        folder: Path,
        builder: str = _builder,
        adapted: dict[str, Any] = _adapted,
        called: dict[str, Any] = _called,
    ) -> object:
        return as_its_pipeline(getattr(tiny, builder)(), adapted, called, 3.0)


@case(
    "diffusion section 5: SANA as it is published, with DPM-Solver on flow sigmas",
    kind="schedulers",
    modality="diffusion",
    entry="--model",
    required=GoesOn(),
    by="user",
)
def sana_as_published(folder: Path) -> object:
    made = tiny.sana()  # type: ignore[attr-defined]
    made.scheduler = diffusers.DPMSolverMultistepScheduler(**FLOW_SIGMAS)
    return built("flow_grpo", folder, saved(folder, made))


# --- options of drawing ----------------------------------------------------------------------------


@case(
    "diffusion M3: --height and --width",
    kind="schedulers",
    modality="diffusion",
    entry="--height",
    required=Gives([3, 24, 32]),
    by="user",
)
def size(folder: Path) -> object:
    (rollout,) = started(folder, height=24, width=32).policy.act(TASKS[:1], 1)
    return list(rollout.output.shape)


@case(
    "diffusion M5: --negative-prompt changes what is drawn, where there is guidance",
    kind="schedulers",
    modality="diffusion",
    entry="--negative-prompt",
    required=Gives([True, False]),
    by="user",
)
def negative_prompt(folder: Path) -> object:
    place = saved(folder, tiny.stable_diffusion())
    found = []
    for scale in (4.0, None):
        both = [
            started(folder, place, guidance_scale=scale, negative_prompt=text).policy.act(TASKS[:1], 1)[0].output
            for text in ("", "ugly")
        ]
        found.append(float((both[0] - both[1]).abs().max()) > 1e-5)
    return found


@case(
    "diffusion M5: guidance in evaluations apart from that of training",
    kind="schedulers",
    modality="diffusion",
    entry="--eval-guidance-scale",
    required=Gives([False, True]),
    by="user",
)
def evaluation_guidance(folder: Path) -> object:
    place = saved(folder, tiny.stable_diffusion())
    plain, guided = (started(folder, place, eval_guidance_scale=scale).policy for scale in (None, 6.0))
    found = []
    for mode in ("train", "evaluate"):
        two = [policy.act(TASKS[:1], 1, mode=mode)[0].output for policy in (plain, guided)]
        found.append(float((two[0] - two[1]).abs().max()) > 1e-5)
    return found


# --- adapters --------------------------------------------------------------------------------------


def with_lora(folder: Path, rank: int = 2) -> tuple[Any, Path]:
    """A pipeline's folder, and one of a LoRA for it that changes its pictures."""
    from autotelic.diffusion.lora import save_lora
    from autotelic.diffusion.pipelines import adapter_for
    from autotelic.trainers.lora import add_lora

    place = saved(folder, tiny.stable_diffusion())
    adapter = adapter_for(tiny.stable_diffusion())
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in add_lora(adapter.denoiser, rank, ["to_q", "to_v"]):
            weight.copy_(0.3 * torch.randn(weight.shape, generator=random))
    save_lora(adapter, folder / "lora")
    return place, folder / "lora"


@case(
    "diffusion B12: a LoRA on a pipeline that has one already",
    kind="schedulers",
    modality="diffusion",
    entry="LoRA",
    required=Refuses("fuse_lora"),
    by="user",
)
def second_lora(folder: Path) -> object:
    from autotelic.trainers.lora import add_lora

    place, lora = with_lora(folder)
    made: Any = diffusers.StableDiffusionPipeline.from_pretrained(place)
    made.load_lora_weights(lora)
    return len(add_lora(made.unet, 2, ["to_q"]))


@case(
    "diffusion B12: all linear layers of a pipeline that has a LoRA already",
    kind="schedulers",
    modality="diffusion",
    entry="LoRA",
    required=Refuses("fuse_lora"),
    by="user",
)
def second_lora_everywhere(folder: Path) -> object:
    from autotelic.trainers.lora import add_lora

    place, lora = with_lora(folder)
    made: Any = diffusers.StableDiffusionPipeline.from_pretrained(place)
    made.load_lora_weights(lora)
    return len(add_lora(made.unet, 2))


@case(
    "diffusion B12, M6: a run that starts from a LoRA draws what it draws, and trains it",
    kind="schedulers",
    modality="diffusion",
    entry="--lora-path",
    required=Gives([True, True]),
    by="user",
)
def continued_lora(folder: Path) -> object:
    place, lora = with_lora(folder)
    made: Any = diffusers.StableDiffusionPipeline.from_pretrained(place, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    made.load_lora_weights(lora)
    policy = started(folder, place, lora_path=str(lora), eta=0.0).policy
    (rollout,) = policy.act(TASKS[:1], 1)
    start = rollout.payload["path"][:1]
    theirs = made(TASKS[0].prompt, latents=start, num_inference_steps=3, guidance_scale=1.0, output_type="pt").images
    trained = sorted(name.rpartition(".")[0] for name in policy.trained())
    return [
        float((rollout.output - theirs[0]).abs().max()) < 1e-4,
        len(trained) > 0 and all("lora" in n for n in trained),
    ]


@case(
    "diffusion B12: a LoRA of another model as the start",
    kind="schedulers",
    modality="diffusion",
    entry="--lora-path",
    required=Refuses("lora"),
    by="user",
)
def foreign_lora(folder: Path) -> object:
    _, lora = with_lora(folder)
    return started(folder, saved(folder / "other", tiny.stable_diffusion_3()), lora_path=str(lora))


@case(
    "diffusion B12: a folder without a LoRA as the start",
    kind="schedulers",
    modality="diffusion",
    entry="--lora-path",
    required=Refuses("nowhere"),
    by="user",
)
def missing_lora(folder: Path) -> object:
    return started(folder, lora_path=str(folder / "nowhere"))


@case(
    "diffusion B12: a denoiser whose class has no add_adapter",
    kind="schedulers",
    modality="diffusion",
    entry="LoRA",
    required=Gives(True),
    by="user",
)
def no_add_adapter(folder: Path) -> object:
    setting = started(folder, saved(folder, tiny.pixart_sigma()))
    setting.save(folder / "policy")
    return any((folder / "policy").iterdir()) and not hasattr(setting.policy.module, "add_adapter")


@case(
    "diffusion B17: no LoRA targets at all",
    kind="cannot learn",
    modality="diffusion",
    entry="--lora-targets",
    required=Refuses("lora.targets"),
    by="user",
)
def no_targets(folder: Path) -> object:
    return started(folder, lora_targets=())


@case(
    "diffusion brother: adapters on layers whose output is dropped, as of the last text stream",
    kind="cannot learn",
    modality="diffusion",
    entry="--lora-targets",
    required=Refuses("none of the 2 trained tensors"),
    by="user",
)
def unread_layers(folder: Path) -> object:
    targets = ("transformer_blocks.1.attn.add_q_proj",)
    return started(folder, saved(folder, tiny.stable_diffusion_3()), lora_targets=targets)


@case(
    "diffusion brother: --num-frames of a pipeline that draws pictures",
    kind="schedulers",
    modality="diffusion",
    entry="--num-frames",
    required=Refuses("frames"),
    by="user",
)
def frames_of_pictures(folder: Path) -> object:
    return started(folder, num_frames=5)


@case(
    "diffusion M6: --lora-alpha",
    kind="schedulers",
    modality="diffusion",
    entry="--lora-alpha",
    required=Gives(8.0),
    by="user",
)
def lora_alpha(folder: Path) -> object:
    from autotelic.trainers.lora import lora_config

    return float(lora_config(started(folder, lora_alpha=8.0).policy.module).lora_alpha)


@case(
    "diffusion M6: an adapter of one's own by --use",
    kind="schedulers",
    modality="diffusion",
    entry="--use",
    required=GoesOn(),
    by="user",
    slow=True,
)
def own_adapter(folder: Path) -> object:
    (folder / "mine.py").write_text(
        "from autotelic import register\n"
        "from autotelic.diffusion.pipelines import StableDiffusionAdapter\n\n\n"
        "@register('pipeline', 'StableDiffusionImg2ImgPipeline')\nclass Mine(StableDiffusionAdapter):\n    pass\n"
    )
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS))
    place = changed(
        saved(folder, tiny.stable_diffusion()), "model_index.json", _class_name="StableDiffusionImg2ImgPipeline"
    )
    words = ["run", "diffusion/ddpo", "--debug", "--use", "mine.py", "--model", place, "--data", "prompts.txt"]
    words += ["--rewards", "sharpness", "--num-inference-steps", 3, "--output-dir", folder / "run"]
    return autotelic(*words, folder=folder)


# --- numbers that are not finite -------------------------------------------------------------------


def poisoned(policy: Any, where: str, prompt: str = TASKS[0].prompt) -> Any:
    """Makes the denoiser or the decoder emit NaN for one prompt."""
    adapter = policy.adapter
    if where == "denoiser":
        told, inner = adapter.encode([prompt])["encoder_hidden_states"], adapter.predict_guided

        def predict(denoise: Any, x: Tensor, t: Tensor, condition: Any, *rest: Any) -> Tensor:
            out = inner(denoise, x, t, condition, *rest)
            bad = (condition["encoder_hidden_states"] == told.to(out.device)).flatten(1).all(1)
            return torch.where(bad.view(-1, 1, 1, 1), math.nan, out)

        adapter.predict_guided = predict
    else:
        decode = adapter.decode

        def spoil(latents: Tensor) -> Tensor:
            pictures: Tensor = decode(latents)
            bad = torch.arange(len(pictures)) == 0
            return torch.where(bad.view(-1, 1, 1, 1), math.nan, pictures)

        adapter.decode = spoil
    return policy


def nothing_decided(rollouts: list[Any]) -> list[bool]:
    return [not bool(rollout.mask.any()) for rollout in rollouts]


for _where in ("denoiser", "decoder"):

    @case(
        f"diffusion B1: what the {_where} made of one prompt is not finite",
        kind="numbers",
        modality="diffusion",
        entry="act",
        required=Gives([True, False, True]),
        by="policy",
    )
    def poisoned_picture(folder: Path, where: str = _where) -> object:
        bad, good = poisoned(started(folder).policy, where).act(TASKS, 1)
        told = " ".join(map(str, bad.info.values()))
        return [*nothing_decided([bad, good]), bad.task.id in told and "finite" in told and not good.info]


def update_of(recipe: str, folder: Path, **changes: Any) -> tuple[Any, dict[str, float]]:
    """Two updates of a recipe whose denoiser is poisoned for one prompt: the policy, and the metrics."""
    experiment = built(recipe, folder, **changes)
    (stage,) = experiment.stages
    policy = stage.actor.bare()
    poisoned(policy, "denoiser", CAPTIONS[0])
    metrics: dict[str, float] = {}
    for round_ in range(2):
        tasks = [Task(f"{text}/{round_}", text) for text in CAPTIONS[:3]]
        rollouts = stage.actor.act(tasks, max(2, stage.group_size), key=(0, round_), **stage.sampling)
        for number, rollout in enumerate(rollouts):
            rollout.scores["total"] = 0.0 if nothing_decided([rollout])[0] else number * 7 % 11 / 10
        metrics = stage.learners["policy"].update(rollouts)
    return policy, metrics


for _recipe in ("ddpo", "prdp", "d3po", "nft", "raft", "alignprop", "draft", "refl"):

    @case(
        f"diffusion B1: pictures that are not finite among those that {_recipe} learns from",
        kind="numbers",
        modality="diffusion",
        entry="learner",
        required=Gives([True, True, True]),
        by="policy",
    )
    def poisoned_update(folder: Path, recipe: str = _recipe) -> object:
        own = folder / "reds.py"
        own.write_text(
            "import torch\n\n\ndef redness(images, **columns):\n"
            "    return torch.stack(list(images))[:, 0].mean((1, 2))\n\n\nredness.differentiable = True\n"
        )
        gradient = recipe in ("alignprop", "draft", "refl")
        changes = {"rewards": (f"{own}:redness",)} if gradient else {}
        policy, metrics = update_of(recipe, folder, **changes)
        weights = all(bool(weight.isfinite().all()) for weight in policy.trained().values())
        norm = metrics["objective/grad_norm"]
        return [weights, math.isfinite(metrics["objective/loss"]), math.isfinite(norm) and norm > 0]


# --- runs that cannot learn ------------------------------------------------------------------------


STILL: list[tuple[str, dict[str, Any], bool]] = [
    ("ddpo", {"eta": 0.0}, False),
    ("prdp", {"eta": 0.0}, False),
    ("d3po", {"eta": 0.0}, False),
    ("ddpo", {"num_inference_steps": 1}, False),
    ("prdp", {"num_inference_steps": 1}, False),
    ("flow_grpo", {"num_inference_steps": 1}, True),
    ("flow_grpo", {"noise_level": 0.0}, True),
    ("flow_grpo", {"sampler": "flow_ancestral", "eta": 0.0}, True),
    ("ddpo", {"num_inference_steps": 1}, True),
    ("ddpo", {"sampler": "flow_sde", "noise_level": 1e-9}, True),
]
"""Recipe, options, and whether the pipeline is a flow's."""

for _recipe, _changes, _flow in STILL:

    @case(
        f"diffusion B9: {_recipe} {_changes}{' on a flow' if _flow else ''}: no step is random",
        kind="cannot learn",
        modality="diffusion",
        entry="sampler",
        required=Refuses("no step of this chain is random"),
        by="user",
    )
    def still(folder: Path, recipe: str = _recipe, changes: dict[str, Any] = _changes, flow: bool = _flow) -> object:
        made = tiny.stable_diffusion_3() if flow else tiny.stable_diffusion()
        return built(recipe, folder, saved(folder, made), **changes)


for _recipe in ("nft", "raft", "dpo"):

    @case(
        f"diffusion B9: {_recipe} learns from pictures alone, and may draw without noise",
        kind="cannot learn",
        modality="diffusion",
        entry="sampler",
        required=GoesOn(),
        by="user",
    )
    def still_but_fine(folder: Path, recipe: str = _recipe) -> object:
        return built(recipe, folder, eta=0.0)


def dtypes(policy: Any) -> set[torch.dtype]:
    return {weight.dtype for weight in policy.trained().values()}


@case(
    "diffusion B3: all weights of a bfloat16 pipeline learn",
    kind="cannot learn",
    modality="diffusion",
    entry="--dtype",
    required=Gives([True, True, True]),
    by="user",
)
def full_weights(folder: Path) -> object:
    setting = started(folder, lora_rank=0, dtype="bf16", lr=1e-6)
    learner = setting.stage(setting.learner(*_grpo(setting))).learners["policy"]
    before = {name: weight.detach().clone() for name, weight in setting.policy.trained().items()}
    rollouts = setting.policy.act(TASKS, 4)
    for number, rollout in enumerate(rollouts):
        rollout.scores["total"] = number * 7 % 11 / 10
    learner.update(rollouts)
    after = setting.policy.trained()
    moved = sum(int((after[name] != old).sum()) for name, old in before.items())
    size = sum(old.numel() for old in before.values())
    others = {p.dtype for p in setting.policy.adapter.pipeline.vae.parameters()}
    return [dtypes(setting.policy) == {torch.float32}, moved > 0.9 * size, others == {torch.bfloat16}]


def _grpo(setting: Any) -> Any:
    from autotelic.trainers.published import grpo

    return grpo(setting.config)


for _dtype, _mixed in (("bf16", torch.bfloat16), ("fp32", None)):

    @case(
        f"diffusion B3: --dtype {_dtype} decides mixed precision",
        kind="cannot learn",
        modality="diffusion",
        entry="--dtype",
        required=Gives(True),
        by="user",
    )
    def mixed(folder: Path, dtype: str = _dtype, wanted: Any = _mixed) -> object:
        return bool(started(folder, dtype=dtype).policy.autocast == wanted)


# --- limits ----------------------------------------------------------------------------------------


@case(
    "diffusion B6: embeddings of prompts are kept up to a limit in bytes, and are the same however often",
    kind="bytes",
    modality="diffusion",
    entry="prompts",
    required=Gives([True, True]),
    by="user",
)
def embeddings(folder: Path) -> object:
    policy = started(folder).policy
    one = policy.conditions(["a red cat"])["encoder_hidden_states"]
    policy.conditions.limit = 3 * one.numel() * one.element_size()
    for number in range(20):
        policy.conditions([f"thing {number}", f"other {number}"])
    again = policy.conditions(["a red cat"])["encoder_hidden_states"]
    return [policy.conditions.held <= policy.conditions.limit, torch.equal(one, again)]


@case(
    "diffusion B8: the memory line counts the copies of the trained weights",
    kind="bytes",
    modality="diffusion",
    entry="memory line",
    required=Gives(True),
    by="user",
)
def memory_line(folder: Path) -> object:
    from autotelic.diffusion.building import plan as plan_of

    setting = started(folder, lora_rank=0, gate="best", judge="colourfulness")
    plan = plan_of(setting.config, setting.policy.adapter, torch.float32)
    trained = sum(weight.numel() * weight.element_size() for weight in setting.policy.trained().values())
    return plan.copies >= 3 * trained and plan.total >= 3 * trained + plan.weights  # start, base, promoted


# --- half-finished runs ----------------------------------------------------------------------------


def finished(folder: Path, experiment: Any) -> Path:
    """The folder of a run, which was not evaluated."""
    from autotelic.trainers.loop import train
    from autotelic.trainers.runs.run_folder import RunFolder

    run = RunFolder.create(folder / "run", recipe="diffusion/ddpo", config={}, command="")
    train(replace(experiment, evaluate=lambda actor: {"outcomes": {}}), run)
    return Path(run.path)


@case(
    "diffusion B7: --grid 0",
    kind="half finished",
    modality="diffusion",
    entry="--grid",
    required=Gives([True, 0]),
    by="user",
)
def no_grid(folder: Path) -> object:
    path = finished(folder, built("ddpo", folder, grid=0))
    return [any((path / "policy").iterdir()), len(list((path / "samples").rglob("*.*g")))]


@case(
    "diffusion B7: grids that cannot be drawn cost no policy",
    kind="half finished",
    modality="diffusion",
    entry="--grid",
    required=Gives([True, True]),
    by="machine",
)
def failing_grid(folder: Path) -> object:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    experiment = built("ddpo", folder)
    policy = experiment.stages[0].actor.bare()

    act = policy.act

    def out_of_memory(tasks: Any, *rest: Any, **how: Any) -> Any:
        if how.get("mode") == "evaluate":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return act(tasks, *rest, **how)

    policy.act = out_of_memory
    logging.getLogger("autotelic").addHandler(handler)
    try:
        path = finished(folder, experiment)
    finally:
        logging.getLogger("autotelic").removeHandler(handler)
    return [any((path / "policy").iterdir()), any("out of memory" in line for line in said)]


@case(
    "diffusion M8: a grid of 36 pictures of 1,024 pixels goes into a report",
    kind="bytes",
    modality="diffusion",
    entry="report",
    required=Gives(True),
    by="user",
)
def large_grid(folder: Path) -> object:
    from autotelic.diffusion.grids import write_grid

    pictures = torch.rand(1, 1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0)).expand(6, 6, 3, -1, -1)
    return bool(write_grid(pictures, folder / "seen-before").stat().st_size < 2_000_000)


@case(
    "diffusion M1: a policy is saved from the state that a checkpoint holds",
    kind="half finished",
    modality="diffusion",
    entry="checkpoint",
    required=Gives([True, True]),
    by="user",
)
def save_from_state(folder: Path) -> object:
    place = saved(folder, tiny.stable_diffusion())
    first, second = started(folder, place), started(folder, place)
    with torch.no_grad():
        for weight in first.policy.parameters():
            weight.add_(0.1)
    second.policy.load_state_dict(first.policy.state_dict())
    second.save(folder / "policy")
    fresh: Any = diffusers.StableDiffusionPipeline.from_pretrained(place, safety_checker=None)
    untouched = {name: weight.clone() for name, weight in fresh.unet.state_dict().items()}
    fresh.load_lora_weights(folder / "policy")
    fresh.fuse_lora()
    fresh.unload_lora_weights()
    moved = any(not torch.equal(weight, untouched[name]) for name, weight in fresh.unet.state_dict().items())
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    told = first.policy.conditions(["a red cat"])
    with torch.no_grad():
        one = first.policy.adapter.predict(first.policy.module, x, t, told)
        two = fresh.unet(x, t, told["encoder_hidden_states"], return_dict=False)[0]
    return [moved, float((one - two).abs().max()) < 1e-4]


# --- preferences -----------------------------------------------------------------------------------


def pair_of(folder: Path, **changes: Any) -> tuple[Any, Any]:
    """The learner of a Diffusion-DPO run and the batch of one pair, whose first picture is preferred."""
    (stage,) = built("dpo", folder, **changes).stages
    first = next(iter(stage.actor.known.values()))[0].task
    rollouts = stage.actor.act([replace(first, id="pair")], 2, key=(0, 1))
    for value, rollout in zip((1.0, 0.0), rollouts, strict=True):
        rollout.scores["total"] = value
    learner = stage.learners["policy"]
    return learner, learner.policy.collate(rollouts, "forward")


@case(
    "diffusion B15: both pictures of a pair are noised to the same levels with the same noise",
    kind="two doors",
    modality="diffusion",
    entry="pairs",
    required=Gives([True, True]),
    by="user",
)
def shared_noise(folder: Path) -> object:
    _, batch = pair_of(folder)
    level, noise = batch.payload["level"], batch.payload["noise"]
    return [torch.equal(level[0], level[1]), torch.equal(noise[0], noise[1])]


@case(
    "diffusion B15: Diffusion-DPO's loss is that of the published script",
    kind="two doors",
    modality="diffusion",
    entry="pairs",
    required=Gives(True),
    by="user",
)
def published_loss(folder: Path) -> object:
    """-log sigmoid(-beta / 2 ((e_w - e_l) - (ref_w - ref_l))), e a mean over the latent, on the mean over draws."""
    beta = 2000.0
    learner, batch = pair_of(folder, beta=beta)
    with torch.no_grad():
        for number, weight in enumerate(learner.policy.parameters()):
            weight.add_(0.05 * (-1) ** number)
        now = learner.policy.evaluate_actions(batch).log_probs
        then = learner.references["start"].evaluate_actions(batch).log_probs
    size = int(batch.dims[0, 0])
    error, before = -2 * now / size, -2 * then / size  # means of squared errors
    inside = -0.5 * beta * ((error[0] - error[1]) - (before[0] - before[1]))
    wanted = float(-torch.nn.functional.logsigmoid(inside).mean())
    batch = replace(batch, log_probs={"start": then}, pairs=torch.tensor([[0, 1]]), labels=torch.ones(1))
    loss, _ = learner.objective(learner.policy.evaluate_actions(batch), batch)
    return abs(float(loss) - wanted) < 1e-3 * max(1.0, abs(wanted)) and abs(wanted - math.log(2)) > 1e-2
