"""Small environments as other people write them: each breaks one habit that a copy of its state may rely on.

All of them are a point in the plane that an action [2] moves by up to a quarter per axis; it is to come to a mark.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import deque
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle

UNIT = spaces.Box(-1, 1, (2,), np.float32)
PLANE = spaces.Box(-100, 100, (4,), np.float32)


class Plain(gymnasium.Env[Any, Any]):
    """Nothing strange: the point, the mark, and a reward for being near it."""

    observation_space: spaces.Space[Any] = PLANE
    action_space: spaces.Space[Any] = UNIT

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.pos, self.mark = self.np_random.uniform(-1, 1, 2), self.np_random.uniform(-1, 1, 2)
        self.begin()
        return self.seen(), {}

    def begin(self) -> None:
        """What a kind of environment adds to a reset."""

    def move(self, action: Any) -> None:
        self.pos = self.pos + 0.25 * np.asarray(action, float)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.move(action)
        return self.seen(), self.reward(), False, False, {}

    def reward(self) -> float:
        return float(np.linalg.norm(self.pos - self.mark) < 0.3)

    def seen(self) -> Any:
        return np.concatenate([self.pos, self.mark]).astype(np.float32)


class BoundMethod(Plain):
    """Its reward is a bound method, chosen when it is made."""

    def __init__(self) -> None:
        self.chosen = super().reward

    def reward(self) -> float:
        return self.chosen()


class Task:
    """Knows the environment that it belongs to."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def reward(self) -> float:
        return float(np.linalg.norm(self.env.pos - self.env.mark) < 0.3)


class BackReference(Plain):
    def __init__(self) -> None:
        self.task = Task(self)

    def reward(self) -> float:
        return self.task.reward()


class Inner(Plain, EzPickle):
    """Is pickled as its constructor's arguments."""

    def __init__(self, scale: float = 1.0) -> None:
        EzPickle.__init__(self, scale)
        self.scale = scale
        self.reset(seed=0)

    def move(self, action: Any) -> None:
        super().move(self.scale * np.asarray(action))


class Outer(Plain):
    """Holds another environment, whose reward is its own, as AntMaze holds an ant."""

    def __init__(self) -> None:
        self.inner = Inner(1.5)

    def begin(self) -> None:
        self.inner.reset(seed=int(self.np_random.integers(1000)))

    def move(self, action: Any) -> None:
        self.pos = self.inner.step(action)[0][:2].astype(float)


WORLDS: dict[int, list[Any]] = {}
"""Worlds of a server, by handle."""


class Handle(Plain):
    """Its world lives elsewhere, behind a number."""

    def __init__(self) -> None:
        self.client = len(WORLDS)
        WORLDS[self.client] = [np.zeros(2)]

    def begin(self) -> None:
        WORLDS[self.client][0] = self.pos.copy()

    def move(self, action: Any) -> None:
        WORLDS[self.client][0] = WORLDS[self.client][0] + 0.25 * np.asarray(action, float)
        self.pos = WORLDS[self.client][0].copy()


class Client:
    """Disconnects the world for everyone when it is collected."""

    connected: ClassVar[set[int]] = set()

    def __init__(self, number: int) -> None:
        self.number = number
        self.connected.add(number)

    def __del__(self) -> None:
        self.connected.discard(self.number)


class Disconnects(Handle):
    """As PyBullet's clients do."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = Client(self.client)

    def move(self, action: Any) -> None:
        if self.client not in Client.connected:
            raise RuntimeError("Not connected to physics server.")
        super().move(action)


class InPlace(Plain):
    """What it returns is the state itself, which it changes in place."""

    observation_space = spaces.Box(-100, 100, (2,), np.float64)

    def __init__(self) -> None:
        self.pos = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        gymnasium.Env.reset(self, seed=seed)
        self.pos[:], self.mark = self.np_random.uniform(-1, 1, 2), np.zeros(2)
        return self.pos, {}

    def move(self, action: Any) -> None:
        self.pos += 0.25 * np.asarray(action, float)

    def seen(self) -> Any:
        return self.pos


class Late(Plain):
    """Something that it notes does not exist before it happens."""

    observation_space = spaces.Box(-100, 100, (5,), np.float32)

    def begin(self) -> None:
        if hasattr(self, "touched"):
            del self.touched

    def move(self, action: Any) -> None:
        super().move(action)
        if np.linalg.norm(self.pos) > 1:
            self.touched = True

    def seen(self) -> Any:
        return np.append(super().seen(), np.float32(getattr(self, "touched", False)))


class GlobalNumpy(Plain):
    """Draws from NumPy's global generator."""

    def move(self, action: Any) -> None:
        super().move(action)
        self.pos = self.pos + np.random.normal(0, 0.1, 2)


