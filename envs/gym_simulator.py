"""Any Gymnasium environment as a simulator, built from an :class:`~.simulator.EnvSpec`."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import NoneType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from ..errors import UsageError, raised
from ..gl import before_gl
from . import global_generators
from .gym_pictures import MujocoPictures, cameras_of, close_viewers, in_one_line, rendered
from .simulator import (
    ACTION,
    DRAWN,
    IMAGES,
    STATE,
    EnvironmentFault,
    EnvSpec,
    Feature,
    Outcome,
    Refusal,
    Simulator,
    View,
    check_actions,
)
from .snapshots import Snapshot, Uncopyable, take
from .video import squared

Path = tuple[Any, ...]
"""Keys of nested observations."""

Acted = tuple[Any, Any] | None
"""Actions since the reset, as the environment takes them: (those before, the last chunk)."""

WIDEST = 1e9
"""Bounds of an action that are further apart are no bounds, but an environment's way to have none."""


@dataclass(frozen=True, eq=False)
class _State:
    """A saved state.

    Attributes:
        owner: the environment that the snapshot was taken of; another one gets there by the same actions.
        snapshot: of everything, or of the wrappers alone if the spec saves.
        given: what the spec's ``save`` returned.
    """

    owner: Any
    snapshot: Snapshot
    given: Any
    observation: Any
    total_reward: float
    steps: int
    over: bool
    terminated: bool
    info: Mapping[str, Any]
    seed: int
    acted: Acted


