"""Other people's environments: is a restored state the saved one, and are its pictures its own?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from autotelic.envs.gym_simulator import GymSimulator
from autotelic.envs.simulator import RenderingUnavailable, Simulator, View, make_simulator

from . import toy_envs as toys
from .cases import Gives, Refuses, case
from .env_doors import (
    ENVS,
    alone,
    as_alone,
    in_info,
    listening,
    named,
    near,
    never,
    played,
    repeats,
    said,
    script,
    spec,
)

EXACT = (
    toys.Plain,
    toys.BoundMethod,
    toys.BackReference,
    toys.Outer,
    toys.Handle,
    toys.Disconnects,
    toys.InPlace,
    toys.Late,
    toys.OfItsClass,
    toys.Closure,
    toys.Containers,
    toys.Iterates,
    toys.Unpicklable,
    toys.OneInfo,
    toys.Leaves,
    toys.wrapped,
    toys.stacked,
)

for _make in EXACT:

    @case(
        f"vla B2: {_make.__name__} goes on as plain Gymnasium, whatever else runs",
        kind="restore",
        required=Gives(True),
        **ENVS,
    )
    def _(folder: Path, make: Any = _make) -> object:
        return as_alone(make)


for _make in (toys.GlobalNumpy, toys.GlobalRandom, toys.Samples):

    @case(
        f"vla B2: randomness of elsewhere ({_make.__name__}) makes no episode depend on others",
        kind="restore",
        required=Gives(True),
        **ENVS,
    )
    def _(folder: Path, make: Any = _make) -> object:
        return repeats(make)


TOLD: dict[str, tuple[Any, str]] = {
    "NumPy's global generator": (toys.GlobalNumpy, r"np\.random"),
    "Python's global generator": (toys.GlobalRandom, r"module random"),
    "its action space's generator": (toys.Samples, r"action_space"),
    "a world behind a handle": (toys.Handle, r"cannot be restored .*: an instance per episode"),
    "a generator in its state": (toys.Iterates, r"cannot be restored .*generator.*: an instance per episode"),
    "a reset that leaves something": (toys.Leaves, r"same seed starts elsewhere|reset"),
    "its seed ignored": (toys.SeedIgnored, r"same seed starts elsewhere"),
    "one start for all seeds": (toys.OneStart, r"all seeds give one state"),
    "undetermined steps": (toys.Undetermined, r"not deterministic"),
    "success at reset": (toys.Plain, r"\d+ of 40 states are successes before anything is done"),
    "memory and time per state": (toys.Heavy, r"MB .*ms per state"),
    "success read from an info that a reset lacks": (toys.Told, r"KeyError: 'is_success'"),
}


for _what, (_make, _pattern) in TOLD.items():

    @case(
        f"vla M2: autotelic check tells of {_what}",
        kind="restore",
        required=Gives(True),
        **ENVS,
    )
    def _(folder: Path, make: Any = _make, pattern: str = _pattern) -> object:
        return said(spec(make, success=in_info if make is toys.Told else near), pattern)


@case("vla M1: a pool says in one line that it restores nothing", kind="restore", required=Gives(1), **ENVS)
def one_line(folder: Path) -> object:
    with listening() as lines:
        played(spec(toys.Handle))
    return sum("cannot be restored" in line and "an instance per episode" in line for line in lines)


def save_position(env: Any) -> Any:
    return env.pos.copy()


def restore_position(env: Any, state: Any) -> None:
    env.pos = state.copy()


class Drifting(toys.Plain):
    """Has a velocity, which its spec's save forgets."""

    def begin(self) -> None:
        self.velocity = np.zeros(2)

    def move(self, action: Any) -> None:
        self.velocity = 0.9 * self.velocity + 0.1 * np.asarray(action)
        super().move(self.velocity)


@case("vla B2: a spec's own save forgets the velocity", kind="restore", required=Gives(True), **ENVS)
def forgetful_save(folder: Path) -> object:
    return as_alone(Drifting, changes={"save": save_position, "restore": restore_position})


class Forgetful(Simulator):
    """A simulator from outside whose restore puts back half of it."""

    observation_size = action_size = 2

    def reset(self, seed: int) -> None:
        self.place, self.speed = np.random.default_rng(seed).uniform(-1, 1, 2), np.zeros(2)

    def save(self) -> Any:
        return self.place.copy()

    def restore(self, state: Any) -> None:
        self.place = state.copy()

    def observe(self) -> Any:
        return self.place.astype(np.float32)

    def step(self, actions: Any) -> None:
        for action in actions:
            self.speed = 0.9 * self.speed + 0.1 * action
            self.place = self.place + self.speed

    def success(self) -> bool:
        return False


@case("vla B2: a Simulator whose restore puts back half", kind="restore", required=Gives(True), **ENVS)
def forgetful_simulator(folder: Path) -> object:
    return repeats(Forgetful)


