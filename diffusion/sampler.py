"""Denoising chains as Gaussian decisions: one table for every scheduler that has a Gaussian step.

Every state of a chain is x = alpha x_0 + sigma eps, whatever the family: alpha^2 + sigma^2 = 1 (DDPM), alpha = 1
(Euler's sigmas), alpha = 1 - sigma (flow matching). A step removes the noise that the model sees and adds fresh
noise of standard deviation ``std``:

    x' = alpha' x_0_hat + kept eps_hat + std z,    z ~ N(0, I)

DDIM(eta), DDPM and Euler-ancestral differ in (alpha, sigma) alone:

    std = eta sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2),    kept = sqrt(sigma'^2 - std^2)

(DDIM, arXiv 2010.02502, eq. 12 and 16, not checked against the paper; equality with diffusers' schedulers is
tested), and the stochastic flow of Flow-GRPO (arXiv 2505.05470, checked against the code) is

    std = s sqrt(sigma - sigma'),  kept = sigma' - s^2 (sigma - sigma') / (2 sigma),  s = a sqrt(sigma / (1 - sigma)).

A consistency model jumps to its picture and adds fresh noise: std = sigma', kept = 0 (LCM, arXiv 2310.04378), or goes
down to a lower level s = (1 - gamma) t' first: std = sqrt(1 - alpha'^2 / alpha_s^2), kept = alpha' sigma_s / alpha_s
(TCD, arXiv 2402.19159); neither was checked against its paper, both against diffusers' schedulers.

Since x_0_hat and eps_hat are linear in x and in the model's output p, the mean of a step is two numbers: mean_x x +
mean_p p. Where std is 0 there is no decision: such steps have no log-probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .schedulers import Kind, Levels, kind_for, levels_of


@dataclass(frozen=True)
class Sampler:
    """The table of a chain; all tensors [T], float.

    Attributes:
        levels: where the chain passes.
        mean_x, mean_p, std: a step is x' ~ N(mean_x x + mean_p p, std^2 I).
        clean_x, clean_p: x_0_hat = clean_x x + clean_p p.
        copies: of the tables, on the devices where they were asked for.
    """

    levels: Levels
    mean_x: Tensor
    mean_p: Tensor
    std: Tensor
    clean_x: Tensor
    clean_p: Tensor
    copies: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def steps(self) -> int:
        return len(self.std)

    @property
    def decides(self) -> Tensor:
        """[T] bool, True where a step is random."""
        return self.std > 0

    @property
    def lengths(self) -> tuple[float, ...]:
        """By how much each step lowers sigma, which is the time of a flow."""
        return tuple((self.levels.sigma[:-1] - self.levels.sigma[1:]).tolist())

    def mean(self, step: Tensor, x: Tensor, prediction: Tensor) -> Tensor:
        """Mean of x' [N, ...] given x and the model's output at steps [N] long."""
        return self.at("mean_x", step, x) * x + self.at("mean_p", step, x) * prediction

    def clean(self, step: Tensor, x: Tensor, prediction: Tensor) -> Tensor:
        """x_0_hat [N, ...]: the picture that the model sees in x."""
        return self.at("clean_x", step, x) * x + self.at("clean_p", step, x) * prediction

    def log_prob(self, step: Tensor, x: Tensor, mean: Tensor) -> Tensor:
        """[N] log-density of x' = x; steps without noise have none and must not be asked.

        In double precision, where the device has it: a sum over 1e5 scalars is 1e5 nats, of which single precision
        loses .01, and what is learned from are differences of two such sums.
        """
        std = self.entries("std", step, x.device, wide(x.device))
        constant = x[0].numel() * (std.log() + math.log(2 * math.pi) / 2)
        return -half_square(x - mean) / std**2 - constant

    def kl(self, step: Tensor, mean: Tensor, other: Tensor) -> Tensor:
        """[N] divergence of two steps with the same noise, in nats."""
        return half_square(mean - other) / self.entries("std", step, mean.device, wide(mean.device)) ** 2

    def noised(self, step: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
        """x [N, ...] at the level where a step begins."""
        return self.at("alpha", step, clean) * clean + self.at("sigma", step, clean) * noise

    def target(self, step: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
        """What a perfect model would output at ``noised(step, clean, noise)``."""
        if self.levels.prediction == "epsilon":
            return noise
        if self.levels.prediction == "sample":
            return clean
        if self.levels.prediction == "flow":
            return noise - clean
        alpha, sigma = self.at("alpha", step, clean), self.at("sigma", step, clean)
        return (alpha * noise - sigma * clean) / (alpha**2 + sigma**2).sqrt()

    def at(self, name: str, step: Tensor, like: Tensor) -> Tensor:
        """Entries [N, 1, ...] of a table for steps [N], to multiply ``like`` [N, ...]."""
        return self.entries(name, step, like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))

    def entries(self, name: str, step: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """Entries [N] of a table, of this class or of ``levels``, for steps [N]; a device is given each table once."""
        if (name, device, dtype) not in self.copies:
            table: Tensor = getattr(self if name in vars(self) else self.levels, name)
            self.copies[name, device, dtype] = (table if dtype is None else table.to(dtype)).to(device)
        return self.copies[name, device, dtype][step.to(device)]

    def windowed(self, first: int, last: int) -> Sampler:
        """The same chain with noise in steps first <= i < last only, deterministic elsewhere."""
        inside = torch.arange(self.steps)
        inside = (inside >= first) & (inside < last)
        silent = _table(self.levels, torch.zeros(self.steps, dtype=torch.float64), self.levels.sigma[1:])
        return replace(
            self,
            mean_x=torch.where(inside, self.mean_x, silent.mean_x),
            mean_p=torch.where(inside, self.mean_p, silent.mean_p),
            std=torch.where(inside, self.std, 0.0),
        )


def half_square(values: Tensor) -> Tensor:
    """[N] half the squared length of values [N, ...], in double precision where the device has it."""
    return values.square().flatten(1).sum(1, dtype=wide(values.device)) / 2


def wide(device: torch.device) -> torch.dtype:
    """Double precision, where a device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def sampler_for(
    scheduler: Any,
    steps: int,
    kind: Kind = "auto",
    *,
    eta: float = 1.0,
    noise_level: float = 0.7,
    least_std: float = 0.01,
    set_timesteps: Callable[[Any, int], None] | None = None,
) -> Sampler:
    """The chain of a diffusers scheduler.

    Args:
        kind: "auto" takes what suits the scheduler's class, see ``schedulers.SUITABLE``: "ddim" and "ddpm" (eta 1) any
            table of noise, "euler_ancestral" Euler's sigmas, "lcm" and "tcd" their own schedulers, "flow_ancestral" and
            "flow_sde" flow matching.
        eta: share of the ancestral noise (DDIM's), or the gamma of TCD; 0 is deterministic.
        noise_level: a of the flow SDE.
        least_std: a step with less noise than this is made deterministic: it explores nothing, and its
            log-probability would drown all others. Flow schedulers end in such a step.
        set_timesteps: for schedulers whose ``set_timesteps`` wants more than a number.

    Raises:
        UsageError: a scheduler without steps of this kind, or that clips its estimates; a number of steps that it
            cannot take, or an eta beyond 0..1.
    """
    if steps < 1:
        raise UsageError(f"a picture takes at least 1 denoising step, not {steps}")
    if not 0 <= eta <= 1:
        raise UsageError(f"eta is a share of the noise between 0 and 1, not {eta:g}")
    kind, name = kind_for(scheduler, kind), type(scheduler).__name__
    try:
        (set_timesteps or _set_timesteps)(scheduler, steps)
    except (ValueError, IndexError) as error:  # PNDM wants four or more, and says so in terms of its arrays
        raise UsageError(f"{name} cannot be prepared for {steps} steps ({error}): try another number") from error
    levels = levels_of(scheduler, kind)
    if kind == "flow_sde":
        std, kept = _flow_noise(levels, noise_level)
    elif kind == "lcm":
        std, kept = eta * levels.sigma[1:], (1 - eta**2) ** 0.5 * levels.sigma[1:]
    elif kind == "tcd":
        std, kept = _tcd_noise(levels, scheduler, eta)
    else:
        std, kept = _ancestral_noise(levels, 1.0 if kind == "ddpm" else eta)
    silent = std < least_std
    skip = scheduler.get_scalings_for_boundary_condition_discrete if _has_boundary(scheduler, kind) else None
    std, kept = torch.where(silent, 0.0, std), torch.where(silent, levels.sigma[1:], kept)
    return _table(levels, std, kept, None if skip is None else skip(levels.timesteps.double()))