class GlobalRandom(Plain):
    """Draws from Python's global generator, where it starts too."""

    def begin(self) -> None:
        self.pos = np.array([random.random(), random.random()])

    def move(self, action: Any) -> None:
        super().move(action)
        self.pos = self.pos + random.random() / 10


class Samples(Plain):
    """Acts by itself every other time: draws from its action space."""

    def __init__(self) -> None:
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.count = 0

    def move(self, action: Any) -> None:
        self.count += 1
        super().move(action if self.count % 2 else self.action_space.sample())


class OfItsClass(Plain):
    """Keeps its state on the class."""

    drift: ClassVar[float] = 0.0

    def begin(self) -> None:
        type(self).drift = 0.0

    def move(self, action: Any) -> None:
        super().move(action)
        type(self).drift += float(action[0])
        self.pos = self.pos + 0.01 * type(self).drift


class Closure(Plain):
    """Counts in a variable of a function."""

    def __init__(self) -> None:
        count = 0

        def wind(reset: bool) -> float:
            nonlocal count
            count = 0 if reset else count + 1
            return 0.01 * count

        self.wind = wind

    def begin(self) -> None:
        self.wind(True)

    def move(self, action: Any) -> None:
        super().move(action)
        self.pos = self.pos + self.wind(False)


class Slotted:
    __slots__ = ("count", "owner")

    def __init__(self, owner: Any) -> None:
        self.owner, self.count = owner, 0


class Containers(Plain):
    """Lists, deques, sets, slots, views and generators, several of them one thing under two names."""

    def __init__(self) -> None:
        self.past: deque[float] = deque(maxlen=3)
        self.cells: set[int] = set()
        self.slotted = Slotted(self)
        self.same = self.slotted
        self.arena = np.zeros(6)
        self.window = self.arena[2:4]
        self.nested = {"a": [{"wind": 0.0}]}
        self.wind = self.nested["a"][0]
        self.bytes = bytearray(2)
        self.draw = random.Random(0)
        self.old = np.random.RandomState(0)
        self.ticks: Any = itertools.count()

    def begin(self) -> None:
        self.past.clear()
        self.cells.clear()
        self.slotted.count = 0
        self.arena[:] = 0
        self.wind["wind"] = 0.0
        self.bytes[:] = b"\0\0"
        seed = int(self.np_random.integers(1000))
        self.draw.seed(seed)
        self.old.seed(seed)
        self.ticks = itertools.count(seed)

    def move(self, action: Any) -> None:
        super().move(action)
        self.past.append(float(self.pos[0]))
        self.cells.add(int(self.pos[0] * 8))
        self.same.count += 1
        self.window += np.asarray(action)
        self.nested["a"][0]["wind"] += 0.01
        self.bytes[0] = (self.bytes[0] + 1) % 256
        drawn = self.draw.random() + self.old.rand() + self.wind["wind"] + self.bytes[0] / 100
        more = sum(self.past) + len(self.cells) + self.slotted.count + self.arena.sum() + next(self.ticks) % 7
        self.pos = self.pos + 0.01 * drawn + 0.01 * more


class Iterates(Plain):
    """Its wind comes from a generator, which nothing can copy."""

    def begin(self) -> None:
        self.winds = (0.01 * i for i in range(1000))

    def move(self, action: Any) -> None:
        super().move(action)
        self.pos = self.pos + next(self.winds)


class Unpicklable(Plain):
    """Forbids to be copied, though it is plain numbers."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("do not copy me")

    def __reduce__(self) -> Any:
        raise TypeError("do not pickle me")


class OneInfo(Plain):
    """Returns one and the same info, which it changes."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {"count": 0}

    def begin(self) -> None:
        self.info["count"] = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.info["count"] += 1
        self.move(action)
        return self.seen(), 0.0, False, False, self.info


class Leaves(Plain):
    """Its reset leaves something of the last episode behind."""

    wind = 0.0

    def move(self, action: Any) -> None:
        super().move(action)
        self.wind += 0.01
        self.pos = self.pos + self.wind


class SeedIgnored(Plain):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=None)


class OneStart(Plain):
    def begin(self) -> None:
        self.pos, self.mark = np.zeros(2), np.ones(2)


class Undetermined(Plain):
    """Differs with every process and every time."""

    def move(self, action: Any) -> None:
        super().move(action)
        self.pos = self.pos + int.from_bytes(os.urandom(2), "big") / 65536


class Narrow(Plain):
    """Shows what its space has no room for."""

    observation_space = spaces.Box(-0.01, 0.01, (4,), np.float32)


class Heavy(Plain):
    """Carries a map of four megabytes that never changes."""

    def __init__(self) -> None:
        self.map = np.zeros((1024, 1024), np.float32)


