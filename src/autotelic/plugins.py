"""Plugins: one importer of files and modules, and one registry of names for all that can be exchanged.

    register("objective", "polychromic", Polychromic)     in a file, my_objective.py
    autotelic run vlm/grpo --use my_objective.py --objective polychromic
    autotelic run vlm/grpo --objective my_objective.py:Polychromic       without registering

An installed package announces itself by an entry point of the group "autotelic.plugins" that names a module to import.

A file is a submodule of this module, named after its stem and a hash of its content. So two files of one stem both
work, a file and its copy in a run folder are one module, and worker processes can unpickle what it defines: the name
tells Python to import this module first, whose finder knows the files by an environment variable.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

from .builtin import BUILT_IN
from .errors import UsageError, unknown

T = TypeVar("T")

logger = logging.getLogger(__name__)

GROUP = "autotelic.plugins"
"""Group of the entry points."""

FILES = "AUTOTELIC_PLUGIN_FILES"
"""Environment variable in which child processes find the files: JSON, {module: path}."""

__path__: list[str] = []  # plugin files are submodules


@dataclass(frozen=True)
class Kind:
    """A kind of plugin: the plural that ``autotelic list`` takes, and what a plugin must have."""

    plural: str
    members: tuple[str, ...] = ()


_RENDERER = (
    *("ends", "banned", "sees", "shares", "prompts", "prompt", "tokens", "text", "reply", "stretches", "save"),
    *("token_inputs", "positions", "image_places", "takes_features", "encode", "place", "scale_logits"),
)

KINDS: dict[str, Kind] = {
    "recipe": Kind("recipes", ("Config", "build")),
    "reward": Kind("rewards", ("__call__",)),
    "progress": Kind("progress", ("kind", "__call__")),
    "environment": Kind("environments", ("instruction", "max_episode_steps")),
    "policy": Kind("policies", ("decide", "score", "imitate")),
    "pipeline": Kind("pipelines", ("encode", "predict", "decode", "set_timesteps")),
    "renderer": Kind("renderers", _RENDERER),
    "curriculum": Kind("curricula", ("sample", "update", "state_dict", "load_state_dict")),
    "objective": Kind("objectives", ("__call__",)),
    "advantage": Kind("advantages", ("__call__",)),
    "gate": Kind("gates", ("__call__",)),
    "tracker": Kind("trackers", ("on_start", "on_iteration", "on_evaluation", "on_gate", "on_end")),
}


HOMES = {"environment": "autotelic.envs.simulator"}
"""Modules whose import registers the package's own names of a kind."""


@dataclass(frozen=True)
class _Registration:
    kind: str
    name: str
    value: Any
    file: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"


_tables: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_registered: dict[tuple[str, str], _Registration] = {}
_log: list[_Registration] = []
_by_module: dict[str, list[_Registration]] = {}  # of plugins that were imported, what their import registered
_fresh: set[tuple[str, str]] = set()  # registered since the last ``use`` began
_used: dict[str, None] = {}
_files: dict[str, Path] = {name: Path(path) for name, path in json.loads(os.environ.get(FILES, "{}")).items()}
_copies: dict[Path, Path] = {}
_entered: dict[str, None] = {}  # this module once installed packages were asked, and their plugins


# --- the importer ------------------------------------------------------------------------------


class _Finder(MetaPathFinder):
    """Finds plugin files as submodules of this module, in worker processes too."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        file = _files.get(fullname)
        if file is None:
            return None
        if not file.is_file() or _module_name(file) != fullname:
            raise ImportError(f"{file} has changed since it was imported: start again")
        return spec_from_file_location(fullname, file)


sys.meta_path.append(_Finder())


def is_place(spec: str) -> bool:
    """Whether a text is written like "package.module:name" or "FILE.py:name", and not like a registered name."""
    return ":" in spec or spec.endswith(".py")


def is_named(kind: str, spec: str) -> bool:
    """Whether a text is a name of this kind, or written like a place; a folder or a hub's name is neither."""
    return is_place(spec) or spec in names(kind)


def module_at(place: str) -> ModuleType:
    """The module that "FILE.py" or "package.module" names, imported.

    A file is imported once for each content; modules beside it can be imported by it. A module may lie in the
    working directory.

    Raises:
        UsageError: there is no such module or file, or it cannot be imported; one line with file, line and reason.
    """
    path = None
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        path = _copies.get(path, path)
        if not path.is_file():
            raise UsageError(f"there is no file {place}")
        name = _module_name(path)
        _know(name, path)
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
    else:
        name = place
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
    new, before = name not in sys.modules, len(_log)
    try:
        module = import_module(name)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"cannot import {place}: {reason(error, path)}") from error
    if new:
        _by_module[name] = _log[before:]
        if path is not None:
            _lend_stem(path, module)
    return module


