"""The state of Python objects, taken and put back into the very same objects.

A snapshot holds, for every object that can be reached from an environment, the object and a copy of its content;
putting it back writes the content into the object. So whatever refers to an object goes on referring to it: bound
methods, back references, windows into arrays, closures, renderers, and pointers of C libraries. Nothing is built anew,
so neither constructors nor pickling protocols nor finalisers have a say.

What only draws (renderers, viewers, windows) is no state. Of MuJoCo's model and data everything is, down to the
solver's warm start; a model's larger arrays (meshes, textures, height fields) are looked at where an episode begins. An
object with content that Python does not see is copied by ``copy.deepcopy`` if it allows that, and else there is no
snapshot.
"""

from __future__ import annotations

import array
import copy
import copyreg
import functools
import logging
import random
import re
import sys
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any

import gymnasium
import numpy as np

from . import mujoco_content

Put = Callable[[Any, Any], None]
Way = tuple[Any, ...]
"""How an object was reached: (the way to its holder, its name there), or () for a root."""

SHARED_FROM = 1024
"""Bytes from which an array that did not change shares its copy with the snapshot before."""

_ATOMS = frozenset(
    {
        *(int, float, complex, bool, str, bytes, NoneType, type, range, slice, CodeType, ModuleType, np.dtype),
        *(MappingProxyType, weakref.ref, type(Ellipsis), type(NotImplemented), random.SystemRandom, np.ufunc),
        *(type(threading.Lock()), type(threading.RLock())),
    }
)
"""Types whose objects never change, or are no state, as locks, which nobody holds between two steps."""
_ATOMIC_BASES = (
    type,
    Enum,
    np.generic,
    np.dtype,
    logging.Logger,
    logging.Handler,
    ModuleType,
    re.Pattern,
    BaseException,
)

_DRAWS = re.compile(r"render(er|context|ing)?\b|viewer|glcontext|(^|\.)_?render(er|ing)?\.", re.IGNORECASE)
_DRAWING_LIBRARIES = frozenset({"pygame", "glfw", "OpenGL", "pyglet", "moderngl", "matplotlib", "tkinter", "vispy"})

_HEAP_TYPE = 1 << 9


class Uncopyable(Exception):
    """Something whose content Python does not see; the text says where it is held and what it is."""


class Snapshot:
    """What ``take`` found.

    Attributes:
        nbytes: of the copies that it does not share with the snapshot before it.
        models: of the MuJoCo models, which are not copied while they do not change.
    """

    __slots__ = ("arrays", "frozen", "models", "nbytes", "parts")

    def __init__(self) -> None:
        self.parts: list[tuple[Put, Any, Any]] = []
        self.arrays: dict[int, tuple[Any, Any]] = {}
        self.frozen: dict[int, tuple[Any, Any]] = {}
        self.nbytes = self.models = 0

    def put_back(self) -> None:
        """Write every content into its object."""
        if not self.frozen:
            for put, live, content in self.parts:
                put(live, content)
            return
        fresh = {key: copy.deepcopy(twin) for key, (_, twin) in self.frozen.items()}
        for put, live, content in self.parts:
            put(live, _exchanged(content, fresh))


def take(
    roots: Sequence[Any], before: Snapshot | None = None, apart: Sequence[Any] = (), thorough: bool = True
) -> Snapshot:
    """The content of everything that can be reached from some objects.

    Args:
        roots: objects; nothing holds them that would have to be put back.
        before: an earlier snapshot, whose copies of large arrays are kept where they have not changed.
        apart: objects that are left alone, with what can be reached through them only.
        thorough: look at the larger arrays of MuJoCo's models too (meshes, textures, height fields), which otherwise
            count as those of the last look.

    Raises:
        Uncopyable: something cannot be looked into, and cannot be copied.
    """
    walk = _Walk(before, thorough)
    walk.seen.update((id(each), each) for each in apart)
    for root in roots:
        walk.push(root, ())
    while walk.stack:
        value, way, fixed = walk.stack.pop()
        if id(value) in walk.seen:
            continue
        walk.seen[id(value)] = value
        try:
            look = _LOOKS.get(type(value))
            if look is None:
                look = _LOOKS[type(value)] = _look_of(type(value))
            look(walk, value, way, fixed)
        except Uncopyable:
            raise
        except Exception as error:  # other people's objects answer as they like
            raise Uncopyable(f"{named(way) or 'it'} is a {_name(type(value))} ({_line(error)})") from error
    return walk.snapshot


