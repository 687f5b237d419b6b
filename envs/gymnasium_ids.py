"""What Gymnasium was told of environments in one process, for another one that may not have been told.

A person's module, script or notebook registers ids that a worker process then makes. How each is made is pickled, and
read only where an id is asked for that is not known there.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import cloudpickle  # type: ignore[import-untyped]

T = TypeVar("T")
Told = dict[str, tuple[Any, bytes]]
"""By id: its spec without how it is made, and that, pickled."""

_heard: Told = {}


def told() -> Told:
    """The ids of this process that are not Gymnasium's own."""
    registration = sys.modules.get("gymnasium.envs.registration")
    found: Told = {}
    for name, spec in registration.registry.items() if registration is not None else ():
        if not str(spec.entry_point).startswith("gymnasium."):
            with suppress(Exception):  # whoever needs it is told by Gymnasium that it is not there
                made = cloudpickle.dumps((spec.entry_point, spec.kwargs))
                found[name] = replace(spec, entry_point=None, vector_entry_point=None, kwargs={}), made
                cloudpickle.dumps(found[name])
    return found


def hear(ids: Mapping[str, tuple[Any, bytes]]) -> None:
    """Remember what another process was told."""
    _heard.update(ids)


def knowing(make: Callable[[], T]) -> T:
    """What ``make`` returns; if it asks Gymnasium for an id that is not known here, it is asked again, told of all."""
    try:
        return make()
    except Exception as error:
        if not _heard or not any(kind.__name__ == "UnregisteredEnv" for kind in type(error).__mro__):
            raise
    from gymnasium.envs.registration import registry

    for name, (spec, made) in _heard.items():
        if name not in registry:
            spec.entry_point = partial(_make, made)
            registry[name] = spec
    return make()


def _make(made: bytes, **kwargs: Any) -> Any:
    """An environment as another process would make it."""
    from gymnasium.envs.registration import load_env_creator

    entry, own = pickle.loads(made)
    make: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    return make(**{**own, **kwargs})
