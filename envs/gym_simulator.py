"""Any Gymnasium environment as a simulator, built from an :class:`~.simulator.EnvSpec`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten
from numpy.typing import NDArray
from PIL import Image

from .simulator import (
    ACTION,
    DRAWN,
    IMAGES,
    STATE,
    EnvSpec,
    Feature,
    Outcome,
    Refusal,
    RenderingUnavailable,
    Simulator,
    View,
)

Path = tuple[Any, ...]
"""Keys of nested observations."""


@dataclass(frozen=True, eq=False)
class _State:
    environment: Any
    observation: Any
    total_reward: float
    steps: int
    over: bool
    terminated: bool
    info: Mapping[str, Any]


class GymSimulator(Simulator):
    """One Gymnasium environment behind the :class:`~.simulator.Simulator` protocol.

    Images in an observation (uint8 boxes of three channels) are its cameras, by their keys. The rest is flattened as by
    ``gymnasium.spaces.flatten``. Actions are numbers in [-1, 1]: a Box is rescaled linearly to its bounds, a Discrete
    space of n is chosen by the largest of n numbers. An environment that says that it is over stays frozen: further
    steps change nothing.

    Args:
        env: the environment, where the spec's ``make`` has built one.

    Raises:
        Refusal: an action space of another kind, a Box without bounds, pictures that are none, or a layout that the
            observation lacks.
    """

    def __init__(self, spec: EnvSpec, env: Any = None) -> None:
        if spec.success is None:
            raise Refusal(f"{spec.source!r} is a Gymnasium environment: give its EnvSpec success, which judges it")
        self.spec, self._judge = spec, spec.success
        self.env: Any = self._made(spec.kwargs) if env is None else env
        leaves = list(_leaves(self.env.observation_space))
        self._images = {_camera(path): (path, space) for path, space in leaves if _is_image(spec.source, path, space)}
        self._numbers = [(path, space) for path, space in leaves if _camera(path) not in self._images]
        self.observation_size = sum(flatdim(space) for _, space in self._numbers)
        self.cameras = tuple(self._images) or (DRAWN,)
        self.action_size, self._decode = _decoder(spec, self.env.action_space)
        for name, part in {**spec.layout, "proprioception": spec.proprioception}.items():
            if len(range(self.observation_size)[part]) != (part.stop or 0) - (part.start or 0):
                raise Refusal(
                    f"{spec.source!r}: its EnvSpec places {name!r} at {part.start}:{part.stop} of an observation, "
                    f"which has {self.observation_size} numbers"
                )
        self._observation: Any = None
        self._total_reward, self._steps = 0.0, 0
        self._terminated = self._over = False
        self._info: Mapping[str, Any] = {}
        self._painter: Any = None
        self._windows: dict[str, Any] = {}

    @property
    def features(self) -> Mapping[str, Feature]:
        sizes = {STATE: Feature((self.observation_size,)), ACTION: Feature((self.action_size,))}
        shapes = {name: (*_side(space), 3) for name, (_, space) in self._images.items()} or {DRAWN: ()}
        return sizes | {IMAGES + name: Feature(shape) for name, shape in shapes.items()}

    def reset(self, seed: int) -> None:
        observation, self._info = self.env.reset(seed=seed)
        self._observation = self._owned(observation)
        self._total_reward, self._steps = 0.0, 0
        self._terminated = self._over = False

    def save(self) -> _State:
        state = self.spec.save(self.env) if self.spec.save else self._copy_attributes()
        return _State(
            state, self._observation, self._total_reward, self._steps, self._over, self._terminated, self._info
        )

    def restore(self, state: _State) -> None:
        self._write(self.env, state.environment)
        self._observation, self._info = state.observation, state.info
        self._total_reward, self._steps = state.total_reward, state.steps
        self._over, self._terminated = state.over, state.terminated

    def observe(self) -> NDArray[np.float32]:
        if not self._images:
            return np.array(flatten(self.env.observation_space, self._observation), np.float32)
        parts: list[Any] = [flatten(space, _at(self._observation, path)) for path, space in self._numbers]
        return np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float32)

    def step(self, actions: NDArray[np.float32]) -> None:
        for action in actions:
            if self._over:
                return
            self._observation, reward, self._terminated, truncated, self._info = self.env.step(self._decode(action))
            self._total_reward += float(reward)
            self._steps += 1
            self._over = self._terminated or truncated
        self._observation = self._owned(self._observation)

    def success(self) -> bool:
        outcome = Outcome(self.observe(), self._total_reward, self._steps, self._terminated, self._info)
        return bool(self._judge(outcome))

    def expert(self) -> Callable[[], NDArray[np.float32]] | None:
        expert = self.spec.expert
        if expert is None:
            return None
        return lambda: np.clip(expert(self.env, self.observe()), -1, 1).astype(np.float32)

    def frame(self, view: View, camera: str = "") -> NDArray[np.uint8]:
        """One of the environment's image observations, or the picture that it renders ("main"), resized."""
        camera = camera or (view.cameras or self.cameras)[0]
        if camera in self._images:
            path, space = self._images[camera]
            picture = _at(self._observation, path)
            picture = picture if space.shape[-1] == 3 else np.moveaxis(picture, 0, -1)
        elif camera == DRAWN:
            picture = self._rendered()
        else:
            raise Refusal(f"{self.spec.source!r} has no camera {camera!r}: there is {', '.join(self.cameras)}")
        shape: tuple[int, ...] = getattr(picture, "shape", ())
        kind = getattr(picture, "dtype", type(picture).__name__)
        if len(shape) != 3 or shape[2] != 3 or kind != np.uint8:
            raise Refusal(f"{self.spec.source!r} rendered {kind} of shape {shape}; pictures are uint8 [H, W, 3]")
        if shape[:2] == (view.size, view.size):
            return np.array(picture)
        return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((view.size, view.size)), np.uint8)

    def close(self) -> None:
        self.env.close()
        if self._painter is not None:
            self._painter.close()

    def _owned(self, observation: Any) -> Any:
        """Pictures are often drawn into one and the same array: what is remembered must not change with it."""
        return copy.deepcopy(observation) if self._images else observation

    def _made(self, kwargs: Mapping[str, Any]) -> Any:
        if self.spec.make is not None:
            return self.spec.make(**kwargs)
        return gymnasium.make(self.spec.id, disable_env_checker=True, **kwargs).unwrapped

    def _rendered(self) -> Any:
        """The environment's own rendering: of this instance if it was made to render, else of a second one."""
        try:
            if self.env.render_mode == "rgb_array":
                return self._rendered_here()
            if self._painter is None:
                self._painter = self._made({**self.spec.kwargs, "render_mode": "rgb_array"})
                self._painter.reset(seed=0)
            self._write(self._painter, self.save().environment)
            return self._painter.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise RenderingUnavailable(f"{self.spec.source} cannot be drawn: {error}") from error
        except TypeError as error:
            if "render_mode" not in str(error):
                raise
            raise Refusal(
                f"{self.spec.source!r} has neither image observations nor a render_mode to draw by"
            ) from error

    def _rendered_here(self) -> Any:
        """A picture, with what rendering opens (windows, clocks) kept out of the state, which is to be copied."""
        attributes = vars(self.env)
        before = dict(attributes)
        attributes.update(self._windows)
        try:
            return self.env.render()
        finally:
            self._windows = {
                name: value
                for name, value in attributes.items()
                if value is not None and before.get(name) is None and name not in _CONSTANT
            }
            attributes.clear()
            attributes.update(before)

    def _copy_attributes(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self.env).items() if name not in _CONSTANT}
        try:
            return copy.deepcopy(kept)
        except Exception as error:
            raise Refusal(
                f"the state of {self.spec.source!r} cannot be copied ({type(error).__name__}: {error}), so its "
                "episodes cannot take turns: give its EnvSpec save and restore"
            ) from error

    def _write(self, env: Any, state: Any) -> None:
        if self.spec.restore:
            self.spec.restore(env, state)
        else:
            vars(env).update(copy.deepcopy(state))