class _Walk:
    """The state of one ``take``."""

    def __init__(self, before: Snapshot | None, thorough: bool) -> None:
        self.snapshot, self.thorough = Snapshot(), thorough
        self.before = before.arrays if before is not None else {}
        self.seen: dict[int, Any] = {}
        self.stack: list[tuple[Any, Way, bool]] = []

    def push(self, value: Any, way: Way, fixed: bool = False) -> None:
        if type(value) not in _ATOMS:
            self.stack.append((value, way, fixed))

    def push_all(self, values: Iterable[tuple[Any, Any]], way: Way, fixed: bool = False) -> None:
        """Names and values of a holder; ``fixed`` if it cannot hold others instead."""
        self.stack += [(value, (way, name), fixed) for name, value in values if type(value) not in _ATOMS]

    def keep(self, put: Put, live: Any, content: Any) -> None:
        self.snapshot.parts.append((put, live, content))
        self.snapshot.nbytes += 64


Look = Callable[[_Walk, Any, Way, bool], None]


def _exchanged(content: Any, fresh: dict[int, Any]) -> Any:
    """A content that holds fresh copies instead of objects that were copied as a whole."""
    if type(content) is dict:
        return {name: fresh.get(id(value), value) for name, value in content.items()}
    if type(content) is list:
        return [fresh.get(id(value), value) for value in content]
    return content


def named(way: Way) -> str:
    """A way in words, such as ".task.steps[2]"."""
    if not way:
        return ""
    holder, name = way
    return f"{named(holder)}{f'.{name}' if isinstance(name, str) and name.isidentifier() else f'[{name!r}]'}"


# --- what is looked at, by type


