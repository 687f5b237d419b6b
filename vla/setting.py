"""What every recipe for robots shares: demonstrations, a cloned start, simulators, evaluation.

The start of a run (demonstrations, cloned policy, learned critics) is kept in its folder, so that
resuming and evaluating set out from the very same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..trainers import setting as shared
from ..trainers.config import BY_MODEL, RunConfig, grouped

if TYPE_CHECKING:
    from pathlib import Path

    from ..envs.demonstrations import Demonstration
    from ..envs.pool import Episode, Pool
    from ..envs.simulator import View
    from ..rewards.progress import ProgressModel
    from ..trainers.learner import AnchorSet
    from ..trainers.loop import Experiment, Stage
    from ..trainers.run_folder import RunFolder
    from ..types import RewardFunction, Rollout, Task
    from .actor import RobotActor
    from .chunk_policy import ChunkPolicy
    from .cloning import Cloning

HAND, OBJECT, SECOND, GOAL = 0, 4, 11, 18
"""Where positions begin in an observation of MetaWorld."""

CITATION = ("EVOLVE-VLA: Bai, Gao, Shou, arXiv:2512.14666", "MetaWorld: Yu et al., arXiv:1910.10897")

CHUNK = 5
"""Environment steps per decision."""

METAWORLD_EPISODE = 150
"""Steps of an episode in MetaWorld, whose own limit is 500."""


@dataclass(frozen=True)
class RobotConfig(RunConfig):
    """Fields that every robot recipe has."""

    group: ClassVar[str] = "vla"
    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 2e-4, "group_size": 8, "std_floor": 0.1}
    LOADED: ClassVar[Mapping[str, Any]] = {"std_floor": 0.1}
    TINY: ClassVar[Mapping[str, Any]] = {
        "tasks": ("reach-v3", "drawer-close-v3"),
        "bc_steps": 30,
        "max_episode_steps": 40,
        "tasks_per_step": 2,
        "group_size": 4,
        "eval_episodes": 2,
        "gate_states": 2,
        "videos": 0,
    }

    model: str = ""
    """A folder or hub name to start from instead of cloning, or a class of one's own to clone: FILE.py:NAME."""
    obs_type: Literal["state", "pixels"] = grouped("model", "state")
    """What the policy and a learned critic are given: the simulator's state, or pictures and the robot's own joints."""
    frame_size: int = grouped("model", 64)
    """Pixels along a side of what is seen."""
    freeze_vision: bool = grouped("model", True)
    """What looks at frames stays as it is once the policy has been cloned."""
    head: Literal["tokens", "gaussian", "flow"] = grouped("model", "gaussian")
    """Action tokens, a Gaussian per step, or a flow from noise to actions."""
    tasks: tuple[str, ...] = grouped(
        "data", ("drawer-open-v3", "door-open-v3", "drawer-close-v3", "push-v3:3", "reach-v3:3")
    )
    """MetaWorld tasks (or registered environments); NAME:K gives K demonstrations of one."""
    demonstrations: int = grouped("data", 1)
    """Demonstrations of a task that does not say."""
    demonstrations_from: tuple[str, ...] = grouped("data", ())
    """Folders with a LeRobotDataset each, one per task in their order, instead of the scripted experts."""
    tasks_per_step: int = BY_MODEL
    """Initial states per round, over all tasks; None: 8 for each."""
    micro_batch_size: int | None = None  # type: ignore[assignment]
    """Rollouts evaluated at once in learning; None: 256 on states, 8 on frames, or what a policy of one's own says."""
    max_episode_steps: int = grouped("sampling", 0)
    """Environment steps of an episode; 0 is 150 in MetaWorld and the spec's own number elsewhere. A task whose
    demonstrations are longer gets their length and a fifth."""
    rho: float = grouped("sampling", 0.9)
    """Correlation of the exploration noise between consecutive environment steps; 0 is independent noise. A flow has
    noise of its own."""
    max_steps: int = 16
    rewards: tuple[str, ...] = ("progress",)
    """progress (the estimator's), NAME:WEIGHT, package.module:NAME or FILE.py:NAME; several are weighted and added."""
    gate_margin: float = 0.2
    gate_states: int = grouped("gate", 24)
    """Probe states per task."""
    eval_episodes: int = 40
    """Held-out initial states per task."""
    videos: int = grouped("logging", 1)
    """Initial states per task whose episodes before and after are filmed; needs OSMesa or EGL."""
    clone_tasks: tuple[str, ...] = ()
    """Tasks whose demonstrations the policy imitates instead of those of its own tasks."""
    bc_steps: int = 0
    """Gradient steps of behaviour cloning; 0 is 1000 of 256 chunks each on states, and 3000 of 64 on frames."""
    settle: int = 20
    """Steps that demonstrations go on after they first succeed, so that they end well inside the goal."""
    workers: int = 0
    """Simulator processes; 0 takes one per core."""

    @property
    def view(self) -> View:
        """How frames are taken where they are seen."""
        from ..envs.simulator import View

        return View(self.frame_size)