class GymSimulator(Simulator):
    """One Gymnasium environment behind the :class:`~.simulator.Simulator` protocol.

    Images in an observation (uint8 boxes of three channels) are its cameras, by their keys. The rest is flattened as by
    ``gymnasium.spaces.flatten``. Actions are numbers in [-1, 1]: a Box is rescaled linearly to its bounds (a Box of
    integers to bins of equal width), a Discrete space of n is chosen by the largest of n numbers. An environment that
    says that it is over stays frozen: further steps change nothing.

    An id keeps its wrappers, but for the time limit and the checks that ``gymnasium.make`` adds. A state is everything
    that can be reached from the environment and its wrappers, as ``envs/snapshots.py`` says, or what the spec saves.

    Args:
        env: the environment, where the spec's ``make`` has built one.

    Raises:
        Refusal: an action space of another kind, a Box without bounds, observations that cannot be flattened, pictures
            that are none, or a layout that the observation lacks.
    """

    def __init__(self, spec: EnvSpec, env: Any = None) -> None:
        if spec.success is None:
            raise Refusal(f"{spec.source!r} is a Gymnasium environment: give its EnvSpec success, which judges it")
        self.spec, self._judge = spec, spec.success
        self._before: Snapshot | None = None
        self._drawing = False
        self._pictures = MujocoPictures(spec, self._at_seed_0)
        self._hold(self._made(spec.kwargs) if env is None else env)
        leaves = list(_leaves(self.env.observation_space))
        self._images = {_camera(path): (path, space) for path, space in leaves if _is_image(spec.source, path, space)}
        self._numbers = [(path, space) for path, space in leaves if _camera(path) not in self._images]
        self.observation_size = sum(_flat_size(spec.source, path, space) for path, space in self._numbers)
        self.cameras = tuple(self._images) or (DRAWN,)
        self._named = [name for name in cameras_of(self.env) if name not in (*self._images, DRAWN)]
        self.layout = _goals(self.env.observation_space, self._numbers)
        self.action_size, self._rescale = _decoder(spec, self.env.action_space)
        for name, part in {**spec.layout, "proprioception": spec.proprioception}.items():
            if len(range(self.observation_size)[part]) != (part.stop or 0) - (part.start or 0):
                raise Refusal(
                    f"{spec.source!r}: its EnvSpec places {name!r} at {part.start}:{part.stop} of an observation, "
                    f"which has {self.observation_size} numbers"
                )
        self._observation: Any = None
        self._flat: NDArray[np.float32] | None = None
        self.total_reward, self._earned, self._steps = 0.0, 0.0, 0
        self._terminated = self._over = False
        self._info: Mapping[str, Any] = {}
        self._seed, self._begun = 0, True
        self._acted: Acted = None

    def _hold(self, env: Any) -> None:
        """Work with an environment from now on."""
        self.env: Any = env
        self._windows: dict[int, dict[str, Any]] = {}
        self._chain = [env]
        while isinstance(self._chain[-1], gymnasium.Wrapper):
            self._chain.append(self._chain[-1].env)
        self._inner: Any = self._chain[-1] if self.spec.id else env

    @property
    def features(self) -> Mapping[str, Feature]:
        action = Feature((self.action_size,), *_bounds(self.spec, self.env.action_space))
        sizes = {STATE: Feature((self.observation_size,)), ACTION: action}
        shapes = {name: (*_side(space), 3) for name, (_, space) in self._images.items()} or {DRAWN: ()}
        shapes |= dict.fromkeys(self._named, ())
        return sizes | {IMAGES + name: Feature(shape) for name, shape in shapes.items()}

    def reset(self, seed: int) -> None:
        seeded = self._seed_spaces(seed, {})
        try:
            answer = self.env.reset(seed=seed)
            self._seed_spaces(seed, seeded)  # some make their spaces anew
            if not isinstance(answer, tuple) or len(answer) != 2:
                raise UsageError(f"reset returned {_described(answer)}; Gymnasium's returns (observation, info)")
        except Exception as error:
            raise EnvironmentFault(f"at its reset (step 0): {raised(error)}") from error
        self._observation, self._info = answer
        self._flat = None
        self.total_reward, self._steps = 0.0, 0
        self._terminated = self._over = False
        self._seed, self._acted, self._begun = seed, None, True

    def _seed_spaces(self, seed: int, seeded: dict[int, Any]) -> dict[int, Any]:
        """Let the seed decide what an environment draws from its spaces, but for those that were seeded already."""
        found = {id(space): space for each in self._chain for space in (each.action_space, each.observation_space)}
        for key, space in found.items():
            if key not in seeded:
                with suppress(Exception):
                    space.seed(seed)
        return found

    def save(self) -> _State:
        """Everything that decides what happens next.

        Raises:
            Refusal: there is something that cannot be copied, and the spec does not say how.
        """
        given = None if self.spec.save is None else self.spec.save(self._inner)
        own = self.spec.save is None
        roots, apart = (self._chain, []) if own else (self._chain[: self._chain.index(self._inner)], [self._inner])
        try:
            first, self._before = self._before is None, take(roots, self._before, apart, thorough=self._begun)
            self._begun = False
            if first and own:
                self.instance_size = self._before.nbytes + self._before.models
        except Uncopyable as error:
            raise Refusal(
                f"the state of {self.spec.source!r} cannot be copied: {error}; give its EnvSpec save and restore"
            ) from error
        return _State(
            *(self.env, self._before, given, _copied(self._observation), self.total_reward, self._steps),
            *(self._over, self._terminated, _copied(self._info), self._seed, self._acted),
        )

    def restore(self, state: _State) -> None:
        if state.owner is self.env or (self.spec.restore is not None and self._inner is self.env):
            state.snapshot.put_back()
            if self.spec.restore is not None:
                self.spec.restore(self._inner, state.given)
        else:
            self._replay(state.seed, state.acted)
        self._observation, self._info = _copied(state.observation), _copied(state.info)
        self._flat = None
        self.total_reward, self._steps = state.total_reward, state.steps
        self._over, self._terminated = state.over, state.terminated
        self._seed, self._acted = state.seed, state.acted

    def observe(self) -> NDArray[np.float32]:
        if self._flat is None:
            self._flat = self._flattened()
        return self._flat.copy()

    def _flattened(self) -> NDArray[np.float32]:
        parts = [np.empty(0, np.float32)]
        for path, space in self._numbers:
            value = _at(self._observation, path)
            plain = type(space) is spaces.Box  # quicker than flatten, and the same
            parts.append(np.asarray(value, space.dtype).reshape(-1) if plain else np.asarray(flatten(space, value)))
        numbers: NDArray[np.float32] = np.concatenate(parts, dtype=np.float32, casting="unsafe")
        if numbers.size != self.observation_size:
            raise EnvironmentFault(
                f"at step {self._steps}: an observation of {numbers.size} numbers, where its space has "
                f"{self.observation_size}"
            )
        return numbers

    def step(self, actions: NDArray[np.float32]) -> None:
        check_actions(self.spec.source, actions, self.action_size)
        self.execute(self.decode(actions))

    def decode(self, actions: NDArray[np.float32]) -> Any:
        return self._rescale(actions)

    def execute(self, chunk: Any) -> None:
        self._acted = (self._acted, chunk)
        self._earned, self._flat = 0.0, None
        for action in chunk:
            if self._over:
                return
            try:
                answer = self.env.step(action)
                self._observation, reward, self._terminated, truncated, self._info = _checked(answer)
                self.total_reward += reward
                self._earned += reward
            except Exception as error:
                raise EnvironmentFault(f"at step {self._steps + 1}: {raised(error)}") from error
            self._steps += 1
            self._over = bool(self._terminated or truncated)

    def success(self) -> bool:
        """What the spec's ``success`` says; before the first step an info that lacks what it reads is no success."""
        outcome = Outcome(self.observe(), self.total_reward, self._steps, self._terminated, self._info)
        try:
            return bool(self._judge(outcome))
        except Exception as error:
            if self._steps == 0 and isinstance(error, KeyError):
                return False
            raise EnvironmentFault(f"success at step {self._steps}: {raised(error)}") from error

    def remarks(self) -> list[str]:
        """A success that misses an info at the reset, observations outside their space, draws from the spaces."""
        found = []
        if self._steps == 0:
            try:
                self._judge(Outcome(self.observe(), self.total_reward, 0, self._terminated, self._info))
            except KeyError as error:
                found.append(f"success reads what the info of a reset lacks (KeyError: {error}): no success there")
            except Exception:  # told where it is asked for
                pass
        space = self.env.observation_space
        if not space.contains(self._observation):
            found.append(f"an observation is outside its space {space}".replace("\n", " "))
        if isinstance(self._inner.action_space, (spaces.Box, spaces.Discrete)):
            generator = self._inner.action_space.np_random
            if generator.bit_generator.state != np_random(self._seed)[0].bit_generator.state:
                found.append("it draws from its action_space, which is seeded and restored with each episode")
        return found

    def state_size(self, state: _State) -> int:
        return state.snapshot.nbytes + (0 if state.given is None else len(cloudpickle.dumps(state.given)))

    def reward(self) -> float:
        """The sum of the rewards of the last chunk's steps."""
        return self._earned

    @property
    def over(self) -> bool:
        return self._over

    @property
    def terminated(self) -> bool:
        return self._terminated

    def expert(self) -> Callable[[], NDArray[np.float32]] | None:
        expert = self.spec.expert
        if expert is None:
            return None

        def act() -> NDArray[np.float32]:
            action = np.asarray(expert(self._inner, self.observe()), np.float32)
            check_actions(f"the expert of {self.spec.source}", action[None], self.action_size)
            return np.clip(action, -1, 1)

        return act

    def frame(self, view: View, camera: str = "") -> NDArray[np.uint8]:
        """One of the environment's image observations, resized; what it renders ("main"); a camera of MuJoCo's model.

        Raises:
            RenderingUnavailable: it cannot be drawn, for whatever reason.
            Refusal: there is no such camera, or what it renders is no picture.
        """
        camera = camera or (view.cameras or self.cameras)[0]
        if camera in self._images:
            path, space = self._images[camera]
            picture = _at(self._observation, path)
            picture = picture if space.shape[-1] == 3 else np.moveaxis(picture, 0, -1)
        elif camera == DRAWN or camera in self._named:
            with in_one_line(self.spec.source):
                picture = self._pictures.frame(self.env, view, camera)
                if picture is None:
                    picture = self._rendered()
        else:
            known = ", ".join((*self.cameras, *self._named))
            raise Refusal(f"{self.spec.source!r} has no camera {camera!r}: there is {known}")
        shape: tuple[int, ...] = getattr(picture, "shape", ())
        kind = getattr(picture, "dtype", type(picture).__name__)
        if len(shape) != 3 or shape[2] != 3 or kind != np.uint8:
            raise Refusal(f"{self.spec.source!r} rendered {kind} of shape {shape}; pictures are uint8 [H, W, 3]")
        return squared(picture, view.size)

    def close(self) -> None:
        self._pictures.close()
        close_viewers(self.env)
        self.env.close()

    @contextmanager
    def _at_seed_0(self) -> Iterator[Any]:
        """An environment of this kind at the start of seed 0, for as long as it is looked at."""
        other = GymSimulator(self.spec)
        try:
            with global_generators.kept():
                global_generators.seed(0)
                other.reset(0)
            yield other.env
        finally:
            other.close()

    def _made(self, kwargs: Mapping[str, Any]) -> Any:
        if self.spec.make is not None:
            return self.spec.make(**kwargs)
        env = gymnasium.make(self.spec.id, **{"disable_env_checker": True, "max_episode_steps": -1, **kwargs})
        return env.env if type(env) is gymnasium.wrappers.OrderEnforcing else env

    def _replay(self, seed: int, acted: Acted) -> None:
        """Go where the actions since a reset led."""
        chunks = []
        while acted is not None:
            acted, chunk = acted
            chunks.append(chunk)
        with global_generators.kept():
            global_generators.seed(seed)
            self.reset(seed)
            for chunk in reversed(chunks):
                self.execute(chunk)

    def _rendered(self) -> Any:
        """The environment's own rendering.

        One that was not made to render is exchanged for one that was, which gets here by the same actions. What a
        viewer decides at its first picture, such as where its camera looks, it decides at the start of seed 0, so that
        pictures do not depend on what was drawn before.
        """
        if not self._drawing:
            before_gl()
            if "mujoco" in sys.modules:  # its own viewers ask MUJOCO_GL, and take what does not work without it
                from .rendering import settle_backend

                settle_backend()
            self._begin_to_draw()
            self._drawing = True
        return self._drawn()

    def _begin_to_draw(self) -> None:
        old, seed, acted = self.env, self._seed, self._acted
        state = None
        if old.render_mode != "rgb_array":
            self._hold(self._made({**self.spec.kwargs, "render_mode": "rgb_array"}))
        else:
            with suppress(Refusal):
                state = self.save()
        try:
            with global_generators.kept():
                self.reset(0)
                self._drawn()
        except BaseException:
            self._hold(old)
            raise
        finally:
            if state is None:
                self._replay(seed, acted)
            else:
                self.restore(state)
        if old is not self.env:
            self._before = None
            old.close()

    def _drawn(self) -> Any:
        return rendered(self.env, self._chain, self._windows)


