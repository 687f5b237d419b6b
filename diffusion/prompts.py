"""Prompts as tasks: those of a file, or the captions of the small default world."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..splitting import Part, deal
from ..tables import READERS, Row, Table, canonical, is_file, lines_of, parse_object, read_table, text_of_file
from ..trainers.curricula import shuffled
from ..trainers.randomness import generator
from ..types import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompts:
    """What is learned from, what the gate looks at, and what is reported; three sets without common content.

    Attributes:
        rewarded: training draws these; a run is reported on them as well.
        unrewarded: training never draws these; reported. Whoever trained the pipeline before may have shown it them.
        probes: training never draws these; the gate's.
    """

    rewarded: tuple[Task, ...]
    unrewarded: tuple[Task, ...]
    probes: tuple[Task, ...]

    @property
    def sides(self) -> dict[str, tuple[Task, ...]]:
        """The three sets by what they are for."""
        return {"training": self.rewarded, "evaluation": self.unrewarded, "the gate's probes": self.probes}


def shapes_prompts(split: int = 0, probes: int = 24) -> Prompts:
    """The small world: 72 captions held out by composition, ``probes`` of the others for the gate.

    They are unrewarded, not unseen: the default pipeline's pretraining has drawn all of them.
    """
    from ..envs.toys import shapes

    known, held_out = shapes.split(split)
    order = torch.randperm(len(known), generator=generator("probes", split)).tolist()
    kept = [known[i] for i in sorted(order[probes:])]
    shown = [known[i] for i in sorted(order[:probes])]
    return Prompts(
        tuple(shapes.tasks(kept, "rewarded")),
        tuple(shapes.tasks(held_out, "unrewarded")),
        tuple(shapes.tasks(shown, "probe")),
    )


def file_prompts(
    path: str | Path,
    *,
    unrewarded: int | None = None,
    probes: int | None = None,
    split: int = 0,
    held_out: float = 0.25,
) -> Prompts:
    """Prompts of a file, a share of them held out: two thirds of that to be reported, one third for the gate.

    Rows that say the same but for case, spaces and punctuation are on one side, and some of them are named; rows with a
    column ``category`` are held out from every category.

    Args:
        path: what :func:`read_prompts` takes.
        unrewarded, probes: most prompts of each of these sides; the others are learned from. None is no limit.
        split: another one holds out others.
        held_out: the share.

    Raises:
        UsageError: naming the row; or fewer than four prompts.
    """
    tasks = read_prompts(path)
    words = [frozenset({content(str(task.prompt))}) for task in tasks]
    different = len(set(words))
    if different < 4:
        raise UsageError(f"{path} holds {different} prompts: 4 or more can be split into training, evaluation and gate")
    kinds = [str(task.extra.get("category") or "") for task in tasks]
    gate = max(1, round(len(tasks) * held_out / 3))
    parts = [
        Part(gate / len(tasks), total=gate if probes is None else min(gate, probes)),
        Part(max(1, round(len(tasks) * held_out) - gate) / (len(tasks) - gate), total=unrewarded),
    ]
    _name_variants(path, tasks)
    shown, reported, learned = deal(words, kinds, parts, split)
    named = (("rewarded", learned), ("unrewarded", reported), ("probe", shown))
    return Prompts(*(tuple(replace(tasks[row], category=name) for row in side) for name, side in named))


def content(prompt: str) -> str:
    """What a prompt says: its letters and digits without case, one space between words; itself where it has none."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).casefold())) or prompt.strip()


def _name_variants(path: str | Path, tasks: Sequence[Task]) -> None:
    """Tell of prompts that are written differently and say the same."""
    ways: dict[str, dict[str, None]] = {}
    for task in tasks:
        ways.setdefault(content(str(task.prompt)), {})[str(task.prompt)] = None
    if several := [list(each) for each in ways.values() if len(each) > 1]:
        logger.warning(
            "%s: %d prompts are written in several ways, such as %r and %r; each stays on one side of the split",
            *(path, len(several), several[0][0], several[0][1]),
        )


def read_prompts(path: str | Path) -> list[Task]:
    """Every row of a file, or of a dataset of the hub, as a task; rows that say the same count once, which is told.

    Tables (``tables.read_table``) have a column "prompt", and their other columns are columns for rewards. Any other
    file is text in which every line is a prompt, but for lines that are JSON objects, which are rows of a table. What
    only begins like one ({red|blue} cat, as wildcards do) is a prompt, unless a quotation mark follows the brace: that
    is an object which was cut off.

    Raises:
        UsageError: naming file and row of what is no prompt.
    """
    table = prompts_table(path)
    found: dict[str, Task] = {}
    for row in table.rows:
        values = dict(row.values)
        prompt = values.pop("prompt", None)
        if not isinstance(prompt, str) or not prompt.strip():
            said = (
                f"not {str(prompt)[:40]!r}" if "prompt" in row.values else f"and has {', '.join(row.values) or 'none'}"
            )
            raise UsageError(f'{row.where} wants a text in the column "prompt", {said}')
        task = Task(f"prompt/{row.number}", prompt.strip(), extra=values)
        found.setdefault(canonical([task.prompt, values]), task)
    if twice := len(table.rows) - len(found):
        logger.warning("%s: %d of %d rows repeat others and count once", table.name, twice, len(table.rows))
    return list(found.values())


def prompts_table(path: str | Path) -> Table:
    """The rows of a prompts file; those of a text have one column, "prompt", or what a JSON object in it has."""
    source = Path(path).expanduser()
    if source.suffix.lower() in READERS or not is_file(source):
        return read_table(path)
    rows: list[Row] = []
    for number, line in lines_of(text_of_file(source)):
        where = f"{source.name} line {number}"
        rows.append(Row(where, len(rows) + 1, _row(line.strip(), where)))
    if not rows:
        raise UsageError(f"{source.name} holds no row")
    return Table(str(path), source.name, source.parent, rows)


def _row(line: str, where: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {"prompt": line}
    try:
        return parse_object(line, where)
    except UsageError:
        if line[1:].lstrip().startswith('"'):
            raise
        return {"prompt": line}


def source_of(tasks: Sequence[Task], seed: int) -> Callable[[int], Task]:
    """An endless supply for a curriculum: every prompt once in a random order, then again in another.

    A prompt's later turns have ids of their own, so that they draw other random numbers and form other groups.
    """
    supply = shuffled(tasks, seed)

    def draw(i: int) -> Task:
        task = supply(i)
        return replace(task, id=f"{task.id}/{i // len(tasks)}")

    return draw
