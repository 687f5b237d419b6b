"""Pictures of a MuJoCo scene, fast and without a display.

Four settings decide the speed on a CPU: multisampling, the shadow map, the mirror pass of the floor, and
the number of triangles. All but the mirror are read when a model is uploaded to GL, from a copy of it that
is thrown away afterwards; the model that the physics runs on is never written.
"""

from __future__ import annotations

import atexit
import copy
import hashlib
import importlib
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..gl import before_gl
from .physics import mujoco
from .simulator import Quality, Refusal, View
from .simulator import RenderingUnavailable as RenderingUnavailable

HEADLESS = ("egl", "osmesa")
"""Where nobody set MUJOCO_GL these are tried in turn, on Linux; with a display, "glfw" after them."""
PACKAGES = {"egl": "libegl1", "osmesa": "libosmesa6"}
CELL = 0.02
"""Side in metres of the cubes in which the vertices of a mesh are merged at quality "fast": less than a pixel at 64."""
MEMORY = 3 * 10**9
"""Bytes, roughly, that models uploaded to GL may take in a process; the one drawn longest ago goes first."""
GEOMS = 1000
"""Geoms in a picture at most, as in Gymnasium."""


class Renderer:
    """Square RGB pictures of one model.

    All renderers of a thread draw in one GL context. What they draw from (meshes, textures, a frame buffer) is uploaded
    once per content of a model, quality and size. A context that is lost is made again once.

    Args:
        model: it is read, never written. Meshes and textures are seen as they are at the first picture.
        view: how to look at it.
        camera: a camera of the model by its name, turned right side up; or any other, as it is.
        hidden: geom groups that are not drawn.
        flags: what else is drawn or not, by ``mjtVisFlag``.
        most: geoms in a picture at most.

    Raises:
        Refusal: the model has no such camera.
        RenderingUnavailable: GL does not work here.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        view: View,
        camera: str | mujoco.MjvCamera,
        *,
        hidden: Sequence[int] = (),
        flags: Mapping[int, bool] | None = None,
        most: int = GEOMS,
    ) -> None:
        self.model, self.view = model, view
        self.camera = _named(model, camera) if isinstance(camera, str) else camera
        # By the reference pose, or pictures from a hand would turn over with the hand.
        self._turned = isinstance(camera, str) and model.cam_mat0[self.camera.fixedcamid, 7] < -1e-6
        self._key = _Key(_content(model), view.size, view.quality, most)
        before_gl()
        with _one_line("making a GL context"):
            _graphics().upload(self._key, model)
        _here.renderers.add(self)
        self.options = mujoco.MjvOption()
        self.options.geomgroup[list(hidden)] = 0
        for kind, shown in (flags or {}).items():
            self.options.flags[kind] = shown
        self.perturbation = mujoco.MjvPerturb()
        self.rectangle = mujoco.MjrRect(0, 0, view.size, view.size)

    def draw(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """[size, size, 3] of a state whose positions are up to date (``mj_forward`` was called).

        Raises:
            RenderingUnavailable: GL failed.
        """
        with _one_line("drawing a picture"):
            try:
                picture = self._drawn(data)
            except Exception as lost:  # by a driver that was reset, say
                _end()
                try:
                    picture = self._drawn(data)
                except Exception:
                    _end()
                    raise lost from None
        return np.ascontiguousarray(picture[:, ::-1] if self._turned else picture[::-1])

    def _drawn(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """The picture as GL has it, its lowest row first."""
        uploaded = _graphics().upload(self._key, self.model)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        picture = np.empty((self.view.size, self.view.size, 3), np.uint8)
        mujoco.mjv_updateScene(
            self.model, data, self.options, self.perturbation, self.camera, everything, uploaded.scene
        )
        mujoco.mjr_render(self.rectangle, uploaded.scene, uploaded.context)
        mujoco.mjr_readPixels(picture, None, self.rectangle, uploaded.context)
        if failure := mujoco.mjr_getError():
            raise RuntimeError(f"OpenGL error {failure:#x}")
        return picture

    def close(self) -> None:
        """Draw no more; the last renderer of a thread takes the GL context with it."""
        _here.renderers.discard(self)
        if not _here.renderers:
            _end()


class _Key(NamedTuple):
    """What renderers that share an upload have in common."""

    content: bytes
    size: int
    quality: Quality
    most: int


class _Uploaded(NamedTuple):
    """Meshes, textures and a frame buffer in a GL context; a scene, filled anew for each picture; bytes of them."""

    context: Any
    scene: Any
    nbytes: int


class _Graphics:
    """A GL context, and what was uploaded to it, the one drawn longest ago first."""

    def __init__(self) -> None:
        self.gl = _context()
        atexit.unregister(_end)
        atexit.register(_end)  # before the binding takes itself down: the last to be registered goes first
        self.uploaded: OrderedDict[_Key, _Uploaded] = OrderedDict()

    def upload(self, key: _Key, model: mujoco.MjModel) -> _Uploaded:
        """What is drawn with, made if there is none, in the GL context that draws from now on."""
        self.gl.make_current()  # environments that draw for themselves have made theirs current
        if key not in self.uploaded:
            drawn = _drawn(model, key.size, key.quality)
            self.uploaded[key] = _Uploaded(_offscreen(drawn), _scene(model, key), _size(drawn))
            while len(self.uploaded) > 1 and sum(each.nbytes for each in self.uploaded.values()) > MEMORY:
                self.uploaded.popitem(last=False)[1].context.free()
        self.uploaded.move_to_end(key)
        uploaded = self.uploaded[key]
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, uploaded.context)
        return uploaded

    def close(self) -> None:
        """Free all; what was lost cannot be freed, and need not."""
        with suppress(Exception):
            self.gl.make_current()  # or the names of another context would be freed
        for uploaded in self.uploaded.values():
            with suppress(Exception):
                uploaded.context.free()
        with suppress(Exception):
            self.gl.free()


class _Here(threading.local):
    """What draws in a thread: GL contexts belong to threads."""

    def __init__(self) -> None:
        self.graphics: _Graphics | None = None
        self.renderers: weakref.WeakSet[Renderer] = weakref.WeakSet()


_here = _Here()


def _graphics() -> _Graphics:
    if _here.graphics is None:
        _here.graphics = _Graphics()
    return _here.graphics


def _end() -> None:
    """Free the GL context of this thread; the next picture makes another."""
    graphics, _here.graphics = _here.graphics, None
    if graphics is not None:
        graphics.close()


def settle_backend() -> None:
    """Have MUJOCO_GL name a library that works here, where nobody has said which: other viewers read it too.

    Raises:
        RenderingUnavailable: none does.
    """
    if not os.environ.get("MUJOCO_GL"):
        _context().free()


def _context() -> Any:
    """A GL context of the backend that MUJOCO_GL names; or of the first that draws, which it names from then on."""
    failures = []
    for backend in _backends():
        before = os.environ.get("PYOPENGL_PLATFORM")
        if "OpenGL" not in sys.modules:  # another process's choice may have come along in the environment
            os.environ["PYOPENGL_PLATFORM"] = backend
        context = None
        try:
            context = importlib.import_module(f"mujoco.{backend}").GLContext(16, 16)
            _try(context)
        except Exception as error:  # each binding has its own kinds
            failures.append((backend, error))
            with suppress(Exception):
                if context is not None:
                    context.free()
            _forget(backend, before)
        else:
            os.environ["MUJOCO_GL"] = backend
            return context
    told = ", nor ".join(f"MUJOCO_GL={backend} ({_first_line(error)})" for backend, error in failures)
    packages = " or ".join(PACKAGES.get(backend, "libgl1") for backend, _ in failures)
    raise RenderingUnavailable(
        f"cannot render with {told}: install the Debian package {packages}, or set MUJOCO_GL to egl or osmesa"
    ) from failures[-1][1]


def _try(gl: Any) -> None:
    """Draw a picture of nothing: some libraries give contexts in which nothing can be drawn."""
    gl.make_current()
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    context = _offscreen(_drawn(model, 16, "fast"))
    rectangle = mujoco.MjrRect(0, 0, 16, 16)
    mujoco.mjr_render(rectangle, mujoco.MjvScene(model, maxgeom=1), context)
    mujoco.mjr_readPixels(np.empty((16, 16, 3), np.uint8), None, rectangle, context)
    context.free()
    if failure := mujoco.mjr_getError():
        raise RuntimeError(f"OpenGL error {failure:#x}")


def _offscreen(model: mujoco.MjModel) -> Any:
    """A model's uploads to the current GL context, drawn into a frame buffer of their own."""
    context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
    if context.currentBuffer != mujoco.mjtFramebuffer.mjFB_OFFSCREEN:
        context.free()
        raise RuntimeError("the library has no offscreen framebuffer")
    return context