def _checked(answer: Any) -> tuple[Any, float, bool, bool, Mapping[str, Any]]:
    """What a step returned.

    Raises:
        UsageError: it is not what Gymnasium's returns.
    """
    if not isinstance(answer, tuple) or len(answer) != 5:
        raise UsageError(
            f"step returned {_described(answer)}; Gymnasium's returns 5 values "
            "(observation, reward, terminated, truncated, info)"
        )
    observation, reward, terminated, truncated, info = answer
    try:
        number = float(reward)
    except (TypeError, ValueError) as error:
        raise UsageError(f"step returned the reward {reward!r}, which is no number") from error
    if math.isnan(number):
        raise UsageError("step returned the reward nan")
    return observation, number, bool(terminated), bool(truncated), info


def _described(answer: Any) -> str:
    return f"{len(answer)} values" if isinstance(answer, tuple) else f"a {type(answer).__name__}"


def _copied(value: Any) -> Any:
    """An observation or an info of its own: an environment may go on writing into what it returned."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (float, int, bool, str, np.float64, NoneType):
        return value
    if type(value) is dict:
        return {name: _copied(each) for name, each in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:  # a handle in an info is no state
        return value


def _leaves(space: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The parts of nested spaces, in the order in which they are flattened."""
    if isinstance(space, spaces.Dict):
        for name, part in space.spaces.items():
            yield from _leaves(part, (*path, name))
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, index))
    else:
        yield path, space


