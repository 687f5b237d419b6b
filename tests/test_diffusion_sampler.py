"""Tables of denoising steps against diffusers' schedulers, the Flow-GRPO formula and torch's normal distribution."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)
from torch.distributions import Normal, kl_divergence

from autotelic.diffusion.sampler import Sampler, sampler_for
from autotelic.errors import UsageError

SHAPE = (2, 3, 4, 4)
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def in_double(scheduler: Any) -> Any:
    """A scheduler whose table is in double precision: float32 loses 1 - alpha^2 near the picture."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    return scheduler


def ddim(prediction: str = "epsilon", **settings: Any) -> Any:
    return in_double(DDIMScheduler(clip_sample=False, prediction_type=prediction, **settings))


def ddpm(prediction: str = "epsilon", **settings: Any) -> Any:
    return in_double(DDPMScheduler(clip_sample=False, prediction_type=prediction, **settings))


def euler(prediction: str = "epsilon", **settings: Any) -> Any:
    return EulerAncestralDiscreteScheduler(prediction_type=prediction, **settings)


def lcm(prediction: str = "epsilon", **settings: Any) -> Any:
    return in_double(LCMScheduler(prediction_type=prediction, **LATENT, **settings))


def tcd(prediction: str = "epsilon", **settings: Any) -> Any:
    return in_double(TCDScheduler(prediction_type=prediction, clip_sample=False, **LATENT, **settings))


def flow(**settings: Any) -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, **settings)


CASES: list[Any] = [
    pytest.param(build(prediction, **settings), options, how, id=f"{name}-{prediction}")
    for prediction in ("epsilon", "v_prediction", "sample")
    for name, build, settings, options, how in [
        ("ddim-0", ddim, {}, {"eta": 0.0}, {"eta": 0.0}),
        ("ddim-0.5", ddim, {}, {"eta": 0.5, "least_std": 0.0}, {"eta": 0.5}),
        ("ddim-1", ddim, {}, {"least_std": 0.0}, {"eta": 1.0}),
        ("ddim-latent", ddim, LATENT | {"set_alpha_to_one": False}, {"least_std": 0.0}, {"eta": 1.0}),
        ("ddim-zero-snr", ddim, ZERO_SNR | {"set_alpha_to_one": True}, {"least_std": 0.0}, {"eta": 1.0}),
        ("ddpm", ddpm, {}, {"least_std": 0.0}, {}),
        ("ddpm-trailing", ddpm, {"timestep_spacing": "trailing"}, {"least_std": 0.0}, {}),
        ("euler", euler, {}, {"least_std": 0.0}, {}),
        ("lcm", lcm, {}, {"least_std": 0.0}, {}),
        ("tcd", tcd, {}, {"least_std": 0.0, "eta": 0.3}, {"eta": 0.3}),
    ]
    if (name, prediction) not in (("euler", "sample"), ("ddim-zero-snr", "epsilon"))
]
CASES.append(pytest.param(flow(), {"kind": "flow_ancestral", "eta": 0.0}, {}, id="flow"))


@pytest.mark.parametrize(("scheduler", "options", "how"), CASES)
def test_a_step_is_that_of_the_scheduler(scheduler: Any, options: dict[str, Any], how: dict[str, Any]) -> None:
    sampler = sampler_for(scheduler, 10, **options)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=random) * sampler.levels.start
    assert sampler.steps == len(scheduler.timesteps) == 10
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        torch.testing.assert_close(scaled, sampler.levels.input_scale[i] * x)
        prediction = torch.randn(SHAPE, generator=random)
        if "Flow" not in type(scheduler).__name__ and "generator" in inspect.signature(scheduler.step).parameters:
            how = how | {"generator": torch.Generator().manual_seed(i)}
        theirs = scheduler.step(prediction, t, x, **how).prev_sample.float()
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(i))
        mine = sampler.mean(torch.full((2,), i), x, prediction) + sampler.std[i] * noise
        scale = max(1.0, float(x.abs().max()), float(theirs.abs().max()))
        assert float((mine - theirs).abs().max()) < 2e-5 * scale, f"step {i}"
        assert bool(sampler.decides[i]) == (options.get("eta") != 0.0 and float(sampler.std[i]) > 0)
        x = theirs


