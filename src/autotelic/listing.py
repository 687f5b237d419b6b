"""What ``autotelic list KIND`` shows: the names of a kind and what each is, read from files and not run."""

from __future__ import annotations

import ast
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .builtin import BUILT_IN, REWARDS
from .errors import unknown
from .plugins import KINDS, names, table, where

SCORED = {"completions": "text", "episodes": "episode", "images": "image", "outputs": "image"}
"""Column of a reward -> what it scores; of several the first."""


def kind_of(word: str) -> str:
    """The kind that a word on the command line names, "reward" or "rewards".

    Raises:
        UsageError: there is none.
    """
    plurals = {kind.plural: name for name, kind in KINDS.items()} | {name: name for name in KINDS}
    if word not in plurals:
        raise unknown("kind of plugin", word, [kind.plural for kind in KINDS.values()])
    return plurals[word]


def rows(kind: str) -> list[tuple[str, str, str]]:
    """(name, first line of its docstring, where it is, or for a reward what it scores) of all of a kind."""
    lines = []
    for name in names(kind):
        if name in table(kind):
            value = table(kind)[name]
            place = _scored(value) if kind == "reward" else where(value)
            lines.append((name, _summary(value), place))
        else:
            place = BUILT_IN[kind][name]
            lines.append((name, _written(place), _group(name) if kind == "reward" else place))
    return lines


def _group(reward: str) -> str:
    return next(group for group, rewards in REWARDS.items() if reward in rewards)


def _written(place: str) -> str:
    """The first line of the docstring of "module:name", without importing the module."""
    module, _, name = place.partition(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    tree = ast.parse(Path(spec.origin).read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return _written(f"{module}.{node.module}:{name}")
    return ""


def _summary(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not inspect.isclass(value) and not inspect.isroutine(value) and not inspect.ismodule(value):
        return str(getattr(value, "instruction", "") or (inspect.getdoc(type(value)) or "").partition("\n")[0])
    return (inspect.getdoc(value) or "").partition("\n")[0]


def _scored(reward: Any) -> str:
    call = reward.__call__ if inspect.isclass(reward) else reward
    try:
        columns = inspect.signature(call).parameters
    except (TypeError, ValueError):
        return ""
    return ", ".join(dict.fromkeys(what for column, what in SCORED.items() if column in columns))
