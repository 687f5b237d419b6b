"""Two processes of the sandbox, a program and its tests, that share values but no memory. Loaded by path.

The tests stand in one process and call what the program defines in the other: arguments and results travel as JSON, so
that the tests see plain values of Python's own types, whatever the program has made of its process. What is no plain
value stays where it is, and the other side holds a ``Proxy``: it can be called and asked, but it never equals a plain
value and has no order among them. Two proxies are equal if they stand for one object or for objects of one class that
hold the same.
"""

from __future__ import annotations

import builtins
import collections
import importlib
import json
import operator
import os
import sys
import types
from collections.abc import Callable
from typing import Any

_MUTABLE = (list, dict, set, bytearray, collections.deque)
_REAL_MODULES = frozenset({"math", "cmath", "numpy", "np", "itertools", "collections", "functools", "re"})
_COMPARISONS = ("lt", "le", "gt", "ge")
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in (*_BINARY, *_COMPARISONS, "neg", "pos", "invert", "contains")},
    **{name: getattr(operator, name) for name in ("getitem", "setitem", "delitem", "index")},
    **{f"r{name}": lambda mine, other, name=name: getattr(operator, name)(other, mine) for name in _BINARY},
    **{name: getattr(builtins, name) for name in ("len", "iter", "next", "str", "repr", "format", "bool", "reversed")},
    **{name: getattr(builtins, name) for name in ("int", "float", "complex", "round", "abs")},
    "enter": lambda mine: type(mine).__enter__(mine),
    "exit": lambda mine: type(mine).__exit__(mine, None, None, None),
}


class Closed(Exception):
    """The other process has ended."""


class Proxy:
    """What stands in the other process."""

    __slots__ = ("_peer", "_ref")

    def __init__(self, peer: Peer, ref: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_ref", ref)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.call(self._ref, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask("get", self._ref, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self._ref, name, self._peer.encode(value))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Proxy):
            return False
        return self._ref == other._ref or bool(self._peer.state(self._ref) == self._peer.state(other._ref))

    def __hash__(self) -> int:
        return hash(self._ref)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Proxy) and self._peer.ask("isinstance", self._ref, instance._ref) is True

    def __exit__(self, *_: object) -> None:
        self._peer.ask("op", self._ref, "exit", [])


def _special(operation: str) -> Callable[..., Any]:
    def ask(self: Proxy, *args: Any) -> Any:
        if operation in _COMPARISONS and not isinstance(args[0], Proxy):
            return NotImplemented
        return self._peer.ask("op", self._ref, operation, [self._peer.encode(value) for value in args])

    return ask


for _operation in OPERATIONS:
    if _operation != "exit":
        setattr(Proxy, f"__{_operation.strip('_')}__", _special(_operation))


