"""The loop: curriculum -> policy -> reward -> learners -> gate, until the stages are done.

Reads top to bottom as the picture in docs/architecture.md does. Everything that a run does is in its
folder, and a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from ..errors import UsageError
from ..families import declared, families_of, require_independent
from ..types import Actor, Curriculum, Gate, Learner, RewardFunction, Rollout, Task, TrainerState, Verdict
from ..working import LONG, working
from .contracts import require
from .curricula import apart
from .distributed import (
    barrier,
    from_main,
    gather,
    is_main,
    processes,
    reduce_counts,
    same_everywhere,
    share,
    wait_at_most,
)
from .dynamic_sampling import DynamicSampling
from .gates import JudgeFailed
from .metrics import Mean, everywhere
from .runs.alarms import Alarm, AlarmLimits, Watcher, check_evidence
from .runs.callbacks import Callback, RunInfo
from .runs.interruption import interruptible
from .runs.progress import Progress
from .runs.run_folder import RunFolder, checkpoint_name
from .scoring import RewardError, score, tell_state, total_of
from .summaries import check_reads, of_everybody
from .weights import checksum, is_finite

logger = logging.getLogger(__name__)

Evaluate = Callable[[Actor], Mapping[str, Any]]

IDLE_ROUNDS = 10
"""So many rounds in a row in which nobody learned end a run."""
SKIPPED_STEPS = 3
"""So many steps in a row that were not finite send a run back, at half its learning rate; the second time ends it."""
CHECKSUM_EVERY = 10
"""Rounds from one comparison of the processes' weights to the next."""