def _nothing(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    pass


def _tuple(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.push_all(enumerate(value), way, True)


def _list(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.keep(_put_list, value, list(value))
    walk.push_all(enumerate(value), way)


def _put_list(live: Any, content: Any) -> None:
    list.__setitem__(live, slice(None), content)


def _dict(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.keep(_put_ordered if isinstance(value, OrderedDict) else _put_dict, value, dict(value))
    walk.push_all(((f"{key}'s key", key) for key in value if type(key) not in _ATOMS), way, True)
    walk.push_all(value.items(), way)


def _put_dict(live: Any, content: Any) -> None:
    dict.clear(live)
    dict.update(live, content)


def _put_ordered(live: Any, content: Any) -> None:
    OrderedDict.clear(live)
    for name, value in content.items():
        OrderedDict.__setitem__(live, name, value)


def _set(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.keep(_put_set, value, set(value))
    walk.push_all(enumerate(value), way, True)


def _put_set(live: Any, content: Any) -> None:
    set.clear(live)
    set.update(live, content)


def _deque(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.keep(_put_deque, value, list(value))
    walk.push_all(enumerate(value), way)


def _put_deque(live: Any, content: Any) -> None:
    deque.clear(live)
    deque.extend(live, content)


def _buffer(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.keep(_put_buffer, value, value[:])


def _put_buffer(live: Any, content: Any) -> None:
    live[:] = content


def _array(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    if isinstance(value.base, np.ndarray):  # what it is a window into has its content
        walk.push(value.base, way)
    elif value.dtype.hasobject:
        walk.keep(_put_array, value, value.copy())
        walk.push_all(enumerate(value.flat), way, True)
    elif value.flags.writeable:
        twin = None
        if value.nbytes >= SHARED_FROM:
            live, twin = walk.before.get(id(value), (None, None))
            if live is not value or live.shape != twin.shape or not np.array_equal(live, twin):
                twin = None
        if twin is None:
            twin = np.array(value, subok=False)
            walk.snapshot.nbytes += twin.nbytes
        if value.nbytes >= SHARED_FROM:
            walk.snapshot.arrays[id(value)] = value, twin
        walk.keep(_put_array, value, twin)


def _put_array(live: Any, content: Any) -> None:
    if live.shape != content.shape:
        live.resize(content.shape, refcheck=False)
    np.ndarray.__setitem__(live, ..., content)


def _bit_generator(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.keep(_put_bits, value, value.state)


def _put_bits(live: Any, content: Any) -> None:
    live.state = content


def _generator(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.push(value.bit_generator, (way, "bit_generator"))


def _random_state(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.keep(np.random.RandomState.set_state, value, value.get_state())


def _random(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.keep(_put_random, value, value.getstate())


def _put_random(live: Any, content: Any) -> None:
    live.setstate(content)


def _tensor(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.keep(_put_tensor, value, value.detach().clone())


def _put_tensor(live: Any, content: Any) -> None:
    live.data.copy_(content)


def _torch_generator(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.keep(type(value).set_state, value, value.get_state())


def _function(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        walk.push(cell, (way, name))
    walk.push_all(enumerate(value.__defaults__ or ()), (way, "__defaults__"), True)
    if value.__dict__:
        walk.push(value.__dict__, way)


def _cell(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    try:
        content = value.cell_contents
    except ValueError:  # nothing in it yet
        return
    walk.keep(_put_cell, value, [content])
    walk.push(content, way)


def _put_cell(live: Any, content: Any) -> None:
    live.cell_contents = content[0]


def _method(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.push(value.__self__, way, True)
    walk.push(value.__func__, way, True)


def _builtin(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    if value.__self__ is not None:
        walk.push(value.__self__, way, True)


def _partial(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    walk.push_all((("func", value.func), *enumerate(value.args), *value.keywords.items()), way, True)


def _space(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    """A space changes in its generator only."""
    walk.keep(_put_attributes, value, dict(vars(value)))
    walk.push_all(((n, each) for n, each in vars(value).items() if not isinstance(each, np.ndarray)), way)


def _mujoco_data(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    content = mujoco_content.Data(value)
    walk.keep(mujoco_content.put_data, value, content)
    walk.snapshot.nbytes += content.nbytes


def _mujoco_model(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    before = walk.before.get(id(value), (None, None))[1]
    content = mujoco_content.of_model(value, walk.thorough)
    walk.snapshot.arrays[id(value)] = value, content
    walk.snapshot.models += int(value.nbuffer)
    walk.snapshot.nbytes += 0 if content is before else content.nbytes
    walk.keep(mujoco_content.put_model, value, content)


def _environment(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    """An environment's classes are looked at too: some keep state there."""
    for kind in type(value).__mro__:
        if kind.__flags__ & _HEAP_TYPE and _library(kind) not in ("gymnasium", "typing"):
            content = _class_attributes(kind)
            if content:
                walk.keep(_put_class, kind, content)
                walk.push_all(content.items(), (way, kind.__name__))
    _object(walk, value, way, fixed)


def _class_attributes(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith("__") and not callable(value) and not hasattr(type(value), "__get__")
    }


def _put_class(live: Any, content: Any) -> None:
    now = _class_attributes(live)
    for name in now.keys() - content.keys():
        delattr(live, name)
    for name, value in content.items():
        if name not in now or now[name] is not value:
            setattr(live, name, value)


def _object(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    attributes = getattr(value, "__dict__", None)
    if attributes is not None:
        walk.keep(_put_attributes, value, dict(attributes))
        walk.push_all(attributes.items(), way)
    kind: Any = type(value)
    slots = _slots(kind)
    if slots:
        content = {name: slot.__get__(value) for name, slot in slots.items() if hasattr(value, name)}
        walk.keep(_put_slots, value, content)
        walk.push_all(content.items(), way)


def _put_attributes(live: Any, content: Any) -> None:
    attributes = live.__dict__
    attributes.clear()
    attributes.update(content)


def _put_slots(live: Any, content: Any) -> None:
    kind: Any = type(live)
    for name, slot in _slots(kind).items():
        if name in content:
            slot.__set__(live, content[name])
        elif hasattr(live, name):
            slot.__delete__(live)


@functools.cache
def _slots(kind: Any) -> dict[str, Any]:
    return {
        name: member
        for base in reversed(kind.__mro__)
        if base.__flags__ & _HEAP_TYPE
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
    }


def _whole(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
    """An object that Python cannot look into, as a whole."""
    kind = type(value)
    try:
        twin = copy.deepcopy(value)
    except Exception as error:
        raise Uncopyable(f"{named(way) or 'it'} is a {_name(kind)} ({_line(error)})") from error
    compared: Any = kind.__eq__
    if twin is value or (compared is not object.__eq__ and kind.__hash__ is not None):  # values do not change
        return
    if fixed:
        raise Uncopyable(f"{named(way) or 'it'} is a {_name(kind)} that cannot be exchanged")
    walk.snapshot.frozen[id(value)] = value, twin


def _name(kind: type) -> str:
    """The whole name of a type; some of C libraries have no module."""
    return f"{getattr(kind, '__module__', '')}.{kind.__qualname__}".lstrip(".").removeprefix("builtins.")


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


_LOOKS: dict[type, Look] = {
    tuple: _tuple,
    frozenset: _tuple,
    list: _list,
    dict: _dict,
    set: _set,
    deque: _deque,
    bytearray: _buffer,
    array.array: _buffer,
    np.ndarray: _array,
    np.random.Generator: _generator,
    np.random.RandomState: _random_state,
    random.Random: _random,
    FunctionType: _function,
    CellType: _cell,
    MethodType: _method,
    BuiltinFunctionType: _builtin,
    functools.partial: _partial,
}
"""How objects of a type are looked at; grows with the types that are met."""


def _look_of(kind: type) -> Look:
    if issubclass(kind, _ATOMIC_BASES) or kind is gymnasium.envs.registration.EnvSpec:
        return _nothing
    if issubclass(kind, gymnasium.Env):
        return _environment
    if _draws(kind):
        return _nothing
    if issubclass(kind, gymnasium.Space):
        return _space
    if issubclass(kind, np.random.BitGenerator):
        return _bit_generator
    if (look := _foreign(kind)) is not None:
        return look
    for base in (OrderedDict, dict, list, set, deque, np.ndarray, tuple, frozenset, random.Random, functools.partial):
        if issubclass(kind, base):
            look = _LOOKS[dict if base is OrderedDict else base]
            return _and_attributes(look)
    return _whole if _is_hidden(kind) else _object


def _library(kind: type) -> str:
    return str(getattr(kind, "__module__", "")).partition(".")[0]


def _draws(kind: type) -> bool:
    return _library(kind) in _DRAWING_LIBRARIES or _DRAWS.search(_name(kind)) is not None


def _foreign(kind: type) -> Look | None:
    """How MuJoCo's and torch's objects are looked at, where these libraries are in use."""
    if _library(kind) == "mujoco":
        if kind.__name__ == "MjModel":
            return _mujoco_model
        return _mujoco_data if kind.__name__ == "MjData" else _nothing
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return None
    if issubclass(kind, torch.Tensor):
        return _tensor
    is_generator: bool = kind is torch.Generator
    return _torch_generator if is_generator else None


def _and_attributes(look: Look) -> Look:
    """For a class derived from a container: its content, and the attributes that it has besides."""

    def both(walk: _Walk, value: Any, way: Way, fixed: bool) -> None:
        look(walk, value, way, fixed)
        _object(walk, value, way, fixed)

    return both


def _is_hidden(kind: type) -> bool:
    """Whether objects of a type have more in them than attributes and slots: what ``object.__reduce_ex__`` asks."""
    pointer = np.dtype(np.intp).itemsize
    names: Any = copyreg._slotnames(kind)  # type: ignore[attr-defined]
    room = object.__basicsize__ + pointer * len(names or ())
    room += pointer * (kind.__dictoffset__ > 0) + pointer * (kind.__weakrefoffset__ > 0)
    plain = bool(kind.__flags__ & _HEAP_TYPE) or kind is object
    return kind.__itemsize__ != 0 or kind.__basicsize__ > room or not plain
