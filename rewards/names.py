"""Rewards by their names on a command line: one table for texts, images and episodes.

make_reward("numeric")                         a registered name, as `autotelic list rewards` shows them
make_reward("my_package.rewards:tidy")         a function, a class or a Reward of an importable module
make_reward("rewards/tidy.py:tidy")            the same of a file
make_reward("isolated:old/bin/python@tidy:tidy")  the same in another interpreter
compose(["exact", "format:0.1"])               several, weighted and added
compose(["jpeg:0.3", "clip:1"], normalise=True)  several, each normalised within its prompt before it is weighted
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..families import GROUND_TRUTH, families_of
from ..plugins import is_place, named, names
from .image.normalised import NormalisedSum
from .isolated import IsolatedReward
from .reward import Reward, WeightedSum

ISOLATED = "isolated:"
"""Before "[INTERPRETER@]module:function" or "[INTERPRETER@]FILE.py:function": it runs in an interpreter of its own."""

Own = Mapping[str, Callable[[], Any]]


def make_reward(spec: str, device: str = "cpu", own: Own | None = None) -> Reward:
    """The reward that a registered name, "package.module:function" or "path/to/file.py:function" stands for.

    A class is called, with the device if it takes one, and a ``Reward`` is taken as it is, with its weights.

    Args:
        spec: a name, or where the reward is found.
        device: where the models of the hub rewards run; the others ignore it, since they follow their inputs.
        own: further names, each with what makes its reward.

    Raises:
        UsageError: there is no such name, module, file or function, or a package that it needs is missing.
    """
    if own and spec in own:
        made = own[spec]()
        return made if isinstance(made, Reward) else Reward(made, spec)
    if spec.startswith(ISOLATED):
        return Reward(IsolatedReward.of(spec.removeprefix(ISOLATED)), spec)
    value = named("reward", spec, also=own or ())
    if isinstance(value, type):
        takes_device = "device" in inspect.signature(value).parameters
        value = value(device=device) if takes_device else value()
    if isinstance(value, Reward):
        return value
    return Reward(value, None if is_place(spec) else spec)


def compose(specs: Sequence[str], device: str = "cpu", own: Own | None = None, *, normalise: bool = False) -> Reward:
    """One reward out of several "SPEC" or "SPEC:WEIGHT", as :func:`make_reward` reads them.

    A single one is taken as it is, times its weight; several are weighted and added. The weight 0 records a reward
    without following it.

    Args:
        normalise: express each of several within its prompt before it is weighted (see :class:`NormalisedSum`), which
            rewards of different scales need; they have no gradient then, and need several samples of each prompt.
            Verifiers share the scale 0..1, on which their plain sum keeps its meaning.

    Raises:
        UsageError: no spec, the same one twice, a weight that is no number, or what :func:`make_reward` raises.
    """
    known = [*(own or {}), *names("reward")]
    if not specs:
        raise UsageError(f"no reward is named: there is {', '.join(known)}")
    read = [(weight, make_reward(spec, device, own)) for spec, weight in (_weighted(spec, known) for spec in specs)]
    called = [term.name for _, term in read]
    if twice := [name for name in called if called.count(name) > 1]:
        raise UsageError(f"two rewards are named {twice[0]}: give each its own name, so that both are recorded")
    if len(read) > 1:
        return (NormalisedSum if normalise else WeightedSum)(read)
    ((weight, reward),) = read
    return reward if weight == 1 else weight * reward


def verifiers(specs: Sequence[str], device: str = "cpu", own: Collection[str] = ()) -> list[Reward]:
    """Of several "SPEC" or "SPEC:WEIGHT" the rewards that read nothing but ground truth, in their order.

    Whatever has to be made before it says so, and a reward with a negative weight, verifies nothing here.

    Args:
        own: names that the caller makes itself; they are left out.
    """
    found = []
    for spec, weight in (_weighted(spec, [*own, *names("reward")]) for spec in specs):
        if spec in own or spec.startswith(ISOLATED) or weight < 0:
            continue
        value = named("reward", spec, also=own)
        families = getattr(value, "families", None) if isinstance(value, type) else families_of(value)
        if families == {GROUND_TRUTH}:
            found.append(make_reward(spec, device))
    return found


def check_names(specs: Sequence[str], own: Collection[str] = ()) -> None:
    """Look for what :func:`compose` would read, and make nothing.

    Args:
        own: further names.

    Raises:
        UsageError: as of :func:`compose`, but for what shows only when a reward is made.
    """
    known = [*own, *names("reward")]
    for spec in specs:
        name, _ = _weighted(spec, known)
        if name not in own and not name.startswith(ISOLATED):
            named("reward", name, also=own)


def _weighted(spec: str, names: Collection[str]) -> tuple[str, float]:
    head, _, tail = spec.rpartition(":")
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", tail):
        return head, float(tail)
    if head in names:
        raise UsageError(f'the weight of the reward {head} is "{tail}", which is no number')
    return spec, 1.0
