"""Continued imitation beside everything else: the control that any gain from one's own answers has to beat.

Supervised fine-tuning (no paper). ``--target demonstrations`` goes on imitating what the start has imitated already;
``--target answers`` imitates the labels of the training questions without any trace, which no run that claims to be
label-free may do, and which is the stronger control wherever labels exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..setting import TINY, SpeakingConfig

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.run_folder import RunFolder


@dataclass(frozen=True)
class Config(SpeakingConfig):
    """A round is one gradient step."""

    target: Literal["demonstrations", "answers"] = "demonstrations"
    """What is imitated."""
    lr: float = 1.5e-3
    """That of the start's own imitation."""
    batch: int = 64
    """Demonstrations or answers per gradient step."""
    iterations: int = 1000
    """Gradient steps."""
    gate_every: int = 100
    replay: float = 0.0


def debug() -> Config:
    """Two rounds in seconds."""
    return Config(**TINY, batch=8)


def nothing(rollouts: Sequence[Any], **columns: Any) -> list[float]:
    """Everything that is shown counts the same."""
    return [1.0] * len(rollouts)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...errors import UsageError
    from ...trainers.actors import Demonstrations
    from ...trainers.objectives import WeightedImitation
    from ..setting import start
    from ..wrapped import Labels

    labels = config.target == "answers"
    setting = start(config, labels=labels)
    if not labels and not setting.encoded:
        raise UsageError("there are no demonstrations to imitate: give rows a demonstration, or --target answers")
    actor: Any = Labels(setting.policy) if labels else Demonstrations(setting.policy, setting.encoded, config.batch)
    learner = setting.learner(WeightedImitation(), dropout=True)
    asked = config.batch if labels else 1
    stage = setting.stage(learner, nothing, actor=actor, tasks_per_step=asked, group_size=1)
    return setting.experiment([stage])
