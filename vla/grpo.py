"""Group-relative policy gradients of robots as SimpleVLA-RL (arXiv:2509.09674) has them (checked: its scripts)."""

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

    loss_agg_mode: Literal["token-mean", "seq-mean-token-mean"] = grouped("objective", "token-mean")
    """Every decision of a minibatch counts the same, or every episode does, as verl names them; a named objective has
    its own."""


def clip_higher(config: RunConfig, fields: GRPOFields) -> Way:
    """Clips of .2 and .28 around ratios of decisions, and rewards normalised within groups."""
    from ..trainers.published import clipped, normalised

    mean: Literal["decision", "rollout"] = "decision" if fields.loss_agg_mode == "token-mean" else "rollout"
    return clipped(config, 0.2, 0.28, aggregate=mean), normalised(config)
