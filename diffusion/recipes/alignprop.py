"""The reward's gradient runs back through the denoising chain: AlignProp.

Paper: AlignProp (Prabhudesai et al., arXiv:2310.03739).
Faithful: end-to-end backpropagation of a differentiable reward through the last K sampling steps into adapters, with
K drawn anew for every update, uniform or Gaussian, and one step at a time in memory; DDIM with eta 1, AdamW, gradient
norm clipped at 1, an optional target |r - target| against over-optimisation. Checked by reading the released code
(mihirp1998/AlignProp b22918a).
Left out: nothing that is known.
Differs: a judge of another family stops the run, there people do. A Gaussian K is clamped where the code draws again.
The learning rate there is 1e-3; the numbers below were chosen on this project's tuning split.
Labels: the reward's: in the small world by default a classifier learned from true renders of every caption; the
gate's there: true renders of the captions that it looks at; the start, whose pretraining drew all captions.
Expected: not measured yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Count, Number, Whole
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder
    from ...types import Batch
    from ..setting import Setting


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source were chosen on the tuning split."""

    SMALL: ClassVar[Mapping[str, Any]] = {"tasks_per_step": 32, "lr": 7e-4}
    TINY: ClassVar[Mapping[str, Any]] = {"group_size": 1}
    FIXED: ClassVar[tuple[str, ...]] = POLICY_GRADIENT
    through_decoder: ClassVar[bool] = True

    max_steps: int = 48
    group_size: int = 1
    """Pictures per prompt and round; the gradient compares a picture with nothing."""
    truncation: Literal["uniform", "gaussian", "fixed"] = "uniform"
    """How the number K of steps with gradient is drawn."""
    last_steps: Count = 1
    """Least K, the Gaussian's mean, or the fixed K."""
    most_steps: Whole = 0
    """Largest K, or the Gaussian's standard deviation; 0 takes all steps but one."""
    target: Number | None = None
    """A reward to reach instead of one to exceed."""
    step_by_step: bool = True
    """One step of the chain in memory at a time; without it all K."""
    gate: str = "best"
    gate_every: int = 4

    @property
    def steps_held(self) -> int:
        return 1 if self.step_by_step else self.num_inference_steps


def build(config: Config, folder: RunFolder) -> Experiment:
    from ..gradients import Truncation

    setting = start(config, folder)
    most = config.most_steps or max(1, setting.policy.sampler.steps - 1)
    setting.policy.checkpointing = config.step_by_step
    return assemble(config, setting, Truncation(config.truncation, config.last_steps, most), target=config.target)


def assemble(
    config: Any,
    setting: Setting,
    cut: Callable[[Batch], Batch],
    *,
    target: float | None = None,
    ceiling: float | None = None,
) -> Experiment:
    """An experiment that follows the reward's gradient, with the given way to cut the chain."""
    from ...rewards.gradient import GradientKept
    from ..gradients import RewardGradient

    given: Any = setting.reward  # composed by the setting
    reward = GradientKept(given)
    learner = setting.learner(RewardGradient(reward, target, ceiling), prepare=[cut])
    return setting.experiment([setting.stage(learner, reward)])
