"""What every started run shares: its nouns, made of a config; each modality extends :class:`Setting`.

Importing this imports no torch.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from ..errors import UsageError
from ..plugins import named
from ..splitting import assert_disjoint
from .config import RunConfig, fixed

if TYPE_CHECKING:
    from pathlib import Path

    from ..splitting import Contents
    from ..types import Actor, Advantage, Curriculum, Gate, Learner, Objective, Policy, RewardFunction, Task
    from .curricula import Source
    from .learner import AnchorSet, Optimisation
    from .loop import Experiment, Stage
    from .runs.run_folder import RunFolder

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=RunConfig)


def make(kind: str, spec: str, **offered: Any) -> Any:
    """What a spec stands for, made: called with those of ``offered`` that it names.

    What asks for something else is no maker but the thing itself: an advantage takes a batch, an objective an
    evaluation and a batch, a gate the candidate.

    Raises:
        UsageError: there is no such thing, or a class asks for what is not offered.
    """
    thing = named(kind, spec)
    asked = inspect.signature(thing).parameters.values() if callable(thing) else ()
    takes = [p for p in asked if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    lacking = [p.name for p in takes if p.default is p.empty and p.name not in offered]
    if not callable(thing) or (lacking and not inspect.isclass(thing)):
        return thing
    if lacking:
        raise UsageError(f"the {kind} {spec} asks for {lacking[0]}, and is offered {', '.join(offered)}")
    return thing(**{p.name: offered[p.name] for p in takes if p.name in offered})


def settled(config: Config, small: bool, folder: RunFolder | None, **computed: Any) -> Config:
    """The config with its defaults by model, which are told in a line and written to the run's config.json.

    Args:
        small: whether the small default model learns.
        folder: None writes nothing.
        computed: further defaults, known only now.
    """
    from .distributed import is_main

    taken = config.taken(small, **computed)
    if not taken:
        return config
    config = replace(config, **taken)
    if is_main():
        values = ", ".join(f"{name} {value:g}" for name, value in taken.items())
        who = (
            "a loaded model"
            if not small
            else "a small model of your own"
            if config.model
            else "the small default model"
        )
        print(f"defaults for {who}: {values}", flush=True)
        if folder is not None:
            folder.describe(config=folder.config | taken)
    return config


def warn_of_idle(objective: Any) -> None:
    """Say which options of an objective have no effect where a round is a single gradient step."""
    from .objectives.base import Term

    idle = objective.off_policy_only if isinstance(objective, Term) else ()
    if idle:
        logger.warning(
            "a round is one gradient step, in which the policy still is the one that sampled: %s of the objective "
            "has no effect; give --minibatches 2 or --epochs 2",
            ", ".join(dict.fromkeys(idle)),
        )


class Setting(ABC):
    """A started run, of which a recipe takes its learner, stages and experiment.

    Attributes:
        config: every None that stands for a default by model is filled.
        policy: what learns.
        start: the policy as it was at the start, frozen; the reference "start".
        repair_lr: what a repair multiplies the learning rate by.
        kl_estimator: as of ``KLPenalty``.
        probing: how a gate's probes are attempted.
    """

    config: RunConfig
    policy: Policy
    start: Policy
    repair_lr: ClassVar[float] = 1.0
    kl_estimator: ClassVar[Literal["k3", "exact"]] = "k3"
    probing: ClassVar[Mapping[str, Any]] = {"greedy": True}

    # what a modality says

    @property
    @abstractmethod
    def longest(self) -> int:
        """Most decisions of a rollout."""

    @abstractmethod
    def sources(self) -> Mapping[str, Source]:
        """Per category, its training tasks."""

    @abstractmethod
    def probes(self) -> Sequence[Task]:
        """A gate's frozen tasks."""

    @abstractmethod
    def held_out_judge(self) -> RewardFunction | None:
        """The reward that ``--judge`` names, or the modality's own; None where there is none."""

    @abstractmethod
    def anchors(self) -> AnchorSet | None:
        """What every gradient step imitates as well, with the config's weight."""

    @abstractmethod
    def described(self) -> dict[str, str]:
        """What the report tells of the policy, of what it was shown and of what counts as success: what -> in words."""

    @abstractmethod
    def evaluate(self, actor: Actor) -> Mapping[str, Any]:
        """An evaluation, see ``trainers.runs.report``."""

    @abstractmethod
    def save(self, path: Path, merged: bool = False) -> None:
        """Write what was learned to a folder that is not there yet, as other programs load it.

        Args:
            merged: all weights with the adapters in them; the policy has no adapters from then on.
        """

    @abstractmethod
    def finish(self, folder: RunFolder) -> None:
        """Samples and model card at the end of a run, whose policy is saved by then."""

    def splits(self) -> Sequence[Mapping[str, Contents]]:
        """Sides that must share no content, see ``splitting.assert_disjoint``; every entry is compared by itself."""
        return ()

    def labels_read(self, stages: Sequence[Stage]) -> Sequence[str]:
        """What training reads beside the gate that is a label, demonstrations included, as the label account has it."""
        return ()

    def learners(self, learner: Learner) -> dict[str, Learner]:
        """Everything that learns in a stage."""
        return {"policy": learner}

    # what all share

    def optimisation(self, steps: int | None = None, rollouts: int | None = None, **changes: Any) -> Optimisation:
        """The config's, for a stage of ``steps`` rounds (all) with ``rollouts`` each (tasks times group size).

        Args:
            changes: fields that the recipe fixes.
        """
        from .learner import Optimisation

        config = self.config
        falls = config.lr_schedule != "constant"
        size = config.tasks_per_step * config.group_size if rollouts is None else rollouts
        return Optimisation(
            config.lr,
            config.epochs,
            config.minibatches or max(1, size // (config.batch_size or size)),
            max_grad_norm=config.max_grad_norm,
            weight_decay=config.weight_decay,
            decay=(config.max_steps if steps is None else steps) if falls else 0,
            schedule="cosine" if config.lr_schedule == "cosine" else "linear",
            seed=config.seed,
            repair_lr=self.repair_lr,
            **changes,
        )

    def learner(
        self,
        objective: Objective | None = None,
        advantage: Advantage | None = None,
        *,
        steps: int | None = None,
        rollouts: int | None = None,
        regulariser: Any = None,
        kind: Any = None,
        how: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Learner:
        """A learner of the policy by the config's objective, or the recipe's where that names none.

        Args:
            objective, advantage: the recipe's own.
            steps, rollouts: as of :meth:`optimisation`.
            regulariser: a term in place of the config's entropy bonus and KL.
            kind: a class beside ``PolicyLearner``.
            how: fields of ``Optimisation`` that the recipe fixes.
            options: of that class; its references and anchors are the config's unless they are given.
        """
        from .learner import PolicyLearner

        if next(iter(self.policy.parameters()), None) is None:
            raise UsageError(f"no weight of {type(self.policy).__name__} requires gradients: nothing could be learned")
        objective, advantage, finds = self.way(objective, advantage)
        objective = self.regularised(objective) if regulariser is None else objective + regulariser
        starts = any(need.endswith(":start") for need in objective.needs)
        given = {"references": {"start": self.start} if starts else {}, "advantage": advantage, **options}
        if finds is not None:
            given["prepare"] = [finds, *given.get("prepare", ())]
        if "anchors" not in given:
            given["anchors"] = self.anchors()
        optimisation = self.optimisation(steps, rollouts, **how or {})
        if optimisation.epochs * optimisation.minibatches == 1:
            warn_of_idle(objective)
        made: Learner = (kind or PolicyLearner)(self.policy, objective, optimisation, **given)
        return made

    def way(self, objective: Any, advantage: Any) -> tuple[Any, Any, Any]:
        """The objective and the advantage that the config names, or else the given ones; what finds pairs, or None."""
        config, finds = self.config, None
        if config.objective or objective is None:
            made = make("objective", config.objective, config=config, longest=self.longest)
            objective, theirs, finds = (*made, None)[:3] if isinstance(made, tuple) else (made, advantage, None)
            advantage = advantage if "advantage" in fixed(type(config)) else theirs
        if config.advantage:
            advantage = make("advantage", config.advantage, config=config)
        if advantage is None and "advantages" in objective.needs:
            advantage = make("advantage", "grpo", config=config)
        return objective, advantage, finds

    def regularised(self, objective: Any) -> Any:
        """The objective with the config's entropy bonus and KL to its reference."""
        from .objectives import Entropy, KLPenalty

        config = self.config
        if config.entropy_coef:
            objective = objective - config.entropy_coef * Entropy()
        if config.kl_coef:
            objective = objective + config.kl_coef * KLPenalty(config.reference, self.kl_estimator)
        return objective

    def curriculum(self, sources: Mapping[str, Source] | None = None) -> Curriculum:
        """The config's, over the modality's sources or others."""
        config = self.config
        made: Curriculum = make(
            "curriculum",
            config.curriculum,
            sources=self.sources() if sources is None else sources,
            seed=config.seed,
            quarantine=config.quarantine or config.gate_every,
            config=config,
        )
        return made

    def gate(self, judge: RewardFunction | None = None, proxy: RewardFunction | None = None) -> Gate | None:
        """The config's gate; None for "none", and where there is nothing to judge by.

        Args:
            judge: the recipe's own; ``--judge`` goes before it.
            proxy: the training reward, to tell in the evidence where it rose while the judge fell.
        """
        config = self.config
        if config.gate == "none":
            return None
        if judge is None or config.judge:
            judge = self.held_out_judge()
        if judge is None:
            return None
        made: Gate = make(
            "gate",
            config.gate,
            probes=self.probes(),
            judge=judge,
            reward=proxy,
            sampling=self.probing,
            margin=config.gate_margin,
            z=config.gate_z,
            patience=config.gate_patience,
            config=config,
        )
        return made

    def stage(
        self,
        learner: Learner,
        reward: RewardFunction,
        *,
        judge: RewardFunction | None = None,
        proxy: RewardFunction | None = None,
        **changes: Any,
    ) -> Stage:
        """Tasks -> rollouts -> reward -> the given learner -> gate.

        Args:
            judge, proxy: as of :meth:`gate`.
            changes: fields of Stage.
        """
        from .dynamic_sampling import DynamicSampling
        from .loop import Stage

        config = self.config
        fields: dict[str, Any] = {
            "steps": config.max_steps,
            "actor": self.policy,
            "reward": reward,
            "learners": self.learners(learner),
            "tasks_per_step": config.tasks_per_step,
            "group_size": config.group_size,
            "gate_every": config.gate_every,
        }
        if config.dynamic_sampling:
            low, high = config.score_range or (-math.inf, math.inf)
            fields["dynamic"] = DynamicSampling(low, high, config.max_gen_batches)
        fields |= changes
        if "curriculum" not in fields:
            fields["curriculum"] = self.curriculum()
        if "gate" not in fields:
            fields["gate"] = self.gate(judge, proxy)
        return Stage(**fields)

    def method(self, stages: Sequence[Stage]) -> dict[str, str]:
        """What was done, for the report."""
        return {**self.described(), "training": "; then ".join(map(self._training, stages))}

    def _training(self, stage: Stage) -> str:
        config, rounds = self.config, f"{stage.steps} round{'s' * (stage.steps != 1)}"
        asked = f"{stage.tasks_per_step} tasks, {stage.group_size} rollouts of each"
        weights = {"rewards", "lr"} - fixed(type(config))
        told = [f"{rounds} of {asked}"] if stage.steps else ["no rounds"]
        told += [f"reward {' + '.join(config.rewards)}"] if "rewards" in weights and config.rewards else []
        told += [f"learning rate {config.lr:g}"] if "lr" in weights and stage.steps else []
        every = "round" if stage.gate_every == 1 else f"{stage.gate_every} rounds"
        looks = f"{config.gate} every {every}" if stage.gate is not None else "none"
        return ", ".join([*told, f"gate: {looks}"])

    def experiment(self, stages: Sequence[Stage], **changes: Any) -> Experiment:
        """Stages with this setting's evaluation, samples and model card around them.

        Args:
            changes: fields of Experiment; ``method`` is added to this setting's.

        Raises:
            UsageError: training, gate and evaluation share content.
        """
        from .loop import Experiment

        for sides in self.splits():
            assert_disjoint(sides)
        changes["method"] = self.method(stages) | changes.get("method", {})
        read = max((stage.gate.labels for stage in stages if stage.gate is not None), default=0)  # of the same probes
        fields: dict[str, Any] = {
            "evaluate": self.evaluate,
            "evaluate_every": self.config.eval_every,
            "callbacks": [make("tracker", name, config=self.config) for name in self.config.trackers],
            "save_every": self.config.save_every,
            "keep_last": self.config.keep_last,
            "max_hours": self.config.max_hours,
            "ddp_timeout": self.config.ddp_timeout,
            "seed": self.config.seed,
            "label_account": "; ".join((f"gate_labels: {read or 'none'}", *self.labels_read(stages))),
            "cpu_clock": time.process_time,
            "save": self.save,
            "finish": self.finish,
        }
        return Experiment(stages, **fields | changes)
