"""Pictures of a MuJoCo scene, fast and without a display.

Four settings decide the speed on a CPU: multisampling, the shadow map, the mirror pass of the floor, and
the number of triangles. All but the mirror are read when a GL context is made, from a copy of the model that
is thrown away afterwards; the model that the physics runs on is never written.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..gl import before_gl
from .physics import mujoco
from .simulator import SHOULDER, Refusal, View
from .simulator import RenderingUnavailable as RenderingUnavailable

HEADLESS = ("egl", "osmesa")
"""Without a display and without MUJOCO_GL these are tried in turn."""
PACKAGES = {"egl": "libegl1", "osmesa": "libosmesa6"}
CELL = 0.02
"""Side in metres of the cubes in which the vertices of a mesh are merged at quality "fast": less than a pixel at 64."""


class Renderer:
    """Square RGB pictures of one model.

    Args:
        model: it is read, never written.
        view: how to look at it.
        camera: from where.

    Raises:
        Refusal: the model has no such camera.
        RenderingUnavailable: GL does not work here.
    """

    def __init__(self, model: mujoco.MjModel, view: View, camera: str) -> None:
        self.model, self.view = model, view
        self.camera = _camera(model, camera)
        before_gl()
        self.gl = _context(view.size)
        self.context: Any = None
        try:
            with _one_line("making a GL context"):
                self.gl.make_current()
                self.context = mujoco.MjrContext(_drawn(model, view), mujoco.mjtFontScale.mjFONTSCALE_100)
                mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
                if self.context.currentBuffer != mujoco.mjtFramebuffer.mjFB_OFFSCREEN:
                    raise RuntimeError("the library has no offscreen framebuffer")
        except RenderingUnavailable:
            self.close()
            raise
        self.scene = mujoco.MjvScene(model, maxgeom=1000)
        if view.quality != "full":
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self.scene.flags[flag] = 0
        self.options = mujoco.MjvOption()
        self.perturbation = mujoco.MjvPerturb()
        self.rectangle = mujoco.MjrRect(0, 0, view.size, view.size)

    def draw(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """[size, size, 3] of a state whose positions are up to date (``mj_forward`` was called).

        Raises:
            RenderingUnavailable: GL failed.
        """
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        picture = np.empty((self.view.size, self.view.size, 3), np.uint8)
        with _one_line("drawing a picture"):
            self.gl.make_current()
            mujoco.mjv_updateScene(
                self.model, data, self.options, self.perturbation, self.camera, everything, self.scene
            )
            mujoco.mjr_render(self.rectangle, self.scene, self.context)
            mujoco.mjr_readPixels(picture, None, self.rectangle, self.context)
            if failure := mujoco.mjr_getError():
                raise RuntimeError(f"OpenGL error {failure:#x}")
        upside_down = self.camera.fixedcamid >= 0 and data.cam_xmat[self.camera.fixedcamid, 7] < -1e-6
        return np.ascontiguousarray(picture[:, ::-1] if upside_down else picture[::-1])

    def close(self) -> None:
        """Free the GL context."""
        if self.context is not None:
            self.gl.make_current()  # or the names of another context would be freed
            self.context.free()
        self.gl.free()


def settle_backend() -> None:
    """Have MUJOCO_GL name a library that works here, where nobody has said which: other viewers read it too.

    Raises:
        RenderingUnavailable: none does.
    """
    if not os.environ.get("MUJOCO_GL"):
        _context(8).free()


def _context(size: int) -> Any:
    """A GL context of the backend that MUJOCO_GL names; or of the first that works, which it names from then on."""
    failures = []
    for backend in _backends():
        before = os.environ.get("PYOPENGL_PLATFORM")
        if "OpenGL" not in sys.modules:  # another process's choice may have come along in the environment
            os.environ["PYOPENGL_PLATFORM"] = backend
        try:
            context = importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
        except Exception as error:  # each binding has its own kinds
            failures.append((backend, error))
            _forget(backend, before)
        else:
            os.environ["MUJOCO_GL"] = backend
            return context
    told = ", nor ".join(f"MUJOCO_GL={backend} ({_first_line(error)})" for backend, error in failures)
    packages = " or ".join(PACKAGES.get(backend, "libgl1") for backend, _ in failures)
    raise RenderingUnavailable(
        f"cannot render with {told}: install the Debian package {packages}, or set MUJOCO_GL to egl or osmesa"
    ) from failures[-1][1]


def _backends() -> tuple[str, ...]:
    """Those that MUJOCO_GL leaves open."""
    if wanted := os.environ.get("MUJOCO_GL", "").lower():
        return (wanted,)
    return HEADLESS if sys.platform == "linux" and not os.environ.get("DISPLAY") else ("glfw",)


def _forget(backend: str, platform: str | None) -> None:
    """Let another binding be loaded: PyOpenGL settles on a platform when it is first imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "OpenGL" or name == f"mujoco.{backend}"]:
        del sys.modules[name]
    os.environ.pop("PYOPENGL_PLATFORM", None)
    if platform is not None:
        os.environ["PYOPENGL_PLATFORM"] = platform


