"""What every recipe for robots shares: demonstrations, a cloned start, simulators, evaluation.

The start of a run (demonstrations, cloned policy, learned critics) is kept in its folder, so that
resuming and evaluating set out from the very same one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ..errors import UsageError
from ..trainers import setting as shared
from ..trainers.config import BY_MODEL, RunConfig, grouped
from ..trainers.ranges import Count, Range, Share, Whole
from ..working import LONG, working
from .environments import (
    counts,
    encode,
    horizon_in,
    make_policy,
    make_pool,
    make_task,
    record,
    recorded,
    try_out,
    view_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ..envs.demonstrations import Demonstration
    from ..envs.pool import Episode, Pool
    from ..envs.simulator import View
    from ..rewards.progress.estimates import ProgressModel
    from ..splitting import Contents
    from ..trainers.learner import AnchorSet
    from ..trainers.loop import Experiment, Stage
    from ..trainers.runs.run_folder import RunFolder
    from ..types import RewardFunction, Rollout, Task
    from .actor import RobotActor
    from .chunk_policy import ChunkPolicy
    from .cloning import Cloning
    from .network import Trunk

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RobotConfig(RunConfig):
    """Fields that every robot recipe has."""

    group: ClassVar[str] = "vla"
    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 2e-4, "group_size": 8, "std_floor": 0.1}
    LOADED: ClassVar[Mapping[str, Any]] = {"std_floor": 0.1}
    RUNTIME: ClassVar[tuple[str, ...]] = ("micro_batch_rows", "workers")
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

    start_fields: ClassVar[tuple[str, ...]] = (
        *("tasks", "demonstrations", "seed", "demonstrations_from", "clone_tasks", "model", "obs_type", "head"),
        *("hidden_size", "num_layers", "frame_size", "bc_steps", "max_episode_steps", "chunk", "settle"),
        *("dtype", "bc_pretrained", "lora_rank", "statistics", "decoding"),
        *("state_keys", "action_key", "camera_keys", "action_scale"),
    )
    """What demonstrations and clone depend on: runs that agree in them can share a start."""

    model: str = ""
    """A folder or hub name to start from instead of cloning: what a run saved, a policy of LeRobot, or a
    vision-language model that says actions; or a policy of one's own, FILE.py:NAME, which is cloned unless it is
    ``pretrained``."""
    obs_type: Literal["state", "pixels"] = grouped("model", "state")
    """What the policy and a learned critic are given: the simulator's state, or pictures and the robot's own joints."""
    frame_size: Count = grouped("model", 64)
    """Pixels along a side of what is seen."""
    freeze_vision: bool = grouped("model", True)
    """What looks at frames stays as it is once the policy has been cloned."""
    lora_rank: Whole = grouped("model", 16)
    """Rank of adapters on a vision-language model that says actions, which alone are trained; 0 trains all weights."""
    gradient_checkpointing: Share | None = grouped("model", None)
    """Share of its layers that are recomputed in backward, 0 to 1: less memory for more arithmetic. None: 1 above a
    billion parameters, else 0."""
    decoding: Literal["autoregressive", "parallel"] | None = grouped("model", None)
    """How it says a chunk: token after token, or in one pass as OpenVLA-OFT does; None is autoregressive, or what it
    was saved with."""
    statistics: str = grouped("model", "")
    """The data set in whose units its actions are, where it lists some; empty is the only one, or with several the
    environment's own units."""
    sample_rows: Count | None = grouped("sampling", None)
    """Pictures that it reads at once while acting; None is 64."""
    head: Literal["tokens", "gaussian", "flow", "categorical"] = grouped("model", "gaussian")
    """Action tokens, a Gaussian per step, a flow from noise to actions, or one choice per step where an environment's
    actions are choices (Discrete)."""
    hidden_size: Count = grouped("model", 256)
    """Units of each layer of the small network."""
    num_layers: Count = grouped("model", 3)
    """Layers of the small network, and of a critic that has its own."""
    tasks: tuple[str, ...] = grouped(
        "data", ("drawer-open-v3", "door-open-v3", "drawer-close-v3", "push-v3:3", "reach-v3:3")
    )
    """Registered environments, by whole names or by how these end; NAME:K gives K demonstrations of one."""
    demonstrations: Count = grouped("data", 1)
    """Demonstrations of a task that does not say."""
    demonstrations_from: tuple[str, ...] = grouped("data", ())
    """Folders with a LeRobotDataset each, one per task in their order, instead of the scripted experts."""
    state_keys: tuple[str, ...] = grouped("data", ("observation.state",))
    """Features of these datasets that make up an observation, in this order."""
    action_key: str = grouped("data", "action")
    """Their feature with the actions."""
    camera_keys: tuple[str, ...] = grouped("data", ())
    """CAMERA=FEATURE each, for cameras that these datasets call otherwise: main=observation.image."""
    action_scale: Literal["none", "environment", "quantiles", "range"] = grouped("data", "none")
    """What becomes -1 and 1 of their actions: nothing, the bounds of the environment's own actions, or the datasets'
    quantiles q01 and q99 or range, where those are the bounds that the environment is given."""
    tasks_per_step: int = BY_MODEL
    """Initial states per round, over all tasks; None: 8 for each."""
    micro_batch_rows: Count | None = grouped("optimisation", None)
    """Chunks evaluated at once in learning, of whatever episodes; None: 16384 on states, 512 on frames, or what a
    policy of one's own says."""
    max_episode_steps: Whole = grouped("sampling", 0)
    """Environment steps of an episode; 0 is what the environment's spec says. A task whose demonstrations are longer
    gets their length and a fifth."""
    chunk: Whole = grouped("sampling", 0)
    """Environment steps per decision; 0 is what the environments' specs say."""
    rho: Annotated[float, Range(-1, 1, open=True)] = grouped("sampling", 0.9)
    """Correlation of the exploration noise between consecutive environment steps; 0 is independent noise. A flow has
    noise of its own."""
    max_steps: int = 16
    rewards: tuple[str, ...] = ("progress",)
    """progress (the estimator's), NAME:WEIGHT, package.module:NAME or FILE.py:NAME; several are weighted and added."""
    gate_margin: float = 0.2
    gate_states: Count = grouped("gate", 24)
    """Probe states per task."""
    eval_episodes: int = 40
    """Held-out initial states per task."""
    videos: Whole = grouped("logging", 1)
    """Initial states per task whose episodes before and after are filmed; needs EGL or OSMesa."""
    clone_tasks: tuple[str, ...] = ()
    """Tasks whose demonstrations the policy imitates instead of those of its own tasks."""
    bc_steps: Whole = 0
    """Gradient steps of behaviour cloning; 0 is 1000 of 256 chunks each on states, and 3000 of 64 on frames."""
    bc_pretrained: bool = False
    """Clone a policy that was trained before, too; otherwise it begins as it is."""
    settle: Whole = 20
    """Steps that demonstrations go on after they first succeed, so that they end well inside the goal."""
    workers: Annotated[int, Range(-1)] = 0
    """Simulator processes; 0 takes one per core, -1 none: states then come from this process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {
            "--state-keys": self.state_keys != ("observation.state",),
            "--action-key": self.action_key != "action",
            "--camera-keys": bool(self.camera_keys),
            "--action-scale": self.action_scale != "none",
        }
        if any(given.values()) and not self.demonstrations_from:
            told = next(name for name, is_given in given.items() if is_given)
            raise UsageError(f"{told} is about datasets: give --demonstrations-from")
        if any("=" not in entry for entry in self.camera_keys):
            raise UsageError("--camera-keys are CAMERA=FEATURE each, as in main=observation.image")


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
    citation: str = ""
    """What the model card cites of the method; nothing where there is no paper."""
    pays: bool = False
    """Whether evaluations read what the environment pays for each chunk."""
    told: Any = None
    """The reward that an evaluation tells beside success."""
    played: dict[int, list[Episode]] = field(default_factory=dict)
    """Episodes of the cloned policy, by how many of each task."""
    shared: dict[str, int] = field(default_factory=dict)
    """Environment -> evaluated states that are not held out, since it has few; what ``splits`` found."""
    read: list[str] = field(default_factory=list)
    """Labels that a recipe's training or its critic reads, in words, beside demonstrations that are imitated."""
    replays: bool = False
    """Whether every gradient step imitates demonstrations, whatever ``sft_coef`` is."""
    probing: ClassVar[Mapping[str, Any]] = {"greedy": True}

    @property
    def all_demonstrations(self) -> list[Demonstration]:
        return [d for several in self.demonstrations.values() for d in several]

    def task(self, environment: str, seed: int) -> Task:
        """An initial state of an environment as a task."""
        longest = max((len(d.actions) for d in self.demonstrations[environment]), default=0)
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

    def splits(self) -> list[Mapping[str, Contents]]:
        """Sides by the content of their initial states; an environment that has few of them is told instead."""
        from .splits import evaluated_elsewhere, has_few, meet, starts_of

        apart: list[Mapping[str, Contents]] = []
        with working("comparing initial states", len(self.names), after=LONG) as advance:
            for name in self.names:
                sides = starts_of(self, name)
                if meet(sides) and has_few(self, name):
                    self.shared[name] = evaluated_elsewhere(sides)
                    logger.warning("%s: %s", name, self._told_of(name))
                else:
                    apart.append(sides)
                advance(1)
        return apart

    def _told_of(self, name: str) -> str:
        count, whole = self.shared[name], self.config.eval_episodes
        return f"it has few initial states, so {count} of {whole} evaluated ones are also learned from or shown"

    @cached_property
    def start(self) -> ChunkPolicy:  # type: ignore[override]
        """The cloned policy as it is when this is first asked for: before a learner or an experiment is made."""
        return self.policy.fork("start")

    @property
    def longest(self) -> int:
        return max(horizon_in(self.config, name) for name in self.names)

    def described(self) -> dict[str, str]:
        config, counted = self.config, {name: len(several) for name, several in self.demonstrations.items()}
        shown = ", ".join(f"{count} of {name.rpartition('/')[2]}" for name, count in counted.items())
        seen = "pictures and the robot's own joints" if config.obs_type == "pixels" else "the simulator's state"
        cloned = f"from {config.model}" if self.policy.pretrained else "cloned from the demonstrations"
        if self.policy.pretrained and config.bc_pretrained and self.encoded:
            cloned += " and then cloned from the demonstrations"
        source = f"of {', '.join(config.demonstrations_from)}" if config.demonstrations_from else "of scripted experts"
        if not (self.encoded or self.policy.pretrained):
            cloned = "as it was made" if config.model else "which begins with random weights"
        held = f"{config.eval_episodes} held-out initial states per task"
        held += "".join(f"; {name.rpartition('/')[2]}: {self._told_of(name)}" for name in self.shared)
        return {
            "demonstrations": f"{shown}, {source}" if self.encoded else "none",
            "policy": f"{self.policy.name}, which sees {seen}, {cloned}; chunks of {self.pool.chunk} steps",
            "success": f"as the environment tells it, read by evaluation alone, acting greedily from {held}",
        }

    def anchors(self) -> AnchorSet | None:
        if not self.encoded:
            if self.config.sft_coef:
                raise UsageError("--sft-coef imitates demonstrations, and there are none: give --demonstrations")
            return None
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
        from ..calling import require_columns
        from ..rewards.names import compose
        from ..rewards.reward import Reward
        from ..trainers.distributed import device

        specs = self.config.rewards if specs is None else specs
        if len(specs) == 1 and specs[0] in own:
            return own[specs[0]]()

        def renamed(name: str, make: Callable[[], Any]) -> Callable[[], Any]:
            return lambda: Reward(make(), f"{name} reward")  # scores called "progress" are the estimator's own

        known = {name: renamed(name, make) for name, make in own.items()}
        made = compose(specs, str(device()), own=known)
        require_columns(made, [self.task(name, 0) for name in self.names])
        return made

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
            with working("letting the cloned policy play for the critic", after=LONG):
                acted = self.actor().act(tasks, 1, key=(-1,), render=self.watched)
            self.played[episodes] = [rollout.output for rollout in acted]
        return self.played[episodes]

    def cpu_seconds(self) -> float:
        """CPU time of this process and its workers."""
        return time.process_time() + self.pool.cpu_seconds

    def evaluate(self, actor: Any) -> Mapping[str, Any]:
        """The oracle's and the reward's outcome per held-out state, acting greedily."""
        from ..envs.splits import seeds
        from ..trainers.distributed import spread
        from ..trainers.scoring import score, total_of

        states = seeds("eval", self.config.eval_episodes, self.config.eval_offset)
        tasks = [self.task(name, seed) for name in self.names for seed in states]

        def acted(system: Any, some: Sequence[Task]) -> list[tuple[int, float | None]]:
            how = {"oracle": True, "rewards": self.pays, "render": self.watched}
            rollouts = system.act(some, 1, mode="evaluate", greedy=True, **how)
            score(rollouts, self.told)
            return [(int(bool(rollout.output.success)), total_of(rollout)) for rollout in rollouts]

        def look(system: Any) -> dict[str, Any]:
            outcomes: dict[str, Any] = {}
            told = spread(tasks, max(1, len(tasks)), partial(acted, system))
            for task, (success, value) in zip(tasks, told, strict=True):
                row = outcomes.setdefault(task.category, {"success": [], "score": [], "seeds": []})
                row["success"].append(success)
                row["score"].append(value)
                row["seeds"].append(task.seed)
            return outcomes

        system, bare = actor.evaluated(), actor.bare()
        evaluation: dict[str, Any] = {"unit": "success", "outcomes": look(system)}
        if bare is not system:
            alone = {name: row["success"] for name, row in look(bare).items()}
            evaluation["figures"] = {name: {"policy alone": sum(row) / len(row)} for name, row in alone.items()}
        return evaluation

    def save(self, path: Path, merged: bool = False) -> None:
        from ..trainers.lora import merge_lora

        if merged:
            merge_lora(self.policy.module)
        self.policy.save_pretrained(str(path))

    def finish(self, folder: RunFolder) -> None:
        """Model card and report, and then the films, which are the last thing that can go wrong."""
        from ..envs.simulator import spec_of
        from ..envs.splits import seeds
        from ..trainers.runs.report import write_report
        from .filming import film

        environments = dict.fromkeys(spec_of(name).citation for name in self.names)
        folder.write_card(citation=tuple(filter(None, (self.citation, *environments))))
        if not self.config.videos:
            return
        write_report(folder)
        states = seeds("eval", self.config.videos, self.config.eval_offset)
        tasks = [self.task(name, seed) for name in self.names for seed in states]
        film(folder, self.actor(), tasks, self.start, filmed(self.policy))

    def stage(self, learner: Any, reward: RewardFunction, **changes: Any) -> Stage:
        """Initial states -> episodes -> reward -> the given learner -> gate; ``changes`` as in every modality."""
        if "actor" not in changes:
            changes["actor"] = self.actor()
        return super().stage(learner, reward, **changes)

    def experiment(self, stages: Sequence[Stage], reward: RewardFunction | None = None, **changes: Any) -> Experiment:
        """Stages with this setting's evaluation, model card and videos around them.

        Args:
            reward: what the evaluation tells beside success; None is the last stage's.
            changes: fields of Experiment.
        """
        self.told = stages[-1].reward if reward is None else reward
        _ = self.start  # before anything is learned
        return super().experiment(stages, **{"cpu_clock": self.cpu_seconds, "close": self.pool.close} | changes)

    def labels_read(self, stages: Sequence[Stage]) -> Sequence[str]:
        return [*self.imitated(), *self.read]

    def imitated(self) -> list[str]:
        """Demonstrations, of which success was known, as the label account has them."""
        config = self.config
        when = [] if self.policy.pretrained and not config.bc_pretrained else ["before training"]
        when += ["in every gradient step"] if self.replays or config.sft_coef else []
        if config.gate != "none" and not (self.replays or config.sft_coef):
            when += ["in every gradient step after a repair"]
        if not self.encoded or not when:
            return []
        return [f"{len(self.encoded)} demonstrations, imitated {' and '.join(when)}"]