def imported(place: str) -> Any:
    """What "package.module:name" or "FILE.py:name" stands for; a name may have dots.

    Raises:
        UsageError: the text has another form, there is nothing there, or the module cannot be imported.
    """
    module, _, name = place.rpartition(":")
    if not module or not name:
        raise UsageError(f'"{place}" is neither package.module:name nor path/to/file.py:name')
    value: Any = module_at(module)
    for part in name.split("."):
        if not hasattr(value, part):
            raise unknown("name", f"{module}:{part}", [f"{module}:{each}" for each in dir(value) if each[0] != "_"])
        value = getattr(value, part)
    return value


def copied(original: Path, copy: Path) -> None:
    """From now on a plugin file is imported from its copy, in processes that start later too."""
    _copies[original] = copy
    name = _module_name(copy)
    if name in _files:
        _know(name, copy)


def copy_of(file: Path) -> Path:
    """Where a plugin file is imported from: its copy, or itself where there is none."""
    return _copies.get(file, file)


def reason(error: BaseException, path: Path | None = None) -> str:
    """An exception in one line: type, message, and where it was raised, if it can be in the file ``path``."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _internal(frame.filename)]
    frames = [frame for frame in frames if path is not None and Path(frame.filename) == path] or frames
    return f"{line} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else line


def _internal(filename: str) -> bool:
    library = str(Path(inspect.getfile(import_module)).parent)
    return filename.startswith(("<", library)) or Path(filename) == Path(__file__)


def _module_name(path: Path) -> str:
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{__name__}.{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}_{content[:8]}"


def _know(name: str, path: Path) -> None:
    _files[name] = path
    os.environ[FILES] = json.dumps({name: str(path) for name, path in _files.items()})


def _lend_stem(path: Path, module: ModuleType) -> None:
    """Let files beside a plugin that ``import`` it by its stem get the same module, unless another has that name."""
    spec = None if path.stem in sys.modules or not path.stem.isidentifier() else find_spec(path.stem)
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path:
        sys.modules[path.stem] = module


# --- the registry ------------------------------------------------------------------------------


_DECORATED = object()


@overload
def register(kind: str, name: str) -> Callable[[T], T]: ...
@overload
def register(kind: str, name: str, value: T) -> T: ...
def register(kind: str, name: str, value: Any = _DECORATED) -> Any:
    """Give a plugin a name; with two arguments, a decorator of a class or a function.

    Args:
        kind: one of KINDS.
        name: as on the command line.
        value: the plugin, or "package.module:name" to import it when it is asked for.

    Raises:
        UsageError: an unknown kind, or a name that another plugin or the package has: file, line and name.
    """
    if kind not in KINDS:
        raise unknown("kind of plugin", kind, KINDS)
    file, line = _caller()
    if value is _DECORATED:
        return lambda decorated: _register_from(kind, name, decorated, file, line)
    return _register_from(kind, name, value, file, line)


def _register_from(kind: str, name: str, value: T, file: str, line: int) -> T:
    new, old = _Registration(kind, name, value, file, line), _registered.get((kind, name))
    if name in BUILT_IN.get(kind, {}):
        raise UsageError(f'{new.place}: the {kind} "{name}" comes with autotelic: choose another name')
    if old is not None and not _replaces(new, old):
        raise UsageError(f'{new.place}: the {kind} "{name}" is taken by {old.place}: choose another name')
    _enter(new)
    _log.append(new)
    _fresh.add((kind, name))
    return value


def _enter(registration: _Registration) -> None:
    _registered[registration.kind, registration.name] = registration
    _tables[registration.kind][registration.name] = registration.value


def _replaces(new: _Registration, old: _Registration) -> bool:
    """Whether the same plugin comes again: equal, from its own file, or from another version of it used before."""
    if new.value is old.value or new.file == old.file:
        return True
    if Path(new.file).name == Path(old.file).name and (new.kind, new.name) not in _fresh:
        return True
    try:
        return bool(new.value == old.value)
    except ValueError:  # arrays inside
        return False


def _caller() -> tuple[str, int]:
    """File and line of whoever registers, past functions named ``register`` that pass it on."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_globals.get("__name__") == __name__ or frame.f_code.co_name == "register"
    ):
        frame = frame.f_back
    file = frame.f_globals.get("__file__") or frame.f_globals.get("__name__", "?")
    return str(file), frame.f_lineno