def _set_timesteps(scheduler: Any, steps: int) -> None:
    scheduler.set_timesteps(steps)


def _has_boundary(scheduler: Any, kind: Kind) -> bool:
    return kind == "lcm" and hasattr(scheduler, "get_scalings_for_boundary_condition_discrete")


def _ancestral_noise(levels: Levels, eta: float) -> tuple[Tensor, Tensor]:
    (alpha, alpha_next), (sigma, sigma_next) = _ends(levels.alpha), _ends(levels.sigma)
    shrink = (alpha * sigma_next / (alpha_next * sigma)) ** 2
    std = eta * sigma_next * (1 - shrink).clamp(min=0).sqrt()
    return std, (sigma_next**2 - std**2).clamp(min=0).sqrt()


def _flow_noise(levels: Levels, noise_level: float) -> tuple[Tensor, Tensor]:
    sigma, sigma_next = _ends(levels.sigma)
    # At sigma = 1 the published code divides by 1 - (the second sigma) instead of by 0.
    room = torch.where(sigma == 1, 1 - levels.sigma[1], 1 - sigma)
    rate, dt = noise_level**2 * sigma / room, sigma - sigma_next
    return (rate * dt).sqrt(), sigma_next - rate * dt / (2 * sigma)


def _tcd_noise(levels: Levels, scheduler: Any, gamma: float) -> tuple[Tensor, Tensor]:
    """Down to level (1 - gamma) t' with the noise that the model sees, and up to t' with fresh noise."""
    onto = torch.cat([levels.timesteps[1:], torch.zeros(1, dtype=torch.long)])
    lower = scheduler.alphas_cumprod.double().cpu()[((1 - gamma) * onto).floor().long()]
    share = levels.alpha[1:] ** 2 / lower
    return (1 - share).clamp(min=0).sqrt(), (share * (1 - lower)).sqrt()


