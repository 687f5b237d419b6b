"""Adapters of diffusers pipelines: each must sample what its pipeline's own call samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from torch import Tensor

from autotelic import plugins
from autotelic.diffusion.pipelines import (
    FluxAdapter,
    PipelineAdapter,
    StableDiffusionAdapter,
    adapter_for,
    load,
    loading,
    preview,
)
from autotelic.diffusion.pipelines.flux import PackedAdapter
from autotelic.errors import UsageError
from autotelic.testing import pipelines as tiny

PROMPTS = ["a red circle", "two blue squares"]
SIZE = {"height": 16, "width": 24}


@dataclass(frozen=True)
class Case:
    build: Callable[..., Any]
    settings: dict[str, Any]
    negative: str = ""
    scale: float = 3.0
    size: dict[str, int] = field(default_factory=lambda: SIZE)
    latents: tuple[int, ...] = (4, 8, 12)
    called: dict[str, Any] = field(default_factory=dict)  # what else the pipeline's call is told, and the adapter
    adapted: dict[str, Any] = field(default_factory=dict)


NORMALISED = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
CASES = {
    "sd": Case(tiny.stable_diffusion, {}),
    "sd-unguided": Case(tiny.stable_diffusion, {}, scale=1.0),
    "sd-velocity": Case(tiny.stable_diffusion, {"prediction": "v_prediction"}, negative="ugly"),
    "sd-distilled": Case(tiny.stable_diffusion, {"time_cond_proj_dim": 8}),
    "sdxl": Case(tiny.stable_diffusion_xl, {}),
    "sdxl-negative": Case(tiny.stable_diffusion_xl, {}, negative="ugly"),
    "sdxl-normalised": Case(
        tiny.stable_diffusion_xl, {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1, 2, 3, 4]}
    ),
    "sd3": Case(tiny.stable_diffusion_3, {}),
    "sd3-dynamic": Case(tiny.stable_diffusion_3, {"dynamic": True, "t5_encoder": False}, negative="ugly"),
    "flux": Case(tiny.flux, {}),
    "flux-schnell": Case(tiny.flux, {"distilled": False}, negative="ugly"),
}
LARGE: dict[str, Any] = {"size": {"height": 32, "width": 64}, "negative": "very ugly"}
BINNED: dict[str, Any] = {"use_resolution_binning": False}
FIVE: dict[str, Any] = {"num_frames": 5}
CASES |= {
    "sana": Case(tiny.sana, {}, **LARGE, latents=(4, 16, 32), called=BINNED),
    "sana-unguided": Case(tiny.sana, {}, **LARGE, scale=1.0, latents=(4, 16, 32), called=BINNED),
    "pixart": Case(tiny.pixart_sigma, {}, **LARGE, latents=(4, 16, 32), called=BINNED),
    "qwen": Case(tiny.qwen_image, {}, **LARGE, latents=(4, 4, 8)),
    "qwen-unguided": Case(tiny.qwen_image, {}, **LARGE, scale=1.0, latents=(4, 4, 8)),
    "wan": Case(tiny.wan, {}, **LARGE, latents=(4, 2, 4, 8), called=FIVE, adapted=FIVE),
    "wan-2.2": Case(tiny.wan, {"expand_timesteps": True}, **LARGE, latents=(4, 2, 4, 8), called=FIVE, adapted=FIVE),
}
FAMILIES = ["sd", "sdxl", "sd3", "flux", "sana", "pixart", "qwen", "wan"]


def noise_for(adapter: PipelineAdapter, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, *adapter.latent_shape, generator=torch.Generator().manual_seed(seed))


def from_pipeline(case: Case, adapter: PipelineAdapter, noise: Tensor, output: str) -> Tensor:
    """What the pipeline's own call makes of the noise in three steps."""
    negative: Any = case.negative if case.called is BINNED else [case.negative] * len(PROMPTS)
    how: dict[str, Any] = {"guidance_scale": case.scale} | case.called
    packed = isinstance(adapter, PackedAdapter)
    if packed and not adapter.distilled:
        how = {"true_cfg_scale": case.scale, "negative_prompt": negative}
    elif case.negative:
        how["negative_prompt"] = negative
    latents = adapter.pack(noise) if packed else noise
    out = adapter.pipeline(PROMPTS, num_inference_steps=3, latents=latents, output_type=output, **case.size, **how)
    made = out.frames if adapter.video else out.images
    return adapter.unpack(made) if packed and output == "latent" else made


