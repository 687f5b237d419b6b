"""All that MuJoCo's model and data hold, taken and put back in place; imports MuJoCo only where it is in use."""

from __future__ import annotations

import copy
import ctypes
import sys
import weakref
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPARE = 8
"""Copies of data that are kept for the next snapshots: making one takes longer than writing into one."""

SMALL = 4096
"""Bytes up to which arrays are compared as bytes, which is quicker."""


class Data:
    """A copy of an ``MjData``, with contacts, solver forces and warm start."""

    def __init__(self, data: Any) -> None:
        self.model = data.model
        self.spare = _known(self.model).spare
        if self.spare:
            self.data = self.spare.pop()
            _copy_data()(self.data._address, self.model._address, data._address)
        else:
            self.data = copy.copy(data)
        self.nbytes = int(data.nbuffer)

    def __del__(self) -> None:
        if len(self.spare) < SPARE:
            self.spare.append(self.data)


def put_data(live: Any, content: Data) -> None:
    """Write a content back into an ``MjData``."""
    _copy_data()(live._address, content.model._address, content.data._address)


class Model:
    """What an ``MjModel`` holds: the arrays and the options in which it differs from when it was first seen."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> None:
        self.arrays, self.options = arrays, options
        self.nbytes = sum(array.nbytes for array in arrays.values())

    def equals(self, other: Model) -> bool:
        """Whether both are the same content."""
        same = self.arrays.keys() == other.arrays.keys() and _alike(self.options, other.options)
        return same and all(np.array_equal(array, other.arrays[name]) for name, array in self.arrays.items())


def of_model(model: Any, before: Model | None = None) -> Model:
    """The content of an ``MjModel``; ``before`` itself if it has not changed."""
    known = _known(model)
    arrays = {name: view.copy() for name, view in known.views.items() if not known.is_first(name, view)}
    content = Model(arrays, _options(model))
    return before if before is not None and before.equals(content) else content


def put_model(live: Any, content: Model) -> None:
    """Write a content back into an ``MjModel``, where it differs."""
    known = _known(live)
    for name, view in known.views.items():
        if name in content.arrays:
            view[...] = content.arrays[name]
        elif not known.is_first(name, view):
            view[...] = known.first[name]
    if not _alike(_options(live), content.options):
        for name, value in content.options.items():
            part, _, field = name.partition(".")
            holder = live.opt if part == "opt" else live.stat
            setattr(holder, field, value)


class _Known:
    """A model's arrays, as they were when it was first seen, and copies of data that wait to be used."""

    def __init__(self, model: Any) -> None:
        named = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
        self.views: dict[str, NDArray[Any]] = {
            name: value
            for name, value in named.items()
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.size and value.flags.writeable
        }
        self.first = {name: view.copy() for name, view in self.views.items()}
        self.bytes = {name: array.tobytes() for name, array in self.first.items() if array.nbytes <= SMALL}
        self.spare: list[Any] = []

    def is_first(self, name: str, view: NDArray[Any]) -> bool:
        """Whether an array is as it was."""
        first = self.bytes.get(name)
        return view.tobytes() == first if first is not None else np.array_equal(view, self.first[name])


_models: dict[int, _Known] = {}
"""By the address of the model, which is forgotten with the model."""


def _known(model: Any) -> _Known:
    address = int(model._address)
    if address not in _models:
        _models[address] = _Known(model)
        weakref.finalize(model, _models.pop, address, None)
    return _models[address]


def _options(model: Any) -> dict[str, Any]:
    """Physics options and statistics: numbers, and copies of small arrays."""
    found = {}
    for part, holder in (("opt", model.opt), ("stat", model.stat)):
        kind: Any = type(holder)
        for name in _fields(kind):
            value = getattr(holder, name)
            found[f"{part}.{name}"] = value.copy() if isinstance(value, np.ndarray) else value
    return found


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(name for name, member in vars(kind).items() if isinstance(member, property) and member.fset)


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(np.array_equal(value, b[name]) for name, value in a.items())


@cache
def _copy_data() -> Any:
    """The function of MuJoCo's C library that copies in place, which its Python package leaves out."""
    folder = Path(str(sys.modules["mujoco"].__file__)).parent
    names = [path for pattern in ("libmujoco*.so*", "libmujoco*.dylib", "mujoco.dll") for path in folder.glob(pattern)]
    function = ctypes.CDLL(str(names[0])).mj_copyData
    function.argtypes = [ctypes.c_void_p] * 3
    function.restype = ctypes.c_void_p
    return function