@dataclass(eq=False)
class Setting(shared.Setting):
    """A started run: simulators, demonstrations and the policy that imitates them."""

    config: RobotConfig
    names: tuple[str, ...]
    pool: Pool
    demonstrations: dict[str, list[Demonstration]]
    policy: ChunkPolicy
    encoded: list[Rollout]
    watched: View | None = None
    """How frames of every episode are taken; None where nobody looks at them."""
    told: Any = None
    """The reward that an evaluation tells beside success."""
    played: dict[int, list[Episode]] = field(default_factory=dict)
    """Episodes of the cloned policy, by how many of each task."""
    probing: ClassVar[Mapping[str, Any]] = {"greedy": True, "stop": False}

    @property
    def all_demonstrations(self) -> list[Demonstration]:
        return [d for several in self.demonstrations.values() for d in several]

    def task(self, environment: str, seed: int) -> Task:
        """An initial state of an environment as a task."""
        longest = max(len(d.actions) for d in self.demonstrations[environment])
        limit = horizon_in(self.config, environment)
        return make_task(environment, seed, longest * 6 // 5 if longest > limit else limit)

    def sources(self) -> dict[str, Callable[[int], Task]]:
        """Per category, its endless supply of training states; every run has its own stretch of them."""
        from ..envs.splits import seeds

        first = 100_000 * (self.config.seed % 900)
        supply: dict[str, Callable[[int], Task]] = {}
        for name in self.names:  # by what rollouts and gates call it, so that a harmed task can be left out
            category = self.task(name, 0).category
            supply[category] = lambda i, name=name: self.task(name, seeds("train", 1, first + i)[0])  # type: ignore[misc]
        return supply

    def probes(self) -> list[Task]:
        """Frozen tasks for a gate."""
        from ..envs.splits import seeds

        return [self.task(name, seed) for name in self.names for seed in seeds("probe", self.config.gate_states)]

    @cached_property
    def start(self) -> ChunkPolicy:  # type: ignore[override]
        """The cloned policy as it is when this is first asked for: before a learner or an experiment is made."""
        return self.policy.fork("start")

    @property
    def longest(self) -> int:
        return max(horizon_in(self.config, name) for name in self.names)

    def anchors(self) -> AnchorSet:
        from ..trainers.learner import AnchorSet
        from ..trainers.objectives import WeightedImitation

        config = self.config
        return AnchorSet(self.encoded, WeightedImitation(), weight=config.sft_coef, size=config.sft_batch_size)

    def reward(self, own: Mapping[str, Callable[[], Any]], specs: Sequence[str] | None = None) -> Any:
        """The config's rewards of episodes, weighted and added.

        Args:
            own: name -> what makes a reward that the recipe knows.
            specs: others than ``--rewards``.

        Raises:
            UsageError: an unknown name, or nothing at a place.
        """
        from ..errors import unknown
        from ..rewards.names import combine, elsewhere
        from ..rewards.reward import Reward, WeightedSum

        specs = self.config.rewards if specs is None else specs
        if len(specs) == 1 and specs[0] in own:
            return own[specs[0]]()

        def read(spec: str) -> Any:
            if spec in own:  # scores called "progress" are the estimator's own
                return Reward(own[spec](), f"{spec} reward")
            if ":" not in spec:
                raise unknown("reward of episodes", spec, own)
            return elsewhere(spec)

        return combine(specs, read, tuple(own), WeightedSum)

    def held_out_judge(self) -> RewardFunction | None:
        return self.reward({}, (self.config.judge,)) if self.config.judge else None

    def actor(self, *, estimator: Any = None) -> RobotActor:
        from .actor import RobotActor

        return RobotActor(
            self.policy, self.pool, estimator=estimator, view=self.watched, temperature=self.config.temperature
        )

    def play(self, episodes: int) -> list[Episode]:
        """Episodes of the cloned policy, sampled on training states of every task; success is not read.

        They are acted at the first call, for all critics that learn from them.
        """
        from ..envs.splits import seeds

        if episodes not in self.played:
            first = 100_000 * (self.config.seed % 900) + 90_000
            tasks = [self.task(name, seed) for name in self.names for seed in seeds("train", episodes, first)]
            acted = self.actor().act(tasks, 1, key=(-1,), render=self.watched)
            self.played[episodes] = [rollout.output for rollout in acted]
        return self.played[episodes]

    def cpu_seconds(self) -> float:
        """CPU time of this process and its workers."""
        return time.process_time() + self.pool.cpu_seconds

    def evaluate(self, actor: Any) -> Mapping[str, Any]:
        """The oracle's and the reward's outcome per held-out state, acting greedily."""
        from ..envs.splits import seeds
        from ..trainers.scoring import score

        states = seeds("eval", self.config.eval_episodes, self.config.eval_offset)
        tasks = [self.task(name, seed) for name in self.names for seed in states]
        blind = self.actor()
        blind.policy = actor.policy
        rollouts = blind.act(tasks, 1, greedy=True, oracle=True, stop=False, render=self.watched)
        score(rollouts, self.told)
        outcomes: dict[str, Any] = {}
        for rollout in rollouts:
            row = outcomes.setdefault(rollout.task.category, {"success": [], "score": [], "seeds": []})
            row["success"].append(int(bool(rollout.output.success)))
            row["score"].append(rollout.scores["total"])
            row["seeds"].append(rollout.task.seed)
        return {"unit": "success", "outcomes": outcomes}

    def finish(self, folder: RunFolder) -> None:
        self.film(folder, self.start)
        self.policy.save_pretrained(str(folder.path / "policy"))
        folder.write_card(citation=CITATION)

    def stage(self, learner: Any, reward: RewardFunction, **changes: Any) -> Stage:
        """Initial states -> episodes -> reward -> the given learner -> gate; ``changes`` as in every modality."""
        if "actor" not in changes:
            changes["actor"] = self.actor()
        return super().stage(learner, reward, **changes)

    def experiment(self, stages: Sequence[Stage], reward: RewardFunction, **changes: Any) -> Experiment:
        """Stages with this setting's evaluation, videos and model card around them.

        Args:
            reward: what the evaluation tells beside success.
            changes: fields of Experiment.
        """
        self.told = reward
        _ = self.start  # before anything is learned
        return super().experiment(stages, **{"cpu_clock": self.cpu_seconds, "close": self.pool.close} | changes)

    def film(self, folder: RunFolder, before: ChunkPolicy) -> None:
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
        render = before.view or View(160, "plain")
        try:
            now = actor.act(tasks, 1, greedy=True, render=render)
            actor.policy = before
            then = actor.act(tasks, 1, greedy=True, render=render)
        except Refusal as error:
            (target / "missing.txt").write_text(f"{error}\n")
            return
        for task, old, new in zip(tasks, then, now, strict=True):
            name = f"{task.category}-{task.seed}".replace("/", "-")
            frames = (old.output.frames, new.output.frames)
            write_side_by_side(target / f"{name}.webp", *frames, ("before", "after"))


def horizon_in(config: RobotConfig, environment: str) -> int:
    """Environment steps after which an episode of a task is cut, however long its demonstrations are."""
    from ..envs.simulator import METAWORLD, horizon_of

    return config.max_episode_steps or (
        METAWORLD_EPISODE if environment.startswith(METAWORLD) else horizon_of(environment)
    )


def make_task(environment: str, seed: int, horizon: int | None = None) -> Task:
    """An initial state of an environment as a task."""
    from ..envs.simulator import instruction_of
    from ..types import Task

    name = environment.removeprefix("metaworld/")
    extra = {"environment": environment}
    return Task(f"{name}/{seed}", instruction_of(environment), category=name, seed=seed, horizon=horizon, extra=extra)


def counts(tasks: Sequence[str], config: RobotConfig) -> dict[str, int]:
    """Environment -> demonstrations, from "push-v3:3"; bare MetaWorld names are found.

    Raises:
        UsageError: an unknown task, with the nearest names, or a count that is none.
    """
    from ..envs.metaworld_tasks import TASKS
    from ..envs.simulator import METAWORLD, check_name, specs
    from ..errors import UsageError, unknown

    found: dict[str, int] = {}
    for entry in tasks:
        name, _, count = entry.partition(":")
        if count and not (count.isdigit() and int(count) > 0):
            raise UsageError(f"task {entry!r}: what follows the colon is a number of demonstrations")
        if "/" in name:
            try:
                check_name(name)
            except ValueError as error:
                raise UsageError(f"{error} (a module or file that registers your own is imported by --use)") from error
        elif name in TASKS:
            name = METAWORLD + name
        elif not specs([name]):
            raise unknown("task", name, TASKS)
        found[name] = int(count) if count else config.demonstrations
    return found


def start(config: RobotConfig, folder: RunFolder) -> Setting:
    """Simulators, demonstrations and the cloned policy; from the folder if the run was started before.

    With several processes the main one makes the start and the others read it.
    """
    import torch

    from ..envs.pool import Pool
    from ..trainers import checkpoint, distributed
    from .network import NetworkPolicy

    for place in config.use:
        shared.import_place(place)
    wanted, taught = counts(config.tasks, config), counts(config.clone_tasks, config)
    config = shared.settled(config, is_small(config), folder, tasks_per_step=8 * len(wanted))
    torch.set_num_threads(1)
    pool = Pool([*wanted, *taught], chunk=CHUNK, workers=config.workers or None)
    policy = _policy(config, next(iter(wanted)), pool)
    policy.module.to(distributed.device())
    policy.piece = config.micro_batch_size or policy.piece
    _try_out(policy, next(iter(wanted)), pool)
    place = folder.path / "start"
    if distributed.is_main() and not place.exists():
        _make_start(place, config, pool, policy)
    distributed.barrier()
    state = checkpoint.load(place)
    policy.load_state_dict(state["policy"])
    if config.freeze_vision and isinstance(policy, NetworkPolicy) and policy.sees == "frames":
        policy.freeze_tower()
    shown = demonstrations_in(state)
    encoded = _encode(policy, {name: shown[name] for name in taught or wanted})
    own = {name: shown[name] for name in wanted}
    watched = policy.view or (config.view if config.obs_type == "pixels" else None)
    return Setting(config, tuple(wanted), pool, own, policy, encoded, watched)


def is_small(config: RobotConfig) -> bool:
    """Whether a small network learns: the default, one of one's own, or what a run with one saved."""
    from pathlib import Path

    from .network import SETTINGS

    return not config.model or ":" in config.model or (Path(config.model) / SETTINGS).is_file()


def demonstrations_in(state: Mapping[str, Any]) -> dict[str, list[Demonstration]]:
    """The demonstrations in the saved start of a run, per environment."""
    from ..envs.demonstrations import Demonstration

    return {
        name: [Demonstration(**{k: _array(v) for k, v in d.items()}) for d in several]
        for name, several in state["demonstrations"].items()
    }


def _array(value: Any) -> Any:
    from torch import Tensor

    return value.numpy() if isinstance(value, Tensor) else value


def _make_start(place: Path, config: RobotConfig, pool: Pool, policy: ChunkPolicy) -> None:
    import numpy as np
    import torch

    from ..trainers import checkpoint
    from .cloning import clone

    wanted, taught = counts(config.tasks, config), counts(config.clone_tasks, config)
    demonstrations = _recorded(config, wanted) or {name: record(pool, name, k, config) for name, k in wanted.items()}
    demonstrations |= {name: record(pool, name, k, config) for name, k in taught.items() if name not in wanted}
    if not config.model or ":" in config.model:
        imitated = {name: demonstrations[name] for name in taught or wanted}
        clone(policy, _encode(policy, imitated), cloning_of(config))
    arrays = {
        name: [
            {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in vars(d).items()} for d in several
        ]
        for name, several in demonstrations.items()
    }
    checkpoint.save(place, {"policy": policy.state_dict(), "demonstrations": arrays})


def cloning_of(config: RobotConfig) -> Cloning:
    """How a policy imitates before it improves itself.

    A network that looks at frames is slow and needs more steps; smaller batches give it those in less time.
    """
    from .cloning import Cloning

    if config.obs_type == "pixels":
        return Cloning(config.bc_steps or 3000, batch=64, seed=config.seed)
    return Cloning(config.bc_steps or 1000, seed=config.seed)


def record(pool: Pool, name: str, count: int, config: RobotConfig) -> list[Demonstration]:
    """``count`` demonstrations by the scripted expert, from this run's own stretch of states."""
    from ..envs.splits import seeds

    first = 1000 * (config.seed % 900)
    render = config.view if config.obs_type == "pixels" else None
    limit = max(350, horizon_in(config, name))
    return pool.demonstrate(name, seeds("demo", count, first), horizon=limit, settle=config.settle, render=render)


def _recorded(config: RobotConfig, wanted: Mapping[str, int]) -> dict[str, list[Demonstration]]:
    """The first demonstrations of each task's dataset, if there are datasets."""
    from ..envs.demonstrations import Demonstration
    from ..envs.lerobot_dataset import read_demonstrations
    from ..envs.simulator import instruction_of
    from ..errors import UsageError

    if config.demonstrations_from and len(config.demonstrations_from) != len(wanted):
        have, need = len(config.demonstrations_from), len(wanted)
        raise UsageError(f"demonstrations-from names {have} folders for {need} tasks: give one each, in their order")
    camera = "observation.images.main" if config.obs_type == "pixels" else None
    found: dict[str, list[Demonstration]] = {}
    for (name, count), folder in zip(wanted.items(), config.demonstrations_from, strict=False):
        several = read_demonstrations(folder, environment=name, camera=camera)[:count]
        if len(several) < count:
            raise UsageError(f"{folder} holds {len(several)} successes; {count} demonstrations of {name} are asked for")
        told = instruction_of(name)
        found[name] = [
            Demonstration(name, told, d.seed, d.observations, d.actions, d.settle, d.frames) for d in several
        ]
    return found


def _policy(config: RobotConfig, environment: str, pool: Pool) -> ChunkPolicy:
    """A policy to be cloned, or a trained one."""
    import torch

    from ..envs.simulator import METAWORLD, proprioception_of
    from ..errors import UsageError
    from ..trainers.randomness import seed_of
    from .flow import FlowModel, FlowPolicy
    from .policy import ActionModel, ActionPolicy
    from .vision import Vision

    observation_size, action_size = pool.sizes(environment)
    if config.obs_type == "pixels":
        observation_size = len(range(observation_size)[proprioception_of(environment)])
    sizes = (observation_size, action_size, CHUNK)
    noise: dict[str, Any] = {} if config.head == "flow" else {"rho": config.rho}
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("model", config.seed))
        if ":" in config.model:
            return _own_policy(config.model, sizes)
        if config.model:
            trained = (FlowPolicy if config.head == "flow" else ActionPolicy).from_pretrained(config.model, **noise)
            has = (trained.model.observation_size, trained.action_size, trained.chunk)
            if has != sizes:
                raise UsageError(
                    f"policy {config.model} has (observation, action, chunk) sizes {has}, needed are {sizes}"
                )
            return trained
        inputs: dict[str, Any] = {"vision": Vision(size=config.frame_size)} if config.obs_type == "pixels" else {}
        if not inputs and environment.startswith(METAWORLD):
            inputs = {"origin": HAND, "positions": (OBJECT, SECOND, GOAL)}
        if config.head == "flow":
            return FlowPolicy(FlowModel(observation_size, action_size, chunk=CHUNK, **inputs))
        model = ActionModel(observation_size, action_size, chunk=CHUNK, head=config.head, **inputs)
    return ActionPolicy(model, **noise)