@dataclass
class Stage:
    """A choice of the nouns for some iterations.

    Attributes:
        steps: iterations.
        actor: attempts the tasks; it is what is gated, forked and promoted (see ``actors``).
        reward: scores the attempts.
        learners: whatever changes, by name; each sees the scored rollouts of its players, in this order. The
            curriculum learns last.
        tasks_per_step, group_size: tasks drawn per iteration, attempts per task.
        sampling: passed to ``act`` in training.
        dynamic: leaves out groups that teach nothing, and draws others; learners see what it kept, the curriculum all.
        gate, gate_every: asked after every so many iterations and after the last.
        guard: entered around acting and learning; evaluation happens outside. A stage that claims
            to learn without an oracle seals it here.

    Raises:
        UsageError: a part lacks something of its contract; a learner of a game names no players, or one that is not
            there; groups that leave nothing to compare; a gate whose judge is of a family that trains.
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
    dynamic: DynamicSampling | None = None
    guard: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    def __post_init__(self) -> None:
        require("actor", self.actor)
        require("curriculum", self.curriculum)
        for name, learner in self.learners.items():
            require("learner", learner, name)
            learner.check(self.group_size)
            check_reads(name, learner.reads)
            _check_players(name, learner, self.actor.players)
        if self.gate is not None:
            require("gate", self.gate)
            if self.gate.judge is not None:
                require_independent(self.gate.judge, self.reward)

    @property
    def parts(self) -> dict[str, Learner]:
        """Everything that learns."""
        return {**self.learners, "curriculum": self.curriculum}


def _check_players(name: str, learner: Learner, players: tuple[str, ...]) -> None:
    if learner.players == "all":
        return
    if learner.players is None:
        if len(players) > 1:
            raise UsageError(f"the learner {name!r} names no players: of {', '.join(players)}, whose rollouts are its?")
        return
    if strange := [player for player in learner.players if player not in players]:
        raise UsageError(f"the learner {name!r} names the player {strange[0]!r}: there is {', '.join(players)}")


@dataclass
class Experiment:
    """What a recipe builds.

    Attributes:
        stages: run one after the other.
        evaluate: an actor -> an evaluation (see ``trainers.runs.report``); the only place that may read an oracle. It
            looks at ``actor.evaluated()``, in mode "evaluate".
        evaluate_every: iterations between further evaluations, 0 for before and after only.
        seed: keys every random number.
        label_account: how many labels the gates read, "gate_labels: none" or "gate_labels: N"; "" counts them.
        cpu_clock: CPU seconds so far of everything that takes part; metrics report its differences.
        callbacks: told of the run while it goes on, in the main process.
        save_every, keep_last: iterations between checkpoints, and how many of them stay; what a gate decided is saved
            at once, and what it let through stays; so does what a run that diverges would go back to. A run that is
            resumed repeats the iterations since the last one.
        max_hours: after so many the run saves and stops, as after Ctrl-C; 0 is no limit.
        ddp_timeout: seconds that processes wait for one that does not come.
        save: writes what was learned to a folder that is not there yet, as other programs load it; called for
            RUN/policy with every checkpoint that a gate let through, and before anything that comes at the end.
        method: what was done, as the report tells it: what -> in words.
        finish: called with the run folder at the end (videos, model card).
        close: releases workers.
    """

    stages: Sequence[Stage]
    evaluate: Evaluate
    evaluate_every: int = 0
    seed: int = 0
    label_account: str = ""
    limits: AlarmLimits = field(default_factory=AlarmLimits)
    cpu_clock: Callable[[], float] = time.process_time
    callbacks: Sequence[Callback] = ()
    save_every: int = 1
    keep_last: int = 2
    max_hours: float = 0.0
    ddp_timeout: float = 1800.0
    method: Mapping[str, str] = field(default_factory=dict)
    save: Callable[..., None] = lambda path, merged=False: None
    finish: Callable[[RunFolder], None] = lambda folder: None
    close: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.save_every < 1 or self.keep_last < 1:
            raise UsageError(f"save_every and keep_last are 1 or more, not {self.save_every} and {self.keep_last}")


class OutOfTime(KeyboardInterrupt):
    """``max_hours`` have passed; the run is saved and can be resumed."""


class Diverged(UsageError):
    """Numbers stopped being finite twice; the run ended with its last good weights."""


def train(experiment: Experiment, folder: RunFolder, *, resume: bool = False) -> None:
    """Run every stage; with ``resume``, from the folder's latest checkpoint.

    Ctrl-C ends after the iteration in progress, saves and raises KeyboardInterrupt; so do SIGTERM and ``max_hours``.

    Raises:
        Diverged: once what was good is saved and evaluated.
    """
    wait_at_most(experiment.ddp_timeout)
    run = _Run(experiment, folder)
    started = time.monotonic()
    if is_main():
        account, judges = _label_account(experiment), _judges(experiment.stages)
        folder.describe(label_account=account, judges=judges, method=dict(experiment.method))
    error: BaseException | None = None
    try:
        if resume:
            run.restore(folder.load_checkpoint("latest"))
        total = sum(stage.steps for stage in experiment.stages)
        info = RunInfo(folder.path, folder.recipe, folder.config, total, run.iteration)
        run.tell(lambda callback: callback.on_start(info))
        run.same_weights()
        if not resume:
            run.begin()
        with interruptible() as interrupted, Progress(total, run.iteration, quiet=not is_main()) as progress:
            for index in range(run.stage, len(experiment.stages)):
                if run.diverged:
                    break
                run.enter(index)
                stage = experiment.stages[index]
                while run.step < stage.steps:
                    metrics = run.iterate(stage)
                    progress.show(run.iteration, metrics)
                    if run.verdict is not None:
                        progress.decided(run.iteration, run.verdict)
                    ends = run.diverged or (run.step >= stage.steps and index + 1 == len(experiment.stages))
                    late = not ends and 0 < experiment.max_hours * 3600 < time.monotonic() - started
                    ended = gather([(interrupted(), late)])
                    if any(map(any, ended)):
                        run.save(best=False)
                        raise KeyboardInterrupt if any(pressed for pressed, _ in ended) else OutOfTime
        if not (resume and run.diverged):
            run.end()
        if run.diverged:
            if is_main():
                folder.describe(diverged=run.diverged)
            raise Diverged(
                f"the run diverged: {run.diverged} again; it ended with the weights of {run.good}: try a lower --lr"
            )
    except BaseException as raised:
        error = raised
        raise
    finally:
        tell_state(TrainerState())
        run.tell(lambda callback: callback.on_end(error))


def _label_account(experiment: Experiment) -> str:
    gates = {id(stage.gate): stage.gate for stage in experiment.stages if stage.gate is not None}
    labels = sum(gate.labels for gate in gates.values())
    return experiment.label_account or f"gate_labels: {labels or 'none'}"


def _judges(stages: Sequence[Stage]) -> list[str]:
    """Of every gate, what its judge is; a judge that does not declare itself was not checked to be independent."""
    lines = []
    for stage in stages:
        if stage.gate is not None and stage.gate.judge is not None:
            checked = declared(families_of(stage.gate.judge, stage.reward))
            families = ", ".join(sorted(families_of(stage.gate.judge)))
            lines.append(families + ("" if checked else "; independence not checked"))
    return lines


class _Run:
    """The state of a run between iterations."""

    def __init__(self, experiment: Experiment, folder: RunFolder) -> None:
        self.experiment, self.folder = experiment, folder
        self.stage, self.step, self.iteration, self.idle, self.returns = 0, 0, 0, 0, 0
        self.good = checkpoint_name(0)  # what a run that diverges goes back to
        self.clean = True  # whether every step since the last checkpoint was taken
        self.diverged = ""  # what ended the run
        self.base: Any = None
        self.promoted_actor: Any = None
        self.promoted: dict[str, Any] = {}
        self.acting = 0.0  # seconds of this round
        self.watcher = Watcher(experiment.limits)
        self.saved = (-1, -1)
        self.verdict: Verdict | None = None  # of the last iteration, if the gate was asked

    def same_weights(self) -> None:
        """Refuse to go on with processes whose weights differ."""
        if processes() > 1:
            same_everywhere("weights", checksum(self.experiment.stages[self.stage].actor.state_dict()))

    def tell(self, event: Callable[[Callback], None]) -> None:
        if is_main():
            for callback in self.experiment.callbacks:
                event(callback)

    def begin(self) -> None:
        self._evaluate("before")
        self.enter(0)
        self.save(best=True)

    def enter(self, index: int) -> None:
        """Start a stage, unless a checkpoint stands inside it."""
        if index == self.stage and self.promoted:
            return
        self.stage, self.step = index, 0
        self._anchor_gate(self.experiment.stages[index])

    def _anchor_gate(self, stage: Stage) -> None:
        self.promoted = _snapshot(stage)
        if stage.gate is not None:
            self.base, self.promoted_actor = stage.actor.fork("base"), stage.actor.fork("promoted")

    def iterate(self, stage: Stage) -> dict[str, float]:
        """One iteration: sample, act, score, learn, gate, record."""
        started, cpu = time.perf_counter(), self.experiment.cpu_clock()
        with stage.guard():
            self._tell_state()
            self.acting = 0.0
            attempt = partial(self._attempt, stage)
            if stage.dynamic is None:
                tasks, rollouts, metrics = attempt(stage.tasks_per_step, [])
                drawn = rollouts
            else:
                tasks, rollouts, drawn, metrics = stage.dynamic.fill(attempt, stage.tasks_per_step)
            metrics |= self._learn(stage, rollouts, drawn, tasks)
            self._keep_finite(stage)
            metrics |= {"time/act": self.acting, "time/learn": time.perf_counter() - started - self.acting}
            self.iteration += 1
            self.step += 1
            self.verdict = verdict = self._gate(stage)
        metrics |= {"time/cpu": self.experiment.cpu_clock() - cpu, "time/wall": time.perf_counter() - started}
        if is_main():
            self.folder.log(self.iteration, metrics)
            self._alarm(self.watcher.check(metrics))
        self.tell(lambda callback: callback.on_iteration(self.iteration, metrics))
        every = self.experiment.evaluate_every
        if every and self.iteration % every == 0 and self.step < stage.steps:
            self._evaluate(f"iteration-{self.iteration:06d}")
        waits = verdict is None or (verdict.decision == "wait" and self.step < stage.steps)
        best = stage.gate is None or not waits
        decided = verdict is not None and verdict.decision != "wait"
        if decided or self.step == stage.steps or self.iteration % self.experiment.save_every == 0:
            self.save(best=best)
        if self.iteration % CHECKSUM_EVERY == 0 or self.step == stage.steps:
            self.same_weights()
        return metrics

    def _tell_state(self) -> None:
        total = sum(each.steps for each in self.experiment.stages)
        tell_state(TrainerState(self.iteration, total, self.experiment.seed))

    def _attempt(
        self, stage: Stage, count: int, before: Sequence[Task]
    ) -> tuple[list[Task], list[Rollout], dict[str, float]]:
        """New tasks, whose ids differ from those of the round before, and this process's scored attempts at them."""
        tasks = _agreed(apart([*before, *stage.curriculum.sample(count)])[len(before) :])
        key, own, started = (self.experiment.seed, self.iteration), share(tasks), time.perf_counter()
        rollouts = stage.actor.act(own, stage.group_size, key=key, **stage.sampling) if own else []
        self.acting += time.perf_counter() - started
        return tasks, rollouts, self._score(stage, rollouts)

    def _score(self, stage: Stage, rollouts: list[Rollout]) -> dict[str, float]:
        try:
            return score(rollouts, stage.reward, together=True)
        except RewardError as error:
            path = self.folder.save_rollouts(f"failed-{self.iteration:06d}", rollouts)
            raise type(error)(f"{error}; the iteration's {len(rollouts)} rollouts are kept in {path}") from error

    def _learn(
        self, stage: Stage, rollouts: list[Rollout], drawn: list[Rollout], tasks: Sequence[Task]
    ) -> dict[str, float]:
        """Every learner in turn. A round in which nobody learns is counted, and too many in a row end the run.

        Args:
            rollouts, drawn: those that are learned from, and all that the curriculum sees.
        """
        metrics: dict[str, float] = {}
        learned: list[float] = []
        skipped = 0.0
        for name, learner in stage.parts.items():
            visible = drawn if learner is stage.curriculum else rollouts
            if not learner.sees_own_rollouts_only and processes() > 1:
                visible = of_everybody(visible, tasks, learner.reads)
            named = learner.players not in (None, "all")
            if named:
                visible = [rollout for rollout in visible if rollout.player in (learner.players or ())]
            (told,) = everywhere(learner.update(visible))
            if "learned" in told:
                learned.append(told["learned"])
            skipped = max(skipped, told.get("steps/skipped_in_a_row", 0.0))
            metrics |= {f"{name}/{key}": value for key, value in told.items()} if named else told
        self.clean = self.clean and not skipped
        self.skipped = skipped
        self.idle = self.idle + 1 if learned and not any(learned) and not skipped else 0
        if self.idle >= IDLE_ROUNDS:
            why = "the reward applied to no rollout of theirs (None for every one)"
            if stage.dynamic is not None:
                why = (
                    "dynamic sampling kept no group (see dynamic/kept): every group's scores were alike or out of range"
                )
            raise UsageError(f"nobody learned in {self.idle} rounds in a row: {why}")
        metrics["rounds/idle"] = float(self.idle)
        return metrics | _per_category(drawn)

    def _keep_finite(self, stage: Stage) -> None:
        """Where weights or several steps in a row were not finite, go back; the second time end the run."""
        broken = reduce_counts({"parts": float(not is_finite({n: p.state_dict() for n, p in stage.parts.items()}))})
        if not broken["parts"] and self.skipped < SKIPPED_STEPS:
            return
        self.clean = False
        what = "weights were not finite" if broken["parts"] else f"{SKIPPED_STEPS} steps in a row were not finite"
        state = self.folder.load_checkpoint(self.good)
        _restore(stage, state["now"] if state["stage"] == self.stage else self.promoted)
        self.returns += 1
        if self.returns > 1:
            self.diverged, self.step = what, stage.steps - 1  # this round is counted yet
        else:
            for part in stage.parts.values():
                part.slow_down(0.5)
        end = "the run ends there" if self.diverged else "on from there at half the learning rate"
        if is_main():
            self._alarm([Alarm("diverged", str(self.returns), f"{what}: back to {self.good}, {end}")])

    def _gate(self, stage: Stage) -> Verdict | None:
        """Ask the gate when it is due and do as it says; returns its verdict, if it was asked.

        It is the main process's verdict that counts: judges may answer differently in two of them.
        """
        due = self.step % stage.gate_every == 0 or self.step == stage.steps
        if stage.gate is None or not due:
            return None
        candidate = stage.actor.evaluated()
        with working("asking the gate", after=LONG):
            try:
                verdict = from_main(stage.gate(candidate, {"base": self.base, "promoted": self.promoted_actor}))
            except JudgeFailed as error:
                verdict = Verdict("wait", str(error))
        if verdict.stop:
            self.step = stage.steps
        if verdict.decision == "keep":
            self.promoted_actor.copy_from(candidate)
        elif verdict.decision != "wait" or self.step == stage.steps:
            _restore(stage, self.promoted)
            if verdict.decision == "repair":
                for part in stage.parts.values():
                    part.repair(verdict)
        if verdict.decision != "wait":
            self.promoted = _snapshot(stage)
        if is_main():
            self.folder.append("gate", {"iteration": self.iteration, **asdict(verdict)})
            self._alarm(check_evidence(verdict.evidence, self.experiment.limits))
        self.tell(lambda callback: callback.on_gate(self.iteration, verdict))
        return verdict

    def _alarm(self, alarms: Sequence[Alarm]) -> None:
        for alarm in self.watcher.new(alarms):
            self.folder.append("alarms", {"iteration": self.iteration, **asdict(alarm)})
            logger.warning("%s: %s", alarm.alarm, alarm.detail)

    def _evaluate(self, name: str) -> None:
        self._tell_state()
        with working(f"evaluating {name} training" if name in ("before", "after") else "evaluating"):
            result = self.experiment.evaluate(self.experiment.stages[self.stage].actor)
        if is_main():
            self.folder.write_json(f"evaluations/{name}.json", {"iteration": self.iteration, **result})
        self.tell(lambda callback: callback.on_evaluation(self.iteration, name, result))
        barrier()

    def end(self) -> None:
        """The last iteration asked the gate, so a gated run ends with what was last let through."""
        self.save(best=True)  # a last stage without iterations
        self._evaluate("after")
        if is_main():
            with working("writing policy and samples", after=LONG):
                self.experiment.finish(self.folder)

    def save(self, *, best: bool) -> None:
        """Write a checkpoint, unless there is one of this iteration and stage already; with a best one, the policy.

        A disk that is full is told and tried again with the next checkpoint; at the end of a run it is an error.
        """
        if self.saved == (self.stage, self.iteration):
            return
        if self.clean and self.saved[1] >= 0:
            self.good = checkpoint_name(self.saved[1])
        before, self.saved, self.clean = self.saved, (self.stage, self.iteration), True
        stage = self.experiment.stages[self.stage]
        if is_main():
            state: dict[str, Any] = {"stage": self.stage, "step": self.step, "iteration": self.iteration}
            state |= {"idle": self.idle, "returns": self.returns, "good": self.good, "diverged": self.diverged}
            state |= {"now": {name: part.state_dict() for name, part in stage.parts.items()}, "promoted": self.promoted}
            if stage.gate is not None:
                state |= {"base": self.base.state_dict(), "promoted_actor": self.promoted_actor.state_dict()}
                state["gate"] = stage.gate.state_dict()
            try:
                self.folder.save_checkpoint(
                    self.iteration, state, best=best, keep=self.experiment.keep_last, hold=self.good
                )
                if best:
                    self._save_policy()
            except OSError as error:
                if self.step >= stage.steps and self.stage + 1 == len(self.experiment.stages):
                    raise UsageError(f"cannot save the run: {error}") from error
                self._alarm([Alarm("not saved", "", f"no checkpoint of round {self.iteration}: {error}")])
                self.saved = before
        self.saved = from_main(self.saved)

    def _save_policy(self) -> None:
        """Replace RUN/policy as a whole."""
        path = self.folder.path / "policy"
        partial = path.with_name(".policy.partial")
        shutil.rmtree(partial, ignore_errors=True)
        self.experiment.save(partial)
        if partial.exists():
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)

    def restore(self, state: Mapping[str, Any]) -> None:
        self.stage, self.step, self.iteration = (int(state[name]) for name in ("stage", "step", "iteration"))
        self.idle, self.returns = int(state["idle"]), int(state["returns"])
        self.good, self.diverged = str(state["good"]), str(state["diverged"])
        self.saved = (self.stage, self.iteration)
        stage = self.experiment.stages[self.stage]
        if stage.gate is not None:
            self._anchor_gate(stage)
            self.base.load_state_dict(state["base"])
            self.promoted_actor.load_state_dict(state["promoted_actor"])
            stage.gate.load_state_dict(state["gate"])
        self.promoted = dict(state["promoted"])
        _restore(stage, state["now"])
        if is_main():
            self.folder.rewind(self.iteration)
            self.watcher.resume(self.folder.metrics(), self.folder.read("alarms"))


