"""Which progress estimators can be trusted? Every shipped one, and controls, on a mediocre policy's episodes.

    python benchmarks/progress_audit.py [--quick] [--final] [--json FILE] [--seeds 0 1 2 3 4] [--episodes 40]

Per seed and group of tasks a policy clones one demonstration per task (three of reach and push), and acts with noise
and to the full horizon, whatever it reaches, so that an episode's length tells nothing. Success is latched at chunk
ends. Estimators learn from exactly those demonstrations (rule S); "play" adds a few unlabelled episodes of the policy
from training states; "both" is the mean of a critic without and a pairwise one with play; "pretrained on other tasks"
(rule F) learned from successes and failures in all other families of tasks, with one network for all seeds, and reads
the demonstrations. Beside them stand models that know nothing (time, travel, constant) and MetaWorld's own dense
reward, which is the oracle's. What is asked:

* auc: P(score of a success > score of a failure), up to N of each per task; tasks with fewer than 5 of either are told
  and left out of the means.
* balanced_accuracy at a threshold from the demonstrations (the least estimate that one has where it first succeeds),
  and balanced_accuracy_otsu at Otsu's split of the scores; neither reads success.
* voc_success, voc_failure: rank correlation of values with time. ece: calibration. cpu_seconds per episode, scoring
  alone, without rendering and training; fit_seconds of training, for one group of tasks.

Intervals are 95 %, over seeds of the mean over tasks; each seed has demonstrations, clone, critics and noise of its
own. States come from the split "tune", on which settings may be chosen; --final takes them from "eval", once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser_of, save

from autotelic.auditing import Silent
from autotelic.envs.metaworld import OBSERVATION, MetaWorldSimulator
from autotelic.envs.pool import Episode
from autotelic.envs.simulator import View, spec_of
from autotelic.envs.splits import seeds as states_of
from autotelic.rewards.audit import Audit, audit_progress, audit_scores, otsu
from autotelic.rewards.progress.controls import Clock, Constant, Travel
from autotelic.rewards.progress.critics import CriticTraining, ProgressCritic
from autotelic.rewards.progress.end_conditions import EndConditions
from autotelic.rewards.progress.estimates import Accumulator, Kind, MeanProgress
from autotelic.rewards.progress.features import RelationFeatures
from autotelic.rewards.progress.frame_critics import FrameCritic, FrameTraining
from autotelic.statistics import FEW, mean_interval
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.vla.setting import RobotConfig, Setting, start

GROUPS = (
    ("reach-v3:3", "push-v3:3", "drawer-open-v3", "door-open-v3"),
    ("drawer-close-v3", "window-open-v3", "button-press-topdown-v3", "faucet-open-v3"),
    ("plate-slide-v3", "handle-press-v3", "coffee-push-v3", "door-close-v3"),
)
QUICK = (("reach-v3:3", "drawer-open-v3"),)
VIEW = View(size=64)
BATCH = 40
"""Episodes recorded at a time, frames and all."""
PLAY = 8
"""Unlabelled episodes per task for estimators that take some."""
TEMPERATURES = (1.0, 2.0)
MEASURES = ("auc", "balanced_accuracy", "balanced_accuracy_otsu", "voc_success", "voc_failure", "ece", "cpu_seconds")


@dataclass(eq=False)
class Estimator:
    """A model, how its answers become an estimate, and whether demonstrations give it a threshold."""

    model: Any
    accumulator: Accumulator
    fit_seconds: float = 0.0


@dataclass(eq=False)
class Shown:
    """What estimators may learn from: demonstrations with frames, and play; ``short`` trains them too little."""

    demonstrations: list[Any]
    play: list[Episode]
    seed: int
    short: bool
    kept: dict[Any, tuple[Any, float]] = field(default_factory=dict)
    spared: float = 0.0

    def fitted(self, key: Any, make: Callable[[], Any]) -> Any:
        """A model that several estimators share, made once; ``spared`` are the CPU seconds that this saved."""
        if key in self.kept:
            self.spared += self.kept[key][1]
        else:
            began = time.process_time()
            self.kept[key] = make(), time.process_time() - began
        return self.kept[key][0]


def progress_critic(kind: Kind) -> Callable[[Shown], Any]:
    def fit(shown: Shown) -> Any:
        training = CriticTraining(seed=shown.seed, steps=150 if shown.short else CriticTraining.steps)
        critic = ProgressCritic(kind, RelationFeatures(OBSERVATION), training)
        critic.fit(shown.demonstrations)
        return critic

    return lambda shown: shown.fitted(kind, lambda: fit(shown))


def frame_critic(kind: Any, play: bool) -> Callable[[Shown], Any]:
    def fit(shown: Shown) -> Any:
        training = FrameTraining(seed=shown.seed, steps=60 if shown.short else FrameTraining.steps)
        critic = FrameCritic(kind, training)
        critic.fit(shown.demonstrations, shown.play if play else ())
        return critic

    return lambda shown: shown.fitted((kind, play), lambda: fit(shown))


def mean_of(*makers: Callable[[Shown], Any]) -> Callable[[Shown], Any]:
    return lambda shown: MeanProgress([make(shown) for make in makers])


def end_conditions(shown: Shown) -> Any:
    judge = EndConditions(RelationFeatures(OBSERVATION))
    judge.fit(shown.demonstrations)
    return judge


def pretrained(shown: Shown) -> Any:
    from autotelic.vla.practice import pretrained_critic

    tasks = [d.environment for d in shown.demonstrations]
    return shown.fitted(PRETRAINED, lambda: pretrained_critic(tasks).adapt(shown.demonstrations))


BOTH = mean_of(frame_critic("absolute", play=False), frame_critic("pairwise", play=True))
BEST, LAST, MILESTONES = Accumulator("best"), Accumulator("last"), Accumulator("milestones")
PRETRAINED = "states: pretrained on other tasks"
ESTIMATORS: dict[str, tuple[Callable[[Shown], Any], Accumulator]] = {
    "states: critic": (progress_critic("absolute"), BEST),
    "states: critic, last": (progress_critic("absolute"), LAST),
    "states: pairwise critic": (progress_critic("pairwise"), BEST),
    "states: pairwise critic, milestones": (progress_critic("pairwise"), MILESTONES),
    "states: end conditions": (end_conditions, BEST),
    "states: critic, with end conditions": (mean_of(progress_critic("absolute"), end_conditions), BEST),  # the default
    PRETRAINED: (pretrained, BEST),
    f"{PRETRAINED}, with end conditions": (mean_of(pretrained, end_conditions), BEST),
    "frames: critic": (frame_critic("absolute", play=False), BEST),
    "frames: critic with play": (frame_critic("absolute", play=True), BEST),
    "frames: pairwise critic": (frame_critic("pairwise", play=False), BEST),
    "frames: pairwise critic with play": (frame_critic("pairwise", play=True), BEST),
    "frames: both, the second with play": (BOTH, BEST),
    "frames: both, last": (BOTH, LAST),  # the default
    "control: time": (lambda shown: Clock(), LAST),
    "control: travel": (lambda shown: Travel(slice(0, 3)), LAST),
    "control: constant": (lambda shown: Constant(), LAST),
}
ORACLE = "oracle: dense reward"


def group_setting(tasks: Sequence[str], seed: int, folder: Path, quick: bool) -> Setting:
    """Demonstrations and a policy that cloned them, as every robot recipe starts."""
    config = RobotConfig(tasks=tuple(tasks), seed=seed, bc_steps=300 if quick else 1000, workers=1, videos=0)
    run = RunFolder.create(folder, recipe="vla/more_imitation", config={}, command="")
    return start(config, run)


def with_frames(setting: Setting) -> list[Any]:
    """The setting's demonstrations, recorded again with frames."""
    found = []
    for name, several in setting.demonstrations.items():
        again = setting.pool.demonstrate(
            name, [d.seed for d in several], horizon=350, settle=setting.config.settle, render=VIEW
        )
        assert all(np.array_equal(a.observations, b.observations) for a, b in zip(several, again, strict=True))
        found += again
    return found