def test_noise_is_there_where_it_should_be() -> None:
    """eta scales it, the last step to the picture has none, and least_std silences what is small."""
    one, half = (sampler_for(ddim(), 10, eta=eta, least_std=0.0) for eta in (1.0, 0.5))
    torch.testing.assert_close(half.std, one.std / 2)
    assert one.decides.tolist() == [True] * 9 + [False]
    bar = float(one.std[7:9].mean())
    some = sampler_for(ddim(), 10, least_std=bar)
    assert some.decides.tolist() == [True] * 8 + [False] * 2
    silent = sampler_for(ddim(), 10, eta=0.0)
    torch.testing.assert_close(some.mean_x[8], silent.mean_x[8])
    torch.testing.assert_close(some.mean_p[:8], one.mean_p[:8])


def test_the_stochastic_flow_is_that_of_flow_grpo() -> None:
    """mean = x (1 + s^2 dt / (2 sigma)) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt, std = s sqrt(-dt), dt < 0."""
    scheduler = flow()
    sampler = sampler_for(scheduler, 5, "flow_sde", noise_level=0.7, least_std=0.0)
    x, v = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).unbind(0)
    sigmas = scheduler.sigmas.tolist()
    for i in (0, 1, 3):
        sigma, dt = sigmas[i], sigmas[i + 1] - sigmas[i]
        s = 0.7 * (sigma / (1 - (sigmas[1] if sigma == 1 else sigma))) ** 0.5
        mean = x * (1 + s**2 / (2 * sigma) * dt) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
        torch.testing.assert_close(sampler.mean(torch.full((2,), i), x, v), mean)
        assert float(sampler.std[i]) == pytest.approx(s * (-dt) ** 0.5, rel=1e-5)
    assert sampler_for(scheduler, 5, "flow_sde").std.tolist() == pytest.approx([*sampler.std.tolist()[:4], 0.0])
    assert torch.equal(sampler_for(scheduler, 5).std, sampler_for(scheduler, 5, "flow_ancestral").std)


def test_densities_are_those_of_a_normal_distribution() -> None:
    sampler = sampler_for(ddim(), 10)
    step = torch.tensor([0, 5])
    x, mean, other = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)).unbind(0)
    std = sampler.std[step].reshape(2, 1, 1, 1).double()
    now, then = (Normal(centre.double(), std.expand_as(centre)) for centre in (mean, other))
    torch.testing.assert_close(sampler.log_prob(step, x, mean), now.log_prob(x).flatten(1).sum(1), rtol=1e-6, atol=0)
    kl = kl_divergence(now, then).flatten(1).sum(1)
    torch.testing.assert_close(sampler.kl(step, mean, other), kl, rtol=1e-6, atol=0)


def test_differences_of_log_densities_are_exact_in_many_dimensions() -> None:
    """262,144 scalars, as of FLUX at 1,024 pixels: sums of 1e5 nats, of which single precision keeps .02."""
    sampler, random = sampler_for(flow(), 10), torch.Generator().manual_seed(0)
    step, std = torch.tensor([3]), float(sampler.std[3])
    mean = torch.randn(1, 16, 128, 128, generator=random)
    x = mean + std * torch.randn(mean.shape, generator=random)
    other = mean + 1e-3 * std * torch.randn(mean.shape, generator=random)
    right = ((x - mean).double() ** 2 - (x - other).double() ** 2).sum() / (2 * sampler.std[3].double() ** 2)
    now, then = sampler.log_prob(step, x, other), sampler.log_prob(step, x, mean)
    assert abs(float(now)) > 1e5 and abs(float(right)) > 0.1
    assert float(now - then) == pytest.approx(float(right), abs=5e-4)
    assert abs(float(now.float() - then.float()) - float(right)) > 2e-3, "what single precision makes of them"


