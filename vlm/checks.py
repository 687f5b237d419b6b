"""What only a processor would refuse, found in all questions before a run begins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from ..types import Task
from ..untrusted import has_half

if TYPE_CHECKING:
    from .processing import ProcessorRenderer

log = logging.getLogger(__name__)

ODD_RATIO, ODD_SIDE = 20, 32
"""Pictures longer than wide by this factor, or smaller, are tried on the processor: families have their own limits."""
IMAGE = "<image>"
"""How data sets of other libraries mark a picture's place."""


class TaskCheck:
    """Reads questions without their pictures; odd shapes of pictures are tried once each, blank.

    Args:
        renderer: whose questions they are.
        horizon: most tokens of an answer whose task does not say.
    """

    def __init__(self, renderer: ProcessorRenderer, horizon: int) -> None:
        self.renderer, self.horizon = renderer, horizon
        self._tried: dict[tuple[int, int], UsageError | None] = {}
        self._spelt: list[tuple[str, str]] = []
        self._long: list[tuple[str, int]] = []

    def __call__(self, tasks: Iterable[Task]) -> None:
        """Raise UsageError for a question that cannot be read, and log a line for each kind that reads oddly."""
        for task in tasks:
            self._text(task)
            self._length(task)
            for place, size in enumerate(_sizes(task)):
                self._shape(task, place, size)
        if self._spelt:
            name, token = self._spelt[0]
            log.warning(
                "%d questions spell control tokens of the model, such as %s in %s: they are read as plain text",
                len(self._spelt), token, name,
            )  # fmt: skip
        if self._long and (reach := self.renderer.reach) is not None:
            name, length = self._long[0]
            log.warning(
                "%d questions are longer, with their answers, than %d tokens, such as %s with %d, and %s",
                len(self._long), reach.tokens, name, length, reach.why,
            )  # fmt: skip

    def _text(self, task: Task) -> None:
        text = "\n".join(texts(task.prompt))
        if has_half(text):
            raise UsageError(f"{task.id}: the text holds half of a surrogate pair, which is no letter: write UTF-8")
        renderer = self.renderer
        if not renderer.chat:
            return
        own = [str(token) for token in (getattr(renderer.processor, "image_token", None),) if token is not None]
        marks = [mark for mark in ([IMAGE, *own] if task.images else own) if mark in text]
        if marks and renderer.sees:
            beside = f"beside {len(task.images)} images" if task.images else "without an image"
            raise UsageError(
                f'{task.id}: {marks[0]} stands in the text {beside}: write the place of an image as a block {{"type": '
                '"image"}, or leave it out, and the images stand before the text'
            )
        if spelt := renderer.plain.spelt(text):
            self._spelt.append((task.id, spelt[0]))

    def _length(self, task: Task) -> None:
        """Tokens are counted only where the letters would allow too many."""
        renderer, reach, answer = self.renderer, self.renderer.reach, task.horizon or self.horizon
        text = renderer.written(task)
        if reach is None or len(text.encode(errors="replace")) + answer + self._of_images(task) <= reach.tokens:
            return
        length = len(renderer.tokenizer(text, add_special_tokens=False)["input_ids"]) + self._of_images(task) + answer
        if length > reach.tokens:
            if reach.hard:
                raise UsageError(
                    f"{task.id}: the question and an answer of up to {answer} tokens are {length} tokens long, more "
                    f"than {reach.tokens}, and {reach.why}: shorten the question, or give a smaller --max-new-tokens"
                )
            self._long.append((task.id, length))

    def _of_images(self, task: Task) -> int:
        """Tokens of the images, where the processor tells them without reading pixels."""
        count: Callable[..., Any] | None = getattr(self.renderer.processor, "_get_num_multimodal_tokens", None)
        sizes = [(height, width) for width, height in _sizes(task)]
        if count is None or not sizes:
            return 0
        try:
            return int(sum(count(image_sizes=sizes).num_image_tokens))
        except Exception:  # no public call: what it cannot tell is found when the question is asked
            return 0

    def _shape(self, task: Task, place: int, size: tuple[int, int]) -> None:
        if min(size) >= ODD_SIDE and max(size) < ODD_RATIO * min(size):
            return
        if size not in self._tried:
            blank = np.zeros((size[1], size[0], 3), np.uint8)
            try:
                self.renderer.prompt(Task(task.id, "?", (blank,)))
                self._tried[size] = None
            except UsageError as error:
                self._tried[size] = error
        if (refusal := self._tried[size]) is not None:
            said = str(refusal).partition(": ")[2]
            raise UsageError(f"{task.id}: image {place + 1} of {size[0]} x {size[1]} pixels: {said}") from refusal


def texts(value: Any) -> Iterator[str]:
    """Every text in a prompt."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner)


def _sizes(task: Task) -> Iterator[tuple[int, int]]:
    """Width and height of each image that tells them without being decoded."""
    for image in task.images:
        if isinstance(image, str | Path):
            try:
                with Image.open(image) as opened:
                    yield opened.size
            except (OSError, SyntaxError, ValueError):  # told of where it is read
                continue
        elif isinstance(image, Image.Image):
            yield image.size
        elif len(shape := tuple(getattr(image, "shape", ()))) == 3:
            yield (shape[1], shape[0]) if shape[-1] == 3 else (shape[2], shape[1])
