"""Self-training that never starts over: right and sound answers are imitated, sampled at the temperature that pays.

M-STaR (arXiv:2412.17451; checked against notes on the paper, not against it): each round begins from the last weights
and the last optimiser state; among a question's right answers the two with the best process reward are imitated; every
few rounds the temperature becomes the one with the highest Reward-Pass@2, the share of validation questions with a
right answer among the two that the process reward likes best. The paper's process reward is the least of its steps'
values, learned from Monte-Carlo roll-outs; here it is the share of an answer's claims that hold at a second look.
``--no-process --tune-every 0`` is plain continuous rejection sampling, its own ablation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ..setting import LanguageConfig
from ..wrapped import Wrapped

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.run_folder import RunFolder
    from ...types import Batch, Rollout, Task


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Numbers with a source are the paper's."""

    FIXED: ClassVar[tuple[str, ...]] = (*POLICY_GRADIENT, "rewards")

    entropy_coef: float = 0.0
    process: bool = True
    """Choose among right answers by their steps."""
    keep: int = 2  # Top-2 (notes on the paper)
    """Right answers that are imitated per question."""
    tune_every: int = 50
    """Rounds between two choices of the temperature; 0 keeps it."""
    temperatures: tuple[float, ...] = (0.5, 0.7, 0.9, 1.1, 1.3)  # the paper tries 0.3 to 1.6 in steps of 0.1
    """Those to choose from."""
    validation: int = 70
    """Training questions that the temperature is chosen on (the paper: 250)."""


def debug() -> Config:
    """Two rounds in seconds."""
    return Config.tiny(tune_every=1, validation=7, temperatures=(0.7, 1.0))


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...rewards.reward import Reward
    from ...rewards.verifiers import Exact
    from ...trainers.curricula import Uniform
    from ...trainers.objectives import WeightedImitation
    from ..rereading import Rereading
    from ..setting import start
    from ..watch import Watch

    setting = start(config, folder)
    reward = RightAndSound(Exact(), Rereading(setting.eyes) if config.process else None)
    sources = {kind: Backwards(source) for kind, source in setting.questions.train.items()}
    validation = Uniform(sources, seed=config.seed).sample(config.validation)
    tuner = Temperature(setting.policy, validation, reward, config)
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


class Temperature:
    """A learner of one number: the temperature with the highest Reward-Pass@2 on validation questions."""

    def __init__(self, policy: Any, validation: Sequence[Task], reward: RightAndSound, config: Config) -> None:
        self.policy, self.validation, self.reward, self.config = policy, validation, reward, config
        self.value, self.updates = config.temperature, 0

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        every = self.config.tune_every
        if every and self.updates % every == 0:
            found = {value: self.reward_pass(value) for value in self.config.temperatures}
            self.value = max(found, key=lambda value: found[value])
        self.updates += 1
        return {"answers/temperature": self.value}

    def reward_pass(self, temperature: float, k: int = 2, samples: int = 8) -> float:
        """Share of questions with a right answer among the k of ``samples`` whose process reward is highest."""
        from ...trainers.scoring import columns

        key = (self.config.seed, 10**6, self.updates)
        rollouts = self.policy.act(self.validation, samples, key=key, temperature=temperature)
        table = columns(rollouts)
        right = self.reward.right(**table)
        sound = [0.0] * len(right) if self.reward.sound is None else self.reward.sound(**table)
        hits = 0
        for first in range(0, len(rollouts), samples):
            rows = sorted(range(first, first + samples), key=lambda row: -sound[row])[:k]
            hits += any(right[row] == 1.0 for row in rows)
        return hits / len(self.validation)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self.updates = float(state["value"]), int(state["updates"])


@dataclass
class Tempered(Wrapped):
    """The policy, sampling at the temperature that was last chosen; what is imitated is imitated at temperature 1."""

    policy: Any
    tuner: Temperature

    def act(self, tasks: Sequence[Task], n: int, **sampling: Any) -> list[Rollout]:
        if sampling.get("greedy"):
            said: list[Rollout] = self.policy.act(tasks, n, **sampling)
            return said
        rollouts: list[Rollout] = self.policy.act(tasks, n, **{**sampling, "temperature": self.tuner.value})
        for rollout in rollouts:
            as_told = {name: tensor for name, tensor in rollout.payload.items() if name != "temperature"}
            rollout.payload = {**as_told, "temperature": rollout.payload["temperature"] * 0 + 1}
        return rollouts
