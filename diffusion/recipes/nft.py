"""Good and bad pictures contrasted on the forward process, without a chain's likelihood: DiffusionNFT.

DiffusionNFT (Zheng et al., arXiv:2509.16117): pictures are noised again; their optimality r in [0, 1] weighs the
denoising loss of the policy against that of its implied negative. Any sampler will do, and nothing of a chain but its
picture is kept.

Checked against the code (NVlabs/DiffusionNFT), see ``ForwardNFT``: the loss, no guidance in training. There the policy
that samples follows the trained one by a growing moving average; here it is the one that the update began with. Differs
also: r is stretched to 0..1 in every group, where theirs stays near a half; and their small KL to the start is left
out. Numbers chosen on this project's tuning split.
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
    """Numbers without a source were chosen on the tuning split."""

    FIXED: ClassVar[tuple[str, ...]] = POLICY_GRADIENT

    beta: Positive = 1.0
    """How far the implied policies stand from the old one (1 in the code; checked)."""
    forward_draws: Count = 2
    """Levels at which a picture is noised again."""
    epochs: int = 2


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.objectives import ForwardNFT
    from ...trainers.pairing import optimality

    setting = start(config, folder, forward_draws=config.forward_draws)
    learner = setting.learner(ForwardNFT(config.beta), prepare=[optimality])
    return setting.experiment([setting.stage(learner)])
