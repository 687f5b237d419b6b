"""Preferred pictures become likelier than rejected ones, from pairs collected before: Diffusion-DPO.

Diffusion-DPO (Wallace et al., arXiv:2311.12908): direct preference optimisation on the forward process; both pictures
of a pair are noised again and the policy's denoising error is compared with the start's. Offline: no picture is drawn
in training. Not checked: the time weighting, absorbed in beta. Without a pairs file the start draws a record once, and
the reward ranks it. Numbers are not tuned.

Differs: the two pictures of a pair get levels and noise of their own, where the published code shares them, so that the
margin is noisier; draws are summed inside the sigmoid; and beta weighs a sum over the latent, there a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Count, Positive
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source are not tuned."""

    FIXED: ClassVar[tuple[str, ...]] = (*POLICY_GRADIENT, "reference", "kl_coef")

    pairs: str = ""
    """A file (as of --data) with the columns prompt, chosen and rejected, paths of pictures; empty lets the start draw
    and the reward rank."""
    beta: Positive = 1.0
    """Nats of a squared error count this much."""
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
    learner = setting.learner(DPO(config.beta, "start", decisions="forward"), prepare=[best_worst])
    actor = Recorded(setting.policy, recorded)
    return setting.experiment([setting.stage(learner, reward, actor=actor)])
