"""NumPy's and Python's global generators, which some environments draw from instead of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

States = tuple[Any, Any]


def seed(number: int) -> None:
    """Begin an episode."""
    np.random.seed(number % 2**32)
    random.seed(number)


def get() -> States:
    """Their states."""
    return np.random.get_state(legacy=False), random.getstate()


def put(states: States) -> None:
    """Go back to states."""
    np.random.set_state(states[0])
    random.setstate(states[1])


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards they are as before."""
    states = get()
    try:
        yield
    finally:
        put(states)


def drawn_from(before: States) -> list[str]:
    """Which of them were drawn from since."""
    now = get()
    numpy_now, numpy_before = now[0]["state"], before[0]["state"]
    moved = numpy_now["pos"] != numpy_before["pos"] or not np.array_equal(numpy_now["key"], numpy_before["key"])
    return ["np.random"] * moved + ["the module random"] * (now[1] != before[1])