def _snapshot(stage: Stage) -> dict[str, Any]:
    """The state of everything that learns, detached from what goes on learning, its tensors on the CPU."""
    return {name: _copied(part.state_dict()) for name, part in stage.parts.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list | tuple) else copy.deepcopy(value)


def _restore(stage: Stage, state: Mapping[str, Any]) -> None:
    for name, part in stage.parts.items():
        part.load_state_dict(copy.deepcopy(state[name]))


def _per_category(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean total reward per category, over all processes; in a game per player and category."""
    several = len(set(gather(sorted({rollout.player for rollout in rollouts})))) > 1
    totals: dict[str, list[float]] = {}
    for rollout in rollouts:
        total = total_of(rollout)
        if total is not None and rollout.task.category:
            name = f"{rollout.player}/{rollout.task.category}" if several else rollout.task.category
            totals.setdefault(name, []).append(total)
    (told,) = everywhere({f"category/{name}": Mean.of_numbers(values) for name, values in totals.items()})
    return dict(sorted(told.items()))


def _agreed(tasks: list[Task]) -> list[Task]:
    """The round's tasks: every process has drawn the same ones, or else the main process's are sent to all."""
    ids = from_main([task.id for task in tasks])
    return tasks if all(gather([ids == [task.id for task in tasks]])) else from_main(tasks)