class Peer:
    """One end of the line between both.

    Args:
        descriptor: of a socket; messages are lines of JSON.
        names: what the other side may ask for by name; None: nothing, and of what it is given it sees only what the
            tests define.
    """

    def __init__(self, descriptor: int, names: dict[str, Any] | None = None) -> None:
        self._descriptor, self._names = descriptor, names
        self._lines = os.fdopen(os.dup(descriptor), "rb")
        self._owned: list[Any] = []
        self._refs: dict[int, int] = {}
        self._mirrors: dict[int, type[BaseException]] = {}
        self._proxies: dict[int, Proxy] = {}

    # Messages ---------------------------------------------------------------------------------------------------

    def ask(self, *request: Any) -> Any:
        """What the other side answers; raises what it raised, as one of Python's own exceptions or a mirror of it."""
        return self.decode(self.exchange(["ask", *request]))

    def serve(self) -> None:
        """Say that the program has run, then answer until the other side closes the line."""
        try:
            self.send(["answer", None])
            while True:
                self._answer(self.receive())
        except Closed:
            pass

    def exchange(self, message: list[Any]) -> Any:
        """What the other side answers, as it is sent."""
        self.send(message)
        while True:
            said = self.receive()
            if said[0] == "answer":
                return said[1]
            if said[0] == "raised":
                raise self._raised(*said[1:])
            self._answer(said)

    def _answer(self, message: list[Any]) -> None:
        try:
            reply = ["answer", self._served(*message[1:])]
            self.send(reply)
        except Closed:
            raise
        except BaseException as error:
            self.send(["raised", *self._told(error)])

    def send(self, message: list[Any]) -> None:
        """Raises Closed; ValueError and RecursionError for what JSON cannot hold."""
        line = json.dumps(message).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._descriptor, line[:1_000_000]) :]
        except OSError:
            raise Closed from None

    def receive(self) -> list[Any]:
        """The next message. Raises Closed; ValueError and RecursionError for what is none."""
        try:
            line = self._lines.readline()
        except OSError:
            raise Closed from None
        if not line.endswith(b"\n"):
            raise Closed
        said = json.loads(line)
        if not isinstance(said, list) or not said or said[0] not in ("ask", "answer", "raised"):
            raise ValueError("the other process said what is no message")
        return said

    # What is asked ----------------------------------------------------------------------------------------------

    def call(self, ref: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call what stands there; lists, dicts and sets that it changes are changed here too."""
        given = [*args, *kwargs.values()]
        sent = [self.encode(value) for value in given]
        named = dict(zip(kwargs, sent[len(args) :], strict=True))
        result, same, changed = self.exchange(["ask", "call", ref, sent[: len(args)], named])
        for place, value in changed:
            _replace(given[place], self.decode(value))
        return given[same] if isinstance(same, int) else self.decode(result)

    def state(self, ref: int) -> Any:
        """What an object holds, in plain values."""
        return self.exchange(["ask", "state", ref])

    def _served(self, operation: str, *request: Any) -> Any:
        if operation == "name" and self._names is not None:
            return self._named(*request)
        target = self._owned[request[0]]
        if operation == "call":
            args = [self.decode(value) for value in request[1]]
            kwargs = {name: self.decode(value) for name, value in request[2].items()}
            given = [*args, *kwargs.values()]
            before = [self._written(value) for value in given]
            result = target(*args, **kwargs)
            after = [self._written(value) for value in given]
            changed = [[k, json.loads(b)] for k, (a, b) in enumerate(zip(before, after, strict=True)) if b and a != b]
            same = next((k for k, value in enumerate(given) if value is result and isinstance(value, _MUTABLE)), None)
            return [None if same is not None else self.encode(result), same, changed]
        if operation == "op":
            return self.encode(OPERATIONS[request[1]](target, *(self.decode(value) for value in request[2])))
        if operation in ("get", "set"):
            if self._names is None and (request[1].startswith("_") or type(target).__module__ != TESTS):
                raise AttributeError(request[1])
            if operation == "get":
                return self.encode(getattr(target, request[1]))
            setattr(target, request[1], self.decode(request[2]))
            return None
        if self._names is None:
            raise PermissionError(operation)
        if operation == "isinstance":
            return isinstance(self._owned[request[1]], target)
        if operation == "await":
            return self.encode(importlib.import_module("asyncio").run(target))
        return self._state(target, 50)

    def _named(self, name: str) -> Any:
        assert self._names is not None
        if name not in self._names:
            return ["missing", name]
        value = self._names[name]
        return ["module", value.__name__] if isinstance(value, types.ModuleType) else self.encode(value)

    def _written(self, value: Any) -> str:
        return json.dumps(self.encode(value)) if isinstance(value, _MUTABLE) else ""

    def _state(self, value: Any, depth: int) -> Any:
        plain = self.encode(value)
        if not (isinstance(plain, list) and plain[0] == "ref") or depth == 0:
            return plain
        slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
        if not held or isinstance(value, (type, types.FunctionType)):
            return plain
        return ["object", type(value).__qualname__, {name: self._state(held[name], depth - 1) for name in sorted(held)}]

    # Values -----------------------------------------------------------------------------------------------------

    def encode(self, value: Any) -> Any:
        """A value as JSON holds it: of Python's own types by what it holds, of others by reference."""
        if value is None or isinstance(value, (bool, str)):
            return value if value is None or value is True or value is False else str.__str__(value)
        if isinstance(value, int):
            number = int.__int__(value)
            return number if abs(number) < 1 << 60 else ["int", hex(number)]
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, Proxy):
            return ["yours", value._ref]
        if type(value).__module__ == "numpy":
            return self._array(value)
        for name, kind in _CONTAINERS.items():
            if isinstance(value, kind):
                fields = getattr(type(value), "_fields", None) if name == "tuple" else None
                if fields:
                    return ["namedtuple", type(value).__name__, list(fields), [self.encode(v) for v in tuple(value)]]
                return [name, [self.encode(item) for item in kind.__iter__(value)]]
        if isinstance(value, dict):
            name = "Counter" if isinstance(value, collections.Counter) else "dict"
            return [name, [[self.encode(k), self.encode(v)] for k, v in dict.items(value)]]
        for name, (module, held, _) in _SCALARS.items():
            if module in sys.modules and isinstance(value, getattr(sys.modules[module], name)):
                return [name, *held(value)]
        if isinstance(value, type) and issubclass(value, BaseException):
            return self._exception(value)
        return ["coroutine" if isinstance(value, types.CoroutineType) else "ref", self._own(value)]

    def decode(self, said: Any) -> Any:
        """The value. Raises ValueError for what is none."""
        if not isinstance(said, list):
            return said
        name, *held = said
        if name in _CONTAINERS:
            return _CONTAINERS[name](self.decode(item) for item in held[0])
        if name in ("dict", "Counter"):
            pairs = {self.decode(k): self.decode(v) for k, v in held[0]}
            return pairs if name == "dict" else collections.Counter(pairs)
        if name == "namedtuple":
            kind: Any = collections.namedtuple(held[0], held[1], rename=True)  # type: ignore[misc]
            return kind(*(self.decode(value) for value in held[2]))
        if name == "int":
            return int(held[0], 16)
        if name in _SCALARS:
            module, _, arguments = _SCALARS[name]
            return getattr(importlib.import_module(module), name)(*arguments(*held))
        if name == "ndarray":
            return importlib.import_module("numpy").array(held[2], dtype=held[0]).reshape(held[1])
        if name == "exception":
            return self._mirror(held[0], held[1])
        if name == "yours":
            return self._owned[held[0]]
        if name == "coroutine":
            return self._waited(held[0])
        if name == "ref":
            return self._proxies.setdefault(held[0], Proxy(self, held[0]))
        raise ValueError(f"{name} is no kind of value")

    def _array(self, value: Any) -> Any:
        if hasattr(value, "tolist") and not hasattr(value, "shape"):
            return ["ref", self._own(value)]
        if not getattr(value, "shape", ()) and hasattr(value, "item") and value.dtype.kind in "biufcUS":
            return self.encode(value.item())
        if hasattr(value, "dtype") and value.dtype.kind in "biufU":
            return ["ndarray", value.dtype.str, list(value.shape), value.tolist()]
        return ["ref", self._own(value)]

    def _own(self, value: Any) -> int:
        if id(value) not in self._refs:
            self._refs[id(value)] = len(self._owned)
            self._owned.append(value)  # kept, so that its id stays its own
        return self._refs[id(value)]

    async def _waited(self, ref: int) -> Any:
        return self.ask("await", ref)

    # Exceptions -------------------------------------------------------------------------------------------------

    def _exception(self, kind: type[BaseException]) -> Any:
        own = [base for base in kind.__mro__ if base.__module__ != "builtins" and issubclass(base, BaseException)]
        return ["exception", [[self._own(base), base.__name__] for base in own], _built_in(kind).__name__]

    def _told(self, error: BaseException) -> list[Any]:
        try:
            args = [self.encode(value) for value in error.args]
            json.dumps(args)
        except Exception:
            args = []
        return [self._exception(type(error)), args]

    def _raised(self, kind: Any, args: Any) -> BaseException:
        try:
            error = self.decode(kind)(*(self.decode(value) for value in args))
        except Exception:
            return RuntimeError("an exception that cannot be told")
        return error if isinstance(error, BaseException) else RuntimeError("an exception that is none")

    def _mirror(self, own: list[Any], base: str) -> type[BaseException]:
        kind = getattr(builtins, base)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ValueError(f"{base} is no exception")
        for ref, name in reversed(own):
            if ref not in self._mirrors:
                self._mirrors[ref] = type(str(name), (kind,), {})
            kind = self._mirrors[ref]
        return kind


