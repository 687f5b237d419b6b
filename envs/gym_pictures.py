"""Pictures of Gymnasium environments with a MuJoCo model, drawn by our own renderers instead of theirs.

A Gymnasium environment opens a GL context of its own at its first picture, draws at its own size and in full quality.
Here only its scene is taken: model and data, and the camera and flags that its own ``render()`` would take, read from
its attributes. What ``render()`` does is known by its code: where it is that of Gymnasium's or Gymnasium-Robotics' base
classes, or hands on to an inner environment, the picture is drawn here, and at quality "full" it is theirs of that size
to the last bit. A ``render()`` that does anything else is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from types import CodeType
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from . import mujoco_content
from .simulator import DRAWN, EnvSpec, Refusal, RenderingUnavailable, View

if TYPE_CHECKING:
    from .rendering import Renderer

PLACES = tuple(
    attrgetter(model, data)
    for model, data in (
        ("model", "data"),
        ("_model", "_data"),
        ("sim.model._model", "sim.data._data"),  # robosuite
        ("physics.model.ptr", "physics.data.ptr"),  # dm_control
        ("_env.physics.model.ptr", "_env.physics.data.ptr"),
    )
)
"""Where environments keep their model and data."""


_middles: dict[int, tuple[EnvSpec, NDArray[np.float64]]] = {}
"""Where free cameras look, by the identity of a spec: instances of one kind look there together."""


@dataclass(frozen=True)
class Own:
    """What an environment's own ``render()`` draws.

    Attributes:
        holder: whose ``render`` it is, perhaps that of an inner environment.
        renderer: Gymnasium's ``MujocoRenderer``, which need not have drawn yet.
        prepare: called before each picture to move marks, such as the goal's, to where they belong.
    """

    holder: Any
    renderer: Any
    prepare: Callable[[], None] | None


def _hands_on(self: Any) -> Any:
    return self.inner.render()


def _draws(self: Any) -> Any:
    return self.renderer.render(self.mode)


def _prepares_and_draws(self: Any) -> Any:
    self.prepare()
    return self.renderer.render(self.mode)


def _does(code: CodeType, pattern: Callable[[Any], Any]) -> bool:
    """Whether code does what the pattern does, with other names."""
    template = pattern.__code__
    return code.co_code == template.co_code and len(code.co_names) == len(template.co_names)


def own_of(env: Any) -> Own | None:
    """What an environment's ``render()`` draws; None if it does more than drawing MuJoCo's scene, or something else."""
    drawing = sys.modules.get("gymnasium.envs.mujoco.mujoco_rendering")
    while drawing is not None:
        code = getattr(getattr(type(env), "render", None), "__code__", None)
        if code is None or "render" in vars(env):
            return None
        names: Sequence[str] = code.co_names
        if isinstance(env, (gymnasium.wrappers.OrderEnforcing, gymnasium.wrappers.PassiveEnvChecker)):
            env = env.env
        elif _does(code, _hands_on) and names[1] == "render" and isinstance(getattr(env, names[0]), gymnasium.Env):
            env = getattr(env, names[0])
        elif _does(code, _draws) and names[1:] == ("render", "render_mode"):
            return _checked(Own(env, getattr(env, names[0]), None), drawing)
        elif _does(code, _prepares_and_draws) and names[2:] == ("render", "render_mode"):
            return _checked(Own(env, getattr(env, names[1]), getattr(env, names[0])), drawing)
        else:
            return None
    return None


def _checked(own: Own, drawing: Any) -> Own | None:
    return own if type(own.renderer) is drawing.MujocoRenderer else None


def scene_of(env: Any) -> tuple[Any, Any] | None:
    """MuJoCo's model and data of an environment, found under its wrappers and in inner environments."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is None:
        return None
    own = own_of(env)
    if own is not None:
        return own.renderer.model, own.renderer.data
    for each in _inner(env):
        for place in PLACES:
            with suppress(Exception):  # other people's attributes do as they like
                model, data = place(each)
                if isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData):
                    return model, data
    return None


def _inner(env: Any) -> list[Any]:
    """The environment under all wrappers, and those that it holds."""
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
    return [env, *(value for value in vars(env).values() if isinstance(value, gymnasium.Env))]


def _viewers(env: Any) -> list[Any]:
    """Gymnasium's viewers that an environment has drawn with; they take their GL context for the current one."""
    renderers = (vars(each).get("mujoco_renderer") for each in _inner(env))
    return [renderer.viewer for renderer in renderers if getattr(renderer, "viewer", None) is not None]


def close_viewers(env: Any) -> None:
    """Free what Gymnasium's viewers have uploaded, in their own GL contexts: it would be freed in another's later."""
    for viewer in _viewers(env):
        viewer.make_context_current()
        viewer.con.free()


def rendered(env: Any, chain: Sequence[Any], windows: dict[int, dict[str, Any]]) -> Any:
    """An environment's own picture, with what rendering opens (windows, clocks) kept out of its state.

    Args:
        chain: the environment and all within its wrappers.
        windows: what was opened before, by the identity of each; it is kept there.
    """
    before = [dict(vars(each)) for each in chain]
    for each in chain:
        vars(each).update(windows.get(id(each), {}))
    for viewer in _viewers(env):
        viewer.make_context_current()
    try:
        return env.render()
    finally:
        for each, old in zip(chain, before, strict=True):
            attributes = vars(each)
            windows[id(each)] = {
                name: value
                for name, value in attributes.items()
                if value is not None and old.get(name) is None and name not in _CONSTANT
            }
            attributes.clear()
            attributes.update(old)


