"""Other people's environments at their edges: success, actions, observations, states that go wrong, workers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from autotelic.envs.demonstrations import Demonstration
from autotelic.envs.gym_simulator import GymSimulator
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import EnvSpec, Outcome, View, make_simulator

from . import toy_envs as toys
from .cases import Gives, GoesOn, Refuses, case, python
from .env_doors import (
    ENVS,
    acted,
    alone,
    in_info,
    named,
    near,
    played,
    said,
    spec,
)

# --- success


def at_once(outcome: Outcome) -> bool:
    return float(np.abs(outcome.observation[:2]).max()) < 0.7


@case("vla B3: success at reset, in an evaluation", kind="environments", required=Gives(True), **ENVS)
def success_at_reset(folder: Path) -> object:
    rollouts = acted(spec(toys.Plain, success=at_once), greedy=True, oracle=True)
    starts = [bool(np.abs(r.output.observations[0][:2]).max() < 0.7) for r in rollouts]
    return 0 < sum(starts) < 12 and all(r.output.success for r, s in zip(rollouts, starts, strict=True) if s)


@case("vla B3: learning goes over rollouts of nothing", kind="environments", required=GoesOn(), **ENVS)
def empty_rollouts_are_learned_from(folder: Path) -> object:
    import torch

    from autotelic.vla.policy import ActionModel, ActionPolicy

    rollouts = acted(spec(toys.Plain, success=at_once), oracle=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = ActionPolicy(ActionModel(4, 2, chunk=2, hidden=8, layers=1, head="gaussian"))
    evaluated = policy.evaluate_actions(policy.collate(rollouts))
    assert bool(evaluated.log_probs.isfinite().all())
    return None


@case("vla B3: success reads an info that a reset lacks", kind="environments", required=Gives(True), **ENVS)
def info_at_reset(folder: Path) -> object:
    episodes = played(spec(toys.Told, success=in_info))
    return [bool(e.success) for e in episodes] == [alone(toys.Told, e.seed, e.steps)[1] >= 1 for e in episodes]


def reads_a_key(outcome: Outcome) -> bool:
    return bool(outcome.info["solved"])


@case(
    "vla 7: a success that always raises is refused in one line",
    kind="environments",
    required=Refuses("success.*KeyError: 'solved'"),
    **ENVS,
)
def broken_success(folder: Path) -> object:
    return played(spec(toys.Plain, success=reads_a_key))


def rarely(outcome: Outcome) -> bool:
    return 1 / (outcome.steps - 8) > 1


@case("vla B8: a success that raises now and then", kind="environments", required=Gives(3), **ENVS)
def success_raises(folder: Path) -> object:
    episodes = played(spec(toys.Plain, success=rarely), seeds=3)
    return sum("ZeroDivisionError" in (e.fault or "") and not e.success for e in episodes)


# --- edges: actions

BOXES = {
    "Box(0, 4, int)": (spaces.Box(0, 4, (1,), np.int64), [0.2] * 5),
    "Box(-2, 2, int)": (spaces.Box(-2, 2, (1,), np.int64), [0.2] * 5),
    "Box(0, 1, int)": (spaces.Box(0, 1, (1,), np.int64), [0.5] * 2),
    "Box(3, 3, int)": (spaces.Box(3, 3, (1,), np.int64), [1.0]),
    "Box(0, 3, uint8)": (spaces.Box(0, 3, (1,), np.uint8), [0.25] * 4),
    "Box(-100, 27, int8)": (spaces.Box(-100, 27, (1,), np.int8), [1 / 128] * 128),
}


def decoder(space: Any) -> Callable[[Any], Any]:
    simulator = GymSimulator(spec(toys.Acts), toys.Acts(space))
    simulator.reset(0)

    def decode(action: Any) -> Any:
        simulator.step(np.asarray(action, np.float32)[None])
        return simulator.env.last

    return decode


for _name, (_space, _shares) in BOXES.items():

    @case(
        f"vla B9: {_name} in equal bins to its top",
        kind="environments",
        required=Gives(True),
        **ENVS,
    )
    def _(folder: Path, space: Any = _space, shares: Any = _shares) -> object:
        decode = decoder(space)
        grid = np.linspace(-1, 1, 2561)[:-1] + 1 / 2561
        chosen = np.array([int(decode([x])[0]) for x in grid])
        counts = np.array([(chosen == value).mean() for value in range(int(space.low[0]), int(space.high[0]) + 1)])
        return bool(np.allclose(counts, shares, atol=0.002)) and bool(counts.sum() == 1)


BOUNDED = {
    "asymmetric": spaces.Box(np.array([-3, 0], np.float32), np.array([0.1, 7], np.float32)),
    "matrix": spaces.Box(-1, 2, (2, 3), np.float32),
    "scalar": spaces.Box(-0.3, 0.7, (), np.float32),
    "float16": spaces.Box(-65504, 65504, (2,), np.float16),
    "float64": spaces.Box(-0.1, 0.3, (2,), np.float64),
    "odd float32": spaces.Box(np.float32(0.1), np.float32(0.7), (3,), np.float32),
    "uint8": spaces.Box(0, 255, (2,), np.uint8),
    "int32": spaces.Box(-7, 5, (2,), np.int32),
    "a line": spaces.Box(1, 1, (2,), np.float32),
    "Discrete from -2": spaces.Discrete(5, start=-2),
}

for _name, _space in BOUNDED.items():

    @case(
        f"vla B9: {_name} at its bounds and between them",
        kind="environments",
        required=Gives(True),
        **ENVS,
    )
    def _(folder: Path, space: Any = _space) -> object:
        size, decode = spaces.flatdim(space), decoder(space)
        if isinstance(space, spaces.Discrete):
            return [int(decode(row)) for row in np.eye(size)] == list(range(-2, 3))
        ends = [decode(np.full(size, x)) for x in (-1, 1, -7, 7)]
        between = [decode(x) for x in np.random.default_rng(0).uniform(-1.2, 1.2, (200, size))]
        tops = all(np.array_equal(end, bound) for end, bound in zip(ends, (space.low, space.high) * 2, strict=True))
        return tops and all(space.contains(action) for action in (*ends, *between))


REFUSED: dict[str, tuple[Any, str]] = {
    "unbounded": (spaces.Box(-np.inf, np.inf, (2,), np.float32), "finite bounds"),
    "half bounded": (spaces.Box(0, np.inf, (2,), np.float32), "finite bounds"),
    "as wide as float32": (spaces.Box(-3e38, 3e38, (2,), np.float32), "bounds.*features"),
    "as wide as float64": (spaces.Box(-1.7e308, 1.7e308, (2,), np.float64), "bounds.*features"),
    "as wide as int64": (spaces.Box(-(2**62), 2**62, (2,), np.int64), "bounds.*features"),
    "MultiBinary": (spaces.MultiBinary(3), "supported are Discrete and Box"),
    "MultiDiscrete": (spaces.MultiDiscrete([2, 3]), "supported are Discrete and Box"),
    "Dict": (spaces.Dict({"a": toys.UNIT}), "supported are Discrete and Box"),
    "Tuple": (spaces.Tuple((toys.UNIT, spaces.Discrete(2))), "supported are Discrete and Box"),
}

for _name, (_space, _pattern) in REFUSED.items():

    @case(
        f"vla B9: an action space {_name} is refused",
        kind="environments",
        required=Refuses(_pattern),
        **ENVS,
    )
    def _(folder: Path, space: Any = _space) -> object:
        return GymSimulator(spec(toys.Acts), toys.Acts(space)).action_size


UNFLAT = {
    "MiniGrid's mission": spaces.Dict({"grid": spaces.Box(0, 1, (3,), np.float32), "mission": toys.Mission()}),
    "a Sequence": spaces.Sequence(toys.UNIT),
    "a Graph": spaces.Graph(toys.UNIT, None),
}

for _name, _space in UNFLAT.items():

    @case(
        f"vla B14: {_name} as observation is refused",
        kind="environments",
        required=Refuses("observation.*cannot be flattened"),
        **ENVS,
    )
    def _(folder: Path, space: Any = _space) -> object:
        return GymSimulator(spec(toys.Observes), toys.Observes(space)).observation_size


@case("vla M2: an observation outside its space is told", kind="environments", required=Gives(True), **ENVS)
def outside(folder: Path) -> object:
    return said(spec(toys.Narrow), "outside its space")


METAWORLD = {
    "NaN": (np.full((5, 4), np.nan, np.float32), "NaN or infinity"),
    "infinity": (np.full((5, 4), np.inf, np.float32), "NaN or infinity"),
    "three numbers": (np.zeros((5, 3), np.float32), r"\[5, 3\].*4"),
    "seven numbers": (np.zeros((5, 7), np.float32), r"\[5, 7\].*4"),
}

for _name, (_actions, _pattern) in METAWORLD.items():

    @case(
        f"vla B14: MetaWorld is given an action of {_name}",
        kind="environments",
        required=Refuses(_pattern),
        **ENVS,
    )
    def _(folder: Path, actions: Any = _actions) -> object:
        simulator = make_simulator("metaworld/reach-v3")
        simulator.reset(0)
        simulator.step(actions)
        return simulator.observe().tolist()

    @case(
        f"vla B14: a Gymnasium environment is given an action of {_name}",
        kind="environments",
        required=Refuses(_pattern.replace("4", "2")),
        **ENVS,
    )
    def _(folder: Path, actions: Any = _actions) -> object:
        simulator = GymSimulator(spec(toys.Plain), toys.Plain())
        simulator.reset(0)
        simulator.step(actions[:, :2] if actions.shape[1] == 4 else actions)
        return simulator.observe().tolist()


for _size in ((64, 48), 64.5, "64", None, True, 0, -3):

    @case(
        f"vla B14: a view of size {_size!r}",
        kind="environments",
        required=Refuses("size.*pixel"),
        **ENVS,
    )
    def _(folder: Path, size: Any = _size) -> object:
        return View(size)


# --- edges: states that go wrong


def wrong(how: str, beyond: float = 1.2, **changes: Any) -> EnvSpec:
    return spec(toys.Wrong, success=near, kwargs={"how": how, "beyond": beyond}, **changes)


def ended(each: EnvSpec, *, workers: int = 0, bad: tuple[int, ...] = (1,)) -> bool:
    """Whether the rows that walk right end as failed, named, and the others walk on as if alone."""
    name = named(each)
    with Pool([name], workers=workers) as pool:

        def act(rows: Any, observations: Any) -> Any:
            ways = np.where(np.isin(rows, bad), 1.0, -1.0)
            return np.tile(ways[:, None, None], (1, pool.chunk, 2))

        episodes = pool.run([EpisodeRequest(name, seed, 10) for seed in (5, 6, 7)], act, oracle=True)
        counted = pool.faults
    failed = [row for row, e in enumerate(episodes) if e.fault]
    names = all(re.search(rf"{name}.*seed {episodes[row].seed}.*step", episodes[row].fault or "") for row in failed)
    finite = all(bool(np.isfinite(e.observations).all()) for e in episodes)
    whole = all(len(e.observations) == len(e.actions) + 1 and (e.fault or e.success or e.steps == 10) for e in episodes)
    return failed == list(bad) and names and finite and whole and counted == len(bad)


for _how in ("raise", "nan", "shape"):

    @case(f"vla B8: a state that goes wrong by {_how}", kind="environments", required=Gives(True), **ENVS)
    def _(folder: Path, how: str = _how) -> object:
        return ended(wrong(how)) and ended(wrong(how), bad=(0, 1, 2))


for _how in ("exit", "abort", "hang"):

    @case(
        f"vla B8: a state in which the simulator's process does {_how}",
        kind="environments",
        required=Gives(True),
        slow=True,
        **ENVS,
    )
    def _(folder: Path, how: str = _how) -> object:
        limit = {"timeout": 1.0} if how == "hang" else {}
        return ended(wrong(how, **limit), workers=1)


for _how, _workers in (("raise", 0), ("nan", 0), ("exit", 1)):

    @case(
        f"vla B8: a seed whose reset goes wrong by {_how}",
        kind="environments",
        required=Gives([1, 4, 7, 10]),
        slow=_workers > 0,
        **ENVS,
    )
    def _(folder: Path, how: str = _how, workers: int = _workers) -> object:
        episodes = played(spec(toys.WrongStart, kwargs={"how": how}), workers=workers)
        return [e.seed for e in episodes if e.fault]


@case("vla B8: a policy acts where some resets go wrong", kind="environments", required=Gives(4), **ENVS)
def wrong_starts_are_acted(folder: Path) -> object:
    rollouts = acted(spec(toys.WrongStart, kwargs={"how": "raise"}))
    return sum(bool(r.output.fault) for r in rollouts)


RETURNS = {
    "four values": ((np.zeros(4, np.float32), 0.0, False, {}), "step.*4.*5"),
    "no reward": ((np.zeros(4, np.float32), None, False, False, {}), "step.*reward"),
    "nothing": (None, "step"),
    "a reward of NaN": ((np.zeros(4, np.float32), float("nan"), False, False, {}), "step.*reward nan"),
    "an observation of another size": ((np.zeros(3, np.float32), 0.0, False, False, {}), r"step.*observation"),
}

for _name, (_answer, _pattern) in RETURNS.items():

    @case(
        f"vla 7: a step that returns {_name} is refused in one line",
        kind="environments",
        required=Refuses(_pattern),
        **ENVS,
    )
    def _(folder: Path, answer: Any = _answer) -> object:
        return played(spec(toys.Returns, kwargs={"answer": answer}))


@case(
    "vla B14: a layout with a hand of two numbers and a goal of one",
    kind="environments",
    required=Refuses("places.*hand 2.*goal 1"),
    **ENVS,
)
def uneven_layout(folder: Path) -> object:
    return spec(toys.Plain, layout={"hand": slice(0, 2), "goal": slice(2, 3)})


class NoStart(toys.Plain):
    def begin(self) -> None:
        raise FileNotFoundError("robot.xml")


class NoMaking(toys.Plain):
    def __init__(self) -> None:
        raise FileNotFoundError("robot.xml")


for _make in (NoStart, NoMaking):

    @case(
        f"vla 7: {_make.__name__} is refused in one line",
        kind="environments",
        required=Refuses("FileNotFoundError: robot.xml"),
        **ENVS,
    )
    def _(folder: Path, make: Any = _make) -> object:
        return played(spec(make))


def raises_at_times(env: Any, observation: Any) -> Any:
    if observation[0] > 0:
        raise RuntimeError("no way from here")
    return (observation[2:] - observation[:2]) * 2


@case("vla B8: an expert that raises now and then", kind="environments", required=Gives(3), **ENVS)
def expert_raises(folder: Path) -> object:
    name = named(spec(toys.Plain, success=near, expert=raises_at_times))
    with Pool([name], workers=0) as pool:
        shown: list[Demonstration] = pool.demonstrate(name, [0, 1, 2], horizon=20, settle=2)
    return len(shown)


# --- workers

MODULE = """
import gymnasium
from autotelic.envs.simulator import EnvSpec, register
from success import near
gymnasium.register("split/Reach-v0", entry_point="tests.strangers.toy_envs:Plain")
register("split/reach", EnvSpec("split/Reach-v0", "x", 20, near, chunk=2))
"""
RUN = """
import numpy as np
from autotelic.envs.pool import EpisodeRequest, Pool
with Pool([NAME], workers=1) as pool:
    act = lambda rows, observations: np.ones((len(rows), pool.chunk, 2))
    print(len(pool.run([EpisodeRequest(NAME, 0, 10)], act, oracle=True)))
