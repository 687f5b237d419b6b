"""What robot recipes make of environments: names of tasks, pools, demonstrations, and a policy that fits.

All of it follows from the specs of the environments (``envs/simulator.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError, unknown
from ..json_files import read_object
from ..plugins import is_named, named

if TYPE_CHECKING:
    from ..envs.action_scale import ActionScale
    from ..envs.demonstrations import Demonstration
    from ..envs.pool import Pool
    from ..envs.simulator import View
    from ..types import Rollout, Task
    from .chunk_policy import ChunkPolicy
    from .setting import RobotConfig


def counts(tasks: Sequence[str], config: RobotConfig) -> dict[str, int]:
    """Environment -> demonstrations, from "push-v3:3"; the ends of registered names are found.

    Raises:
        UsageError: an unknown task, with the nearest names, or a count that is none.
    """
    from ..envs.simulator import resolve

    demonstrations: dict[str, int] = {}
    for entry in tasks:
        name, _, count = entry.partition(":")
        if count and not (count.isdigit() and int(count) > 0):
            raise UsageError(f"task {entry!r}: what follows the colon is a number of demonstrations")
        try:
            environment = resolve(name)
        except UsageError as error:
            raise UsageError(f"{error} (a module or file that registers your own is imported by --use)") from error
        demonstrations[environment] = int(count) if count else config.demonstrations
    return demonstrations


def horizon_in(config: RobotConfig, environment: str) -> int:
    """Environment steps after which an episode of a task is cut, however long its demonstrations are."""
    from ..envs.simulator import spec_of

    return config.max_episode_steps or spec_of(environment).max_episode_steps


def make_task(environment: str, seed: int, horizon: int | None = None) -> Task:
    """An initial state of an environment as a task."""
    from ..envs.simulator import spec_of, title_of
    from ..types import Task

    name, instruction = title_of(environment), spec_of(environment).told(seed)
    extra = {"environment": environment}
    return Task(f"{name}/{seed}", instruction, category=name, seed=seed, horizon=horizon, extra=extra)


def make_pool(config: RobotConfig, environments: Sequence[str]) -> Pool:
    """Simulators of a run's environments, which are built, tried, and have what the policy is to be given.

    Raises:
        UsageError: their chunks or sizes differ, one cannot be built, or one has nothing of what is to be seen.
    """
    from ..envs.pool import Pool
    from ..envs.simulator import IMAGES, STATE, Feature, listed

    workers = None if config.workers == 0 else max(config.workers, 0)
    pool = Pool(environments, chunk=config.chunk or None, workers=workers)
    try:
        pool.build(view_of(config) if config.obs_type == "pixels" else None)
        for name in pool.environments:
            if config.obs_type == "state" and not pool.sizes(name)[0]:
                offered = {n: f for n, f in pool.features(name).items() if n.startswith(IMAGES)}
                raise UsageError(
                    f"{name} offers {listed(offered)} and no numbers ({listed({STATE: Feature((0,))})}): "
                    "a policy that sees states has nothing to see, let it see frames"
                )
        sizes = {pool.sizes(name): name for name in pool.environments}
        if len(sizes) > 1:
            had = ", ".join(f"{name} has {seen} and {done}" for (seen, done), name in sizes.items())
            raise UsageError(
                f"one policy needs tasks of one size of observation and of action, and {had}: run them apart"
            )
    except Exception:
        pool.close()
        raise
    return pool


def view_of(config: RobotConfig) -> View:
    """How frames are taken where they are seen."""
    from ..envs.simulator import View

    return View(config.frame_size)


def record(pool: Pool, name: str, count: int, config: RobotConfig) -> list[Demonstration]:
    """``count`` demonstrations by the scripted expert, from this run's own stretch of states."""
    from ..envs.splits import seeds

    first = 1000 * (config.seed % 900)
    render = view_of(config) if config.obs_type == "pixels" else None
    limit = max(350, horizon_in(config, name))
    return pool.demonstrate(name, seeds("demo", count, first), horizon=limit, settle=config.settle, render=render)


def recorded(config: RobotConfig, wanted: Mapping[str, int], pool: Pool) -> dict[str, list[Demonstration]]:
    """The first demonstrations of each task's dataset, if there are datasets.

    Raises:
        UsageError: too few of them, or sizes that are not the environment's.
    """
    from ..envs.demonstrations import Demonstration
    from ..envs.lerobot_dataset import read_demonstrations
    from ..envs.simulator import spec_of

    if config.demonstrations_from and len(config.demonstrations_from) != len(wanted):
        have, need = len(config.demonstrations_from), len(wanted)
        raise UsageError(f"demonstrations-from names {have} folders for {need} tasks: give one each, in their order")
    demonstrations: dict[str, list[Demonstration]] = {}
    for (name, count), folder in zip(wanted.items(), config.demonstrations_from, strict=False):
        cameras = _cameras_in(folder, pool.cameras(name), config) if config.obs_type == "pixels" else {}
        several = read_demonstrations(
            folder,
            environment=name,
            state=config.state_keys,
            action=config.action_key,
            cameras=list(cameras.values()),
            scale=_scale_of(folder, name, config, pool),
            count=count,
            size=config.frame_size,
        )
        if len(several) < count:
            raise UsageError(f"{folder} holds {len(several)} successes; {count} demonstrations of {name} are asked for")
        seen, done = several[0].observations.shape[1], several[0].actions.shape[1]
        if (seen, done) != pool.sizes(name):
            raise UsageError(
                f"{folder} has observations of {seen} numbers and actions of {done}; "
                f"{name} has {pool.sizes(name)[0]} and {pool.sizes(name)[1]}: choose features by --state-keys and "
                "--action-key"
            )
        spec = spec_of(name)
        demonstrations[name] = [
            Demonstration(
                name,
                spec.instruction if spec.instruct is None else d.instruction,
                d.seed,
                d.observations,
                d.actions,
                d.settle,
                None if d.images is None else {camera: d.images[theirs] for camera, theirs in cameras.items()},
            )
            for d in several
        ]
    return demonstrations