def _at(observation: Any, path: Path) -> Any:
    for key in path:
        observation = observation[key]
    return observation


def _camera(path: Path) -> str:
    """LeRobot forbids "/" in names, and its environments keep their cameras in "pixels"."""
    path = path[1:] if path[:1] == ("pixels",) and len(path) > 1 else path
    return ".".join(str(key) for key in path).removeprefix(IMAGES) or DRAWN


def _is_image(source: str, path: Path, space: Any) -> bool:
    """Whether a part of an observation is a picture.

    Raises:
        Refusal: it has a picture's type and number of axes, and another number of channels.
    """
    if not (isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3):
        return False
    if 3 not in (space.shape[0], space.shape[-1]):
        raise Refusal(
            f"{source!r}: its observation {_camera(path)!r} is uint8 {list(space.shape)}, no picture [H, W, 3], "
            "and not flattened into numbers: wrap the environment, and give its EnvSpec make"
        )
    return True


def _side(space: Any) -> tuple[int, ...]:
    """Height and width of an image space, channels last or first."""
    shape: tuple[int, ...] = space.shape
    return shape[:2] if shape[-1] == 3 else shape[1:]


def _goals(space: Any, numbers: list[tuple[Path, Any]]) -> dict[str, slice]:
    """Where a dictionary of goals has what is achieved ("object") and what is desired ("goal"), flattened.

    Nothing in other spaces, or if the two have different sizes and cannot be compared.
    """
    named = {"achieved_goal": "object", "desired_goal": "goal"}
    if not (isinstance(space, spaces.Dict) and {*named, "observation"} <= {*space.spaces}):
        return {}
    places: dict[Any, slice] = {}
    start = 0
    for path, part in numbers:
        size, old = flatdim(part), places.get(path[0])
        places[path[0]] = slice(start if old is None else old.start, start + size)
        start += size
    found = {name: places[key] for key, name in named.items() if key in places}
    return found if len({part.stop - part.start for part in found.values()}) == 1 else {}