class Viewer:
    """Centres its picture on what it saw first."""

    made: ClassVar[int] = 0

    def __init__(self, centre: Any) -> None:
        type(self).made += 1
        self.centre = np.array(centre)
        self.handle = (i for i in ())  # as what a window library returns

    def picture(self, pos: Any) -> Any:
        shift = np.clip((pos - self.centre) * 20 + 128, 0, 255).astype(np.uint8)
        return np.tile(np.array([*shift, 0], np.uint8), (8, 8, 1))


class Filmed(Plain):
    """Has a renderer from the beginning, which opens a viewer at its first picture."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.renderer = PlainRenderer(self)

    def render(self) -> Any:
        return self.renderer.render()


class PlainRenderer:
    def __init__(self, env: Any) -> None:
        self.env, self.viewer = env, None

    def render(self) -> Any:
        self.viewer = self.viewer or Viewer(self.env.pos)  # type: ignore[assignment]
        return self.viewer.picture(self.env.pos)  # type: ignore[attr-defined]


class NoDrawing(Plain):
    """Fails to draw in the way that it is told."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, error: type[Exception], render_mode: str | None = None) -> None:
        self.error, self.render_mode = error, render_mode

    def render(self) -> Any:
        raise self.error("no display\nand more")


# --- wrappers


class Twice(gymnasium.ActionWrapper[Any, Any, Any]):
    def action(self, action: Any) -> Any:
        return 2 * action


class Relative(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Shows where the mark is, seen from the point."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-100, 100, (3,), np.float32)

    def observation(self, observation: Any) -> Any:
        return np.append(observation[2:] - observation[:2], np.float32(1))


class Sums(gymnasium.ObservationWrapper[Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Adds up what it has shown."""

    def __init__(self, env: Any) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.total = np.zeros(4, np.float32)

    def reset(self, **kwargs: Any) -> Any:
        self.total[:] = 0
        return super().reset(**kwargs)

    def observation(self, observation: Any) -> Any:
        self.total += observation
        return self.total.copy()


def wrapped() -> Any:
    return Relative(Twice(Plain()))


def stacked() -> Any:
    return gymnasium.wrappers.FrameStackObservation(Sums(Plain()), 3)


# --- environments that go wrong


class Wrong(Plain):
    """Goes wrong in a way, in every state right of a line: at the start, or where it went.

    Args:
        how: what happens there.
        beyond: where the line is.
    """

    def __init__(self, how: str, beyond: float = 1.2) -> None:
        self.how, self.beyond = how, beyond

    def begin(self) -> None:
        self.pos = np.zeros(2)

    def move(self, action: Any) -> None:
        super().move(action)
        if self.pos[0] <= self.beyond:
            return
        if self.how == "raise":
            raise RuntimeError("the simulation is unstable")
        if self.how == "exit":
            os._exit(3)
        if self.how == "abort":
            os.abort()
        if self.how == "hang":
            time.sleep(3600)
        if self.how == "nan":
            self.pos = self.pos * np.nan

    def seen(self) -> Any:
        if self.how == "shape" and self.pos[0] > self.beyond:
            return np.zeros(3, np.float32)
        return super().seen()


class WrongStart(Plain):
    """Some seeds have no start."""

    def __init__(self, how: str) -> None:
        self.how = how

    def begin(self) -> None:
        if (self._np_random_seed or 0) % 3 != 1:
            return
        if self.how == "raise":
            raise RuntimeError("no free place")
        if self.how == "exit":
            os._exit(3)
        self.pos = self.pos * np.nan


class Told(Plain):
    """Tells success in its info, which it does not have at the reset."""

    def begin(self) -> None:
        self.solved = False

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, *_ = super().step(action)
        self.solved |= bool(reward)
        return observation, reward, False, False, {"is_success": self.solved}


class Returns(Plain):
    """Its step returns what it is told to."""

    def __init__(self, answer: tuple[Any, ...]) -> None:
        self.answer = answer

    def step(self, action: Any) -> Any:
        return self.answer


class Acts(Plain):
    """Has the action space that it is told to have, and notes the last action."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.action_space = space

    def move(self, action: Any) -> None:
        self.last = action


class Observes(Plain):
    """Has the observation space that it is told to have, and shows a sample of it."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = space

    def seen(self) -> Any:
        self.observation_space.seed(0)
        return self.observation_space.sample()


class Mission(spaces.Space[str]):
    """A sentence, of a space of its own, as MiniGrid's."""

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "go to the red ball"

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)


class SharedCount(Plain):
    """All instances count their steps together, and the wind grows with the count."""

    count: ClassVar[int] = 0

    def begin(self) -> None:
        SharedCount.count = 0

    def move(self, action: Any) -> None:
        super().move(action)
        SharedCount.count += 1
        self.pos = self.pos + 0.01 * SharedCount.count
