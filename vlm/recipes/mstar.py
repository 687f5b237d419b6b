"""Self-training that never starts over: right and sound answers are imitated, sampled at the temperature that pays.

Paper: M-STaR (arXiv:2412.17451).
Faithful: each round begins from the last weights and the last optimiser state; among a question's right answers the two
with the best process reward are imitated; every few rounds the temperature becomes the one with the highest
Reward-Pass@2, the share of validation questions with a right answer among the two that the process reward likes best.
Checked against notes on the paper, not against it. ``--no-process --tune-every 0`` is plain continuous rejection
sampling, its own ablation.
Left out: the process reward model, learned from Monte-Carlo roll-outs, whose least step value counts; the supervised
first stage is the start's.
Differs: the process reward is the share of an answer's claims that hold at a second look, a rule of the small world. A
round is 24 questions and one gradient step by default, there tens of thousands.
Labels: the answers of all training questions and of those that the temperature is chosen on; the small world's rule at
every answer, unless ``--no-process``; the demonstrations, with their answers, in every gradient step (``--sft-coef``);
the gate's (``--gate-labels``).
Expected: not measured yet: older figures are withdrawn, as views of the demonstrations asked held-out compositions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Count, Positive, Whole
from ..setting import LanguageConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder
    from ...types import Batch, Task


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Numbers with a source are the paper's."""

    TINY: ClassVar[Mapping[str, Any]] = {"tune_every": 1, "validation": 7, "temperatures": (0.7, 1.0)}
    FIXED: ClassVar[tuple[str, ...]] = (*POLICY_GRADIENT, "rewards")

    entropy_coef: float = 0.0
    process: bool = True
    """Choose among right answers by their steps."""
    keep: Count = 2  # Top-2 (notes on the paper)
    """Right answers that are imitated per question."""
    tune_every: Whole = 50
    """Rounds between two choices of the temperature; 0 keeps it."""
    temperatures: tuple[Positive, ...] = (0.5, 0.7, 0.9, 1.1, 1.3)  # the paper tries 0.3 to 1.6 in steps of 0.1
    """Those to choose from."""
    validation: Count = 70
    """Training questions that the temperature is chosen on (the paper: 250)."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...rewards.reward import Reward
    from ...trainers.curricula import Uniform
    from ...trainers.objectives import WeightedImitation
    from ..small.rereading import Rereading
    from ..temperature import Temperature, Tempered
    from ..watch import Watch

    setting = start(config, folder)
    reward = RightAndSound(setting.questions.verify, Rereading(setting.eyes) if config.process else None)
    sources = {kind: Backwards(source) for kind, source in setting.questions.train.items()}
    validation = Uniform(sources, seed=config.seed).sample(config.validation)
    values = config.temperatures if config.tune_every else ()
    tuner = Temperature(
        setting.policy, validation, reward, values, start=config.temperature, every=config.tune_every, seed=config.seed
    )
    learner = setting.learner(WeightedImitation(), dropout=True, prepare=[Top(config.keep)])
    learners = {"policy": learner, "temperature": tuner, "watch": Watch()}
    actor: Any = Tempered(setting.policy, tuner)
    return setting.experiment([setting.stage(learner, Reward(reward), actor=actor, learners=learners, sampling={})])


@dataclass(frozen=True)
class Backwards:
    """A source's questions from the end, or from before the first."""

    source: Any

    def __call__(self, index: int) -> Task:
        found: Task = self.source(-1 - index) if callable(self.source) else self.source[-1 - index % len(self.source)]
        return found


@dataclass
class RightAndSound:
    """0 for a wrong answer, else a half and half of the share of its claims that hold (1 without a second look)."""

    right: Any
    sound: Any = None

    @property
    def families(self) -> frozenset[str]:
        from ...families import families_of

        return families_of(self.right) if self.sound is None else families_of(self.right, self.sound)

    def __call__(self, **columns: Any) -> list[float]:
        right = self.right(**columns)
        sound = [1.0] * len(right) if self.sound is None else self.sound(**columns)
        return [0.5 * (1.0 + s) if r == 1.0 else 0.0 for r, s in zip(right, sound, strict=True)]


@dataclass(frozen=True)
class Top:
    """Column "weight": 1 for the k best of each group among those that score at all."""

    k: int

    def __call__(self, batch: Batch) -> Batch:
        from ...trainers.pairing import best_of_group

        chosen = best_of_group(batch, self.k)
        weight = chosen.columns["weight"] * (batch.returns > 0).float()
        return replace(chosen, columns=chosen.columns | {"weight": weight})