def test_a_table_is_moved_to_a_device_once() -> None:
    sampler, step = sampler_for(ddim(), 10), torch.tensor([0, 5])
    x = torch.zeros(SHAPE)
    sampler.mean(step, x, x)
    kept = dict(sampler.copies)
    assert {name for name, _, _ in kept} == {"mean_x", "mean_p"}
    sampler.mean(step, x, x)
    assert all(sampler.copies[key] is table for key, table in kept.items())
    alpha = sampler.levels.alpha[step].float().reshape(2, 1, 1, 1)
    assert torch.equal(sampler.noised(step, x + 1, x), alpha.expand_as(x))
    assert sampler.windowed(0, 1).copies == {}, "another chain has tables of its own"


@pytest.mark.parametrize("kind", ["flow_sde", "flow_ancestral"])
def test_a_window_is_random_inside_and_deterministic_outside(kind: Any) -> None:
    whole = sampler_for(flow(), 6, kind)
    silent = sampler_for(flow(), 6, "flow_ancestral", eta=0.0)
    some = whole.windowed(1, 3)
    assert some.decides.tolist() == [False, True, True, False, False, False]
    for name in ("mean_x", "mean_p", "std"):
        mine, inside, outside = (getattr(sampler, name) for sampler in (some, whole, silent))
        torch.testing.assert_close(mine[1:3], inside[1:3])
        torch.testing.assert_close(mine[[0, 3, 4, 5]], outside[[0, 3, 4, 5]])
    assert not torch.allclose(whole.mean_p[3], silent.mean_p[3])
    assert not whole.windowed(0, 0).decides.any()
    torch.testing.assert_close(whole.windowed(0, 6).mean_p, whole.mean_p)


LEVELS: list[Any] = [
    pytest.param(sampler_for(build(prediction), 6), id=f"{build.__name__}-{prediction}")
    for build in (ddim, euler)
    for prediction in ("epsilon", "v_prediction", "sample")
]
LEVELS += [pytest.param(sampler_for(flow(), 6), id="flow")]
LEVELS += [pytest.param(sampler_for(ddim("v_prediction", **ZERO_SNR), 6), id="zero-snr")]


@pytest.mark.parametrize("sampler", LEVELS)
def test_a_perfect_model_sees_the_picture_at_every_level(sampler: Sampler) -> None:
    clean, noise = torch.randn(2, sampler.steps, 3, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    step = torch.arange(sampler.steps)
    x, told = sampler.noised(step, clean, noise), sampler.target(step, clean, noise)
    known = sampler.levels.alpha[:-1] > 1e-3  # zero signal tells nothing but through the model
    atol = 1e-5 * float((sampler.levels.sigma / sampler.levels.alpha.clamp(min=1e-3)).max())
    torch.testing.assert_close(sampler.clean(step, x, told)[known], clean[known], rtol=0, atol=max(atol, 1e-5))
    ratio = sampler.levels.input_scale * (sampler.levels.alpha[:-1] ** 2 + sampler.levels.sigma[:-1] ** 2).sqrt()
    if sampler.levels.prediction != "flow":
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-4, atol=0)


def test_a_chain_with_a_perfect_model_ends_at_the_picture() -> None:
    """Whatever the noise on the way, the last step lands on what the model sees."""
    clean = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for sampler in (sampler_for(ddim("sample"), 6), sampler_for(euler(), 6), sampler_for(flow(), 6, "flow_ancestral")):
        random = torch.Generator().manual_seed(1)
        x = torch.randn(clean.shape, generator=random) * sampler.levels.start
        for i in range(sampler.steps):
            step = torch.full((4,), i)
            alpha, sigma = sampler.levels.alpha[i].float(), sampler.levels.sigma[i].float()
            perfect = sampler.target(step, clean, (x - alpha * clean) / sigma)
            x = sampler.mean(step, x, perfect) + sampler.std[i] * torch.randn(x.shape, generator=random)
        torch.testing.assert_close(x, clean, rtol=0, atol=2e-2 if sampler.levels.prediction == "flow" else 1e-3)


