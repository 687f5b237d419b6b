"""Preferred pictures become likelier than rejected ones, from pairs collected before: Diffusion-DPO.

Paper: Diffusion-DPO (Wallace et al., arXiv:2311.12908).
Faithful: the loss -log sigmoid(-beta / 2 ((e_w - e_l) - (e_w - e_l)_ref)), e the squared error averaged over the
latent; both pictures of a pair are noised to the same level with the same noise; beta 5,000 with a loaded pipeline;
all levels weighted alike. Checked against the released code (SalesforceAIResearch/DiffusionDPO 5233e75) by running
its lines and ours on the same tensors; tests/test_objectives_of_pictures.py has numbers worked out from the paper.
Left out: nothing that is known.
Differs: levels are those of the chain that is drawn with, not of all 1,000; a pair is noised to a few of them a step,
and their mean is taken outside the sigmoid, as the paper's expectation is. Without a pairs file the start draws a
record once, and the reward ranks it: the best and the worst of each prompt. Numbers of the small default were chosen
on tuning seeds.
Labels: with a pairs file which picture of a pair people preferred, in every step, else the reward's: in the small
world by default a classifier learned from true renders of every caption; the gate's there: true renders of the
captions that it looks at; the start, whose pretraining drew all captions.
Expected: not measured yet.
"""

from __future__ import annotations

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
    """Half of it weighs squared errors, which are means over the latent's scalars (5,000 in the paper)."""
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
        recorded, reward = setting.policy.act(setting.prompts.rewarded, size, key=(config.seed, 1)), None
    chosen: Any = setting.config
    objective = DPO(chosen.beta, "start", decisions="forward", level="decision", per_dimension=True)
    learner = setting.learner(objective, prepare=[best_worst])
    actor = Recorded(setting.policy, recorded)
    return setting.experiment([setting.stage(learner, reward, actor=actor)])
