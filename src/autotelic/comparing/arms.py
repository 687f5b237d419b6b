"""Arms as the command line writes them, and whether they can be compared at all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from ..errors import UsageError
from ..recipes import MODALITIES, find_recipe
from ..sweep import Job, start_fields

Flags = Mapping[str, Any]
_NAMED = re.compile(r"([^=:/]+)=(.+)", re.DOTALL)


def read_arms(texts: Sequence[str], shared: str = "") -> dict[str, dict[str, Any]]:
    """Arms by name from "RECIPE", "RECIPE:FLAGS" or "NAME=RECIPE:FLAGS" each.

    An arm without a name is called by its recipe and its flags: "evolve_vla --gate none".

    Args:
        shared: flags of every arm; its own win.

    Raises:
        UsageError: two arms of one name, flags that are none, or an unknown recipe.
    """
    arms: dict[str, dict[str, Any]] = {}
    for text in texts:
        match = _NAMED.fullmatch(text)
        given, rest = (match[1].strip(), match[2]) if match else ("", text)
        recipe, _, flags = rest.partition(":")
        find_recipe(recipe)
        name = given or " ".join([recipe.rpartition("/")[2], *shlex.split(flags)])
        if name in arms:
            raise UsageError(f'two arms are called "{name}": give one another name, NAME=RECIPE:FLAGS')
        arms[name] = {"recipe": recipe} | read_flags(shared) | read_flags(flags)
    return arms


def read_flags(text: str) -> dict[str, Any]:
    """Flags as fields: "--lr 1e-4 --tasks a b --no-decay" -> {"lr": "1e-4", "tasks": ("a", "b"), "no_decay": True}.

    Raises:
        UsageError: something stands before the first flag.
    """
    found: dict[str, list[str]] = {}
    name = ""
    for word in shlex.split(text):
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            name = option.replace("-", "_")
            found[name] = [value] if equals else []
        elif not name:
            raise UsageError(f'"{word}" in the flags of an arm is no flag: RECIPE:"--lr 1e-4 --gate none"')
        else:
            found[name].append(word)
    return {name: True if not words else words[0] if len(words) == 1 else tuple(words) for name, words in found.items()}


def require_comparable(jobs: Sequence[Job], *, common: bool = True, budgeted: bool = False) -> None:
    """Refuse arms that are of several modalities, are equal, or (where ``common``) have no common start.

    Args:
        jobs: one per arm, of one seed.
        budgeted: a budget gives arms their rounds, but where their flags say --max-steps.

    Raises:
        UsageError: in one line the two arms, and in what they differ or do not.
    """
    rooms = {job.arm: job.recipe.name.partition("/")[0] for job in jobs}
    known = [(arm, room) for arm, room in rooms.items() if room in MODALITIES]
    for arm, room in known[1:]:
        if room != known[0][1]:
            raise UsageError(f'"{known[0][0]}" is of {known[0][1]} and "{arm}" of {room}: no start is common to both')
    seen: list[tuple[Job, Any]] = []
    for job in jobs:
        config = job.config()
        for other, theirs in seen:
            same = other.recipe.module == job.recipe.module and _stops(other, budgeted) == _stops(job, budgeted)
            if same and asdict(theirs) == asdict(config):
                raise UsageError(f'"{other.arm}" and "{job.arm}" are the same run: leave one out, or change a flag')
        if common and seen:
            _require_one_start(seen[0], (job, config))
        seen.append((job, config))


def _require_one_start(one: tuple[Job, Any], other: tuple[Job, Any]) -> None:
    (job, mine), (their_job, theirs) = one, other
    names = [field.name for field in fields(mine) if field.name in {*start_fields(mine), *start_fields(theirs)}]
    for name in names:
        if not hasattr(theirs, name) or getattr(mine, name) != getattr(theirs, name):
            values = f"{getattr(mine, name)} in the one and {getattr(theirs, name, 'unknown')} in the other"
            raise UsageError(
                f'"{job.arm}" and "{their_job.arm}" have no common start: --{name.replace("_", "-")} is {values}'
            )


def _stops(job: Job, budgeted: bool) -> bool:
    """Whether an arm ends at rounds of its own, where others spend the budget."""
    return budgeted and "--max-steps" in job.words