def filmed(policy: ChunkPolicy) -> View:
    """How films of a policy are taken: as it sees, where it does."""
    from ..envs.simulator import View

    return policy.view or View(160, "plain")


def start(config: RobotConfig, folder: RunFolder, *, critic: Trunk = "none", log_std: float | None = None) -> Setting:
    """Simulators, demonstrations and the cloned policy; from the folder if the run was started before.

    With several processes the main one makes the start and the others read it. Without demonstrations the policy begins
    undecided.

    Args:
        critic: what a small network that has no critic gets one by (see ``RobotNetwork.add_critic``).
        log_std: log of a Gaussian's standard deviation; None leaves it as it is made or loaded.
    """
    import torch

    from ..trainers import distributed
    from ..trainers.precision import autocast_of, settle
    from ..trainers.runs import checkpoint
    from .filming import try_picture

    compute = settle(config, is_small(config))
    wanted, taught = counts(config.tasks, config), counts(config.clone_tasks, config)
    config = shared.settled(config, is_small(config), folder, tasks_per_step=8 * len(wanted))
    torch.set_num_threads(1)
    with working("starting the simulators", after=LONG):
        pool = make_pool(config, [*wanted, *taught])
    policy = make_policy(config, next(iter(wanted)), pool)
    _prepare(policy, config, critic, log_std)
    policy.module.to(distributed.device())
    policy.micro_batch_rows = config.micro_batch_rows or policy.micro_batch_rows
    policy.autocast = autocast_of(compute)
    policy.hold_in_float32()
    try_out(policy, next(iter(wanted)), pool)
    place = folder.path / "start"
    if distributed.is_main() and not place.exists():
        if config.videos:
            try_picture(pool, list(wanted), filmed(policy))
        _make_start(place, config, pool, policy)
    distributed.barrier()
    state = checkpoint.load(place)
    if state["chunk"] != pool.chunk:  # the spec has changed since
        raise UsageError(
            f"{folder.path} began with chunks of {state['chunk']}, and {next(iter(wanted))} takes {pool.chunk} by now: "
            f"start a new run, or give its EnvSpec chunk={state['chunk']}"
        )
    policy.load_state_dict(state["policy"])
    shown = demonstrations_in(state)
    if config.freeze_vision and policy.sees == "frames" and (config.model or any(shown.values())):
        policy.freeze_tower()
    encoded = encode(policy, {name: shown[name] for name in taught or wanted})
    own = {name: shown[name] for name in wanted}
    watched = policy.view or (view_of(config) if config.obs_type == "pixels" else None)
    return Setting(config, tuple(wanted), pool, own, policy, encoded, watched)