def _built_in(kind: type[BaseException]) -> type[BaseException]:
    return next(base for base in kind.__mro__ if base.__module__ == "builtins" and issubclass(base, BaseException))


def _replace(value: Any, by: Any) -> None:
    if isinstance(value, (list, bytearray)):
        value[:] = by
    elif isinstance(value, (dict, set, collections.deque)):
        value.clear()
        (value.extend if isinstance(value, collections.deque) else value.update)(by)


_CONTAINERS: dict[str, Any] = {
    **{"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque},
    **{"bytes": bytes, "bytearray": bytearray},
}
_Fields = Callable[[Any], list[Any]]
_SCALARS: dict[str, tuple[str, _Fields, Callable[..., list[Any]]]] = {
    "complex": ("builtins", lambda v: [v.real, v.imag], lambda *held: list(held)),
    "range": ("builtins", lambda v: [v.start, v.stop, v.step], lambda *held: list(held)),
    "Fraction": (
        "fractions",
        lambda v: [hex(v.numerator), hex(v.denominator)],
        lambda *held: [int(h, 16) for h in held],
    ),
    "Decimal": ("decimal", lambda v: [str(v)], lambda *held: list(held)),
    "datetime": ("datetime", lambda v: [*v.timetuple()[:6], v.microsecond], lambda *held: list(held)),
    "date": ("datetime", lambda v: [v.year, v.month, v.day], lambda *held: list(held)),
    "timedelta": ("datetime", lambda v: [v.days, v.seconds, v.microseconds], lambda *held: list(held)),
}
"""Name of a class -> its module, what its values hold, and the arguments that make one of that."""


# Tests ----------------------------------------------------------------------------------------------------------

TESTS = "tests of the sandbox"
"""The name of the module that the tests are."""


class Names(dict[str, Any]):
    """Names of the tests, then Python's own, then those of the program, which are asked for.

    Attributes:
        program_first: the program's before Python's own.
        shadowed: a name of Python's own that the program has too was asked for.
    """

    def __init__(self, peer: Peer) -> None:
        super().__init__(__name__=TESTS, __builtins__=builtins)
        self._peer = peer
        self.program_first = self.shadowed = False

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):
            raise KeyError(name)
        if name in _REAL_MODULES:
            return importlib.import_module("numpy" if name == "np" else name)
        said = self._peer.exchange(["ask", "name", name])
        if said == ["missing", name]:
            raise KeyError(name)
        if hasattr(builtins, name):
            self.shadowed = True
            if not self.program_first:
                raise KeyError(name)
        if isinstance(said, list) and said[0] == "module":
            return importlib.import_module(said[1])
        return self._peer.decode(said)


def judge(
    peer: Peer, tests: list[str], say: Callable[[dict[str, Any]], None], told: Callable[[BaseException], str]
) -> None:
    """Each test in turn, whatever became of the others; a verdict for each until the program's process ends.

    A test that uses a name of Python's own that the program has taken for itself has to pass with either.
    """
    sys.modules[TESTS] = types.ModuleType(TESTS)
    names = Names(peer)
    try:
        peer.receive()  # that the program has run
    except (Closed, ValueError):
        return
    for index, test in enumerate(tests):
        names.shadowed = names.program_first = False
        try:
            code = compile(test, f"<test {index}>", "exec")
            exec(code, names)
            if names.shadowed:
                names.program_first = True
                exec(code, names)
            peer.exchange(["ask", "name", ""])  # it is still there
        except Closed:
            return
        except BaseException as error:
            say({"test": index, "passed": False, "error": told(error)})
        else:
            say({"test": index, "passed": True})
