"""What every recipe for robots shares: demonstrations, a cloned start, simulators, evaluation.

The start of a run (demonstrations, cloned policy, learned critics) is kept in its folder, so that
resuming and evaluating set out from the very same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from ..envs.demonstrations import Demonstration
    from ..envs.pool import Pool
    from ..rewards.progress import ProgressModel
    from ..trainers.loop import Experiment, Stage
    from ..trainers.run_folder import RunFolder
    from ..types import Actor, RewardFunction, Rollout, Task
    from .actor import RobotActor
    from .policy import ActionPolicy

HAND, OBJECT, SECOND, GOAL = 0, 4, 11, 18
"""Where positions begin in an observation of MetaWorld."""

CITATION = ("EVOLVE-VLA: Bai, Gao, Shou, arXiv:2512.14666", "MetaWorld: Yu et al., arXiv:1910.10897")

CHUNK = 5
"""Environment steps per decision."""


@dataclass(frozen=True)
class RobotConfig:
    """Fields that every robot recipe has."""

    tasks: tuple[str, ...] = ("drawer-open-v3", "door-open-v3", "drawer-close-v3", "push-v3:3", "reach-v3:3")
    """MetaWorld tasks (or registered environments); NAME:K gives K demonstrations of one."""
    demonstrations: int = 1
    """Demonstrations of a task that does not say."""
    seed: int = 0
    """Keys demonstrations, the clone, exploration and everything else."""
    iterations: int = 16
    """Rounds of acting and learning."""
    policy: str = ""
    """A folder or hub name to start from instead of cloning the demonstrations."""
    head: Literal["tokens", "gaussian"] = "gaussian"
    """Action tokens, or a Gaussian per step."""
    rho: float = 0.9
    """Correlation of the exploration noise between consecutive environment steps; 0 is independent noise."""
    clone_steps: int = 1000
    """Gradient steps of behaviour cloning."""
    horizon: int = 150
    """Environment steps of an episode; a task whose demonstrations are longer gets their length and a fifth."""
    settle: int = 20
    """Steps that demonstrations go on after they first succeed, so that they end well inside the goal."""
    states: int = 8
    """Initial states per task and iteration."""
    group: int = 8
    """Episodes per initial state."""
    eval_episodes: int = 40
    """Held-out initial states per task."""
    eval_offset: int = 0
    """First of them."""
    workers: int = 0
    """Simulator processes; 0 takes one per core."""
    videos: int = 1
    """Initial states per task whose episodes before and after are filmed; needs OSMesa or EGL."""


@dataclass(eq=False)
class Setting:
    """A started run: simulators, demonstrations and the policy that imitates them."""

    config: RobotConfig
    names: tuple[str, ...]
    pool: Pool
    demonstrations: dict[str, list[Demonstration]]
    policy: ActionPolicy
    encoded: list[Rollout]

    @property
    def all_demonstrations(self) -> list[Demonstration]:
        return [d for several in self.demonstrations.values() for d in several]

    def task(self, environment: str, seed: int) -> Task:
        """An initial state of an environment as a task."""
        longest = max(len(d.actions) for d in self.demonstrations[environment])
        needed = longest * 6 // 5 if longest > self.config.horizon else self.config.horizon
        return make_task(environment, seed, needed)

    def sources(self) -> dict[str, Callable[[int], Task]]:
        """Per task, its endless supply of training states; every run has its own stretch of them."""
        from ..envs.splits import seeds

        first = 100_000 * (self.config.seed % 900)
        return {
            name: lambda i, name=name: self.task(name, seeds("train", 1, first + i)[0])  # type: ignore[misc]
            for name in self.names
        }

    def probes(self, states: int) -> list[Task]:
        """Frozen tasks for a gate."""
        from ..envs.splits import seeds

        return [self.task(name, seed) for name in self.names for seed in seeds("probe", states)]

    def actor(self, *, estimator: Any = None) -> RobotActor:
        from .actor import RobotActor

        return RobotActor(self.policy, self.pool, estimator=estimator, horizon=self.config.horizon)

    def cpu_seconds(self) -> float:
        """CPU time of this process and its workers."""
        return time.process_time() + self.pool.cpu_seconds

    def evaluator(self, reward: Any) -> Callable[[Actor], Mapping[str, Any]]:
        """An actor -> the oracle's and the reward's outcome per held-out state, acting greedily."""
        from ..envs.splits import seeds
        from ..trainers.scoring import score

        states = seeds("eval", self.config.eval_episodes, self.config.eval_offset)
        tasks = [self.task(name, seed) for name in self.names for seed in states]

        def evaluate(actor: Any) -> Mapping[str, Any]:
            blind = self.actor()
            blind.policy = actor.policy
            rollouts = blind.act(tasks, 1, greedy=True, oracle=True, stop=False)
            score(rollouts, reward)
            outcomes: dict[str, Any] = {}
            for rollout in rollouts:
                row = outcomes.setdefault(rollout.task.category, {"success": [], "score": [], "seeds": []})
                row["success"].append(int(bool(rollout.output.success)))
                row["score"].append(rollout.scores["total"])
                row["seeds"].append(rollout.task.seed)
            return {"unit": "success", "outcomes": outcomes}

        return evaluate

    def experiment(self, stages: Sequence[Stage], reward: RewardFunction, label_account: str) -> Experiment:
        """Stages with this setting's evaluation, videos and model card around them."""
        from ..trainers.loop import Experiment

        before = self.policy.fork("before")

        def finish(folder: RunFolder) -> None:
            self.film(folder, before)
            self.policy.save_pretrained(str(folder.path / "policy"))
            folder.write_card(citation=CITATION)

        return Experiment(
            stages,
            self.evaluator(reward),
            seed=self.config.seed,
            label_account=label_account,
            cpu_clock=self.cpu_seconds,
            finish=finish,
            close=self.pool.close,
        )

    def film(self, folder: RunFolder, before: ActionPolicy) -> None:
        """Side-by-side videos of the same held-out states before and after, or a line saying why not."""
        from ..envs.simulator import Refusal, View
        from ..envs.splits import seeds
        from ..envs.video import write_side_by_side

        if not self.config.videos:
            return
        states = seeds("eval", self.config.videos, self.config.eval_offset)
        tasks = [self.task(name, seed) for name in self.names for seed in states]
        target = folder.samples / "videos"
        target.mkdir(parents=True, exist_ok=True)
        actor = self.actor()
        try:
            now = actor.act(tasks, 1, greedy=True, render=View(160))
            actor.policy = before
            then = actor.act(tasks, 1, greedy=True, render=View(160))
        except Refusal as error:
            (target / "missing.txt").write_text(f"{error}\n")
            return
        for task, old, new in zip(tasks, then, now, strict=True):
            name = f"{task.category}-{task.seed}".replace("/", "-")
            frames = (old.output.frames, new.output.frames)
            write_side_by_side(target / f"{name}.webp", *frames, ("before", "after"))