def _cameras_in(folder: str, cameras: Sequence[str], config: RobotConfig) -> dict[str, str]:
    """Camera -> its name in a dataset: as told, the same, or the only one where there is one on either side."""
    from ..envs.lerobot_dataset import dataset_at
    from ..envs.simulator import IMAGES

    told = dict(entry.split("=", 1) for entry in config.camera_keys)
    strange = [camera for camera in told if camera not in cameras]
    if strange:
        raise unknown("camera", strange[0], cameras)
    theirs = [name.removeprefix(IMAGES) for name in dataset_at(folder)[0].cameras]
    if len(cameras) == len(theirs) == 1:
        return {cameras[0]: theirs[0]} | told
    return {camera: camera for camera in cameras} | told


def _scale_of(folder: str, environment: str, config: RobotConfig, pool: Pool) -> ActionScale | None:
    """From the units of a dataset's actions to [-1, 1], as the config says."""
    from ..envs.action_scale import ActionScale
    from ..envs.lerobot_dataset import action_scale
    from ..envs.simulator import ACTION

    if config.action_scale in ("quantiles", "range"):
        return action_scale(folder, action=config.action_key, tails=0.01 if config.action_scale == "quantiles" else 0)
    if config.action_scale == "environment":
        bounds = pool.features(environment)[ACTION]
        if bounds.low is None or bounds.high is None:
            raise UsageError(f"--action-scale environment: the actions of {environment} have no bounds")
        size = pool.sizes(environment)[1]
        low, high = (np.broadcast_to(np.asarray(side, np.float32), size) for side in (bounds.low, bounds.high))
        return ActionScale.between(low, high)
    return None


def make_policy(config: RobotConfig, environment: str, pool: Pool) -> ChunkPolicy:
    """A policy to be cloned, or a trained one.

    Raises:
        UsageError: a trained policy, or a class of one's own, that does not fit the environment.
    """
    import torch

    from ..envs.simulator import ACTION, spec_of
    from ..trainers.randomness import seed_of
    from .flow import FlowModel, FlowPolicy
    from .policy import ActionModel, ActionPolicy
    from .vision import Vision

    spec, (observation_size, action_size) = spec_of(environment), pool.sizes(environment)
    if config.obs_type == "pixels":
        observation_size = len(range(observation_size)[spec.proprioception])
    sizes = (observation_size, action_size, pool.chunk)
    noise: dict[str, Any] = {} if config.head == "flow" else {"rho": config.rho}
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("model", config.seed))
        if is_named("policy", config.model):
            return _own_policy(config.model, sizes)
        if config.model:
            trained = _foreign_policy(config, action_size, pool.chunk)
            if trained is None:
                mine = (FlowPolicy if config.head == "flow" else ActionPolicy).from_pretrained(config.model, **noise)
                trained, observation_size = mine, int(mine.model.observation_size)
            has = (observation_size, trained.action_size, trained.chunk)
            _check_sizes(config.model, has, environment, sizes)
            return trained
        inputs: dict[str, Any] = hand_centred(pool.layout(environment))
        if config.obs_type == "pixels":
            inputs = {"vision": Vision(size=config.frame_size, cameras=pool.cameras(environment))}
        if config.head == "categorical" and pool.features(environment)[ACTION].low is not None:
            raise UsageError(
                f"--head categorical is for environments of choices; the actions of {environment} have bounds"
            )
        inputs |= {"hidden": config.hidden_size, "layers": config.num_layers}
        if config.head == "flow":
            return FlowPolicy(FlowModel(observation_size, action_size, chunk=pool.chunk, **inputs))
        model = ActionModel(observation_size, action_size, chunk=pool.chunk, head=config.head, **inputs)
    return ActionPolicy(model, **noise)


def hand_centred(layout: Mapping[str, slice]) -> dict[str, Any]:
    """Where a network finds the hand and the places that it sees relative to it; nothing without a hand and a place.

    Raises:
        UsageError: positions of different sizes.
    """
    from ..rewards.progress.features import POSITIONS, axes_of

    axes = axes_of(layout)
    positions = tuple(layout[name].start or 0 for name in POSITIONS if name in layout and name != "hand")
    if "hand" not in layout or not positions:
        return {}
    return {"origin": layout["hand"].start or 0, "positions": positions, "axes": axes}


