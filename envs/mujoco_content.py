"""All that MuJoCo's model and data hold, taken and put back in place; imports MuJoCo only where it is in use."""

from __future__ import annotations

import copy
import ctypes
import operator
import os
import sys
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SPARE = 8
"""Copies of data that are kept for the next snapshots: making one takes longer than writing into one."""

LARGE = 65_536
"""Bytes from which an array of a model (meshes, textures, height fields) is looked at only where an episode begins."""

ALIGNED = 64
"""Bytes to which MuJoCo aligns arrays."""

BEFORE_GRAVITY = 256
"""Bytes from which on a model's options are kept: the time step and tolerances lie before gravity, and sizes before."""

_memcmp = ctypes.CDLL(None).memcmp if os.name == "posix" else ctypes.cdll.msvcrt.memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


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
    """What an ``MjModel`` holds.

    Attributes:
        small: the bytes of its options and smaller arrays, by stretches of memory.
        large: those of its larger arrays; None where they are as they were when it was first seen.
        nbytes: of what other contents do not share.
    """

    def __init__(self, small: tuple[bytes, ...], large: tuple[bytes, ...] | None) -> None:
        self.small, self.large = small, large
        self.nbytes = 0


def of_model(model: Any, thorough: bool = True) -> Model:
    """The content of an ``MjModel``; one object for as long as it does not change.

    Args:
        thorough: look at its larger arrays too, which otherwise count as those of the last look.
    """
    known = _known(model)
    last, large = known.last, known.last.large
    small = tuple([stretch.read(before) for stretch, before in zip(known.small, last.small, strict=True)])
    if thorough:
        now = tuple([stretch.read(before) for stretch, before in zip(known.large, known.large_now, strict=True)])
        if _same(now, known.large_first):
            large, known.large_now = None, known.large_first
        elif not _same(now, known.large_now):
            large = known.large_now = now
    if large is last.large and _same(small, last.small):
        return last
    known.last = Model(small, large)
    known.last.nbytes = sum(len(new) for new, old in zip(small, last.small, strict=True) if new is not old)
    if large is not None and large is not last.large:
        known.last.nbytes += sum(map(len, large))
    return known.last


def put_model(live: Any, content: Model) -> None:
    """Write a content back into an ``MjModel``, where it differs."""
    known = _known(live)
    for stretch, wanted in zip(known.small, content.small, strict=True):
        stretch.write(wanted)
    large = known.large_first if content.large is None else content.large
    if large is not known.large_now:
        for stretch, wanted in zip(known.large, large, strict=True):
            stretch.write(wanted)
    known.large_now, known.last = large, content


def _same(some: tuple[bytes, ...], others: tuple[bytes, ...]) -> bool:
    """Whether both hold the very same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


class _Stretch:
    """Neighbouring arrays of a model, as one piece of memory."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size

    def read(self, before: bytes | None = None) -> bytes:
        """Its bytes; the very same object as before, if they are the same."""
        if before is not None and _memcmp(self.address, before, self.size) == 0:
            return before
        return ctypes.string_at(self.address, self.size)

    def write(self, content: bytes) -> None:
        """Put bytes back, where they differ."""
        if _memcmp(self.address, content, self.size) != 0:
            ctypes.memmove(self.address, content, self.size)


class _Known:
    """Where a model's arrays lie, what they held at first and at the last look, and copies of data that wait."""

    def __init__(self, model: Any) -> None:
        named = (getattr(model, name) for name in dir(model) if not name.startswith("_"))
        arrays = [each for each in named if isinstance(each, np.ndarray) and each.size and each.flags.writeable]
        places = sorted({(_address(array), array.nbytes) for array in arrays if array.flags.c_contiguous})
        self.small = [_settings(model), *_stretches([place for place in places if place[1] < LARGE])]
        self.large = [_Stretch(*place) for place in places if place[1] >= LARGE]
        self.large_first = self.large_now = tuple(stretch.read() for stretch in self.large)
        self.last = Model(tuple(stretch.read() for stretch in self.small), None)
        self.spare: list[Any] = []


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def _settings(model: Any) -> _Stretch:
    """Options of physics and drawing, and statistics: neighbours in the model's struct, which ends with them."""
    begin, end = _address(model.opt.gravity) - BEFORE_GRAVITY, _address(model.stat.center) + model.stat.center.nbytes
    if not int(model._address) <= begin < end < begin + 8192:
        raise ValueError("this version of MuJoCo keeps its options elsewhere")
    return _Stretch(begin, end - begin)


def _stretches(places: Sequence[tuple[int, int]]) -> list[_Stretch]:
    """Arrays (address, bytes), in their order, with what lies a few bytes apart joined: memory is aligned."""
    joined: list[_Stretch] = []
    for address, size in places:
        last = joined[-1] if joined else None
        if last is not None and address - (last.address + last.size) < ALIGNED:
            last.size = max(last.size, address + size - last.address)
        else:
            joined.append(_Stretch(address, size))
    return joined


_models: dict[int, _Known] = {}
"""By the address of the model, which is forgotten with the model."""


def _known(model: Any) -> _Known:
    address = int(model._address)
    if address not in _models:
        _models[address] = _Known(model)
        weakref.finalize(model, _models.pop, address, None)
    return _models[address]


@cache
def _copy_data() -> Any:
    """The function of MuJoCo's C library that copies in place, which its Python package leaves out."""
    folder = Path(str(sys.modules["mujoco"].__file__)).parent
    names = [path for pattern in ("libmujoco*.so*", "libmujoco*.dylib", "mujoco.dll") for path in folder.glob(pattern)]
    function = ctypes.CDLL(str(names[0])).mj_copyData
    function.argtypes = [ctypes.c_void_p] * 3
    function.restype = ctypes.c_void_p
    return function