def _own_policy(target: str, sizes: tuple[int, int, int]) -> ChunkPolicy:
    from ..errors import UsageError
    from .chunk_policy import ChunkPolicy
    from .own import found

    make = found(target)
    try:
        policy = make(*sizes)
    except TypeError as error:
        raise UsageError(
            f"cannot make a policy of {target} from (observation, action, chunk) sizes: {error}"
        ) from error
    if not isinstance(policy, ChunkPolicy):
        raise UsageError(f"cannot make a policy of {target}: it is a {type(policy).__name__}, and no ChunkPolicy")
    return policy


def _try_out(policy: ChunkPolicy, environment: str, pool: Pool) -> None:
    """Let a policy decide once, on zeros, before demonstrations are recorded for it."""
    import numpy as np
    import torch

    from ..errors import UsageError
    from .chunk_policy import Seen

    task = make_task(environment, 0)
    observation_size, action_size = pool.sizes(environment)
    states = torch.as_tensor(policy.felt(task, np.zeros((1, observation_size), np.float32)))
    size = policy.view.size if policy.view else 0
    frames = torch.zeros(1, size, size, 3, dtype=torch.uint8) if policy.sees == "frames" else None
    try:
        actions = policy.choose(Seen([str(task.prompt)], states, frames), None).actions
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{policy.name} cannot decide on observations of size {states.shape[1]}: {reason}") from error
    if actions.shape[-1] != action_size:
        raise UsageError(f"{policy.name} makes actions of size {actions.shape[-1]}; {environment} has {action_size}")


def _encode(policy: ChunkPolicy, demonstrations: Mapping[str, Sequence[Demonstration]]) -> list[Rollout]:
    every = [d for several in demonstrations.values() for d in several]
    return policy.encode([make_task(d.environment, d.seed) for d in every], every)


def learned(folder: RunFolder, name: str, model: Any, fit: Callable[[], Any]) -> ProgressModel:
    """A critic after ``fit()``, or as read back from the folder of a run that has it."""
    from ..trainers import checkpoint, distributed

    place = folder.path / f"critic-{name}"
    if distributed.is_main() and not place.exists():
        fit()
        checkpoint.save(place, model.state_dict())
    distributed.barrier()
    model.load_state_dict(checkpoint.load(place))
    fitted: ProgressModel = model
    return fitted
