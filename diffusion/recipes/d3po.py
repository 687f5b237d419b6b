"""Preferences between two pictures train every denoising step: D3PO.

Paper: D3PO (Yang et al., arXiv:2311.13231).
Faithful: each step of the better picture's chain is preferred to the same step of the worse one's, without a reward
model; log-ratios to the start are means over the latent, their ratios are clamped to 0.9..1.1, beta is 0.1 on that
mean, and a prompt's pictures begin at the same noise. Checked against the released code (yk7333/d3po 40d3175) by
running its lines and ours on the same tensors; tests/test_objectives_of_pictures.py has numbers by hand.
Left out: people. A reward stands in for who prefers: the best and the worst picture of each prompt.
Differs: two of a group are compared, where the code draws two; a round is four gradient steps, there one for each
pair. Its learning rate is 3e-5 on SD 1.5; the small default's is that of all recipes, at which it hardly learns in
30 rounds (docs/results.md).
Labels: the reward's: in the small world by default a classifier learned from true renders of every caption; the
gate's there: true renders of the captions that it looks at; the start, whose pretraining drew all captions.
Expected: not measured yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Positive, Range
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source are not tuned."""

    SMALL: ClassVar[Mapping[str, Any]] = {"minibatches": 4}
    LOADED: ClassVar[Mapping[str, Any]] = {"minibatches": 4}
    FIXED: ClassVar[tuple[str, ...]] = (*POLICY_GRADIENT, "reference", "kl_coef")

    beta: Positive = 0.1
    """Weight of a step's log-ratio, which is a mean over the latent's scalars (0.1 in the code)."""
    ratio_clip: Annotated[float, Range(0, 0.999)] | None = 0.1
    """How far a step's ratio to the start, per scalar, may leave 1 and still have a gradient (0.1 in the code)."""
    same_latent: bool = True
    """Pictures of a prompt begin at the same noise, as in the code."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.objectives import DPO
    from ...trainers.pairing import best_worst

    setting = start(config, folder)
    objective = DPO(config.beta, "start", level="decision", per_dimension=True, ratio_clip=config.ratio_clip)
    sampling = {"same_latent": config.same_latent, "keep_graph": config.keep_graph}
    return setting.experiment([setting.stage(setting.learner(objective, prepare=[best_worst]), sampling=sampling)])
