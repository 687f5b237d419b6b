"""Good and bad pictures contrasted on the forward process, without a chain's likelihood: DiffusionNFT.

Paper: DiffusionNFT (Zheng et al., arXiv:2509.16117).
Faithful: pictures are noised again; their optimality r in [0, 1] weighs the denoising loss of the policy against that
of its implied negative, and any sampler will do. r is 1/2 + A / 10, A the reward less its prompt's mean by the
standard deviation of all of the round, clamped at 5; the loss is 5 / beta of that; a pull to the start of 1e-4 of a
mean squared difference; no guidance in training. Checked by reading the released code (NVlabs/DiffusionNFT 24af555),
and the loss by running both on the same tensors.
Left out: the weights by which the code divides each sample's loss, its own mean error in x_0; see ``ForwardNFT``.
Differs: there the policy that samples follows the trained one by a growing moving average; here it is the one that
the update began with. Two passes over a round. ``--optimality stretched`` gives the best of a group 1 or the worst 0,
this project's former way. Numbers of the small default were chosen on its tuning split.
Labels: the reward's: in the small world by default a classifier learned from true renders of every caption; the
gate's there: true renders of the captions that it looks at; the start, whose pretraining drew all captions.
Expected: not measured yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Count, Positive
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source were chosen on the tuning split."""

    FIXED: ClassVar[tuple[str, ...]] = POLICY_GRADIENT

    beta: Positive = 1.0
    """How far the implied policies stand from the old one (1 in the code; checked)."""
    optimality: Literal["advantage", "stretched"] = "advantage"
    """r of a picture: by its advantage, or by its share of the largest deviation in its group."""
    scale_rewards: Literal["group", "batch", "none"] = "batch"
    """Whose standard deviation rewards are divided by: their prompt's or all of the round; none divides by nothing."""
    adv_clip_max: Positive = 5.0
    """The advantage of which r is 1; the loss is multiplied by it (5 in the code)."""
    kl_coef: float = 2e-4
    """Weight of the KL to the start, half a mean squared difference of outputs (1e-4 of a whole one in the code)."""
    forward_draws: Count = 2
    """Levels at which a picture is noised again."""
    epochs: int = 2


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.advantages import GroupRelative
    from ...trainers.objectives import ForwardNFT
    from ...trainers.pairing import optimality, optimality_of_advantages

    setting = start(config, folder, forward_draws=config.forward_draws)
    loss, most = ForwardNFT(config.beta), config.adv_clip_max
    if config.optimality == "stretched":
        learner = setting.learner(loss, prepare=[optimality])
    else:
        advantage = GroupRelative(config.scale_rewards, eps=1e-4, clip_max=most)
        rate = partial(optimality_of_advantages, clip_max=most)
        learner = setting.learner((most / config.beta) * loss, advantage, prepare=[rate])
    return setting.experiment([setting.stage(learner)])
