"""Rewards of images by their names on a command line.

image_reward("jpeg")                           one of NAMES
image_reward("my_package.rewards:tidy")        a function, a class or a Reward of an importable module
image_reward("rewards/tidy.py:tidy")           the same of a file
compose(["jpeg:0.3", "clip:1"])                several, each normalised within its prompt before it is weighted
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

from ..errors import UsageError, unknown
from .isolated_worker import named, told
from .normalised import NormalisedSum
from .reward import Reward

Own = Mapping[str, Callable[[], Any]]

_WEIGHTLESS = ".pictures"
_HUB = ".hub"

NAMES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "jpeg": (_WEIGHTLESS, "JPEGSize", {}),
    "incompressible": (_WEIGHTLESS, "JPEGSize", {"target": "incompressible"}),
    "colourfulness": (_WEIGHTLESS, "Colourfulness", {}),
    "sharpness": (_WEIGHTLESS, "Sharpness", {}),
    "text": (_WEIGHTLESS, "TextMatch", {}),
    "aesthetic": (_HUB, "LaionAesthetic", {}),
    "clip": (_HUB, "CLIPScore", {}),
    "siglip": (
        _HUB,
        "CLIPScore",
        {"name_or_path": "google/siglip-base-patch16-224", "prefix": "", "probability": True},
    ),
    "pickscore": (_HUB, "PickScore", {}),
    "hps": (_HUB, "HPSv2", {}),
    "imagereward": (_HUB, "ImageReward", {}),
}
"""Name -> (module of this room, class, its arguments); imported when asked for."""


def image_reward(spec: str, device: str = "cpu", own: Own | None = None) -> Reward:
    """The reward that a name, "package.module:function" or "path/to/file.py:function" stands for.

    A class is called without arguments, and a ``Reward`` is taken as it is, with its weights. What comes from a file
    can be pickled within this process only; a module's can go to another.

    Args:
        spec: one of :data:`NAMES`, or where the reward is found.
        device: where the models of the hub rewards run; the others ignore it, since they follow their images.
        own: further names, each with what makes its reward.

    Raises:
        UsageError: there is no such name, module, file or function, or a package that it needs is missing.
    """
    own = own or {}
    if spec in own:
        return Reward(own[spec](), spec)
    if ":" in spec:
        return elsewhere(spec)
    if spec not in NAMES:
        hint = unknown("reward", spec, [*own, *NAMES])
        raise UsageError(f"{hint} (your own: package.module:function or path/to/file.py:function)")
    module, name, arguments = NAMES[spec]
    place = {"device": device} if module == _HUB else {}
    return Reward(getattr(import_module(module, __package__), name)(**arguments, **place), spec)


def compose(specs: Sequence[str], device: str = "cpu", own: Own | None = None) -> Reward:
    """One reward out of several "SPEC" or "SPEC:WEIGHT", as :func:`image_reward` reads them.

    A single one is taken as it is, times its weight. Several are added after each is normalised within its prompt
    (see :class:`NormalisedSum`): they have no gradient then, and need several samples of each prompt. The weight 0
    records a reward without following it.

    Raises:
        UsageError: no spec, the same one twice, a weight that is no number, or what :func:`image_reward` raises.
    """
    return combine(specs, lambda spec: image_reward(spec, device, own), NAMES, NormalisedSum)


def combine(
    specs: Sequence[str],
    read: Callable[[str], Reward],
    names: Collection[str],
    add: Callable[[Sequence[tuple[float, Reward]]], Reward],
) -> Reward:
    """One reward out of "SPEC" or "SPEC:WEIGHT": a single one times its weight, several added by ``add``.

    Args:
        read: makes the reward of a spec.
        names: those that it knows, for messages.
        add: makes one reward of several, each with its weight.

    Raises:
        UsageError: no spec, the same one twice, a weight that is no number, or what ``read`` raises.
    """
    if not specs:
        raise UsageError(f"no reward is named: there is {', '.join(names)}")
    terms = [(weight, read(spec)) for spec, weight in (_weighted(spec, names) for spec in specs)]
    called = [term.name for _, term in terms]
    if twice := [name for name in called if called.count(name) > 1]:
        raise UsageError(f"two rewards are named {twice[0]}: give each its own name, so that both are recorded")
    if len(terms) > 1:
        return add(terms)
    ((weight, reward),) = terms
    return reward if weight == 1 else weight * reward


def _weighted(spec: str, names: Collection[str]) -> tuple[str, float]:
    head, _, tail = spec.rpartition(":")
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", tail):
        return head, float(tail)
    if head in names:
        raise UsageError(f'the weight of the reward {head} is "{tail}", which is no number')
    return spec, 1.0


def elsewhere(spec: str) -> Reward:
    """The reward at "package.module:function" or "path/to/file.py:function".

    Raises:
        UsageError: there is none; the line says why.
    """
    try:
        found = named(spec)
    except Exception as error:
        raise UsageError(f'no reward at "{spec}": {told(error)}') from error
    return found if isinstance(found, Reward) else Reward(found)
