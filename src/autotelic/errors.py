"""Errors that a person caused and can mend: shown as one line, without a traceback."""

from __future__ import annotations

import importlib
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class UsageError(ValueError):
    """Bad input, told in one line that says what, where and what to do instead."""


class OutputError(UsageError):
    """An output that cannot be read. Where a policy made it, it is the policy's fault unless all are so."""


class RewardError(UsageError):
    """A reward raised for every sample or returned something that is no score; the line names reward and sample."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UsageError:
    """The error for a name that does not exist; it offers up to three names that do.

    Args:
        kind: what the name should have named, such as "recipe".
        name: what was asked for.
        valid: the names that exist.
    """
    valid = sorted(valid)
    if not valid:
        return UsageError(f'unknown {kind} "{name}": there is none')
    if near := get_close_matches(name, valid, n=3, cutoff=0.5):
        return UsageError(f'unknown {kind} "{name}": did you mean {" or ".join(near)}?')
    shown = ", ".join(valid[:8]) + (f", … ({len(valid)} in all)" if len(valid) > 8 else "")
    return UsageError(f'unknown {kind} "{name}": there is {shown}')


def own_place(error: BaseException) -> str | None:
    """Where an exception arose in a file that is neither the package's nor installed: "my.py, line 12".

    None where no such file took part below the frame that caught it: then it is not the user's function that raised.
    """
    inside = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    rooms = {str(path.resolve()) for path in Path(__file__).parent.iterdir() if path.is_symlink()}
    homes = {str(Path(__file__).parent), *rooms, *inside}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(home) for home in homes)]
    return _place(own[-1]) if own else None


def raised(error: BaseException, path: Path | None = None) -> str:
    """An exception in one line, and where it was raised: in ``path``, else a file of the user's, else anywhere.

    A UsageError is its own line.
    """
    if isinstance(error, UsageError):
        return " ".join(str(error).split())
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _imports(frame.filename)]
    there = [frame for frame in frames if path is not None and Path(frame.filename) == path]
    place = _place(there[-1]) if there else own_place(error) or (_place(frames[-1]) if frames else None)
    return what if place is None else f"{what} ({place})"


def _place(frame: traceback.FrameSummary) -> str:
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def _imports(filename: str) -> bool:
    """Whether a file is part of how modules are imported."""
    library = str(Path(importlib.__file__).parent)
    return filename.startswith(("<", library)) or Path(filename) == Path(__file__).with_name("plugins.py")


@contextmanager
def of_ones_own(what: str) -> Iterator[None]:
    """Around a call of what may be a user's function: what it raises in a file of theirs is told in one line.

    Args:
        what: "success of my/reach", the subject of the line.

    Raises:
        UsageError: instead of such an exception; others pass as they are.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if own_place(error) is None:
            raise
        raise UsageError(f"{what} raised {raised(error)}") from error
