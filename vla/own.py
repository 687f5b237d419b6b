"""Environments, policies and progress models of one's own, found by where they are written.

"my_robot.py" or "my_package.robot" is a module; "my_robot.py:Policy" or "my_package.robot:Policy" something in it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UsageError
from ..rewards.isolated_worker import told


def module_at(place: str) -> ModuleType:
    """Import a module, or a file under its own name from its own folder, so that worker processes find it too.

    Raises:
        UsageError: there is no such module or file, it cannot be imported, or another module has the file's name.
    """
    name = place
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        if not path.is_file():
            raise UsageError(f"there is no file {place}")
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        name = path.stem
    try:
        module = import_module(name)
    except Exception as error:
        raise UsageError(f"cannot import {place}: {told(error)}") from error
    if place.endswith(".py") and Path(module.__file__ or "").resolve() != path:
        raise UsageError(f"{place} has the name of another module ({module.__file__ or name}): rename the file")
    return module


def found(target: str) -> Any:
    """What "module:name" or "file.py:name" stands for.

    Raises:
        UsageError: the target has another form, or there is nothing there.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise UsageError(f'"{target}" is neither package.module:name nor path/to/file.py:name')
    module = module_at(place)
    if not hasattr(module, name):
        raise UsageError(f"{place} has no {name}")
    return getattr(module, name)