def test_the_levels_of_a_chain_keep_their_variance() -> None:
    """x = alpha x_0 + sigma eps stays true under every ancestral step: kept^2 + std^2 = sigma'^2."""
    for sampler in (sampler_for(ddim(), 8, eta=0.7), sampler_for(flow(), 8, "flow_ancestral"), sampler_for(euler(), 8)):
        alpha, sigma = sampler.levels.alpha, sampler.levels.sigma
        clean, noise = torch.zeros(8, 1), torch.ones(8, 1)
        step = torch.arange(8)
        x = sampler.noised(step, clean, noise)
        kept = sampler.mean(step, x, sampler.target(step, clean, noise))[:, 0].double()
        torch.testing.assert_close(kept**2 + sampler.std.double() ** 2, sigma[1:] ** 2, rtol=1e-3, atol=1e-5)
        assert bool((alpha[1:] >= alpha[:-1]).all())


def test_other_schedules_suit_ddim() -> None:
    pndm = PNDMScheduler(**LATENT, skip_prk_steps=True, set_alpha_to_one=False)
    mine, theirs = (sampler_for(s, 10, "ddim") for s in (pndm, ddim(**LATENT, set_alpha_to_one=False)))
    assert mine.levels.timesteps.tolist() == theirs.levels.timesteps.tolist() == [*range(901, 0, -100)]
    torch.testing.assert_close(mine.mean_p, theirs.mean_p, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mine.std, theirs.std, rtol=1e-3, atol=1e-4)
    assert sampler_for(EulerDiscreteScheduler(), 7, "ddim").levels.timesteps.tolist() == [
        999,
        832,
        666,
        500,
        333,
        166,
        0,
    ]
    assert sampler_for(DPMSolverMultistepScheduler(), 5, "ddpm").decides.tolist() == [True] * 4 + [False]


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (ddim(), {"eta": 1.5}, "eta is a share of the noise between 0 and 1, not 1.5"),
    (IPNDMScheduler(), {}, "no denoising step is known for IPNDMScheduler: .* DDIMScheduler.* from_config"),
    (DDIMScheduler(), {}, "DDIMScheduler clips .* set clip_sample=False"),
    (DDPMScheduler(clip_sample=False, thresholding=True), {}, "DDPMScheduler clips"),
    (DDPMScheduler(clip_sample=False, variance_type="learned"), {}, "variance_type learned is not supported"),
    (ddim(**ZERO_SNR), {}, "epsilon says nothing .* use v_prediction"),
    (ddim("other"), {}, "prediction_type other is not supported"),
    (ddim(), {"kind": "flow_sde"}, "sampler flow_sde does not suit DDIMScheduler: ddim, ddpm do"),
    (flow(), {"kind": "ddim"}, "sampler ddim does not suit FlowMatchEuler.*: flow_ancestral, flow_sde, lcm do"),
    (flow(), {"kind": "euler_ancestral"}, "sampler euler_ancestral does not suit FlowMatch"),
    (ddim(), {"kind": "euler_ancestral"}, "sampler euler_ancestral does not suit DDIM"),
]


@pytest.mark.parametrize(("scheduler", "options", "told"), REFUSED, ids=[told[:24] for _, _, told in REFUSED])
def test_what_is_no_gaussian_step_is_refused_in_one_line(scheduler: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        sampler_for(scheduler, 5, **options)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="at least 1 denoising step, not 0"):
        sampler_for(scheduler, 0)


def test_a_scheduler_may_be_prepared_in_its_own_way() -> None:
    def prepare(scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])

    sampler = sampler_for(FlowMatchEulerDiscreteScheduler(), 4, "flow_ancestral", set_timesteps=prepare)
    assert sampler.levels.sigma.tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    # std = sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2), by hand
    by_hand = [0.75, 0.5 * (1 - (0.25 * 0.5 / (0.5 * 0.75)) ** 2) ** 0.5]
    by_hand += [0.25 * (1 - (0.5 * 0.25 / (0.75 * 0.5)) ** 2) ** 0.5, 0.0]
    assert sampler.std.tolist() == pytest.approx(by_hand)
