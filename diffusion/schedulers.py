"""Where the schedulers of diffusers let a chain pass, and which kinds of Gaussian step suit them.

A scheduler is known by its class, since the same attributes mean different things: the ``sigmas`` of Euler's are noise
on an unscaled picture, those of DPM-Solver++ are not what its latents hold, and an EDM scheduler scales the
model's inputs and outputs. Each class below was tried with a perfect denoiser of a Gaussian
(``tests/strangers/drawing.py``); every other is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UsageError

Kind = Literal["auto", "ddim", "ddpm", "euler_ancestral", "lcm", "tcd", "flow_ancestral", "flow_sde"]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]

TABLE: tuple[Kind, ...] = ("ddim", "ddpm")
EULER: tuple[Kind, ...] = ("euler_ancestral", *TABLE)
FLOW: tuple[Kind, ...] = ("flow_ancestral", "flow_sde", "lcm")

SUITABLE: dict[str, tuple[Kind, ...]] = {
    **dict.fromkeys(("DDIMScheduler", "DDIMParallelScheduler"), TABLE),
    **dict.fromkeys(("DDPMScheduler", "DDPMParallelScheduler"), ("ddpm", "ddim")),
    "PNDMScheduler": TABLE,
    **dict.fromkeys(("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"), TABLE),
    **dict.fromkeys(("UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"), TABLE),
    **dict.fromkeys(("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"), EULER),
    **dict.fromkeys(("LMSDiscreteScheduler", "HeunDiscreteScheduler"), EULER),
    "LCMScheduler": ("lcm", *TABLE),
    "TCDScheduler": ("tcd", *TABLE),
    **dict.fromkeys(("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"), FLOW),
    "FlowMatchLCMScheduler": ("lcm", "flow_ancestral", "flow_sde"),
}
"""Class -> the kinds of step that suit it; "auto" takes the first."""

GAUSSIAN = ("DDIM", "DDPM", "EulerAncestral", "LCM", "TCD", "FlowMatchLCM")
"""How the names of those classes begin whose own step is Gaussian."""


@dataclass(frozen=True)
class Levels:
    """Where a chain of T steps passes.

    Attributes:
        timesteps: [T] what the model is told.
        alpha, sigma: [T + 1] in double precision, from noise to picture.
        prediction: what the model's output means.
        input_scale: [T] the model sees input_scale * x.
        start: standard deviation of the noise that a chain starts from.
    """

    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor
    prediction: Prediction
    input_scale: Tensor
    start: float = 1.0


def kind_for(scheduler: Any, kind: Kind = "auto") -> Kind:
    """The kind of step that is taken: ``kind``, or what suits the scheduler where that is "auto".

    Raises:
        UsageError: a scheduler of a class that is not known, a kind that does not suit it, or estimates that it clips.
    """
    name, config = type(scheduler).__name__, scheduler.config
    known = next((each.__name__ for each in type(scheduler).__mro__ if each.__name__ in SUITABLE), None)
    if known is None:
        raise UsageError(
            f"no denoising step is known for {name}: save the pipeline with another scheduler, such as "
            "DDIMScheduler, EulerDiscreteScheduler or FlowMatchEulerDiscreteScheduler, made from_config of its own"
        )
    suitable = FLOW if getattr(config, "use_flow_sigmas", False) else SUITABLE[known]
    if getattr(config, "stochastic_sampling", False):
        suitable = ("lcm", "flow_ancestral", "flow_sde")
    if kind not in ("auto", *suitable):
        raise UsageError(f"sampler {kind} does not suit {name}: {', '.join(suitable)} do")
    if getattr(config, "thresholding", False) or getattr(config, "clip_sample", False):
        raise UsageError(f"{name} clips its estimate of the picture, so a step is not Gaussian: set clip_sample=False")
    return suitable[0] if kind == "auto" else kind


def replaced(scheduler: Any, kind: Kind) -> str:
    """A line that says which steps stand in for a scheduler's own; empty where its own are Gaussian."""
    name = type(scheduler).__name__
    if name.startswith(GAUSSIAN) or getattr(scheduler.config, "stochastic_sampling", False):
        return ""
    return f"sampler: the steps of {name} have no probability, so the chain takes those of {kind} at its levels"


def levels_of(scheduler: Any, kind: Kind) -> Levels:
    """The levels of a scheduler that was prepared for a number of steps.

    Levels that are there twice, as of schedulers of the second order, and zeros after the first, are left out.

    Raises:
        UsageError: levels beyond the table, or some that do not lose noise; a prediction or variance that is
            not supported.
    """
    config, name = scheduler.config, type(scheduler).__name__
    prediction: Any = getattr(config, "prediction_type", "flow")
    if kind.startswith("flow") or "FlowMatch" in name or getattr(config, "use_flow_sigmas", False):
        sigma = scheduler.sigmas.double().cpu()
        if prediction not in ("flow", "flow_prediction"):
            raise UsageError(f"{name} has the levels of a flow, and its model predicts {prediction}: a flow is wanted")
        return _distinct(name, scheduler.timesteps.cpu(), 1 - sigma, sigma, "flow")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise UsageError(f"prediction_type {prediction} is not supported: epsilon, v_prediction or sample are")
    if kind == "euler_ancestral":
        sigma = scheduler.sigmas.double().cpu()
        start = float(scheduler.init_noise_sigma)
        return _distinct(name, scheduler.timesteps.cpu(), torch.ones_like(sigma), sigma, prediction, start)
    if getattr(config, "variance_type", "fixed_small") not in ("fixed_small", "fixed_small_log", None):
        raise UsageError(f"variance_type {config.variance_type} is not supported: a step's noise must be fixed_small")
    products = scheduler.alphas_cumprod.double().cpu()
    # Whole and without repetition: Euler's lie between those of the table, PNDM's name the second one twice.
    timesteps = scheduler.timesteps.cpu().round().long().unique_consecutive()
    if int(timesteps.max()) >= len(products):
        raise UsageError(
            f"{len(timesteps)} steps of {name} reach level {int(timesteps.max())} of a table of {len(products)}: "
            f"take fewer"
        )
    last = {"lcm": torch.tensor(1.0), "tcd": products[0]}.get(kind)
    if last is None:
        last = torch.as_tensor(getattr(scheduler, "final_alpha_cumprod", 1.0))
    product = torch.cat([products[timesteps], last.double().reshape(1)])
    return _distinct(name, timesteps, product.sqrt(), (1 - product).sqrt(), prediction)


def _distinct(
    name: str, timesteps: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction, start: float = 1.0
) -> Levels:
    """Levels without steps that lead nowhere."""
    moves = ~((sigma[1:] == sigma[:-1]) & (alpha[1:] == alpha[:-1]))
    moves &= sigma[:-1] > 0  # at the picture a chain is over
    kept = torch.cat([moves, torch.tensor([True])])
    timesteps, alpha, sigma = timesteps[moves], alpha[kept], sigma[kept]
    falls = sigma[1:] * alpha[:-1] < sigma[:-1] * alpha[1:]
    if not len(timesteps) or not bool(falls.all()) or not bool(sigma.isfinite().all()):
        raise UsageError(f"the levels of {name} must lose noise from step to step, and do not: {sigma.tolist()[:8]} …")
    euler = bool((alpha == 1).all()) and prediction != "flow"
    scale = 1 / (sigma[:-1] ** 2 + 1).sqrt() if euler else torch.ones(len(timesteps))
    return Levels(timesteps, alpha, sigma, prediction, scale.float(), start)