def _flat_size(source: str, path: Path, space: Any) -> int:
    """How many numbers a part of an observation is flattened into.

    Raises:
        Refusal: it has no fixed size, or is no numbers.
    """
    try:
        return int(flatdim(space))
    except (NotImplementedError, ValueError, TypeError) as error:
        part = f" {_camera(path)!r}" if path else ""
        raise Refusal(
            f"{source!r}: its observation{part} is a {type(space).__name__}, which cannot be flattened into numbers: "
            "wrap the environment so that it shows numbers or pictures, and give its EnvSpec make"
        ) from error


def _bounds(spec: EnvSpec, space: gymnasium.Space[Any]) -> tuple[Any, Any]:
    """What -1 and 1 of an action stand for, in the robot's own units; None each where they are choices."""
    if not isinstance(space, spaces.Box):
        return None, None
    own = spec.features.get(ACTION, Feature())
    low, high = (tuple(side.reshape(-1).tolist()) for side in (space.low, space.high))
    return low if own.low is None else own.low, high if own.high is None else own.high


def _decoder(spec: EnvSpec, space: gymnasium.Space[Any]) -> tuple[int, Callable[[NDArray[np.float32]], Any]]:
    """How many numbers in [-1, 1] make an action, and how.

    Raises:
        Refusal: neither Discrete nor a Box, or a Box without bounds or with bounds that are none.
    """
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return int(space.n), lambda actions: (first + np.argmax(actions, -1)).tolist()
    feature = spec.features.get(ACTION, Feature())
    if isinstance(space, spaces.Box):
        low, high = (
            np.broadcast_to(np.asarray(theirs if ours is None else ours, np.float64), space.shape)
            for theirs, ours in ((space.low, feature.low), (space.high, feature.high))
        )
        if np.isfinite(low).all() and np.isfinite(high).all():
            widest = float(np.max(high / 2 - low / 2, initial=0)) * 2
            if widest > WIDEST or (high < low).any():
                raise Refusal(
                    f"{spec.source!r}: the bounds of its action are up to {widest:.3g} apart, of which a number in "
                    "[-1, 1] says nothing: give bounds, the action in its EnvSpec's features"
                )
            return flatdim(space), _rescaler(space, low, high)
    raise Refusal(
        f"{spec.source!r} has the action space {space}; supported are Discrete and Box with finite bounds "
        "(of its own, or of the action in its EnvSpec's features)"
    )


def _rescaler(
    space: spaces.Box, low: NDArray[np.float64], high: NDArray[np.float64]
) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """[..., A] in [-1, 1] -> the bounds; whole numbers have bins of equal width, the lowest and highest too."""
    whole = np.issubdtype(space.dtype, np.integer)
    bottom, width = (low - 0.5, high - low + 1) if whole else (low, high - low)
    lowest, highest = low.astype(space.dtype), high.astype(space.dtype)
    shape, kind = space.shape, space.dtype

    def rescale(actions: NDArray[np.float32]) -> NDArray[Any]:
        given = actions.astype(np.float64).reshape(actions.shape[:-1] + shape)
        unit = (np.minimum(np.maximum(given, -1), 1) + 1) / 2
        scaled = bottom + unit * width
        if whole:
            scaled = np.minimum(np.maximum(np.rint(scaled), low), high)
        result: NDArray[Any] = np.minimum(np.maximum(scaled.astype(kind), lowest), highest)
        return result

    return rescale