def adapter_of(case: Case) -> Any:
    return adapter_for(case.build(**case.settings), **case.size, **case.adapted, negative_prompt=case.negative)


@torch.no_grad()
def by_hand(case: Case, adapter: PipelineAdapter, noise: Tensor, prompts: list[str]) -> Tensor:
    scheduler, x = adapter.scheduler, noise
    adapter.set_timesteps(scheduler, 3)
    condition, without = adapter.encode(prompts), adapter.unconditional(len(prompts))
    for t in scheduler.timesteps:
        out = adapter.predict_guided(adapter.denoiser, x, t.expand(len(x)), condition, without, case.scale)
        x = scheduler.step(out, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_samples_what_its_pipeline_samples(name: str) -> None:
    case = CASES[name]
    adapter = adapter_of(case)
    assert adapter.latent_shape == case.latents
    noise = noise_for(adapter)
    latents = by_hand(case, adapter, noise, PROMPTS)
    torch.testing.assert_close(latents, from_pipeline(case, adapter, noise, "latent"), rtol=0, atol=1e-5)
    torch.testing.assert_close(adapter.decode(latents), from_pipeline(case, adapter, noise, "pt"), rtol=0, atol=1e-5)
    other = by_hand(case, adapter, noise, PROMPTS[::-1])
    assert (other - latents).abs().max() > 1e-3, "the prompt is not heard, so that the test proves nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_conditions_are_rows_that_can_be_stacked(family: str) -> None:
    adapter = adapter_of(CASES[family])
    both, first = adapter.encode(PROMPTS), adapter.encode(PROMPTS[:1])
    empty = adapter.unconditional(3)
    assert set(both) == set(first) == set(empty)
    joined = adapter.stacked([{name: rows[0] for name, rows in one.items()} for one in (first, empty, empty)])
    for name, rows in both.items():
        assert not rows.requires_grad
        assert (len(rows), len(first[name]), len(empty[name]), len(joined[name])) == (2, 1, 3, 3)
        own = first[name].shape[1] if first[name].ndim > 1 else None  # of one prompt alone a text may be shorter
        torch.testing.assert_close(rows[:1, :own], first[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(joined[name][:1, :own], first[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_denoiser_is_trainable_and_pictures_pass_a_gradient(family: str) -> None:
    adapter = adapter_of(CASES[family])
    for name, part in adapter.pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            assert all(p.requires_grad == (name == adapter.denoiser_name) for p in part.parameters())
    noise = noise_for(adapter, 1).requires_grad_()
    time = torch.tensor([400.0])
    out = adapter.predict(adapter.denoiser, noise, time, adapter.encode(PROMPTS[:1]))
    assert out.shape == noise.shape
    picture = adapter.decode(out)
    assert picture.shape == (1, *adapter.output_shape)
    assert picture.dtype == torch.float32
    picture.mean().backward()
    assert noise.grad is not None and noise.grad.abs().sum() > 0
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.denoiser.parameters())


class Recorder:
    """Stands for a denoiser: its output is its input times a factor; counts rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.told: list[Any] = []

    def __call__(self, *, return_dict: bool, **inputs: Any) -> tuple[Tensor]:
        latents = inputs.get("sample", inputs.get("hidden_states"))
        self.rows.append(len(latents))
        self.told.append(inputs)
        assert not return_dict
        return (latents * inputs["encoder_hidden_states"][:, 0, 0].reshape(-1, *[1] * (latents.ndim - 1)),)


def condition_of(value: float, rows: int = 2) -> dict[str, Tensor]:
    return {"encoder_hidden_states": torch.full((rows, 4, 16), value)}


def test_guidance_is_one_call_of_twice_the_batch() -> None:
    adapter, denoise = adapter_for(tiny.stable_diffusion()), Recorder()
    x, time = torch.ones(2, 4, 8, 8), torch.tensor([5, 7])
    out = adapter.predict_guided(denoise, x, time, condition_of(3.0), condition_of(1.0), 4.0)
    torch.testing.assert_close(out, torch.full_like(x, 1 + 4 * (3 - 1)))
    assert denoise.rows == [4]
    assert denoise.told[0]["timestep"].tolist() == [5, 7, 5, 7]
    out = adapter.predict_guided(denoise, x, time, condition_of(3.0), None, 1.0)
    torch.testing.assert_close(out, torch.full_like(x, 3.0))
    assert denoise.rows == [4, 2]
    with pytest.raises(ValueError, match=r"scale 2.0 needs the unconditional condition"):
        adapter.predict_guided(denoise, x, time, condition_of(3.0), None, 2.0)


def test_a_distilled_denoiser_is_told_the_scale() -> None:
    adapter, denoise = adapter_for(tiny.flux(), **SIZE, guidance=2.5), Recorder()
    condition, x, time = adapter.encode(PROMPTS), noise_for(adapter), torch.tensor([500.0, 250.0])
    adapter.predict_guided(denoise, x, time, condition, None, 7.0)
    adapter.predict(denoise, x, time, condition)
    assert denoise.rows == [2, 2]
    assert [told["guidance"].tolist() for told in denoise.told] == [[7.0, 7.0], [2.5, 2.5]]
    assert denoise.told[0]["timestep"].tolist() == [0.5, 0.25]
    assert adapter_for(tiny.flux(distilled=False), **SIZE)._inputs(x, time, condition, 7.0)["guidance"] is None


def test_packing_is_that_of_the_pipeline() -> None:
    adapter = adapter_for(tiny.flux(), **SIZE)
    assert isinstance(adapter, FluxAdapter)
    x = noise_for(adapter)
    tokens = adapter.pack(x)
    assert torch.equal(tokens, adapter.pipeline._pack_latents(x, 2, 4, 8, 12))
    assert torch.equal(adapter.unpack(tokens), x)


def test_pictures_are_clamped_and_clamped_values_pass_no_gradient() -> None:
    adapter = adapter_for(tiny.stable_diffusion())
    values = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0], requires_grad=True)
    adapter.pipeline.vae.decode = lambda z, return_dict: (z,)
    adapter.pipeline.vae.register_to_config(scaling_factor=1.0)
    out = adapter.decode(values)
    torch.testing.assert_close(out, torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0]))
    out.sum().backward()
    assert values.grad is not None
    assert values.grad[[0, 4]].tolist() == [0, 0]
    assert values.grad[[2, 3]].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", ["sana", "pixart", "qwen", "wan"])
def test_what_is_encoded_is_decoded_to_what_the_vae_alone_makes_of_it(name: str) -> None:
    adapter = adapter_of(CASES[name])
    drawn = torch.rand(2, *adapter.output_shape, generator=torch.Generator().manual_seed(0))
    latents = adapter.encode_images(drawn)
    assert latents.shape == (2, *adapter.latent_shape)
    vae, given = adapter.pipeline.vae, 2 * drawn - 1
    given = given.transpose(1, 2) if adapter.video else given[:, :, None] if name == "qwen" else given
    code = vae.encode(given, return_dict=False)[0]
    raw = code.mode() if hasattr(code, "mode") and not isinstance(code, Tensor) else code
    direct = (vae.decode(raw, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    direct = direct.transpose(1, 2) if adapter.video else direct[:, :, 0] if name == "qwen" else direct
    torch.testing.assert_close(adapter.decode(latents), direct, rtol=0, atol=1e-5)


def test_a_video_of_other_frames_or_with_two_denoisers_is_refused() -> None:
    assert adapter_for(tiny.wan()).output_shape == (81, 3, 480, 832), "the default of the pipeline's call"
    with pytest.raises(UsageError, match="cannot draw 6 frames: use a multiple of 4 and one more"):
        adapter_for(tiny.wan(), num_frames=6)
    two = tiny.wan()
    two.register_modules(transformer_2=two.transformer)
    with pytest.raises(UsageError, match="two denoisers"):
        adapter_for(two)


@pytest.mark.parametrize("name", ["sd", "sdxl-normalised", "sd3", "flux"])
def test_pictures_become_latents_in_the_denoisers_units(name: str) -> None:
    case = CASES[name]
    adapter = adapter_for(case.build(**case.settings), **SIZE)
    pictures = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    latents = adapter.encode_images(pictures)
    assert latents.shape == (2, 4, 8, 12)
    raw = adapter.pipeline.vae.encode(2 * pictures - 1).latent_dist.mean
    shift = torch.tensor(case.settings.get("latents_mean", [adapter.pipeline.vae.config.shift_factor or 0.0] * 4))
    spread = torch.tensor(case.settings.get("latents_std", [1.0] * 4))
    want = (raw - shift.view(4, 1, 1)) / spread.view(4, 1, 1) * 0.5
    torch.testing.assert_close(latents, want)
    direct = adapter.pipeline.vae.decode(raw, return_dict=False)[0]
    torch.testing.assert_close(adapter.decode(latents), (direct / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 8, 8\), not \[B, 3, 16, 24\]"):
        adapter.encode_images(pictures[..., :8, :8])


def test_latents_stay_in_float32_beside_a_bfloat16_denoiser() -> None:
    adapter, exact = (adapter_for(tiny.stable_diffusion().to(dtype)) for dtype in (torch.bfloat16, torch.float32))
    assert adapter.dtype == torch.bfloat16
    x, time = noise_for(adapter), torch.tensor([100, 900])
    out = adapter.predict(adapter.denoiser, x, time, adapter.encode(PROMPTS))
    assert out.dtype == torch.float32
    want = exact.predict(exact.denoiser, x, time, exact.encode(PROMPTS))
    assert 0 < (out - want).abs().max() < 0.1
    assert adapter.decode(out).dtype == torch.float32


def test_a_vae_that_overflows_in_float16_is_kept_in_float32() -> None:
    pipeline = tiny.stable_diffusion_xl()
    pipeline.vae.half()
    assert pipeline.vae.config.force_upcast
    assert adapter_for(pipeline).pipeline.vae.dtype == torch.float32


def test_the_adapter_has_the_pipelines_own_size_by_default() -> None:
    adapter = adapter_for(tiny.stable_diffusion())
    assert (adapter.height, adapter.width, adapter.latent_shape) == (16, 16, (4, 8, 8))
    assert adapter.guidance == 7.5
    assert adapter_for(tiny.flux(), guidance=2.0).guidance == 2.0
    assert adapter_for(tiny.flux()).latent_shape == (4, 128, 128)


@pytest.mark.parametrize(("build", "unit"), [(tiny.stable_diffusion, 8), (tiny.flux, 4)])
def test_a_size_that_cannot_be_drawn_is_refused(build: Callable[..., Any], unit: int) -> None:
    with pytest.raises(UsageError, match=f"cannot draw 18 x 16 pixels: use multiples of {unit}"):
        adapter_for(build(), height=18, width=16)
    with pytest.raises(UsageError, match="cannot draw 0 x 16"):
        adapter_for(build(), height=0, width=16)


def test_a_prompt_that_is_no_text_is_named() -> None:
    with pytest.raises(ValueError, match="prompt 1 is no text but dict"):
        adapter_for(tiny.stable_diffusion()).encode(["red", {"text": "blue"}])  # type: ignore[list-item]


def test_an_unknown_pipeline_is_refused_until_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no adapter for DDPMPipeline: .* StableDiffusionPipeline, .*register"):
        adapter_for(DDPMPipeline(tiny.unet(), DDPMScheduler()))

    class Mine(StableDiffusionPipeline):
        pass

    class MyAdapter(StableDiffusionAdapter):
        pass

    pipeline = Mine(**tiny.stable_diffusion().components, requires_safety_checker=False)
    assert type(adapter_for(pipeline)) is StableDiffusionAdapter
    monkeypatch.setitem(plugins.table("pipeline"), "Mine", MyAdapter)
    assert type(adapter_for(pipeline)) is MyAdapter


# loading


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_is_looked_at_before_its_weights_are_there(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    made = case.build(**case.settings)
    made.save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    seen, whole = preview(tmp_path, **case.size, **case.adapted), adapter_of(case)
    assert seen is not None and {p.device.type for p in seen.denoiser.parameters()} == {"meta"}
    assert (seen.latent_shape, seen.output_shape) == (whole.latent_shape, whole.output_shape)
    shapes, theirs = ({n: p.shape for n, p in each.denoiser.named_parameters()} for each in (seen, whole))
    assert shapes == theirs
    for each in (seen, whole):
        each.set_timesteps(each.scheduler, 3)
    assert torch.equal(seen.scheduler.timesteps, whole.scheduler.timesteps)
    with pytest.raises(UsageError, match="cannot draw 17 x"):
        preview(tmp_path, height=17, width=64, **case.adapted)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.stable_diffusion().save_pretrained(folder)
    return folder


def test_a_saved_pipeline_draws_the_same(saved: Path) -> None:
    loaded, made = (adapter_for(p) for p in (load(saved, device="cpu"), tiny.stable_diffusion()))
    x, time = noise_for(made), torch.tensor([10, 800])
    outs = [a.predict(a.denoiser, x, time, a.encode(PROMPTS)) for a in (loaded, made)]
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-6)
    assert loaded.dtype == torch.float32


def test_options_reach_the_pipeline(saved: Path) -> None:
    scheduler = EulerDiscreteScheduler(steps_offset=1)
    pipeline = load(str(saved), dtype=torch.bfloat16, scheduler=scheduler)
    assert pipeline.scheduler is scheduler
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.bfloat16}


def test_half_precision_on_the_cpu_is_refused(saved: Path) -> None:
    with pytest.raises(UsageError, match="float16 does not train on the CPU: use float32, or bfloat16"):
        load(saved, dtype=torch.float16, device="cpu")


def test_a_folder_that_holds_no_pipeline_is_told_in_one_line(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere does not exist: a pipeline is saved with"):
        load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"has no model_index.json"):
        load(tmp_path)
    index = tmp_path / "model_index.json"
    for broken, told in [("{", "index.json is not JSON"), ("{}", "lacks _class_name"), ("[]", "holds a list")]:
        index.write_text(broken)
        with pytest.raises(UsageError, match=told):
            load(tmp_path)
    index.write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    with pytest.raises(UsageError, match=r"is of the class NoSuchPipeline, which diffusers .* does not have"):
        load(tmp_path)
    with pytest.raises(UsageError, match=r"model_index.json is one file: .*from_single_file"):
        load(index)
    index.write_text((saved / "model_index.json").read_text())
    with pytest.raises(UsageError, match="cannot load the pipeline") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_that_cannot_be_fetched_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **settings: Any) -> None:
        assert name == "someone/something"
        raise OSError("no connection\nto the hub")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", refuse)
    with pytest.raises(UsageError, match=r"^cannot load the pipeline someone/something: no connection to the hub$"):
        load("someone/something")


def test_a_pipeline_of_the_projects_own_is_found_by_its_name(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loading.OWN_PIPELINES, "OwnPipeline", __name__)
    folder = tmp_path / "own"
    OwnPipeline(**tiny.stable_diffusion().components, requires_safety_checker=False).save_pretrained(folder)
    assert type(load(folder)) is OwnPipeline


class OwnPipeline(StableDiffusionPipeline):
    pass
