"""Decoding: one token after the other, from whatever a model has read; rows that ended leave."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UsageError
from .backbone import State

if TYPE_CHECKING:
    from .policy import TokenPolicy


def check_temperature(temperature: float) -> None:
    """Raise UsageError for a temperature that nobody can sample at."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(
            f"a temperature is above 0 and finite, not {temperature:g}: greedy=True takes the likeliest token"
        )


def decode(
    policy: TokenPolicy, hidden: Tensor, state: State, limits: Tensor, noise: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and their log-probabilities [B, T], and lengths [B], of one answer per row of what was read.

    Args:
        hidden: [B, D] of each row's last token.
        state: what was read; it is used up.
        limits: [B] most tokens of an answer.
        noise: [B, T] uniform in 0..1, or None for the likeliest tokens.
    """
    size, longest = len(limits), int(limits.max())
    tokens = torch.zeros(size, longest, dtype=torch.long)
    log_probs = torch.zeros(size, longest)
    lengths = limits.clone()
    alive = torch.arange(size)
    ends = policy.renderer.ends
    with torch.inference_mode():  # the tensors made before stay ordinary ones
        for step in range(longest):
            logits = policy.logits(hidden) / temperature
            chosen, chosen_log_probs = choose(logits, None if noise is None else noise[alive, step])
            tokens[alive, step], log_probs[alive, step] = chosen, chosen_log_probs
            going = torch.tensor([int(i) not in ends for i in chosen.tolist()]) & (step + 1 < limits[alive])
            lengths[alive[~going]] = step + 1
            if not bool(going.any()):
                break
            if not bool(going.all()):
                kept = going.nonzero()[:, 0]
                alive, chosen, state = alive[kept], chosen[kept], policy.backbone.rows(state, kept)
            last = chosen[:, None].to(hidden.device)
            outputs, state = policy.backbone.read_on(state, last, torch.ones_like(last, dtype=torch.bool))
            hidden = outputs[:, 0]
    return tokens, log_probs, lengths


def choose(logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Token [B] and its log-probability [B] on the CPU: the likeliest, or that at the noise's quantile.

    Raises:
        UsageError: logits that are not finite, of which no token can be drawn.
    """
    log_probs = logits.log_softmax(-1)
    if noise is None:
        chosen = log_probs.argmax(-1)
    else:
        cumulative = log_probs.double().exp().cumsum(-1)
        quantile = noise.to(cumulative)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, quantile, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    taken = log_probs.gather(-1, chosen[:, None])[:, 0].cpu()
    if not bool(taken.isfinite().all()):
        raise UsageError(
            "the model's logits, divided by the temperature, are not finite: its weights have diverged or were not "
            "read rightly; go back to an earlier checkpoint and learn with a smaller --lr"
        )
    return chosen.cpu(), taken