def make_task(environment: str, seed: int, horizon: int | None = None) -> Task:
    """An initial state of an environment as a task."""
    from ..envs.simulator import instruction_of
    from ..types import Task

    name = environment.removeprefix("metaworld/")
    extra = {"environment": environment}
    return Task(f"{name}/{seed}", instruction_of(environment), category=name, seed=seed, horizon=horizon, extra=extra)


def counts(config: RobotConfig) -> dict[str, int]:
    """Environment -> demonstrations, from "push-v3:3"; bare MetaWorld names are found.

    Raises:
        UsageError: an unknown task, with the nearest names, or a count that is none.
    """
    from ..envs.metaworld_tasks import TASKS
    from ..envs.simulator import check_name
    from ..errors import UsageError, unknown

    found: dict[str, int] = {}
    for entry in config.tasks:
        name, _, count = entry.partition(":")
        if count and not (count.isdigit() and int(count) > 0):
            raise UsageError(f"task {entry!r}: what follows the colon is a number of demonstrations")
        if "/" in name:
            check_name(name)
        elif name not in TASKS:
            raise unknown("task", name, TASKS)
        else:
            name = f"metaworld/{name}"
        found[name] = int(count) if count else config.demonstrations
    return found


def start(config: RobotConfig, folder: RunFolder) -> Setting:
    """Simulators, demonstrations and the cloned policy; from the folder if the run was started before.

    With several processes the main one makes the start and the others read it.
    """
    import torch

    from ..envs.demonstrations import Demonstration
    from ..envs.pool import Pool
    from ..trainers import checkpoint, distributed

    wanted = counts(config)
    torch.set_num_threads(1)
    pool = Pool(list(wanted), chunk=CHUNK, workers=config.workers or None)
    policy = _policy(config, *pool.sizes(next(iter(wanted))))
    policy.module.to(distributed.device())
    place = folder.path / "start"
    if distributed.is_main() and not place.exists():
        _make_start(place, config, wanted, pool, policy)
    distributed.barrier()
    state = checkpoint.load(place)
    policy.load_state_dict(state["policy"])
    demonstrations = {
        name: [Demonstration(**d | {k: d[k].numpy() for k in ("observations", "actions")}) for d in several]
        for name, several in state["demonstrations"].items()
    }
    return Setting(config, tuple(wanted), pool, demonstrations, policy, _encode(policy, demonstrations))