def table(kind: str) -> dict[str, Any]:
    """The registered plugins of a kind by name: the registry's own dictionary, which grows."""
    return _tables[kind]


def names(kind: str) -> list[str]:
    """Every name of a kind, sorted: the package's own and the registered ones."""
    if kind not in KINDS:
        raise unknown("kind of plugin", kind, KINDS)
    enter()
    if kind in HOMES:
        import_module(HOMES[kind])
    return sorted({*BUILT_IN.get(kind, {}), *_tables[kind]})


def named(kind: str, spec: str, also: Collection[str] = ()) -> Any:
    """The plugin that a name, "package.module:name" or "FILE.py:name" stands for; a recipe is a module.

    Args:
        also: names that the caller knows besides, for the message.

    Raises:
        UsageError: there is none, with the nearest names; it cannot be imported; or it lacks a member.
    """
    known = names(kind)
    if spec in _tables[kind]:
        value = _tables[kind][spec]
        return require(kind, _resolved(value) if isinstance(value, str) else value)
    if spec in known:
        module, _, name = BUILT_IN[kind][spec].partition(":")
        return getattr(import_module(module), name)
    if is_place(spec) or (kind == "recipe" and "." in spec):
        return require(kind, _resolved(spec))
    hint = "package.module or FILE.py" if kind == "recipe" else "package.module:NAME or FILE.py:NAME"
    raise UsageError(f"{unknown(kind, spec, [*also, *known])} (your own: {hint})")


def _resolved(place: str) -> Any:
    return imported(place) if ":" in place else module_at(place)


def require(kind: str, value: T) -> T:
    """The plugin, if it has what its kind needs. A function that makes one is taken as it is.

    Raises:
        UsageError: file, line and what is missing.
    """
    if inspect.isroutine(value) or isinstance(value, functools.partial):
        return value
    if isinstance(value, type):
        inside = {name for base in value.__mro__ for name in (*vars(base), *vars(base).get("__annotations__", {}))}
        missing = [name for name in KINDS[kind].members if name not in inside]
        missing += sorted(getattr(value, "__abstractmethods__", ()))
    else:
        missing = [name for name in KINDS[kind].members if not hasattr(value, name)]
    if missing:
        raise UsageError(f"{where(value)}: the {kind} {_called(value)} has no {missing[0]}")
    return value


def where(value: Any) -> str:
    """File and line of an object's definition, or of its class's."""
    if isinstance(value, ModuleType):
        return str(value.__file__ or value.__name__)
    definition = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
    try:
        return f"{inspect.getsourcefile(definition)}, line {inspect.getsourcelines(definition)[1]}"
    except (OSError, TypeError):  # built in
        return definition.__module__


def _called(value: Any) -> str:
    return str(getattr(value, "__name__", type(value).__name__)).removeprefix(f"{__name__}.")


def registered_by(module: ModuleType) -> list[tuple[str, str, Any]]:
    """(kind, name, plugin) of what a plugin's own file registered, without what its import brought along."""
    own = [each for each in _by_module.get(module.__name__, ()) if each.file == module.__file__]
    return [(each.kind, each.name, each.value) for each in own]


# --- plugins at the start ----------------------------------------------------------------------


def use(places: Sequence[str], *, anew: bool = False) -> None:
    """Import plugins, "FILE.py" or "package.module", whose names count from now on.

    Args:
        anew: worker processes are told of these alone, and no longer of those used before.

    Raises:
        UsageError: one cannot be imported, or registers a name that another has.
    """
    enter()
    _fresh.clear()
    if anew:
        _used.clear()
    for place in places:
        _used[_using(place)] = None


def _using(place: str) -> str:
    name = module_at(place).__name__
    for registration in _by_module.get(name, ()):
        _enter(registration)
    return name


def enter() -> None:
    """Import the plugins of installed packages, once; one that fails is told in a line and left out."""
    if _entered:
        return
    _entered[__name__] = None
    for point in entry_points(group=GROUP):
        try:
            _entered[_using(point.module)] = None
        except UsageError as error:
            package = point.dist.name if point.dist is not None else point.value
            logger.warning("the plugin %s of %s is left out: %s", point.name, package, error)


def loaded(kind: str) -> list[str]:
    """Modules that a worker process has to import for plugins of a kind: those used that registered some, or nothing.

    Who registers nothing may have told another registry, such as Gymnasium's.
    """
    chosen = []
    for name in {**_entered, **_used}:
        kinds = {registration.kind for registration in _by_module.get(name, ())}
        if not kinds or kind in kinds:
            chosen.append(name)
    return chosen
