"""Plugin files of a run: copied into its folder, so that the run can be moved and the originals edited or deleted.

::

    RUN/plugins/0/my_recipe.py    the files that the command named, and what they import from beside them,
        plugins/1/...             in one folder for each folder that they come from
        data/data.jsonl           rows that were given as objects
        config.json               "recipe", "use" and values of the config name the copies, relative to the run;
                                  "plugins" has the SHA-256 of every copy
"""

from __future__ import annotations

import ast
import hashlib
import logging
import re
import shutil
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import UsageError
from .plugins import copied, copy_of

logger = logging.getLogger(__name__)

FOLDER = "plugins"

_BEFORE = r"(isolated:(?:[^:]+@)?)?"
_FILE = re.compile(rf"{_BEFORE}([^:]+\.py)(?=:|$)")
_COPY = re.compile(rf"{_BEFORE}({FOLDER}/\d+/[^:]+\.py(?=:|$)|data/\w+\.jsonl$)")


def plan(value: Any) -> dict[Path, str]:
    """The plugin files that a JSON value names, and what they import from beside them -> their place in a run."""
    folders: dict[Path, int] = {}
    places: dict[Path, str] = {}
    for text in _texts(value):
        match = _FILE.match(text)
        path = Path(match[2]).expanduser().resolve() if match else None
        if path is None or not path.is_file():
            continue
        root = path.parent
        number = folders.setdefault(root, len(folders))
        for each in _with_neighbours(path, root, set()):
            places.setdefault(each, f"{FOLDER}/{number}/{each.relative_to(root).as_posix()}")
    return places


def relative(value: Any, places: Mapping[Path, str]) -> Any:
    """A JSON value whose plugin files are named by their places in the run."""

    def change(text: str) -> str:
        match = _FILE.match(text)
        place = places.get(Path(match[2]).expanduser().resolve()) if match else None
        return text if match is None or place is None else (match[1] or "") + place + text[match.end() :]

    return _mapped(value, change)


def absolute(value: Any, run: Path) -> Any:
    """A JSON value from a run's config.json whose plugin and data files are named by where they are now."""

    def change(text: str) -> str:
        match = _COPY.match(text)
        return text if match is None else f"{match[1] or ''}{run.resolve() / text[match.start(2) :]}"

    return _mapped(value, change)


def copy(places: Mapping[Path, str], run: Path) -> dict[str, str]:
    """Copy plugin files into a run's folder; from now on they are imported from there.

    Returns:
        Place in the run -> SHA-256 of the content.
    """
    for original, place in places.items():
        (run / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, run / place)
        copied(original, (run / place).resolve())
    return {place: _digest(run / place) for place in places.values()}


def copy_in(error: BaseException, run: Path) -> Path | None:
    """The copy in a run's folder of the plugin file that an error or one of its causes was raised in, if in one."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        copy = copy_of(Path(frame.filename))
        if copy.is_relative_to(run.resolve() / FOLDER):
            return run / copy.relative_to(run.resolve())
    cause = error.__cause__ or error.__context__
    return None if cause is None else copy_in(cause, run)


def check_copies(digests: Mapping[str, str], run: Path) -> None:
    """Warn of a copy that was edited since the run began.

    Raises:
        UsageError: one is missing.
    """
    for place, digest in digests.items():
        if not (run / place).is_file():
            raise UsageError(f"{run / place} is missing: it is part of the run")
        if _digest(run / place) != digest:
            logger.warning("%s was edited since the run began", run / place)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(each, change) for each in value]
    return value


def _with_neighbours(path: Path, root: Path, known: set[Path]) -> set[Path]:
    """A file and all that it imports from its own folder, whether at its top or inside functions."""
    known.add(path)
    for base, module in _imports(path, root):
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            stem = base.joinpath(*parts[:end])
            for file in (stem.with_suffix(".py"), stem / "__init__.py"):
                if file.is_file() and file not in known:
                    _with_neighbours(file, root, known)
    return known


def _imports(path: Path, root: Path) -> Iterable[tuple[Path, str]]:
    """The folder that an import starts from, and the dotted name that it may lead to."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((root, alias.name) for alias in node.names if alias.name.partition(".")[0] != __package__)
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else root
            module = f"{node.module}." if node.module else ""
            if base.is_relative_to(root) and module.partition(".")[0] != __package__:
                yield from ((base, f"{module}{alias.name}".removesuffix(".*")) for alias in node.names)
