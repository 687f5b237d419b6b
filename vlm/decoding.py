"""Decoding: one token after the other, from whatever a model has read; rows that ended leave."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from ..errors import UsageError
from .backbone import State
from .captured import Uncapturable

if TYPE_CHECKING:
    from .policy import TokenPolicy

log = logging.getLogger(__name__)

Decoder = Literal["auto", "static", "merged", "eager"]
"""In fixed shapes, which a GPU replays as one CUDA graph a step, or operator by operator; auto: the first on a GPU.
merged is static on a copy of the adapted weights with the adapters in them."""


def check_temperature(temperature: float) -> None:
    """Raise UsageError for a temperature that nobody can sample at."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(
            f"a temperature is above 0 and finite, not {temperature:g}: greedy=True takes the likeliest token"
        )


GONE = 0.25
"""The share of rows that have ended from which on they leave: every leaving moves the keys and values of all others."""


def decode(
    policy: TokenPolicy, hidden: Tensor, state: State, limits: Tensor, noise: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and their log-probabilities [B, T], and lengths [B], of one answer per row of what was read.

    Rows that ended are read on with the others until a quarter of them has, which nobody sees.

    Args:
        hidden: [B, D] of each row's last token.
        state: what was read; it is used up.
        limits: [B] most tokens of an answer.
        noise: [B, T] uniform in 0..1, or None for the likeliest tokens.
    """
    if (static := policy.static_for(state)) is not None:
        try:
            return static.decode(policy, hidden, cast(Any, state), limits, noise, temperature)
        except Uncapturable as error:
            policy.static = None
            log.warning("%s is decoded without a CUDA graph: %s", type(policy.module).__name__, error)
    size, longest = len(limits), int(limits.max())
    tokens = torch.zeros(size, longest, dtype=torch.long)
    log_probs = torch.zeros(size, longest)
    lengths = limits.clone()
    rows, going = torch.arange(size), torch.ones(size, dtype=torch.bool)  # of the state: whose, and who goes on
    ends = torch.tensor(sorted(policy.renderer.ends))
    with torch.inference_mode():  # the tensors made before stay ordinary ones
        for step in range(longest):
            logits = policy.logits(hidden) / temperature
            chosen, chosen_log_probs = choose(logits, None if noise is None else noise[rows, step], going)
            alive = rows[going]
            tokens[alive, step], log_probs[alive, step] = chosen[going], chosen_log_probs[going]
            stays = going & ~torch.isin(chosen, ends) & (step + 1 < limits[rows])
            lengths[rows[going & ~stays]] = step + 1
            going = stays
            if not bool(going.any()):
                break
            if _leaving(policy, state, going):
                kept = going.nonzero()[:, 0]
                rows, chosen, going = rows[kept], chosen[kept], going[kept]
                state = policy.backbone.rows(state, kept)
            last = chosen[:, None].to(hidden.device)
            outputs, state = policy.backbone.read_on(state, last, torch.ones_like(last, dtype=torch.bool))
            hidden = outputs[:, 0]
    return tokens, log_probs, lengths


def _leaving(policy: TokenPolicy, state: State, going: Tensor) -> bool:
    """Whether rows that ended leave now: there are enough of them, nothing is moved, or one could not read on."""
    ended = len(going) - int(going.sum())
    if not ended or ended >= GONE * len(going) or not policy.backbone.shares:
        return bool(ended)
    reach = policy.renderer.reach
    return reach is not None and reach.hard and int(state.positions.max()) >= reach.tokens


def choose(logits: Tensor, noise: Tensor | None, going: Tensor) -> tuple[Tensor, Tensor]:
    """Token [B] and its log-probability [B] on the CPU: the likeliest, or that at the noise's quantile.

    Args:
        going: [B] whose logits have to be finite.

    Raises:
        UsageError: logits that are not finite, of which no token can be drawn.
    """
    chosen, log_probs = (each.cpu() for each in draw(logits, noise))
    check_finite(bool(log_probs[going].isfinite().all()))
    return chosen, log_probs


def draw(logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same where the logits are, of which nothing is looked at."""
    log_probs = logits.log_softmax(-1)
    if noise is None:
        chosen = log_probs.argmax(-1)
    else:
        cumulative = log_probs.double().exp().cumsum(-1)
        quantile = noise.to(cumulative)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, quantile, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return chosen, log_probs.gather(-1, chosen[:, None])[:, 0]


def check_finite(finite: bool) -> None:
    """Raise UsageError where a token was drawn from logits that are not finite."""
    if not finite:
        raise UsageError(
            "the model's logits, divided by the temperature, are not finite: its weights have diverged or were not "
            "read rightly; go back to an earlier checkpoint and learn with a smaller --lr"
        )
