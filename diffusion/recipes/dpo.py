"""Preferred pictures become likelier than rejected ones, from pairs collected before: Diffusion-DPO.

Diffusion-DPO (Wallace et al., arXiv:2311.12908): direct preference optimisation on the forward process; both pictures
of a pair are noised again, to the same level with the same noise, and the policy's denoising error is compared with the
start's. Offline: no picture is drawn in training. Without a pairs file the start draws a record once, and the reward
ranks it.

Checked against the code (SalesforceAIResearch/DiffusionDPO): -log sigmoid(-beta / 2 ((e_w - e_l) - (e_w - e_l)_ref)), e
the squared error averaged over the latent, all levels weighted alike; recalled: beta 5,000. There a pair is noised to
one level a step, here to a few. Numbers of the small default are not tuned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...trainers.config import BY_MODEL, DYNAMIC_SAMPLING, POLICY_GRADIENT
from ...trainers.ranges import Count, Positive
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source are not tuned."""

    SMALL: ClassVar[Mapping[str, Any]] = {"beta": 768.0}
    LOADED: ClassVar[Mapping[str, Any]] = {"beta": 5000.0}
    FIXED: ClassVar[tuple[str, ...]] = (*POLICY_GRADIENT, *DYNAMIC_SAMPLING, "reference", "kl_coef")

    pairs: str = ""
    """A file (as of --data) with the columns prompt, chosen and rejected, paths of pictures; empty lets the start draw
    and the reward rank."""
    beta: Positive = BY_MODEL
    """Weight of a squared error that is averaged over the latent, as in the published script."""
    forward_draws: Count = 4
    """Levels at which a picture is noised again."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...tables import read_table
    from ...trainers.data import remember
    from ...trainers.objectives import DPO
    from ...trainers.pairing import best_worst
    from ..offline import Recorded, preferred

    pairs = read_table(config.pairs) if config.pairs else None  # a bad file is told before a pipeline is loaded
    if pairs is not None:
        remember(folder, pairs=pairs)
    setting = start(config, folder, forward_draws=config.forward_draws)
    if pairs is not None:
        recorded, reward = setting.recorded_pairs(pairs), preferred
    else:
        size = setting.config.group_size
        recorded, reward = setting.policy.act(setting.prompts.seen, size, key=(config.seed, 1)), None
    chosen: Any = setting.config
    beta = chosen.beta / math.prod(setting.policy.adapter.latent_shape)  # scores are sums over the latent
    objective = DPO(beta, "start", decisions="forward", level="decision")
    learner = setting.learner(objective, prepare=[best_worst])
    actor = Recorded(setting.policy, recorded)
    return setting.experiment([setting.stage(learner, reward, actor=actor)])
