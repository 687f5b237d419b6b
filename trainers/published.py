"""Published ways to learn from groups of rollouts, by name: each is an objective and the advantage that it asks for.

Formulas and sources stand with the parts, in ``trainers.objectives`` and ``trainers.advantages``.
"""

from __future__ import annotations

from typing import Any

from . import advantages
from .advantages import GroupRelative, ReinforcePlusPlus
from .config import RunConfig
from .objectives import NFT, PPOClip

Way = tuple[Any, Any]
"""An objective and its advantage; None where it looks at groups itself."""


def clipped(config: RunConfig, low: float = 0.2, high: float = 0.2, **fields: Any) -> PPOClip:
    """The clipped surrogate, with the config's clips in place of the given ones where it has some."""
    low = low if config.clip_low is None else config.clip_low
    return PPOClip(low, high if config.clip_high is None else config.clip_high, **fields)


def normalised(config: RunConfig) -> GroupRelative:
    """Rewards less their group's mean, by its standard deviation, which is ``std_floor`` at least."""
    return advantages.grpo(config.std_floor)


def grpo(config: RunConfig) -> Way:
    """GRPO (arXiv 2402.03300)."""
    return clipped(config), normalised(config)


def dr_grpo(config: RunConfig, longest: int) -> Way:
    """Dr.GRPO (arXiv 2503.20783): no division by standard deviation or length, but by the longest rollout's."""
    return clipped(config, aggregate=longest), advantages.dr_grpo()


def dapo(config: RunConfig) -> Way:
    """DAPO's loss (arXiv 2503.14476): clip-higher, every decision counting once."""
    return clipped(config, 0.2, 0.28, aggregate="decision"), normalised(config)


def gspo(config: RunConfig) -> Way:
    """GSPO (arXiv 2507.18071): one ratio per rollout."""
    return clipped(config, 3e-4, 4e-4, level="sequence"), normalised(config)


def rloo(config: RunConfig) -> Way:
    """RLOO (arXiv 2402.14740), with clipped ratios, so that several epochs are safe."""
    return clipped(config), advantages.rloo()


def reinforce_pp(config: RunConfig) -> Way:
    """REINFORCE++ (arXiv 2501.03262)."""
    return clipped(config), ReinforcePlusPlus()


def nft() -> Way:
    """NFT (arXiv 2505.18116): likelihood of right attempts, and of wrong ones under the implicit negative."""
    return NFT(), None