_CONSTANT = frozenset({"spec", "action_space", "observation_space", "metadata", "render_mode", "reward_range"})


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
    """LeRobot forbids "/" in names."""
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


def _decoder(spec: EnvSpec, space: gymnasium.Space[Any]) -> tuple[int, Callable[[NDArray[np.float32]], Any]]:
    """How many numbers in [-1, 1] make an action, and how."""
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return int(space.n), lambda action: first + int(np.argmax(action))
    feature = spec.features.get(ACTION, Feature())
    if isinstance(space, spaces.Box):
        low = space.low if feature.low is None else np.broadcast_to(np.asarray(feature.low, space.dtype), space.shape)
        high = (
            space.high if feature.high is None else np.broadcast_to(np.asarray(feature.high, space.dtype), space.shape)
        )
        if np.isfinite(low).all() and np.isfinite(high).all():

            def rescale(action: NDArray[np.float32]) -> NDArray[Any]:
                unit = (np.clip(action.reshape(space.shape), -1, 1) + 1) / 2
                scaled: NDArray[Any] = low + unit * (high - low)
                return scaled.astype(space.dtype)

            return flatdim(space), rescale
    raise Refusal(
        f"{spec.source!r} has the action space {space}; supported are Discrete and Box with finite bounds "
        "(of its own, or of the action in its EnvSpec's features)"
    )