def _backends() -> tuple[str, ...]:
    """Those that MUJOCO_GL leaves open."""
    if wanted := os.environ.get("MUJOCO_GL", "").lower():
        return (wanted,)
    if sys.platform != "linux":
        return ("glfw",)
    return (*HEADLESS, "glfw") if os.environ.get("DISPLAY") else HEADLESS


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
    except RenderingUnavailable:
        raise
    except Exception as error:
        raise RenderingUnavailable(
            f"{doing} with MUJOCO_GL={_backends()[0]} failed ({_first_line(error)}); set MUJOCO_GL to egl or osmesa, "
            "or see `autotelic doctor`"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _named(model: mujoco.MjModel, name: str) -> mujoco.MjvCamera:
    number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if number < 0:
        known = ", ".join(model.camera(index).name for index in range(model.ncam))
        raise Refusal(f"no camera {name!r} in this model: choose one of {known}")
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
    return camera


_UPLOADED = ("mesh_", "tex_", "hfield_", "skin_", "mat_", "geom_type", "geom_size", "geom_dataid", "geom_matid")
"""Arrays of a model that decide what is uploaded: planes are too, in their sizes and with their materials.

All else of a picture is in the scene, which is made anew each time.
"""

_digests: dict[int, bytes] = {}
"""By the address of a model, which is forgotten with the model."""


def _content(model: mujoco.MjModel) -> bytes:
    """A digest of what is uploaded of a model, the same for all instances of an environment."""
    address = int(model._address)
    if address not in _digests:
        digest = hashlib.blake2b(digest_size=16)
        for array in _arrays(model):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        for part in ("global_", "quality", "map", "scale", "rgba"):
            settings = getattr(model.vis, part)
            for name, member in vars(type(settings)).items():
                if isinstance(member, property):
                    digest.update(np.asarray(getattr(settings, name)).tobytes())
        digest.update(np.asarray(model.stat.extent).tobytes())
        _digests[address] = digest.digest()
        weakref.finalize(model, _digests.pop, address, None)
    return _digests[address]


def _arrays(model: mujoco.MjModel) -> list[NDArray[Any]]:
    named = (getattr(model, name) for name in sorted(dir(model)) if name.startswith(_UPLOADED))
    return [array for array in named if isinstance(array, np.ndarray)]


def _size(model: mujoco.MjModel) -> int:
    """Bytes that an upload takes, roughly, as Mesa was seen to take them."""
    shadows = 4 * int(model.vis.quality.shadowsize) ** 2
    pixels = 16 * int(model.vis.global_.offwidth) ** 2 * (1 + int(model.vis.quality.offsamples))
    return 10**7 + 3 * sum(array.nbytes for array in _arrays(model)) + shadows + pixels


def _scene(model: mujoco.MjModel, key: _Key) -> Any:
    scene = mujoco.MjvScene(model, maxgeom=key.most)
    if key.quality != "full":
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            scene.flags[flag] = 0
    return scene


def _drawn(model: mujoco.MjModel, size: int, quality: Quality) -> mujoco.MjModel:
    """A copy of the model as the GL context should see it."""
    drawn = copy.copy(model)
    drawn.vis.global_.offwidth = drawn.vis.global_.offheight = size
    if quality != "full":
        drawn.vis.quality.offsamples = drawn.vis.quality.shadowsize = 0
    if quality == "fast":
        drawn.vis.quality.numslices, drawn.vis.quality.numstacks, drawn.vis.quality.numquads = 12, 8, 2
        for mesh in sorted(set(range(model.nmesh)) - _textured(model)):
            _coarsen(drawn, mesh)
    return drawn


def _textured(model: mujoco.MjModel) -> set[int]:
    """Meshes with a texture that was laid on them: merging their vertices would scramble it."""
    shown = (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_matid >= 0)
    painted = (model.mat_texid[model.geom_matid[shown]] >= 0).any(1)
    meshes = model.geom_dataid[shown][painted]
    return {int(mesh) for mesh in meshes if model.mesh_texcoordadr[mesh] >= 0}


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