def _foreign_policy(config: RobotConfig, action_size: int, chunk: int) -> ChunkPolicy | None:
    """A policy of LeRobot, or a vision-language model whose last tokens are actions; None for what is neither.

    A folder's config.json tells them apart: LeRobot's has a "type", that of a model of transformers a "model_type".
    """
    from pathlib import Path

    import torch

    from ..trainers.distributed import device
    from ..trainers.precision import dtype_of
    from .lerobot_policy import LeRobotPolicy
    from .openvla import SETTINGS, OpenVLAPolicy

    name, folder = config.model, Path(config.model)
    description = _description(name)
    if "type" in description:
        return LeRobotPolicy.from_pretrained(name, chunk=chunk)
    saved, adapted = (folder / SETTINGS).is_file(), (folder / "adapter_config.json").is_file()
    if not saved and "model_type" not in description:
        return None
    lora = bool(config.lora_rank) or adapted  # saved adapters are trained further
    options: dict[str, Any] = {
        "dtype": dtype_of(config.dtype, False, device()) if lora else torch.float32,  # what is trained is float32
        "statistics": config.statistics or None,
        "lora_rank": config.lora_rank if lora and not adapted else None,
        "gradient_checkpointing": config.gradient_checkpointing,
    }
    options |= {} if config.decoding is None else {"decoding": config.decoding}
    options |= {} if config.sample_rows is None else {"sample_rows": config.sample_rows}
    options |= {} if saved else {"chunk": chunk, "action_size": action_size}
    return OpenVLAPolicy.from_pretrained(name, **options)


def _description(name: str) -> dict[str, Any]:
    """The config.json of a folder or of a repository of the hub; nothing where there is none to be had."""
    from pathlib import Path

    from huggingface_hub import hf_hub_download

    if Path(name).is_dir():
        path = Path(name) / "config.json"
        return read_object(path) if path.is_file() else {}
    try:
        return read_object(Path(hf_hub_download(name, "config.json")))
    except Exception:  # no such repository, no network: who loads it says so
        return {}


def _check_sizes(name: str, has: tuple[int, int, int], environment: str, sizes: tuple[int, int, int]) -> None:
    if has == sizes:
        return
    if has[:2] == sizes[:2]:
        raise UsageError(_other_chunk(name, has[2], environment, sizes[2]))
    raise UsageError(f"policy {name} has (observation, action, chunk) sizes {has}, needed are {sizes} by {environment}")


def _other_chunk(policy: str, has: int, environment: str, takes: int) -> str:
    """What is said of a policy whose chunk is not that of the pool or of the environment's spec."""
    return f"policy {policy} makes chunks of {has}, and {environment} takes {takes}: say --chunk {has}"


def _own_policy(target: str, sizes: tuple[int, int, int]) -> ChunkPolicy:
    from .chunk_policy import ChunkPolicy

    make = named("policy", target)
    try:
        policy = make(*sizes)
    except TypeError as error:
        raise UsageError(
            f"cannot make a policy of {target} from (observation, action, chunk) sizes: {error}"
        ) from error
    if not isinstance(policy, ChunkPolicy):
        raise UsageError(f"cannot make a policy of {target}: it is a {type(policy).__name__}, and no ChunkPolicy")
    return policy


def try_out(policy: ChunkPolicy, environment: str, pool: Pool) -> None:
    """Let a policy decide once, on zeros, before demonstrations are recorded for it.

    Raises:
        UsageError: its chunk is not the pool's, it cannot decide, or it decides on actions of another size.
    """
    import torch

    from .chunk_policy import Seen

    if policy.chunk != pool.chunk:
        raise UsageError(_other_chunk(policy.name, policy.chunk, environment, pool.chunk))
    task = make_task(environment, 0)
    observation_size, action_size = pool.sizes(environment)
    states = torch.as_tensor(policy.felt(task, np.zeros((1, observation_size), np.float32)))
    frames = {}
    if policy.sees == "frames" and policy.view is not None:
        black = torch.zeros(1, policy.view.size, policy.view.size, 3, dtype=torch.uint8)
        frames = dict.fromkeys(policy.view.cameras or pool.cameras(environment), black)
    try:
        actions = policy.choose(Seen([str(task.prompt)], states, frames), None).actions
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{policy.name} cannot decide on observations of size {states.shape[1]}: {reason}") from error
    if not bool(actions.isfinite().all()):
        raise UsageError(f"{policy.name} answers NaN or infinity on an observation of zeros: look at its weights")
    if actions.shape[-1] != action_size:
        raise UsageError(f"{policy.name} makes actions of size {actions.shape[-1]}; {environment} has {action_size}")


def encode(policy: ChunkPolicy, demonstrations: Mapping[str, Sequence[Demonstration]]) -> list[Rollout]:
    """Demonstrations as rollouts of a policy that imitates them."""
    every = [d for several in demonstrations.values() for d in several]
    return policy.encode([replace(make_task(d.environment, d.seed), prompt=d.instruction) for d in every], every)