"""


def ran(folder: Path, text: str) -> str:
    root = str(Path(__file__).parents[2])
    (folder / "success.py").write_text("def near(outcome):\n    return bool(outcome.observation[0] > 3)\n")
    (folder / "my_split.py").write_text(MODULE)
    return python(text, folder=folder, PYTHONPATH=":".join([str(folder), root, str(Path(root) / "src")])).strip()


@case("vla B6: ids of a module that no function comes from", kind="environments", required=Gives("1"),
      slow=True, **ENVS)  # fmt: skip
def split_modules(folder: Path) -> object:
    return ran(folder, "import my_split\nNAME = 'split/reach'\n" + RUN)


@case("vla B6: functions of a notebook or a piped script", kind="environments", required=Gives("1"),
      slow=True, **ENVS)  # fmt: skip
def notebook(folder: Path) -> object:
    text = MODULE.replace("from success import near", "def near(outcome):\n    return bool(outcome.observation[0] > 3)")
    return ran(folder, text + "\nNAME = 'split/reach'\n" + RUN)


@case("vla B6: an environment class of a notebook", kind="environments", required=Gives("1"),
      slow=True, **ENVS)  # fmt: skip
def notebook_class(folder: Path) -> object:
    text = "from tests.strangers.toy_envs import Plain\nclass Mine(Plain):\n    pass\n" + MODULE.replace(
        '"tests.strangers.toy_envs:Plain"', "Mine"
    )
    return ran(folder, text + "\nNAME = 'split/reach'\n" + RUN)


@case("vla B6: a success without a name", kind="environments", required=Gives(3), **ENVS)
def a_lambda(folder: Path) -> object:
    return len(played(spec(toys.Plain, success=lambda outcome: False), seeds=3))


VANISHES = """
import os, pathlib
import my_split
os.remove("success.py")
NAME = "split/reach"
"""


@case(
    "vla B6: a worker that cannot start says why in one line",
    kind="environments",
    required=Gives(True),
    slow=True,
    **ENVS,
)
def start_error(folder: Path) -> object:
    text = f"{VANISHES}\nfrom autotelic.errors import UsageError\ntry:\n"
    text += "\n".join(f"    {line}" for line in RUN.splitlines())
    text += "\nexcept UsageError as error:\n    print(error)"
    said = ran(folder, text)
    return "success" in said.splitlines()[-1] and "ModuleNotFoundError" in said.splitlines()[-1]


@case("vla B14: a dead worker's undetermined episode is noticed", kind="environments", required=Gives(True),
      slow=True, **ENVS)  # fmt: skip
def undetermined_replay(folder: Path) -> object:
    import os
    import signal

    name = named(spec(toys.Undetermined))
    with Pool([name], workers=1) as pool:
        calls: list[int] = []

        def act(rows: Any, observations: Any) -> Any:
            calls.append(len(rows))
            if len(calls) == 3:
                os.kill(pool._workers[0].pid, signal.SIGKILL)  # type: ignore[union-attr]
            return np.zeros((len(rows), pool.chunk, 2))

        (episode,) = pool.run([EpisodeRequest(name, 0, 10)], act)
    return "replay" in (episode.fault or "")


GL = """
import os
os.environ["MUJOCO_GL"] = "egl"
import numpy as np
from autotelic.envs.simulator import View, make_simulator
simulator = make_simulator("metaworld/reach-v3")
simulator.reset(0)
print(simulator.frame(View(16)).shape)
import torch
torch.optim.Adam([torch.zeros(1, requires_grad=True)])
"""


@case("vla B7: torch's optimisers after a picture", kind="environments", required=Gives("(16, 16, 3)"),
      slow=True, **ENVS)  # fmt: skip
def torch_after_gl(folder: Path) -> object:
    from ctypes.util import find_library

    from .cases import Skipped

    if not find_library("EGL"):
        raise Skipped("libegl1 is not installed")
    return ran(folder, GL).splitlines()[0]