def _prepare(policy: ChunkPolicy, config: RobotConfig, critic: Trunk, log_std: float | None) -> None:
    """Give a small network its critic, and let it begin undecided where nothing will be imitated.

    Raises:
        UsageError: a standard deviation for what is no Gaussian.
    """
    import torch

    from ..trainers.randomness import seed_of

    with torch.random.fork_rng():
        torch.manual_seed(seed_of("critic", config.seed))
        policy.add_critic(critic)
        if not (policy.pretrained or any(counts(config.clone_tasks or config.tasks, config).values())):
            policy.start_undecided()
    if log_std is not None:
        policy.set_log_std(log_std)


def is_small(config: RobotConfig) -> bool:
    """Whether a small network learns: the default, one of one's own, or what a run with one saved."""
    from pathlib import Path

    from .network import SETTINGS

    return not config.model or ":" in config.model or (Path(config.model) / SETTINGS).is_file()


def demonstrations_in(state: Mapping[str, Any]) -> dict[str, list[Demonstration]]:
    """The demonstrations in the saved start of a run, per environment."""
    from ..envs.demonstrations import Demonstration
    from ..trainers.runs import checkpoint

    arrays = checkpoint.with_arrays(state["demonstrations"])
    return {name: [Demonstration(**each) for each in several] for name, several in arrays.items()}