def act(setting: Setting, name: str, states: Sequence[int], temperature: float, key: int) -> list[Episode]:
    """Episodes of the policy with noise, success read, frames kept."""
    actor = setting.actor(estimator=Silent())
    actor.temperature = temperature
    tasks = [setting.task(name, state) for state in states]
    rollouts = actor.act(tasks, 1, key=(setting.config.seed, key), oracle=True, render=VIEW)
    return [rollout.output for rollout in rollouts]


def record(setting: Setting, name: str, split: Any, wanted: int) -> list[Episode]:
    """Up to ``wanted`` successes and as many failures, from at most four times as many states."""
    kept: dict[bool, list[Episode]] = {True: [], False: []}
    for first in range(0, 4 * wanted, BATCH):
        states = states_of(split, min(BATCH, 4 * wanted - first), 1000 * setting.config.seed + first)
        temperature = TEMPERATURES[first // BATCH % len(TEMPERATURES)]
        for episode in act(setting, name, states, temperature, 1 + first):
            if len(kept[bool(episode.success)]) < wanted:
                kept[bool(episode.success)].append(episode)
        if min(len(some) for some in kept.values()) == wanted:
            break
    return [*kept[True], *kept[False]]


def dense_reward(name: str, episodes: Sequence[Episode]) -> Audit:
    """MetaWorld's own reward at chunk ends, replayed; its best over the episode, out of 10."""
    simulator = MetaWorldSimulator(name.removeprefix("metaworld/"))
    traces = []
    for episode in episodes:
        simulator.reset(episode.seed)
        values, left = [], episode.steps
        for chunk in episode.actions:
            simulator.step(chunk[:left])
            left -= len(chunk)
            values.append(simulator.judge()[0] / 10)
        traces.append(values)
    simulator.close()
    scores, won = [max(trace) for trace in traces], [bool(episode.success) for episode in episodes]
    audit = audit_scores(scores, won, traces=traces, name=ORACLE, on=name)
    return replace(audit, balanced_accuracy=balanced(np.array(scores), np.array(won), otsu(scores)))


def balanced(scores: Any, won: Any, threshold: float) -> float:
    return float((scores[won] > threshold).mean() + (scores[~won] <= threshold).mean()) / 2


def audits_of(name: str, estimator: Estimator, episodes: Sequence[Episode], shown: Sequence[Any]) -> dict[str, float]:
    """One estimator on one task; balanced accuracy at both thresholds."""
    model = estimator.model
    learned = model.kind != "terminal" and not isinstance(model, Constant)
    every = spec_of(name).chunk
    audit = audit_progress(
        model, episodes, accumulator=estimator.accumulator, demonstrations=shown if learned else (), every=every
    )
    split = audit_progress(model, episodes, accumulator=estimator.accumulator) if learned else audit
    return row(audit, split.balanced_accuracy) | {"threshold": audit.threshold}


def row(audit: Audit, at_otsu: float) -> dict[str, float]:
    measures = {name: getattr(audit, name) for name in MEASURES if name != "balanced_accuracy_otsu"}
    return measures | {"balanced_accuracy_otsu": at_otsu}


def group(tasks: Sequence[str], seed: int, options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """All estimators on one group of tasks with one seed."""
    with tempfile.TemporaryDirectory() as scratch:
        setting = group_setting(tasks, seed, Path(scratch) / "run", options.quick)
        try:
            plays = [
                episode
                for name in setting.names
                for episode in act(setting, name, states_of("train", PLAY, 1000 * seed), 1.0, 0)
            ]
            shown = Shown(with_frames(setting), plays, seed, options.quick)
            made: dict[str, Estimator] = {}
            for name, (make, accumulator) in ESTIMATORS.items():
                if options.quick and name.startswith(PRETRAINED):
                    continue  # its practice in forty tasks takes minutes the first time
                began, shown.spared = time.process_time(), 0.0
                model = make(shown)
                made[name] = Estimator(model, accumulator, time.process_time() - began + shown.spared)
            for task in setting.names:
                episodes = record(setting, task, "eval" if options.final else "tune", options.episodes)
                won = sum(bool(episode.success) for episode in episodes)
                about = {"task": task.removeprefix("metaworld/"), "seed": seed}
                about |= {"successes": won, "failures": len(episodes) - won}
                print(f"{about['task']} seed {seed}: {won} successes, {len(episodes) - won} failures", flush=True)
                mine = [d for d in shown.demonstrations if d.environment == task]
                for name, estimator in made.items():
                    found = audits_of(task, estimator, episodes, mine)
                    rows.append(about | {"estimator": name, "fit_seconds": estimator.fit_seconds} | found)
                oracle = dense_reward(task, episodes)
                rows.append(about | {"estimator": ORACLE, "fit_seconds": 0.0} | row(oracle, oracle.balanced_accuracy))
        finally:
            setting.pool.close()


def figures(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Per estimator: means over tasks with intervals over seeds, and per-task means over seeds."""
    result = {}
    for name in dict.fromkeys(row["estimator"] for row in rows):
        enough = [r for r in rows if r["estimator"] == name and min(r["successes"], r["failures"]) >= FEW]
        figure: dict[str, Any] = {"tasks": len({r["task"] for r in enough})}
        for measure in (*MEASURES, "fit_seconds"):
            per_seed = [_mean([r[measure] for r in enough if r["seed"] == seed]) for seed in seeds]
            known = [value for value in per_seed if np.isfinite(value)]
            figure[measure] = _round(_mean(known))
            if len(known) > 1 and measure in ("auc", "balanced_accuracy", "balanced_accuracy_otsu"):
                figure[f"{measure}_interval"] = [_round(v) for v in mean_interval(known)]
        figure["per_task"] = {
            task: {
                m: _round(_mean([r[m] for r in enough if r["task"] == task]))
                for m in ("auc", "balanced_accuracy", "balanced_accuracy_otsu")
            }
            for task in dict.fromkeys(r["task"] for r in enough)
        }
        result[name] = figure
    return result


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def _round(value: float) -> float | None:
    return None if not np.isfinite(value) else round(value, 4)


def main() -> None:
    parser = parser_of(__doc__, "two tasks, one seed, little of all")
    parser.add_argument("--final", action="store_true", help="states of the split eval: for the figures to report")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--episodes", type=int, default=40, help="successes, and failures, per task and seed")
    options = parser.parse_args()
    groups = GROUPS
    if options.quick:
        groups, options.seeds, options.episodes = QUICK, options.seeds[:1], 8
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for tasks in groups:
            group(tasks, seed, options, rows)
    found = figures(rows, options.seeds)
    for name, figure in found.items():
        shown = [f"{figure[m]:.2f}" if figure[m] is not None else "   -" for m in MEASURES[:5]]
        print(f"{name:38} AUC {shown[0]}  balanced {shown[1]} (Otsu {shown[2]})  order {shown[3]} / {shown[4]}")
    plain = [{k: _round(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    split = "eval" if options.final else "tune"
    save(options, {"split": split, "seeds": options.seeds, "figures": found, "rows": plain})


if __name__ == "__main__":
    main()
