"""What a config names is looked for before anything is made or loaded.

A config class may say in ``OWN`` which names of a field its recipe knows besides the registered ones::

    OWN: ClassVar[Mapping[str, tuple[str, ...]]] = {"rewards": ("progress",), "critic": ("own", "ends")}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import plugins
from .errors import UsageError, unknown
from .rewards.names import ISOLATED, check_names
from .trainers.config import RunConfig, fixed, flag, merged

KINDS: Mapping[str, str] = {
    "objective": "objective",
    "advantage": "advantage",
    "curriculum": "curriculum",
    "gate": "gate",
    "trackers": "tracker",
    "tools": "tool",
    "renderer": "renderer",
}
"""Field of a config -> what it names; rewards are read apart, as they have weights."""
OWN_KINDS: Mapping[str, str] = {"critic": "progress"}
"""The same of fields that name a plugin only where the recipe says so in ``OWN``."""
REWARDS = ("rewards", "judge")
PATHS = ("model", "data", "eval_data", "demonstrations_from", "pairs")
"""Fields that may name a file or a folder."""
NOTHING = ("", "none")


def check(config: Any) -> None:
    """Look for everything that the config names.

    Raises:
        UsageError: a name that is not there, with the nearest that are; a plugin that cannot be imported or lacks
            something; a file or folder that is not there.
    """
    if not isinstance(config, RunConfig):
        return
    own = merged(type(config), "OWN")
    values = {name: value for name, value in vars(config).items() if name not in fixed(type(config))}
    for name in REWARDS:
        if specs := _texts(values.get(name)):
            check_names(specs, own.get(name, ()))
    for name, kind in {**KINDS, **{name: kind for name, kind in OWN_KINDS.items() if name in own}}.items():
        for spec in _texts(values.get(name)):
            _check(kind, spec, own.get(name, ()))
    if plugins.is_place(config.model):
        plugins.named("policy", config.model)
    else:
        _check_place("model", config.model, looks_local(config.model))
    for name in ("demonstrations_from", "pairs"):
        for place in _texts(values.get(name)):
            _check_place(name, place, looks_local(place) or "/" not in place)


def _check(kind: str, spec: str, own: tuple[str, ...]) -> None:
    if spec in own:
        return
    if kind != "tool":
        plugins.named(kind, spec, also=own)
    elif plugins.is_place(spec):
        plugins.imported(spec)
    else:
        raise unknown("tool", spec, own)


def _check_place(name: str, place: str, local: bool) -> None:
    if place and local and not Path(place).expanduser().exists():
        what = "file" if Path(place).suffix else "folder"
        raise UsageError(f"{flag(name)}: there is no {what} {place}")


def _texts(value: Any) -> list[str]:
    """The names in a field that are looked for."""
    return [each for each in ((value,) if isinstance(value, str) else value or ()) if each not in NOTHING]


def looks_local(name: str) -> bool:
    """Whether a name can only be a path of this machine, and not one of a hub."""
    return name.startswith((".", "/", "~", "\\"))


def located(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config, in which files and folders that are there are named from the root."""
    values = dict(config)
    for name in values.keys() & set(PATHS):
        kept = values[name]
        values[name] = _absolute(kept) if isinstance(kept, str) else [_absolute(each) for each in kept]
    for name in values.keys() & set(REWARDS):
        kept = values[name]
        values[name] = _interpreted(kept) if isinstance(kept, str) else [_interpreted(each) for each in kept]
    return values


def _absolute(place: str) -> str:
    path = Path(place).expanduser()
    return os.path.abspath(path) if place and path.exists() else place  # a link stays a link


def _interpreted(reward: str) -> str:
    """A reward in an interpreter of its own, "isolated:INTERPRETER@TARGET", with the interpreter from the root."""
    interpreter, at, target = reward.removeprefix(ISOLATED).rpartition("@")
    if not (reward.startswith(ISOLATED) and at):
        return reward
    return f"{ISOLATED}{_absolute(interpreter)}@{target}"
