"""MetaWorld's 50 manipulation tasks, stepped without computing what nobody reads.

MetaWorld computes observation, contacts and the dense reward after every step. Here physics runs
alone, and observation and success are computed where someone looks. The physics is that of
MetaWorld's own ``env.step`` to the last bit, the observation to 1e-15; a test compares all 50 tasks.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType, NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metaworld_classes import ENV_CLS_MAP, ENV_POLICY_MAP
from .metaworld_tasks import OBSERVATION as OBSERVATION
from .metaworld_tasks import TASKS as TASKS
from .physics import mujoco
from .rendering import Renderer
from .simulator import IMAGES, SHOULDER, Feature, Quality, Refusal, Simulator, View, check_actions

OBSERVATION_SIZE = 21
ACTION_SIZE = 4
_CURRENT = 18
_LARGEST_ARRAY = 4096
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_PLAIN = (bool, int, float, str, NoneType, np.ndarray, np.generic, list, tuple, dict)


@dataclass(frozen=True, eq=False)
class _Start:
    """What a reset leaves outside MjData, constant for the whole episode; ``count`` attributes in all."""

    model: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Any]
    count: int


@dataclass(frozen=True, eq=False)
class _State:
    start: _Start
    physics: NDArray[np.float64]
    action: NDArray[np.float32]
    changed: Mapping[str, Any]


class MetaWorldSimulator(Simulator):
    """One MetaWorld task behind the :class:`~.simulator.Simulator` protocol.

    The observation is lean: MetaWorld's current 18 numbers and the goal, as in :data:`OBSERVATION`; the
    second, older frame of MetaWorld's 39 numbers is left out. It is clipped to MetaWorld's observation
    space. In the state that ``reset`` leads to, it shows objects where they are; MetaWorld's own ``reset`` returns
    the positions before the objects were moved there (up to 20 cm off in 7 tasks), and is right from the next step on.

    An action moves the hand by up to 1 cm per axis (x, y, z) and sets the gripper's closing force.

    Args:
        task: a key of :data:`TASKS`.
    """

    observation_size = OBSERVATION_SIZE
    action_size = ACTION_SIZE
    cameras = (SHOULDER,)

    def __init__(self, task: str) -> None:
        self.task = task
        env: Any = ENV_CLS_MAP[task]()
        self.env = env
        # Seeds decide the initial state instead of MetaWorld's list of 50 frozen ones, and the goal is visible.
        env.seeded_rand_vec, env._freeze_rand_vec = True, False
        env._partially_observable, env._set_task_called = False, True
        del env.sawyer_observation_space
        self.low = env.sawyer_observation_space.low
        self.high = env.sawyer_observation_space.high
        self.model, self.data = env.model, env.data
        self._hand = self.data.body("hand").xpos
        self._fingers = self.data.body("rightclaw").xpos, self.data.body("leftclaw").xpos
        self._rotations = _fast_rotations(env)
        env.touching_object = partial(_touching, self.data, [self.data.geom(f"{side}pad_geom").id for side in _SIDES])
        self._low, self._high = (np.concatenate((bound[:_CURRENT], bound[36:])) for bound in (self.low, self.high))
        self._arrays = _small_arrays(self.model)
        self._pristine_model = {name: array.copy() for name, array in self._arrays.items()}
        self._pristine = _copy(_attributes(env))
        self._start = _Start({}, {}, 0)
        self._action = np.zeros(ACTION_SIZE, np.float32)
        self._changed: Mapping[str, Any] = {}
        self._stale = True
        self._seen: NDArray[np.float64] | None = None
        self._renderers: dict[tuple[int, Quality, str], Renderer] = {}

    @property
    def features(self) -> Mapping[str, Feature]:
        cameras = (self.model.camera(index).name for index in range(self.model.ncam))
        return {**super().features, **{IMAGES + camera: Feature() for camera in cameras}}

    def reset(self, seed: int) -> None:
        """The initial state that a new MetaWorld environment reaches with ``env.seed(seed); env.reset()``."""
        env = self.env
        self._write_model({})
        for name in _attributes(env).keys() - self._pristine.keys():
            del env.__dict__[name]
        env.__dict__.update(_copy(self._pristine))
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        env.seed(seed)
        # MetaWorld resets twice, and physics starts again in between: the hand's first journey is for nothing.
        env._reset_hand = partial(_skip_once, env)
        env.reset()
        differs = {
            name: array.copy()
            for name, array in self._arrays.items()
            if not np.array_equal(array, self._pristine_model[name])
        }
        self._start = _Start(differs, _attributes(env), len(vars(env)))
        self._action, self._changed = np.zeros(ACTION_SIZE, np.float32), {}
        self._stale, self._seen = True, None

    def save(self) -> _State:
        physics = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, physics, _STATE)
        return _State(self._start, physics, self._action, self._changed)

    def restore(self, state: _State) -> None:
        if state.start is not self._start:
            self._write_model(state.start.model)
            self._start = state.start
        self.env.__dict__.update(state.start.attributes)
        self.env.__dict__.update(state.changed)
        mujoco.mj_setState(self.model, self.data, state.physics, _STATE)
        self._action, self._changed = state.action, state.changed
        self._stale, self._seen = True, None

    def observe(self) -> NDArray[np.float32]:
        return self._current().astype(np.float32)

    def full_observation(self, previous: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """MetaWorld's 39 numbers: current [18], previous [18] (the current ones when None), goal [3]."""
        now = self._current()
        return np.concatenate((now[:_CURRENT], now[:_CURRENT] if previous is None else previous, now[_CURRENT:]))

    def _current(self) -> NDArray[np.float64]:
        """[21] as :data:`OBSERVATION`, computed once per state."""
        if self._seen is not None:
            return self._seen
        self._refresh()
        env = self.env
        now = np.zeros(OBSERVATION_SIZE)
        now[:3] = self._hand
        apart = self._fingers[0] - self._fingers[1]
        now[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
        positions, rotations = env._get_pos_objects(), self._rotations()
        now[4:7], now[7:11] = positions[:3], rotations[:4]
        if len(positions) > 3:
            now[11:14], now[14:18] = positions[3:], rotations[4:]
        now[_CURRENT:] = env._get_pos_goal()
        self._seen = np.minimum(np.maximum(now, self._low), self._high)
        return self._seen

    def step(self, actions: NDArray[np.float32]) -> None:
        check_actions(self.task, actions, ACTION_SIZE)
        model, data, env = self.model, self.data, self.env
        (a, b, c), (d, e, f), substeps = env.mocap_low.tolist(), env.mocap_high.tolist(), env.frame_skip
        moves = np.minimum(np.maximum(actions[:, :3], -1), 1) * env.action_scale
        data.mocap_quat[:] = (1, 0, 1, 0)
        position, control = data.mocap_pos[0], data.ctrl
        x, y, z = position.tolist()
        step, forward = mujoco.mj_step, mujoco.mj_forward
        for (dx, dy, dz), force in zip(moves.tolist(), actions[:, 3].tolist(), strict=True):
            x, y, z = min(max(x + dx, a), d), min(max(y + dy, b), e), min(max(z + dz, c), f)
            position[:] = x, y, z
            control[:] = force, -force
            step(model, data, substeps)
            # Not only for reading: it moves the solver's warm start, and with it MetaWorld's trajectories.
            forward(model, data)
        self._action = actions[-1]
        self._stale, self._seen = False, None

    def success(self) -> bool:
        """MetaWorld's success of this very state; it can be lost again, callers latch it."""
        self.env._gripper_caging_reward = _no_caging
        try:
            _, info = self._evaluate()
        finally:
            del self.env._gripper_caging_reward
        self._remember()
        return bool(info["success"])

    def judge(self) -> tuple[float, dict[str, Any]]:
        """MetaWorld's dense reward and info of the current state after its last action (oracle knowledge)."""
        reward, info = self._evaluate()
        self._remember()
        return float(reward), info

    def reward(self) -> float:
        """MetaWorld's dense reward of the state at the chunk's end."""
        return self.judge()[0]

    def _evaluate(self) -> tuple[Any, dict[str, Any]]:
        self._refresh()
        judged: tuple[Any, dict[str, Any]] = self.env.evaluate_state(self.full_observation(), self._action)
        return judged

    def _remember(self) -> None:
        """Some rewards remember what happened (a grasp, say); that is part of the state too."""
        start, now = self._start, vars(self.env)
        changed = {name: now[name] for name, value in start.attributes.items() if now[name] is not value}
        if len(now) != start.count:
            changed |= {name: value for name, value in _attributes(self.env).items() if name not in start.attributes}
        self._changed = changed

    def expert(self) -> Callable[[], NDArray[np.float32]]:
        expert: Any = ENV_POLICY_MAP[self.task]
        policy = expert()
        previous: NDArray[np.float64] | None = None

        def act() -> NDArray[np.float32]:
            nonlocal previous
            full = self.full_observation(previous)
            previous = full[:_CURRENT]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the experts warn of their own large gains; the actions are clipped
                action = policy.get_action(full)
            return np.asarray(np.clip(action, -1, 1), np.float32)

        return act

    def frame(self, view: View, camera: str = "") -> NDArray[np.uint8]:
        """[size, size, 3] seen as ``view`` says, with the marks of the goal where it is.

        In nine tasks MetaWorld's own pictures leave a mark elsewhere (it moves them, and the next ``mj_forward``
        moves them back).

        Raises:
            RenderingUnavailable: the machine has no usable GL library.
            Refusal: the model has no such camera.
        """
        camera = camera or (view.cameras or self.cameras)[0]
        key = (view.size, view.quality, camera)
        if key not in self._renderers:
            self._renderers[key] = Renderer(self.model, view, _camera(self.model, camera))
        self._refresh()
        places = self.data.site_xpos.copy()
        for mark, place in self.env._target_site_config:
            self.data.site(mark).xpos = place
        try:
            return self._renderers[key].draw(self.data)
        finally:
            self.data.site_xpos[:] = places

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self.env.close()

    def _refresh(self) -> None:
        """Recompute what derives from a restored state (positions, contacts, forces) and leave the state alone."""
        if self._stale:
            warm_start = self.data.qacc_warmstart.copy()
            mujoco.mj_forward(self.model, self.data)
            self.data.qacc_warmstart[:] = warm_start
            self._stale = False

    def _write_model(self, differs: Mapping[str, NDArray[Any]]) -> None:
        for name in self._start.model.keys() | differs.keys():
            self._arrays[name][...] = differs.get(name, self._pristine_model[name])


def _camera(model: Any, name: str) -> Any:
    """A camera of the model by its name, or one that looks over the robot's shoulder.

    Raises:
        Refusal: there is no such camera.
    """
    names = [model.camera(index).name for index in range(model.ncam)]
    if name in names:
        return name
    if name != SHOULDER:
        raise Refusal(f"no camera {name!r} in this model: choose one of {', '.join([SHOULDER, *names])}")
    camera = mujoco.MjvCamera()
    camera.lookat[:] = (0.0, 0.68, 0.15)
    camera.distance, camera.azimuth, camera.elevation = 1.3, 140, -30
    return camera


def _small_arrays(model: Any) -> dict[str, NDArray[Any]]:
    """Live views of the model's arrays that a reset could change: numbers, not meshes and textures."""
    named = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and 0 < value.size <= _LARGEST_ARRAY
    }


