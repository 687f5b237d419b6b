"""Learning from pictures that were drawn or collected before: pairs of a file, or a record of the start's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UsageError
from ..families import GROUND_TRUTH, of_family
from ..images import as_pil
from ..tables import Table, read_table
from ..trainers.actors import TrainingWrapper
from ..trainers.randomness import seed_of
from ..types import Key, Rollout, Task

PAIR = ("prompt", "chosen", "rejected")
NUMBER = "pair"
"""The column of a pair's task that says which row of the file it is."""

if TYPE_CHECKING:
    from .policy import DenoisingPolicy


class Recorded(TrainingWrapper):
    """Hands out recorded pictures of the prompts it knows, each time with other random levels and noise.

    All pictures of a task share them, as the two of a pair do in the published script of Diffusion-DPO: what differs
    between their errors is then the pictures. Pairs of one prompt are tasks of their own.
    """

    def __init__(self, policy: DenoisingPolicy, rollouts: Sequence[Rollout]) -> None:
        super().__init__(policy)
        self.known: dict[Any, list[Rollout]] = defaultdict(list)
        for rollout in rollouts:
            self.known[_subject(rollout.task)].append(rollout)

    def attempt(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        found = []
        for task in tasks:
            for known in self.known[_subject(task)][:n]:
                fresh = {"seed": torch.tensor(seed_of("replay", *key, task.id))}
                found.append(replace(known, task=task, payload={**known.payload, **fresh}, scores={}, info=known.info))
        return found


def _subject(task: Task) -> tuple[Any, Any]:
    """What recorded pictures are of: a prompt, or one of the pairs that a file has of it."""
    return task.prompt, task.extra.get(NUMBER)


@of_family(GROUND_TRUTH)
def preferred(rollouts: Sequence[Rollout], **columns: Any) -> list[float]:
    """1.0 for the picture of a pair that people preferred, else 0.0."""
    return [float(rollout.info["preferred"]) for rollout in rollouts]


def read_pairs(path: str | Path, size: tuple[int, int]) -> list[tuple[Task, Tensor, Tensor]]:
    """Rows (``tables.read_table``) with prompt, chosen and rejected as (task, chosen, rejected), pictures [3, H, W] in
    0..1.

    Files are found from the folder of the pairs file; pictures are scaled to ``size`` (height, width).

    Raises:
        UsageError: naming the row and what is wrong with it.
    """
    return pairs_of(read_table(path), size)


def pairs_of(table: Table, size: tuple[int, int]) -> list[tuple[Task, Tensor, Tensor]]:
    """The pairs of a table, as :func:`read_pairs` gives them."""
    found = []
    for row in table.rows:
        lacking = [name for name in PAIR if not isinstance(row.values.get(name), str)]
        if lacking:
            raise UsageError(
                f'{row.where} wants {{"prompt": text, "chosen": file, "rejected": file}}: "{lacking[0]}" is no text'
            )
        prompt, *files = (row.values[name] for name in PAIR)
        if files[0] == files[1]:
            raise UsageError(f"{row.where} prefers a picture to the same picture: {files[0]}")
        chosen, rejected = (_picture(table.folder / file, size, row.where) for file in files)
        found.append((Task(f"pair/{row.number}", prompt, extra={NUMBER: row.number}), chosen, rejected))
    return found


def _picture(file: Path, size: tuple[int, int], where: str) -> Tensor:
    image = as_pil(file, f"{where}: the picture")
    pixels = np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
