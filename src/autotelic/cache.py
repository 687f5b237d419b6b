"""Where things that take a while to make are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import UsageError

VARIABLE = "AUTOTELIC_CACHE"


def cache_folder() -> Path:
    """The folder that the environment variable AUTOTELIC_CACHE names, else ~/.cache/autotelic; made if absent.

    Raises:
        UsageError: it cannot be made.
    """
    folder = Path(os.environ.get(VARIABLE) or "~/.cache/autotelic").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the cache folder {folder} ({error.strerror}): set {VARIABLE}") from error
    return folder