def _attributes(env: Any) -> dict[str, Any]:
    """The environment's plain attributes: numbers, arrays and containers of them, by reference."""
    return {name: value for name, value in vars(env).items() if isinstance(value, _PLAIN)}


def _copy(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Deep copies with aliases kept; arrays that are windows into MjData stay windows."""
    memo: dict[int, Any] = {}
    return {
        name: value if isinstance(value, np.ndarray) and value.base is not None else copy.deepcopy(value, memo)
        for name, value in attributes.items()
    }


def _no_caging(*_: Any, **__: Any) -> float:
    """Stands in for the dearest part of the reward where only success is asked for, which never depends on it."""
    return 0.0


def _skip_once(env: Any) -> None:
    """Stands in for the hand's journey in the first of the two resets that MetaWorld makes; the second is real."""
    del env._reset_hand
    env.init_tcp = env.tcp_center


_SIDES = ("left", "right")


def _touching(data: Any, pads: Sequence[int], object_geom: int) -> bool:
    """MetaWorld's ``touching_object`` without a Python object for every contact: both pads press on the object."""
    pairs, address = data.contact.geom, data.contact.efc_address
    has_object = (pairs == object_geom).any(1)
    for pad in pads:
        touching = has_object & (pairs == pad).any(1)
        if not touching.any() or not sum(data.efc_force[address[touching]]) > 0:
            return False
    return True


class _Rotation:
    """The little of scipy's Rotation that MetaWorld uses, without its 100 microseconds of checks."""

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self.matrix = matrix

    @classmethod
    def from_matrix(cls, matrix: NDArray[np.float64]) -> _Rotation:
        """A rotation from an orthogonal matrix [3, 3]."""
        return cls(matrix)

    def as_quat(self) -> NDArray[np.float64]:
        """[4] as x, y, z, w by Shepperd's method: divide by the largest component, so by none near zero."""
        (a, b, c), (d, e, f), (g, h, i) = self.matrix.tolist()
        trace = a + e + i
        largest = max(a, e, i, trace)
        if largest == a:
            unscaled = (1 - trace + 2 * a, d + b, g + c, h - f)
        elif largest == e:
            unscaled = (d + b, 1 - trace + 2 * e, h + f, c - g)
        elif largest == i:
            unscaled = (g + c, h + f, 1 - trace + 2 * i, d - b)
        else:
            unscaled = (h - f, c - g, d - b, 1 + trace)
        quaternion = np.array(unscaled)
        return quaternion / math.sqrt(quaternion.dot(quaternion))


def _fast_rotations(env: Any) -> Callable[[], NDArray[np.float64]]:
    """The environment's reader of its objects' quaternions; where it uses scipy, a copy that uses ``_Rotation``."""
    reader = type(env)._get_quat_objects
    if "Rotation" not in reader.__code__.co_names:
        return partial(reader, env)
    return partial(FunctionType(reader.__code__, {**reader.__globals__, "Rotation": _Rotation}), env)
