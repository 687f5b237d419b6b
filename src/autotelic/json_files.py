"""JSON that somebody else wrote: settings of models and runs, which people mend by hand and downloads cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UsageError

DEEPEST = 64
"""Brackets inside each other; Python's own limit depends on where it is met."""


def read_object(path: str | Path, *needed: str) -> dict[str, Any]:
    """The object in a file.

    Raises:
        UsageError: it holds none, or one without a name that is needed; in one line.
        OSError: it cannot be read.
    """
    found = object_of(Path(path).read_bytes(), str(path))
    if missing := [name for name in needed if name not in found]:
        raise UsageError(f"{path} lacks {', '.join(missing)}")
    return found


def value_of(text: str | bytes, where: str) -> Any:
    """What a text says in JSON.

    Raises:
        UsageError: it is none; ``where`` is named.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UsageError(f"{where} is not JSON: too many brackets inside each other") from error
    except ValueError as error:  # no JSON, no UTF-8, or an integer of more digits than Python reads
        raise UsageError(f"{where} is not JSON ({error}): mend it, or take a whole copy") from error


def object_of(text: str | bytes, where: str) -> dict[str, Any]:
    """The object that a text is.

    Raises:
        UsageError: it is none; ``where`` is named.
    """
    value = value_of(text, where)
    if not isinstance(value, dict):
        raise UsageError(f"{where} is no JSON object but holds a {type(value).__name__}")
    return value


@contextmanager
def as_written(where: str) -> Iterator[None]:
    """While something is made of settings: what they say that is of another kind or value ends in one line.

    Args:
        where: where they stand and what they do not do, such as "the adapters in here do not fit".
    """
    try:
        yield
    except UsageError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RuntimeError, ImportError) as error:
        told = next(iter(str(error).splitlines()), "").rstrip(": ")
        raise UsageError(f"{where}: {told} ({type(error).__name__})") from error


def is_deep(value: Any) -> bool:
    """Whether lists and mappings stand deeper inside each other than ``DEEPEST``."""
    level, inside = 0, [value]
    while inside and level <= DEEPEST:
        containers = [each for each in inside if isinstance(each, dict | list | tuple)]
        inside = [part for each in containers for part in (each.values() if isinstance(each, dict) else each)]
        level += bool(containers)
    return level > DEEPEST
