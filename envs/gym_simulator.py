"""Any Gymnasium environment as a simulator, built from an :class:`~.simulator.EnvSpec`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces.utils import flatdim, flatten
from numpy.typing import NDArray
from PIL import Image

from .simulator import EnvSpec, Outcome, Refusal, RenderingUnavailable, View


@dataclass(frozen=True, eq=False)
class _State:
    environment: Any
    observation: Any
    total_reward: float
    steps: int
    over: bool
    terminated: bool
    info: Mapping[str, Any]


class GymSimulator:
    """One unwrapped Gymnasium environment behind the :class:`~.simulator.Simulator` protocol.

    Observations are flattened as by ``gymnasium.spaces.flatten``. Actions are numbers in [-1, 1]: a Box is
    rescaled linearly to its bounds, a Discrete space of n is chosen by the largest of n numbers. An
    environment that says that it is over stays frozen: further steps change nothing.

    Raises:
        Refusal: an action space of another kind, a Box without bounds, or a layout that the observation lacks.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec
        self.env: Any = gymnasium.make(spec.id, disable_env_checker=True, **spec.kwargs).unwrapped
        self.observation_size = flatdim(self.env.observation_space)
        self.action_size, self._decode = _decoder(spec.id, self.env.action_space)
        for name, part in {**spec.layout, "proprioception": spec.proprioception}.items():
            if len(range(self.observation_size)[part]) != (part.stop or 0) - (part.start or 0):
                raise Refusal(
                    f"{spec.id!r}: its EnvSpec places {name!r} at {part.start}:{part.stop} of an observation, "
                    f"which has {self.observation_size} numbers"
                )
        self._observation: Any = None
        self._total_reward, self._steps = 0.0, 0
        self._terminated = self._over = False
        self._info: Mapping[str, Any] = {}
        self._painter: Any = None

    def reset(self, seed: int) -> None:
        self._observation, self._info = self.env.reset(seed=seed)
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
        return np.array(flatten(self.env.observation_space, self._observation), np.float32)

    def step(self, actions: NDArray[np.float32]) -> None:
        for action in actions:
            if self._over:
                return
            self._observation, reward, self._terminated, truncated, self._info = self.env.step(self._decode(action))
            self._total_reward += float(reward)
            self._steps += 1
            self._over = self._terminated or truncated

    def success(self) -> bool:
        outcome = Outcome(self.observe(), self._total_reward, self._steps, self._terminated, self._info)
        return bool(self.spec.success(outcome))

    def expert(self) -> Callable[[], NDArray[np.float32]] | None:
        expert = self.spec.expert
        if expert is None:
            return None
        return lambda: np.clip(expert(self.env, self.observe()), -1, 1).astype(np.float32)

    def frame(self, view: View) -> NDArray[np.uint8]:
        """The environment's own picture, resized; a second instance draws it, so the first stays free of windows."""
        if self._painter is None:
            arguments = {**self.spec.kwargs, "render_mode": "rgb_array"}
            self._painter = gymnasium.make(self.spec.id, disable_env_checker=True, **arguments).unwrapped
            self._painter.reset(seed=0)
        self._write(self._painter, self.save().environment)
        try:
            picture = self._painter.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise RenderingUnavailable(f"{self.spec.id} cannot be drawn: {error}") from error
        shape: tuple[int, ...] = getattr(picture, "shape", ())
        kind = getattr(picture, "dtype", type(picture).__name__)
        if len(shape) != 3 or shape[2] != 3 or kind != np.uint8:
            raise Refusal(f"{self.spec.id!r} rendered {kind} of shape {shape}; pictures are uint8 [H, W, 3]")
        return np.asarray(Image.fromarray(picture).resize((view.size, view.size)), np.uint8)

    def close(self) -> None:
        self.env.close()
        if self._painter is not None:
            self._painter.close()

    def _copy_attributes(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self.env).items() if name not in _CONSTANT}
        try:
            return copy.deepcopy(kept)
        except Exception as error:
            raise Refusal(
                f"the state of {self.spec.id!r} cannot be copied ({type(error).__name__}: {error}), so its episodes "
                "cannot take turns: give its EnvSpec save and restore"
            ) from error

    def _write(self, env: Any, state: Any) -> None:
        if self.spec.restore:
            self.spec.restore(env, state)
        else:
            vars(env).update(copy.deepcopy(state))


_CONSTANT = frozenset({"spec", "action_space", "observation_space", "metadata", "render_mode", "reward_range"})


def _decoder(name: str, space: gymnasium.Space[Any]) -> tuple[int, Callable[[NDArray[np.float32]], Any]]:
    """How many numbers in [-1, 1] make an action, and how."""
    if isinstance(space, gymnasium.spaces.Discrete):
        first = int(space.start)
        return int(space.n), lambda action: first + int(np.argmax(action))
    if isinstance(space, gymnasium.spaces.Box) and space.is_bounded():
        low, high = space.low, space.high

        def rescale(action: NDArray[np.float32]) -> NDArray[Any]:
            unit = (np.clip(action.reshape(space.shape), -1, 1) + 1) / 2
            scaled: NDArray[Any] = low + unit * (high - low)
            return scaled.astype(space.dtype)

        return flatdim(space), rescale
    raise Refusal(f"{name!r} has the action space {space}; supported are Discrete and Box with finite bounds")
