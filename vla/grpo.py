"""Group-relative policy gradients of robots as SimpleVLA-RL (arXiv:2509.09674) has them.

Read in its code and scripts at 7c51662: group-normalised rewards, clips of .2 and .28, no KL, the mean over an
episode's tokens and then over episodes, temperature 1.6, groups with a success rate strictly between .1 and .9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..trainers.config import grouped

if TYPE_CHECKING:
    from ..trainers.config import RunConfig
    from ..trainers.published import Way


@dataclass(frozen=True)
class GRPOFields:
    """How a round's decisions are averaged."""

    loss_agg_mode: Literal["seq-mean-token-mean", "token-mean"] = grouped("objective", "seq-mean-token-mean")
    """Every episode of a minibatch counts the same, or every decision does, as verl names them. SimpleVLA-RL's is the
    former: it divides by the tokens of a micro-batch, which is one episode. A named objective has its own."""


def clip_higher(config: RunConfig, fields: GRPOFields) -> Way:
    """Clips of .2 and .28 around ratios of decisions, and rewards normalised within groups."""
    from ..trainers.published import clipped, normalised

    mean: Literal["decision", "rollout"] = "decision" if fields.loss_agg_mode == "token-mean" else "rollout"
    return clipped(config, 0.2, 0.28, aggregate=mean), normalised(config)
