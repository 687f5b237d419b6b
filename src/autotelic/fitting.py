"""Training of small networks: AdamW over a loss that is drawn anew at every step.

    fit(network, loss, cosine(1e-3, 500))

Policies learn through ``trainers.learner``; this is for what is fitted once to data: critics, classifiers, clones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .errors import UsageError
from .working import working


def cosine(lr: float, steps: int) -> list[float]:
    """The learning rate of each step: from lr to zero along a cosine, to the bit as torch's CosineAnnealingLR."""
    rates = [lr]
    for step in range(1, steps):
        fall = (1 + math.cos(math.pi * step / steps)) / (1 + math.cos(math.pi * (step - 1) / steps))
        rates.append(fall * rates[-1])
    return rates[:steps]


def fit(
    network: nn.Module | Iterable[nn.Parameter],
    loss: Callable[[int], Tensor | Iterable[Tensor]],
    rates: Iterable[float],
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    max_grad_norm: float | None = None,
    fused: bool | None = None,
    after: Callable[[int], None] | None = None,
    told: str = "",
) -> float:
    """Fit a network, or the given parameters, by AdamW; returns the last loss, NaN of no steps.

    Args:
        loss: called with the number of the step, from 0; a scalar with gradient, or several one after the other,
            whose sum it is, of which one has a graph at a time.
        rates: the learning rate of each step, and with that how many there are.
        max_grad_norm: gradients are clipped to this norm.
        fused: AdamW's own.
        after: called with the number of the step once it is taken.
        told: what a person is told of it on the way, such as "cloning the policy"; empty tells nothing.

    Raises:
        UsageError: the loss or its gradient is not finite, which data that is not finite does.
    """
    parameters: Sequence[nn.Parameter] = list(network.parameters() if isinstance(network, nn.Module) else network)
    optimizer = torch.optim.AdamW(parameters, betas=betas, weight_decay=weight_decay, fused=fused)
    value: Tensor | float = torch.nan
    steps = list(rates)
    with working(told, len(steps)) if told else nullcontext(lambda steps: None) as advance:
        for step, rate in enumerate(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            made, value = loss(step), 0.0
            for part in (made,) if isinstance(made, Tensor) else made:
                torch.autograd.backward([part])
                value = value + part.detach()
            limit = torch.inf if max_grad_norm is None else max_grad_norm
            if not bool(nn.utils.clip_grad_norm_(parameters, limit).isfinite() & torch.as_tensor(value).isfinite()):
                raise UsageError(
                    f"step {step + 1} of a fit has a loss or gradient that is not finite: look at its data"
                )
            optimizer.step()
            if after is not None:
                after(step)
            advance(1)
    return float(value)