@case("vla B4: an id keeps its wrappers", kind="restore", required=Gives([3, [0.2, 0.2]]), **ENVS)
def wrapped_id(folder: Path) -> object:
    gymnasium.register("strangers/Wrapped-v0", toys.wrapped)
    simulator = make_simulator(named(replace(spec(toys.wrapped), make=None, id="strangers/Wrapped-v0")))
    simulator.reset(0)
    before = simulator.observe()
    simulator.step(np.array([[0.4, 0.4]], np.float32))
    return [simulator.observation_size, (before - simulator.observe())[:2].tolist()]


@case(
    "vla B4: an id's additional wrappers are part of the state",
    kind="restore",
    required=Gives(True),
    **ENVS,
)
def additional_wrappers(folder: Path) -> object:
    wrapper = toys.Sums.wrapper_spec()
    gymnasium.register("strangers/Sums-v0", toys.Plain, max_episode_steps=4, additional_wrappers=(wrapper,))
    each = replace(spec(toys.Plain), make=None, id="strangers/Sums-v0")
    episodes = played(each)
    wanted = [np.stack(alone(lambda: toys.Sums(toys.Plain()), e.seed)[0])[: len(e.observations)] for e in episodes]
    return all(np.array_equal(e.observations, each) for e, each in zip(episodes, wanted, strict=True))


@case("vla B5: a map that never changes is kept once", kind="restore", required=Gives(True), **ENVS)
def heavy(folder: Path) -> object:
    simulator = GymSimulator(spec(toys.Heavy), toys.Heavy())
    simulator.reset(0)
    states = [simulator.save() for _ in range(3)]
    maps = {id(each) for each in _arrays(states)}
    return len(maps) <= 1


def _arrays(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Large arrays in saved states, wherever they are, but for the environment's own."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type)):
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        if value.nbytes > 1_000_000:
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _arrays(part, seen)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _arrays(part, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, gymnasium.Env):
        yield from _arrays(vars(value), seen)


@case("vla B11: pictures are the environment's own", kind="restore", required=Gives([True, 2]), **ENVS)
def own_pictures(folder: Path) -> object:
    toys.Viewer.made = 0
    simulator = GymSimulator(spec(toys.Filmed), toys.Filmed())
    env = toys.Filmed("rgb_array")
    same = True
    for seed in (0, 1):
        simulator.reset(seed)
        env.reset(seed=seed)
        for action in script(seed):
            state = simulator.save()
            same &= np.array_equal(simulator.frame(View(8)), env.render())
            simulator.step(script(seed + 5)[:3])
            simulator.restore(state)
            simulator.step(action[None])
            env.step(action)
    return [same, toys.Viewer.made]


for _error in (NotImplementedError, RuntimeError, ImportError, OSError):

    @case(
        f"vla B1: a picture that fails with {_error.__name__} is one line",
        kind="environments",
        required=Refuses("NoDrawing.*cannot be drawn.*no display"),
        **ENVS,
    )
    def _(folder: Path, error: Any = _error) -> object:
        simulator = GymSimulator(spec(toys.NoDrawing), toys.NoDrawing(error, "rgb_array"))
        simulator.reset(0)
        try:
            simulator.frame(View(8))
        except RenderingUnavailable as refusal:
            assert "\n" not in str(refusal)
            raise
        return None


THIRD_PARTY = {
    "gymnasium_robotics": ("AntMaze_UMaze-v5", "FetchReach-v4", "PointMaze_UMaze-v3", "HandReach-v3"),
    "Box2D": ("LunarLander-v3", "BipedalWalker-v3"),
    "panda_gym": ("PandaReach-v3",),
    "gym_pusht": ("gym_pusht/PushT-v0",),
}


def made(module: str, name: str) -> Any:
    __import__(module)
    return gymnasium.make(name).unwrapped


for _module, _ids in THIRD_PARTY.items():
    for _id in _ids:

        @case(
            f"vla section 3: {_id} goes on as plain Gymnasium",
            kind="restore",
            required=Gives(True),
            slow=True,
            needs=(_module,),
            **ENVS,
        )
        def _(folder: Path, module: str = _module, name: str = _id) -> object:
            size = GymSimulator(spec(made, success=never), made(module, name)).action_size
            each = spec(made, success=never, kwargs={"module": module, "name": name})
            episodes = played(each, seeds=3, size=size)
            env, same = made(module, name), True
            decode = GymSimulator(each, made(module, name)).decode
            for seed, episode in enumerate(episodes):
                observation, _ = env.reset(seed=seed)
                flat = [observation]
                for action in script(seed, size)[:10]:
                    observation, *_ = env.step(decode(action))
                    flat.append(observation)
                wanted = [np.array(spaces.flatten(env.observation_space, each), np.float32) for each in flat[::2]]
                same &= np.array_equal(np.stack(wanted), episode.observations)
            return same
