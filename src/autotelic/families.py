"""Families of rewards: what a reward, judge or progress model was learned or computed from.

A gate may not judge by a proxy of the family that trains. ``families`` is a set of names on every reward of this
package: ``GROUND_TRUTH`` where it reads labels or an oracle, else a proxy's. What does not say is a proxy by itself.
"""

from __future__ import annotations

import inspect
from typing import Any

GROUND_TRUTH = "ground truth"
UNDECLARED = "undeclared"


def families_of(function: Any) -> frozenset[str]:
    """The families that a reward declares, else one of its own, named after where it is written."""
    declared = getattr(function, "families", None)
    if declared is not None:
        return frozenset(declared)
    written = function if inspect.isroutine(function) else type(function)
    file = inspect.getsourcefile(inspect.unwrap(written)) if hasattr(written, "__module__") else ""
    return frozenset({f"{UNDECLARED}: {file or '?'}"})
