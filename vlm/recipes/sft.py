"""Continued imitation beside everything else: the control that any gain from one's own answers has to beat.

Paper: none, a method of this project: supervised fine-tuning.
Faithful: nothing to be faithful to.
Left out: nothing that is known.
Differs: ``--target demonstrations`` goes on imitating what the start has imitated already, in new views; ``--target
answers`` imitates the answers of training questions without any trace, which is the stronger control wherever labels
exist. It goes on until its steps are over, also where it has begun to fall: choose them on other seeds.
Labels: demonstrations with answers and traces, by the start and in every step; with ``--target answers`` the answers of
training questions; the gate's labels.
Expected: not measured yet (the figures in docs/results.md are withdrawn).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...families import of_family
from ...trainers.config import DYNAMIC_SAMPLING, POLICY_GRADIENT
from ..setting import LanguageConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(LanguageConfig):
    """A round's epochs are gradient steps on one batch."""

    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 1.5e-3, "batch_size": 64}
    LOADED: ClassVar[Mapping[str, Any]] = {"batch_size": 64}
    FIXED: ClassVar[tuple[str, ...]] = (
        *POLICY_GRADIENT,
        *DYNAMIC_SAMPLING,
        *("rewards", "tasks_per_step", "group_size", "temperature", "minibatches", "reference", "kl_coef"),
    )
    TINY: ClassVar[Mapping[str, Any]] = {"batch_size": 8}

    entropy_coef: float = 0.0

    target: Literal["demonstrations", "answers"] = "demonstrations"
    """What is imitated."""
    max_steps: int = 1000
    tasks_per_step: int = 1
    group_size: int = 1
    gate_every: int = 100
    sft_coef: float = 0.0


@of_family()
def nothing(rollouts: Sequence[Any], **columns: Any) -> list[float]:
    """Everything that is shown counts the same."""
    return [1.0] * len(rollouts)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...errors import UsageError
    from ...trainers.actors import Demonstrations
    from ...trainers.objectives import WeightedImitation
    from ..wrapped import Labels

    labels = config.target == "answers"
    setting = start(config, folder, labels=labels)
    if not labels and not setting.encoded:
        raise UsageError("there are no demonstrations to imitate: give rows a demonstration, or --target answers")
    if labels:
        setting.reads.append("answers of training questions, imitated")
    else:
        setting.imitated.append("imitated in training")
    size = setting.config.batch_size or 1
    actor: Any = Labels(setting.policy) if labels else Demonstrations(setting.policy, setting.encoded, size)
    learner = setting.learner(WeightedImitation(), dropout=True, rollouts=size)
    stage = setting.stage(learner, nothing, actor=actor, tasks_per_step=size if labels else 1)
    return setting.experiment([stage])