def _make_start(place: Path, config: RobotConfig, pool: Pool, policy: ChunkPolicy) -> None:
    from ..trainers.runs import checkpoint
    from .cloning import clone

    wanted, taught = counts(config.tasks, config), counts(config.clone_tasks, config)
    demonstrations = recorded(config, wanted, pool)
    asked = {
        name: k
        for name, k in {**wanted, **{n: k for n, k in taught.items() if n not in wanted}}.items()
        if name not in demonstrations and k
    }
    with working("recording demonstrations", len(asked), after=LONG) as advance:
        for name, k in asked.items():
            demonstrations[name] = record(pool, name, k, config)
            advance(1)
    demonstrations |= {name: [] for name in wanted if name not in demonstrations}
    if (config.bc_pretrained or not policy.pretrained) and any(demonstrations.values()):
        imitated = {name: demonstrations[name] for name in taught or wanted}
        clone(policy, encode(policy, imitated), cloning_of(config))
    shown = {name: [asdict(each) for each in several] for name, several in demonstrations.items()}
    state = {"policy": policy.state_dict(), "chunk": pool.chunk}
    checkpoint.save(place, state | {"demonstrations": checkpoint.with_tensors(shown)})


def cloning_of(config: RobotConfig) -> Cloning:
    """How a policy imitates before it improves itself.

    A network that looks at frames is slow and needs more steps; smaller batches give it those in less time.
    """
    from .cloning import Cloning

    if config.obs_type == "pixels":
        return Cloning(config.bc_steps or 3000, batch=64, seed=config.seed)
    return Cloning(config.bc_steps or 1000, seed=config.seed)


def learned(folder: RunFolder, name: str, model: Any, fit: Callable[[], Any]) -> ProgressModel:
    """A critic after ``fit()`` on the run's device, or as read back from the folder of a run that has it."""
    from ..trainers import distributed
    from ..trainers.runs import checkpoint

    model.to(distributed.device())
    place = folder.path / f"critic-{name}"
    if distributed.is_main() and not place.exists():
        with working(f"fitting the critic of progress ({name})", after=LONG):
            fit()
        checkpoint.save(place, model.state_dict())
    distributed.barrier()
    model.load_state_dict(checkpoint.load(place))
    fitted: ProgressModel = model
    return fitted