def _make_start(place: Path, config: RobotConfig, wanted: Mapping[str, int], pool: Pool, policy: ActionPolicy) -> None:
    import torch

    from ..trainers import checkpoint
    from .cloning import Cloning, clone

    demonstrations = {name: record(pool, name, k, config) for name, k in wanted.items()}
    if not config.policy:
        clone(policy, _encode(policy, demonstrations), Cloning(steps=config.clone_steps, seed=config.seed))
    arrays = {
        name: [vars(d) | {k: torch.from_numpy(getattr(d, k)) for k in ("observations", "actions")} for d in several]
        for name, several in demonstrations.items()
    }
    checkpoint.save(place, {"policy": policy.state_dict(), "demonstrations": arrays})


def record(pool: Pool, name: str, count: int, config: RobotConfig) -> list[Demonstration]:
    """``count`` demonstrations by the scripted expert, from this run's own stretch of states."""
    from ..envs.splits import seeds

    first = 1000 * (config.seed % 900)
    return pool.demonstrate(name, seeds("demo", count, first), horizon=350, settle=config.settle)


def _policy(config: RobotConfig, observation_size: int, action_size: int) -> ActionPolicy:
    import torch

    from ..errors import UsageError
    from ..trainers.randomness import seed_of
    from .policy import ActionModel, ActionPolicy

    if config.policy:
        policy = ActionPolicy.from_pretrained(config.policy, rho=config.rho)
        has = (policy.model.observation_size, policy.model.action_size, policy.model.chunk)
        if has != (observation_size, action_size, CHUNK):
            wanted = (observation_size, action_size, CHUNK)
            raise UsageError(
                f"policy {config.policy} has (observation, action, chunk) sizes {has}, needed are {wanted}"
            )
        return policy
    centred = all("/" not in name or name.startswith("metaworld/") for name in config.tasks)
    view: dict[str, Any] = {"origin": HAND, "positions": (OBJECT, SECOND, GOAL)} if centred else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("model", config.seed))
        model = ActionModel(observation_size, action_size, chunk=CHUNK, head=config.head, **view)
    return ActionPolicy(model, rho=config.rho)


def _encode(policy: ActionPolicy, demonstrations: Mapping[str, Sequence[Demonstration]]) -> list[Rollout]:
    every = [d for several in demonstrations.values() for d in several]
    return policy.encode([make_task(d.environment, d.seed) for d in every], every)


def learned(folder: RunFolder, name: str, model: Any, demonstrations: Sequence[Demonstration]) -> ProgressModel:
    """A critic fitted to demonstrations, or read back from the folder of a run that has it."""
    from ..trainers import checkpoint, distributed

    place = folder.path / f"critic-{name}"
    if distributed.is_main() and not place.exists():
        model.fit(demonstrations)
        checkpoint.save(place, model.state_dict())
    distributed.barrier()
    model.load_state_dict(checkpoint.load(place))
    fitted: ProgressModel = model
    return fitted
