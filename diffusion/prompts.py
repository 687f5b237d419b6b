"""Prompts as tasks: a file with one per line, or the captions of the small default world."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..trainers.randomness import generator
from ..types import Task


@dataclass(frozen=True)
class Prompts:
    """What is learned from, what the gate looks at, and what is reported; three sets without a common member.

    Attributes:
        seen: training draws these; a run is reported on them as well.
        unseen: never drawn; reported.
        probes: never drawn; the gate's.
    """

    seen: tuple[Task, ...]
    unseen: tuple[Task, ...]
    probes: tuple[Task, ...]


def shapes_prompts(split: int = 0, probes: int = 24) -> Prompts:
    """The small world: 72 captions unseen by composition, ``probes`` of the others for the gate."""
    from ..envs.toys import shapes

    known, held_out = shapes.split(split)
    order = torch.randperm(len(known), generator=generator("probes", split)).tolist()
    kept = [known[i] for i in sorted(order[probes:])]
    shown = [known[i] for i in sorted(order[:probes])]
    return Prompts(
        tuple(shapes.tasks(kept, "seen")), tuple(shapes.tasks(held_out, "unseen")), tuple(shapes.tasks(shown, "probe"))
    )


def file_prompts(path: str | Path, seed: int = 0, held_out: float = 0.25) -> Prompts:
    """Prompts of a file, a share of them held out: two thirds of that to be reported, one third for the gate.

    A line is a prompt, or a JSON object {"prompt": text, ...} whose other fields become columns for rewards.

    Raises:
        UsageError: naming the line; or fewer than four prompts.
    """
    tasks = read_prompts(path)
    if len(tasks) < 4:
        raise UsageError(f"{path} holds {len(tasks)} prompts: 4 or more can be split into seen, unseen and probes")
    order = torch.randperm(len(tasks), generator=generator("prompts", seed)).tolist()
    probes = max(1, round(len(tasks) * held_out / 3))
    unseen = max(1, round(len(tasks) * held_out) - probes)
    sides = order[probes + unseen :], order[probes : probes + unseen], order[:probes]
    names = ("seen", "unseen", "probe")
    parts = [tuple(replace(tasks[i], category=n) for i in sorted(side)) for n, side in zip(names, sides, strict=True)]
    return Prompts(*parts)


def read_prompts(path: str | Path) -> list[Task]:
    """Every line of a prompts file as a task; empty lines and repeated prompts are left out."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the prompts file {path}: {error}") from error
    found: dict[str, Task] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompt, extra = _parse(line.strip(), f"{path}, line {number}")
            found.setdefault(prompt, Task(f"prompt/{number}", prompt, extra=extra))
    return list(found.values())


def _parse(line: str, where: str) -> tuple[str, dict[str, Any]]:
    if not line.startswith("{"):
        return line, {}
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: no JSON object ({error})") from error
    prompt = row.pop("prompt", None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f'{where}: wants {{"prompt": "some text"}}')
    return prompt.strip(), row


def source_of(tasks: Sequence[Task], seed: int) -> Callable[[int], Task]:
    """An endless supply for a curriculum: every prompt once in a random order, then again in another.

    A prompt's later turns have ids of their own, so that they draw other random numbers and form other groups.
    """

    def draw(i: int) -> Task:
        turn, place = divmod(i, len(tasks))
        order = torch.randperm(len(tasks), generator=generator("order", seed, turn))
        task = tasks[int(order[place])]
        return replace(task, id=f"{task.id}/{turn}")

    return draw
