"""Rows of people's files as questions: which columns count, and what is refused before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..calling import check_columns
from ..errors import UsageError
from ..images import as_pil, check_image_file
from ..tables import Contents, Row, Table, canonical, is_file, read_table
from ..types import Task
from .processing import image_places

PLACE = "<image>"
"""In a text, where a picture of its row stands."""


def read_rows(path: str) -> list[Task]:
    """Questions of a file or a dataset, see ``tables.read_table``. Of images only kind and size are looked at; they are
    decoded when asked about.

    Raises:
        UsageError: naming file and row of what is no question.
    """
    return tasks_of(read_table(path))


def tasks_of(table: Table) -> list[Task]:
    """A table's rows as questions."""
    tasks: dict[str, Task] = {}
    first: dict[str, str] = {}
    looked: set[str] = set()
    stem = Path(table.name).stem
    for row in table.rows:
        task = _question(row, table.folder, stem, looked)
        if task.id in tasks:
            raise UsageError(f'{row.where} has the "id" of {first[task.id]}: {task.id}')
        tasks[task.id] = task
        first[task.id] = row.where.removeprefix(f"{table.name} ")
    check_columns(tasks.values())
    return list(tasks.values())


def _question(row: Row, folder: Path, stem: str, looked: set[str]) -> Task:
    values = dict(row.values)
    prompt = values.pop("prompt", None) or values.pop("question", None)
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise UsageError(f'{row.where} has neither "prompt" nor "question": it has {", ".join(values) or "nothing"}')
    pictures = _pictures(values, folder, row.where, looked)
    prompt = _placed(prompt, len(pictures), row.where)
    places = image_places(prompt, row.where)
    if places not in (0, len(pictures)):
        raise UsageError(f"{row.where}: {places} image blocks in the messages, {len(pictures)} images beside them")
    # "answer" stays a column too, as reward functions written for TRL ask for it
    given = values.pop("reference", None)
    answer = given if values.get("answer") is None else values["answer"]
    if answer is not None and _empty(answer):
        raise UsageError(f"{row.where} has an empty answer: leave the column out, or give null, where there is none")
    category, name = values.pop("category", None), values.pop("id", None)
    return Task(
        f"{stem}/{row.number}" if name is None else str(name),
        prompt,
        pictures,
        answer,
        "questions" if category in (None, "") else str(category),
        row.number,
        extra=values,
    )


def _empty(answer: Any) -> bool:
    if isinstance(answer, list):
        return not answer or any(map(_empty, answer))
    return answer is None or (isinstance(answer, str) and not answer.strip()) or answer == {}


def _pictures(values: dict[str, Any], folder: Path, where: str, looked: set[str]) -> tuple[str, ...]:
    """Paths of a row's pictures, which are taken out of it; each is looked at once in a file."""
    paths = values.pop("images", None) or ([values.pop("image")] if values.get("image") else [])
    values.pop("image", None)
    if not isinstance(paths, list) or not all(isinstance(name, str) for name in paths):
        raise UsageError(f'{where} wants "image": a path, or "images": a list of paths')
    pictures = tuple(str(folder / name) for name in paths)
    for place, picture in enumerate(pictures, 1):
        if picture not in looked:
            if not is_file(picture):
                raise UsageError(f"{where} names an image that is not there: {picture}")
            check_image_file(picture, f"{where}: image {place}")
            looked.add(picture)
    return pictures


def _placed(prompt: Any, pictures: int, where: str) -> Any:
    """A prompt whose texts say ``<image>`` as messages with places of images, where its row has pictures."""
    if not pictures:
        return prompt
    whole = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(whole, list):
        return prompt
    texts = [message.get("content") for message in whole if isinstance(message, Mapping)]
    count = sum(text.count(PLACE) for text in texts if isinstance(text, str))
    if not count:
        return prompt
    if count != pictures or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{where}: {count} times {PLACE} in the text, {pictures} images beside it")
    return [{**message, "content": _blocks(message["content"])} for message in whole]


def _blocks(text: str) -> Any:
    if PLACE not in text:
        return text
    first, *others = text.split(PLACE)
    blocks: list[dict[str, str]] = [{"type": "text", "text": first}] if first else []
    for part in others:
        blocks.append({"type": "image"})
        blocks += [{"type": "text", "text": part}] if part else []
    return blocks


def decode(tasks: Iterable[Task]) -> None:
    """Decode every picture once, so that one which is broken inside is told before a run begins.

    Raises:
        UsageError: naming the first question whose picture is broken.
    """
    pictures = {path: f"{task.id}: image {n}" for task in tasks for n, path in enumerate(task.images, 1)}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(_look, pictures, pictures.values()):
            pass


def _look(path: str, name: str) -> None:
    as_pil(path, name)


PICTURE = "picture "
"""Begins the key of a picture."""


def keys_of(tasks: Sequence[Task], contents: Contents) -> list[frozenset[str]]:
    """What may not stand on two sides: every picture of a question by its content; without pictures, its words."""
    return [
        frozenset(f"{PICTURE}{contents[picture]}" for picture in task.images)
        if task.images
        else frozenset({f"text {' '.join(_words(task.prompt).casefold().split())}"})
        for task in tasks
    ]


def _words(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else canonical(prompt)