def _ends(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[:-1], values[1:]


def _table(levels: Levels, std: Tensor, kept: Tensor, boundary: tuple[Tensor, Tensor] | None = None) -> Sampler:
    """The linear form of x' = alpha' x_0_hat + kept eps_hat.

    Args:
        boundary: (skip, out) [T] of a consistency model, whose estimate is skip x + out x_0_hat.
    """
    (alpha, alpha_next), (sigma, _) = _ends(levels.alpha), _ends(levels.sigma)
    if levels.prediction == "epsilon":
        if bool((alpha == 0).any()):
            raise UsageError(
                "a model that predicts epsilon says nothing of the picture at zero signal: use v_prediction"
            )
        clean_x, clean_p = 1 / alpha, -sigma / alpha
    elif levels.prediction == "sample":
        clean_x, clean_p = torch.zeros_like(alpha), torch.ones_like(alpha)
    elif levels.prediction == "flow":
        clean_x, clean_p = torch.ones_like(alpha), -sigma
    else:
        square = alpha**2 + sigma**2
        clean_x, clean_p = alpha / square, -sigma / square.sqrt()
    if boundary is not None:
        skip, out = boundary
        clean_x, clean_p = skip + out * clean_x, out * clean_p
    mean_x = alpha_next * clean_x + kept * (1 - alpha * clean_x) / sigma
    mean_p = alpha_next * clean_p - kept * alpha * clean_p / sigma
    return Sampler(levels, *(table.float() for table in (mean_x, mean_p, std, clean_x, clean_p)))
