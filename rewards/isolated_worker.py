"""The other end of :mod:`.isolated`: runs one reward function in an interpreter of its own.

A script by itself. The interpreter that runs it needs numpy, and neither torch nor this package; Python 3.8 is enough.

One line in, one line out. The first line out, when the function is imported, is {"takes": names, "needs": names}.
From then on a line in is the path of a request, an .npz file with each column as JSON bytes under "json/NAME". Of a
column of pictures "json/pictures/NAME" holds how many a row has (-1 where it is a picture and no list, null where it is
None), and "picture/NAME/ROW/PLACE" is one, [H, W, 3] uint8. The line out is {"scores": ...} or {"error": one line}. The
end of the input ends the process.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from typing import Any


def named(target: str) -> Any:
    """What "package.module:name" or "path/to/file.py:name" names; of a class, an instance made without arguments.

    The rule of ``autotelic.plugins`` once more, because the interpreter here has not got this package.

    Raises:
        ValueError: the target has another form, or names something that cannot be called.
        ImportError, FileNotFoundError, AttributeError: there is no such module, file or name.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise ValueError(f'"{target}" is neither package.module:function nor path/to/file.py:function')
    found: Any = _file(place) if place.endswith(".py") else importlib.import_module(place)
    for part in name.split("."):
        found = getattr(found, part)
    found = found() if inspect.isclass(found) else found
    if not callable(found):
        raise ValueError(f"{target} is no function but {type(found).__name__}")
    return found


def _file(path: str) -> Any:
    """A file as a module, imported once however often it is named."""
    path = os.path.realpath(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    name = f"file_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def columns_of(function: Any) -> dict[str, list[str]]:
    """The columns that a function names ("takes"), and those of them without a default ("needs")."""
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    wanted = [p for p in inspect.signature(function).parameters.values() if p.kind in keywords]
    return {
        "takes": [p.name for p in wanted],
        "needs": [p.name for p in wanted if p.default is inspect.Parameter.empty],
    }


def plain(result: Any) -> Any:
    """Scores as JSON has them: a list of numbers, None or lists of numbers, or a mapping of such lists."""
    if isinstance(result, dict):
        return {str(name): plain(scores) for name, scores in result.items()}
    scores = result.tolist() if hasattr(result, "tolist") else result
    return [score if score is None else _numbers(score) for score in scores]


def _numbers(score: Any) -> Any:
    return [float(value) for value in score] if isinstance(score, (list, tuple)) else float(score)


def told(error: Exception) -> str:
    """An exception in one line: type, message, and where it was raised outside this file and the import system."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    places = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.realpath(frame.filename) != os.path.realpath(__file__) and not frame.filename.startswith("<")
        if os.path.dirname(frame.filename) != os.path.dirname(importlib.__file__)
    ]
    return f"{line} ({os.path.basename(places[-1].filename)}, line {places[-1].lineno})" if places else line


def answer(function: Any, request: str) -> dict[str, Any]:
    """Call the function on a request file."""
    import numpy as np

    with np.load(request, allow_pickle=False) as arrays:
        columns = {}
        for name in arrays.files:
            if name.startswith("json/pictures/"):
                column = name[len("json/pictures/") :]
                columns[column] = pictures(arrays, column, json.loads(arrays[name].tobytes()))
            elif name.startswith("json/"):
                columns[name[len("json/") :]] = json.loads(arrays[name].tobytes())
    return {"scores": plain(function(**columns))}


def pictures(arrays: Any, column: str, counts: Any) -> Any:
    """A column of pictures: per row an array, a list of arrays, or None."""
    rows: Any = []
    for row, count in enumerate(counts):
        found = [arrays[f"picture/{column}/{row}/{place}"] for place in range(abs(count or 0))]
        rows.append(None if count is None else found[0] if count == -1 else found)
    return rows


def main() -> None:
    """Serve the function that the first argument names."""
    # What the function prints or reads, in whatever language, must not mix with answers and requests.
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        import numpy  # noqa: F401  # a missing numpy is better told now than at the first request

        function = named(sys.argv[1])
        say(columns_of(function))
    except Exception as error:
        say({"error": told(error)})
        return
    for line in requests:
        try:
            say(answer(function, line.rstrip("\n")))
        except Exception as error:
            say({"error": told(error)})


if __name__ == "__main__":
    main()
