"""Published ways to learn from groups of rollouts, by name: each is an objective, the advantage that it asks for, and
where it compares pairs, how these are found.

Formulas and sources stand with the parts, in ``trainers.objectives`` and ``trainers.advantages``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..types import Batch
from . import advantages
from .advantages import GroupRelative, ReinforcePlusPlus
from .config import RunConfig
from .objectives import NFT, PairwiseRegression, PPOClip
from .pairing import all_pairs, best_worst

Way = tuple[Any, Any]
"""An objective and its advantage; None where it looks at groups itself."""
Paired = tuple[Any, None, Callable[[Batch], Batch]]
"""An objective that compares pairs, no advantage, and a learner's ``prepare`` that finds the pairs."""


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


def copg(config: RunConfig) -> Paired:
    """CoPG (arXiv 2406.19185): every pair of a group is regressed on its difference of rewards; any data will do."""
    beta = config.pairwise_beta
    return beta / 2 * PairwiseRegression(beta, "start"), None, all_pairs


def ipo(config: RunConfig) -> Paired:
    """IPO (arXiv 2310.12036): the best of a group is preferred to the worst, by a margin of 1 / (2 tau) and no more."""
    return PairwiseRegression(2 * config.pairwise_beta, "start", target="preference"), None, best_worst
