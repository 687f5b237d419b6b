"""Who caused it: the policy by an output that cannot be read, a machine by failing, or the user somewhere in a file."""

from __future__ import annotations

import site
import sysconfig
import traceback
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST = 4_000_000
"""Characters of a text; more is not handed to a reward."""
_OURS = str(Path(__file__).parents[1])
_LIBRARIES = tuple(
    {*site.getsitepackages(), *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib"))}
)
_OF_USERS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_CLIENTS = frozenset({"aiohttp", "anthropic", "grpc", "httpcore", "httpx", "openai", "requests", "urllib3"})
_TRY_AGAIN = frozenset({408, 425, 429})


def unreadable(output: Any) -> str | None:
    """Why an output of a policy cannot be handed to a reward; None where it can."""
    if isinstance(output, str):
        if len(output) > LONGEST:
            return f"a text of {len(output)} characters, more than {LONGEST}"
        try:
            output.encode()
        except UnicodeEncodeError as error:
            return f"a text with a lone surrogate at character {error.start}"
        return None
    if not _finite(output):
        return "values that are not finite"
    parts = [name for name in ("observations", "actions") if not _finite(getattr(output, name, None))]
    return f"an episode whose {' and '.join(parts)} are not finite" if parts else None


def of_environment(output: Any) -> str | None:
    """Why an episode could not go on (see ``envs.pool.Episode``); None where it could, and of any other output."""
    fault: str | None = getattr(output, "fault", None)
    return fault


def _finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(torch.isfinite(values).all())
    if isinstance(values, np.ndarray):
        return not np.issubdtype(values.dtype, np.floating) or bool(np.isfinite(values).all())
    return True


def is_machines(error: BaseException) -> bool:
    """Whether a machine failed and may not fail again: a connection, a time limit, a server's error.

    A file that is not there is the user's, and so is what a server refuses (HTTP 4xx but "later").
    """
    response = getattr(error, "response", None)
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    status = getattr(response, "status_code", status)
    if isinstance(status, int) and 400 <= status < 500:
        return status in _TRY_AGAIN
    if isinstance(error, _OF_USERS):
        return False
    if isinstance(error, OSError | EOFError | HTTPException):
        return True
    return any(kind.__module__.partition(".")[0] in _CLIENTS for kind in type(error).__mro__)


def place_of(error: BaseException) -> str:
    """File and line of the last frame that is neither this package's nor a library's; else of the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith((_OURS, *_LIBRARIES, "<"))]
    last = (theirs or list(frames))[-1:]
    return f"{Path(last[0].filename).name}, line {last[0].lineno}" if last else "no line is known"
