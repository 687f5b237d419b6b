"""Families of rewards: what a score was learned or computed from, so that no reward is judged by its own kin.

A reward, judge or progress model declares a set ``families``. ``GROUND_TRUTH`` stands for references, labels and
tests; every other name is a proxy's: "majority vote", "policy:NAME", "demonstrations:KIND OF MODEL", "clip". Whatever
wraps or adds others has theirs. The same kind of model learned twice from the same, with other seeds, is one family.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from .errors import UsageError

GROUND_TRUTH = "ground truth"
UNDECLARED = "undeclared"

Function = TypeVar("Function", bound=Callable[..., Any])


def families_of(*functions: Any) -> frozenset[str]:
    """The families of rewards, judges or progress models together.

    One that declares none is a proxy of its source file, "undeclared:FILE".
    """
    return frozenset(name for function in functions for name in _families(function))


def of_family(*names: str) -> Callable[[Function], Function]:
    """Decorator of a reward function that declares its families."""

    def declare(function: Function) -> Function:
        cast(Any, function).families = frozenset(names)
        return function

    return declare


def proxies(families: Iterable[str]) -> frozenset[str]:
    """The families that are not ground truth. Two rewards of which both have one are not independent."""
    return frozenset(families) - {GROUND_TRUTH}


def needs_of(function: Any) -> tuple[str, ...]:
    """The columns of a task that a verifier or a sum of them names in ``needs``; "references" where it names none."""
    terms = getattr(function, "terms", None)
    functions = [function] if terms is None else [term.function for _, term in terms]
    return tuple(name for each in functions for name in getattr(each, "needs", ("references",)))


def labels_of(function: Any) -> tuple[str, ...]:
    """The labels that a reward, or a sum of them, brings along itself: what each part says in ``reads_labels``."""
    terms = getattr(function, "terms", None)
    functions = [function] if terms is None else [term.function for _, term in terms]
    return tuple(told for each in functions if (told := getattr(each, "reads_labels", "")))


def require_independent(judge: Any, reward: Any) -> None:
    """Refuse a judge that shares a proxy family with the training reward.

    Raises:
        UsageError: they do; with the family.
    """
    if shared := sorted(proxies(families_of(judge) & families_of(reward))):
        raise UsageError(
            f"the judge and the training reward are both of the family {shared[0]!r}: give the gate a judge of another "
            "family, or --gate none"
        )


def declared(families: Iterable[str]) -> bool:
    """Whether all of them were declared; independence of undeclared ones cannot be checked."""
    return not any(name.partition(":")[0] == UNDECLARED for name in families)


def name_of(function: Any) -> str:
    """What a reward is called: by its own name, its function's, or its class's."""
    return str(getattr(function, "name", getattr(function, "__name__", type(function).__name__)))


def _families(function: Any) -> frozenset[str]:
    while isinstance(function, functools.partial):
        function = function.func
    for holder in (function, getattr(function, "__self__", None)):  # a bound method has its object's
        families = getattr(holder, "families", None)
        if families is not None and not isinstance(holder, type):
            return frozenset({families} if isinstance(families, str) else families)
    source = function if hasattr(function, "__qualname__") else type(function)
    try:
        file = Path(inspect.getsourcefile(inspect.unwrap(source)) or "").resolve()
    except TypeError:  # built in
        file = Path(str(getattr(source, "__module__", "")))
    return frozenset({f"{UNDECLARED}:{file}"})