_CONSTANT = frozenset({"spec", "action_space", "observation_space", "metadata", "render_mode", "reward_range"})


@contextmanager
def in_one_line(source: str) -> Iterator[None]:
    """Say in a line, with the environment's name, why there is no picture.

    Raises:
        RenderingUnavailable: whatever was raised.
        Refusal: there are no pictures, on any machine.
    """
    try:
        yield
    except Refusal as error:
        if isinstance(error, RenderingUnavailable) or source in str(error):
            raise
        raise Refusal(f"{source!r}: {error}") from error
    except Exception as error:
        if isinstance(error, TypeError) and "render_mode" in str(error):
            raise Refusal(f"{source!r} has neither image observations nor a render_mode to draw by") from error
        first = str(error).strip().partition("\n")[0]
        raise RenderingUnavailable(f"{source!r} cannot be drawn: {type(error).__name__}: {first}") from error


def cameras_of(env: Any) -> dict[str, str]:
    """The named cameras of an environment's model, by the names under which they are offered."""
    scene = scene_of(env)
    names = [] if scene is None else [scene[0].camera(index).name for index in range(scene[0].ncam)]
    return {name.replace("/", "."): name for name in names if name}  # LeRobot forbids "/"


class MujocoPictures:
    """Pictures of MuJoCo's scene in an environment.

    Args:
        spec: of the environment.
        begun: gives an environment of this kind at the start of seed 0. A free camera looks at the middle of that
            state, as Gymnasium's does of the state of its first picture, so that it never depends on what was drawn
            before.
    """

    def __init__(self, spec: EnvSpec, begun: Callable[[], AbstractContextManager[Any]]) -> None:
        self.spec, self._begun = spec, begun
        self._renderers: dict[tuple[int, str, str], Renderer] = {}

    def frame(self, env: Any, view: View, camera: str) -> NDArray[np.uint8] | None:
        """[size, size, 3] of an environment's current state; None if only the environment can draw it.

        Raises:
            RenderingUnavailable: GL does not work.
            Refusal: geom groups are to be hidden in a picture that only the environment can draw.
        """
        scene, own = scene_of(env), own_of(env)
        if scene is None or (own is None and camera == DRAWN):
            if self.spec.hidden_geom_groups:
                raise Refusal(
                    "its EnvSpec hides geom groups, which its own render() would draw: name cameras of its model"
                )
            return None
        named = None if camera == DRAWN else cameras_of(env).get(camera, camera)
        model, data = scene
        key = (view.size, view.quality, camera)
        renderer = self._renderers.get(key)
        if renderer is None or renderer.model is not model:
            if renderer is not None:
                renderer.close()
            renderer = self._renderers[key] = self._made(env, model, view, named, own)
        with _prepared(own):
            return renderer.draw(data)

    def _made(self, env: Any, model: Any, view: View, named: str | None, own: Own | None) -> Renderer:
        from .rendering import GEOMS, Renderer

        camera = self._own_camera(env, own) if named is None and own is not None else named
        flags, most = ({}, GEOMS) if own is None else (own.renderer._vopt, own.renderer.max_geom)
        return Renderer(model, view, camera or "", hidden=self.spec.hidden_geom_groups, flags=flags, most=most)

    def _own_camera(self, env: Any, own: Own) -> Any:
        """The camera that Gymnasium's ``MujocoRenderer`` would take."""
        mujoco, renderer = sys.modules["mujoco"], own.renderer
        settings = renderer.default_cam_config or {}
        camera = mujoco.MjvCamera()
        camera.distance = renderer.model.stat.extent
        fixed = renderer.camera_id != -1
        if not fixed and "lookat" not in settings:
            camera.lookat[:] = self._middle_of_start()
        for name, value in settings.items():
            if isinstance(value, np.ndarray):
                getattr(camera, name)[:] = value
            else:
                setattr(camera, name, value)
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED if fixed else mujoco.mjtCamera.mjCAMERA_FREE
        camera.fixedcamid = renderer.camera_id
        return camera

    def _middle_of_start(self) -> NDArray[np.float64]:
        if id(self.spec) not in _middles:
            with self._begun() as env:
                own = own_of(env)
                assert own is not None, "an environment of the same kind"
                if own.prepare is not None:
                    own.prepare()
                _middles[id(self.spec)] = self.spec, np.median(own.renderer.data.geom_xpos, axis=0)
        return _middles[id(self.spec)][1]

    def close(self) -> None:
        """Free what was uploaded."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


@contextmanager
def _prepared(own: Own | None) -> Iterator[None]:
    """Let an environment move its marks, and undo that afterwards: it writes into the very model and data."""
    if own is None or own.prepare is None:
        yield
        return
    model, data, attributes = own.renderer.model, own.renderer.data, vars(own.holder)
    before, held, settings = dict(attributes), mujoco_content.Data(data), mujoco_content.of_model(model, thorough=False)
    try:
        own.prepare()
        yield
    finally:
        attributes.clear()
        attributes.update(before)
        mujoco_content.put_model(model, settings)
        mujoco_content.put_data(data, held)
