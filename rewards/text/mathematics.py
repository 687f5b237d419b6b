"""Mathematics beyond plain numbers, read by the library math-verify in a process of its own, which may be ended.

Its parser takes seconds or for ever on some texts that a policy may write. The process counts its own processor time
for each of them and is ended by the kernel when that is over; the next text starts another.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from ..isolated import Child, IsolatedError

_WORKER = Path(__file__).with_name("math_worker.py")
_WALL = 60.0  # seconds in which an answer comes even on a busy machine
_lock = Lock()
_workers: dict[int, Child] = {}
"""One for each process, since a fork shares the pipes of its parent."""


@dataclass(frozen=True)
class Evaluated:
    """What an expression is worth.

    Attributes:
        value: exactly if it is rational, else to fifty digits.
        worked_out: it is a value and no task, such as a sum of whole numbers.
    """

    value: Fraction
    worked_out: bool


@lru_cache(maxsize=1 << 14)
def evaluated(expression: str) -> Evaluated | None:
    """The real number that an expression is; None if it is none, or not found in a second of processor time."""
    said = _ask({"value": expression})
    return None if said is None else Evaluated(Fraction(said["value"]), bool(said["worked_out"]))


@lru_cache(maxsize=1 << 14)
def equal(said: str, gold: str) -> bool | None:
    """Whether two expressions are equal, by math-verify; None if the second cannot be read."""
    found = _ask({"said": said, "gold": gold})
    return False if found is None else found["equal"]


def _ask(question: dict[str, str]) -> dict[str, Any] | None:
    with _lock:
        worker = _workers.get(os.getpid())
        if worker is None or not worker.alive:
            _workers.clear()
            worker = _workers[os.getpid()] = Child([sys.executable, "-I", str(_WORKER)])
        try:
            said = worker.ask(json.dumps(question), _WALL)
        except IsolatedError:
            worker.close()
            return None
        except BaseException:
            worker.close()  # half an answer may be left in the pipe
            raise
    return said if said["found"] else None