@contextmanager
def _one_line(doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RenderingUnavailable(
            f"{doing} with MUJOCO_GL={_backends()[0]} failed ({_first_line(error)}); set MUJOCO_GL to egl or osmesa, "
            "or see `autotelic doctor`"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _camera(model: mujoco.MjModel, name: str) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    if name == SHOULDER:
        camera.lookat[:] = (0.0, 0.68, 0.15)
        camera.distance, camera.azimuth, camera.elevation = 1.3, 140, -30
        return camera
    number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if number < 0:
        known = [SHOULDER, *(model.camera(index).name for index in range(model.ncam))]
        raise Refusal(f"no camera {name!r} in this model: choose one of {', '.join(known)}")
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
    return camera


def _drawn(model: mujoco.MjModel, view: View) -> mujoco.MjModel:
    """A copy of the model as the GL context should see it."""
    drawn = copy.copy(model)
    drawn.vis.global_.offwidth = drawn.vis.global_.offheight = view.size
    if view.quality != "full":
        drawn.vis.quality.offsamples = drawn.vis.quality.shadowsize = 0
    if view.quality == "fast":
        drawn.vis.quality.numslices, drawn.vis.quality.numstacks, drawn.vis.quality.numquads = 12, 8, 2
        for mesh in range(model.nmesh):
            _coarsen(drawn, mesh)
    return drawn


def _coarsen(model: mujoco.MjModel, mesh: int) -> None:
    """Merge the vertices of a mesh that share a cube of side CELL, and drop the triangles that this flattens.

    Each cube's vertices move to the one nearest to their mean, so only the list of triangles changes:
    vertices, the mesh's frame and all sizes stay, and the physics' positions remain valid for the copy.
    """
    first, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    start, vertices = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    points = model.mesh_vert[start : start + vertices]
    faces = model.mesh_face[first : first + count]
    _, cube, sizes = np.unique(np.floor(points / CELL), axis=0, return_inverse=True, return_counts=True)
    cube = cube.reshape(-1)
    means = np.stack([np.bincount(cube, weights=points[:, axis]) for axis in range(3)], 1) / sizes[:, None]
    by_distance = np.argsort(np.square(points - means[cube]).sum(1), kind="stable")
    _, nearest = np.unique(cube[by_distance], return_index=True)
    merged = by_distance[nearest][cube][faces]
    _, kept = np.unique(np.sort(merged, 1), axis=0, return_index=True)
    kept = np.sort(kept)
    flat = (merged[kept] == np.roll(merged[kept], 1, 1)).any(1)
    kept = kept[~flat]
    if not len(kept):
        return
    # Normals are stored by corner: each corner keeps the one it had in the fine mesh.
    for corners in (model.mesh_facenormal, model.mesh_facetexcoord):
        corners[first : first + len(kept)] = corners[first : first + count][kept]
    faces[: len(kept)] = merged[kept]
    model.mesh_facenum[mesh] = len(kept)
