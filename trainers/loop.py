"""The loop: curriculum -> policy -> reward -> learners -> gate, until the stages are done.

Reads top to bottom as the picture in docs/architecture.md does. Everything that a run does is in its
folder, and a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..types import Actor, Curriculum, Gate, Learner, RewardFunction, Rollout, Verdict
from .alarms import Alarm, AlarmLimits, check_evidence, check_metrics
from .distributed import barrier, from_main, gather, is_main, share
from .interruption import interruptible
from .progress import Progress
from .run_folder import RunFolder
from .scoring import RewardError, score, share_a_source

logger = logging.getLogger(__name__)

Evaluate = Callable[[Actor], Mapping[str, Any]]


@dataclass
class Stage:
    """A choice of the nouns for some iterations.

    Attributes:
        steps: iterations.
        actor: attempts the tasks; a gated one also has ``fork(name)`` and ``copy_from(other)``.
        reward: scores the attempts.
        learners: whatever changes, by name; each sees the scored rollouts, in this order. The
            curriculum learns last.
        tasks_per_step, group_size: tasks drawn per iteration, attempts per task.
        sampling: passed to ``act``.
        gate, gate_every: asked after every so many iterations and after the last.
        guard: entered around acting and learning; evaluation happens outside. A stage that claims
            to learn without an oracle seals it here.
    """

    steps: int
    actor: Actor
    curriculum: Curriculum
    reward: RewardFunction
    learners: Mapping[str, Learner]
    tasks_per_step: int
    group_size: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    gate: Gate | None = None
    gate_every: int = 5
    guard: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    def __post_init__(self) -> None:
        for learner in self.learners.values():
            check = getattr(getattr(learner, "advantage", None), "check", None)
            if check is not None:
                check(self.group_size)
        judge = getattr(self.gate, "judge", None)
        if judge is not None and share_a_source(judge, self.reward):
            raise ValueError("the gate's judge is (part of) the training reward: give it a judge of another family")


@dataclass
class Experiment:
    """What a recipe builds.

    Attributes:
        stages: run one after the other.
        evaluate: an actor -> an evaluation (see ``trainers.report``); the only place that may read an oracle.
        evaluate_every: iterations between further evaluations, 0 for before and after only.
        seed: keys every random number.
        label_account: how many labels the gate reads, "gate_labels: none" or "gate_labels: N".
        cpu_clock: CPU seconds so far of everything that takes part; metrics report its differences.
        finish: called with the run folder at the end (videos, model card).
        close: releases workers.
    """

    stages: Sequence[Stage]
    evaluate: Evaluate
    evaluate_every: int = 0
    seed: int = 0
    label_account: str = "gate_labels: none"
    limits: AlarmLimits = field(default_factory=AlarmLimits)
    cpu_clock: Callable[[], float] = time.process_time
    finish: Callable[[RunFolder], None] = lambda folder: None
    close: Callable[[], None] = lambda: None


def train(experiment: Experiment, folder: RunFolder, *, resume: bool = False) -> None:
    """Run every stage; with ``resume``, from the folder's latest checkpoint.

    Ctrl-C ends after the iteration in progress, saves and raises KeyboardInterrupt.
    """
    run = _Run(experiment, folder)
    if is_main():
        folder.describe(label_account=experiment.label_account)
    if resume:
        run.restore(folder.load_checkpoint("latest"))
    else:
        run.begin()
    total = sum(stage.steps for stage in experiment.stages)
    with interruptible() as interrupted, Progress(total, run.iteration, quiet=not is_main()) as progress:
        for index in range(run.stage, len(experiment.stages)):
            run.enter(index)
            stage = experiment.stages[index]
            while run.step < stage.steps:
                metrics = run.iterate(stage)
                progress.show(run.iteration, metrics)
                if interrupted():
                    raise KeyboardInterrupt
    run.end()


class _Run:
    """The state of a run between iterations."""

    def __init__(self, experiment: Experiment, folder: RunFolder) -> None:
        self.experiment, self.folder = experiment, folder
        self.stage, self.step, self.iteration = 0, 0, 0
        self.base: Any = None
        self.promoted_actor: Any = None
        self.promoted: dict[str, Any] = {}

    def begin(self) -> None:
        self._evaluate("before")
        self.enter(0)
        self._save(best=True)

    def enter(self, index: int) -> None:
        """Start a stage, unless a checkpoint stands inside it."""
        if index == self.stage and self.promoted:
            return
        self.stage, self.step = index, 0
        self._anchor_gate(self.experiment.stages[index])

    def _anchor_gate(self, stage: Stage) -> None:
        self.promoted = _snapshot(stage)
        if stage.gate is not None:
            actor: Any = stage.actor
            self.base, self.promoted_actor = actor.fork("base"), actor.fork("promoted")

    def iterate(self, stage: Stage) -> dict[str, float]:
        """One iteration: sample, act, score, learn, gate, record."""
        started, cpu = time.perf_counter(), self.experiment.cpu_clock()
        with stage.guard():
            tasks = share(from_main(stage.curriculum.sample(stage.tasks_per_step)))
            key = (self.experiment.seed, self.iteration)
            rollouts = stage.actor.act(tasks, stage.group_size, key=key, **stage.sampling) if tasks else []
            acted = time.perf_counter()
            metrics = self._score(stage, rollouts)
            metrics |= self._learn(stage, rollouts)
            metrics |= {"time/act": acted - started, "time/learn": time.perf_counter() - acted}
            self.iteration += 1
            self.step += 1
            verdict = self._gate(stage)
        metrics["time/cpu"] = self.experiment.cpu_clock() - cpu
        if is_main():
            self.folder.log(self.iteration, metrics)
            self._alarm(check_metrics(self.folder.metrics(), self.experiment.limits))
        every = self.experiment.evaluate_every
        if every and self.iteration % every == 0 and self.step < stage.steps:
            self._evaluate(f"iteration-{self.iteration:06d}")
        waits = verdict is None or (verdict.decision == "wait" and self.step < stage.steps)
        self._save(best=stage.gate is None or not waits)
        return metrics

    def _score(self, stage: Stage, rollouts: list[Rollout]) -> dict[str, float]:
        try:
            return score(rollouts, stage.reward)
        except RewardError as error:
            kept = self.folder.save_rollouts(f"failed-{self.iteration:06d}", rollouts)
            raise RewardError(f"{error}; the iteration's {len(rollouts)} rollouts are kept in {kept}") from error

    def _learn(self, stage: Stage, rollouts: list[Rollout]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        everyone: list[Rollout] | None = None
        for learner in (*stage.learners.values(), stage.curriculum):
            own = getattr(learner, "sees_own_rollouts_only", False)
            if not own and everyone is None:
                everyone = gather(rollouts)
            metrics |= learner.update(rollouts if own or everyone is None else everyone)
        return metrics | _per_category(everyone or rollouts)

    def _gate(self, stage: Stage) -> Verdict | None:
        """Ask the gate when it is due and do as it says; returns its verdict, if it was asked."""
        due = self.step % stage.gate_every == 0 or self.step == stage.steps
        if stage.gate is None or not due:
            return None
        verdict = stage.gate(stage.actor, {"base": self.base, "promoted": self.promoted_actor})
        if verdict.stop:
            self.step = stage.steps
        if verdict.decision == "keep":
            self.promoted_actor.copy_from(stage.actor)
        elif verdict.decision != "wait" or self.step == stage.steps:
            _restore(stage, self.promoted)
            if verdict.decision == "repair":
                for part in (*stage.learners.values(), stage.curriculum):
                    getattr(part, "repair", lambda verdict: None)(verdict)
        if verdict.decision != "wait":
            self.promoted = _snapshot(stage)
        if is_main():
            record: dict[str, Any] = {"iteration": self.iteration, **vars(verdict)}
            record |= {"harmed": list(verdict.harmed), "evidence": dict(verdict.evidence)}
            self.folder.append("gate", record)
            self._alarm(check_evidence(verdict.evidence, self.experiment.limits))
        return verdict

    def _alarm(self, alarms: Sequence[Alarm]) -> None:
        known = {(row["alarm"], row["about"]) for row in self.folder.read("alarms")}
        for alarm in alarms:
            if (alarm.alarm, alarm.about) not in known:
                self.folder.append("alarms", {"iteration": self.iteration, **vars(alarm)})
                logger.warning("%s: %s", alarm.alarm, alarm.detail)

    def _evaluate(self, name: str) -> None:
        actor = self.experiment.stages[self.stage].actor
        result = self.experiment.evaluate(actor)
        if is_main():
            self.folder.write_json(f"evaluations/{name}.json", {"iteration": self.iteration, **result})
        barrier()

    def end(self) -> None:
        """The last iteration asked the gate, so a gated run ends with what was last let through."""
        self._evaluate("after")
        if is_main():
            self.experiment.finish(self.folder)

    def _save(self, *, best: bool) -> None:
        if is_main():
            stage = self.experiment.stages[self.stage]
            place = {"stage": self.stage, "step": self.step, "iteration": self.iteration}
            state = place | {"now": _snapshot(stage), "promoted": self.promoted}
            if self.base is not None:
                state |= {"base": self.base.state_dict(), "promoted_actor": self.promoted_actor.state_dict()}
            gate: Any = stage.gate
            if hasattr(gate, "state_dict"):
                state["gate"] = gate.state_dict()
            self.folder.save_checkpoint(self.iteration, state, best=best)
        barrier()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.stage, self.step, self.iteration = (int(state[name]) for name in ("stage", "step", "iteration"))
        stage = self.experiment.stages[self.stage]
        if stage.gate is not None:
            self._anchor_gate(stage)
            self.base.load_state_dict(state["base"])
            self.promoted_actor.load_state_dict(state["promoted_actor"])
        if "gate" in state:
            gate: Any = stage.gate
            gate.load_state_dict(state["gate"])
        self.promoted = dict(state["promoted"])
        _restore(stage, state["now"])
        if is_main():
            self.folder.rewind(self.iteration)


def _parts(stage: Stage) -> dict[str, Any]:
    return {**stage.learners, "curriculum": stage.curriculum}


def _snapshot(stage: Stage) -> dict[str, Any]:
    """The state of everything that learns, detached from what goes on learning."""
    return {name: copy.deepcopy(part.state_dict()) for name, part in _parts(stage).items()}


def _restore(stage: Stage, state: Mapping[str, Any]) -> None:
    for name, part in _parts(stage).items():
        part.load_state_dict(copy.deepcopy(state[name]))


def _per_category(rollouts: Sequence[Rollout]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for rollout in rollouts:
        total = rollout.scores.get("total")
        if total is not None and rollout.task.category:
            value = torch.as_tensor(total, dtype=torch.float32).sum().item()
            found.setdefault(rollout.task.category, []).append(value)
    return {f"category/{name}": sum(values) / len(values) for name, values in sorted(found.items())}
