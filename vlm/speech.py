"""What stands between tasks and tokens: questions become prompts, tokens become text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self
from weakref import ref

from torch import Tensor

from ..types import Task
from .backbone import Prompt


class Speech:
    """Prepares every question once and keeps it, so that its completions share one Prompt.

    Args:
        ends: ids that end a completion.
        keep: questions remembered; the least recently asked goes first.
    """

    def __init__(self, ends: Iterable[int], keep: int = 4096) -> None:
        self.ends = frozenset(ends)
        self.keep = keep
        self._known: OrderedDict[tuple[str, str], tuple[list[Callable[[], Any]], Prompt]] = OrderedDict()

    def prompts(self, tasks: Sequence[Task]) -> list[Prompt]:
        """One prompt per task; equal tasks (same id, same text, same image objects) get the same object."""
        found = []
        for task in tasks:
            key = (task.id, str(task.prompt))
            images, prompt = self._known.get(key, ([], None))
            if prompt is None or not _same(images, task.images):
                prompt = self.prompt(task)
                self._known[key] = [_reference(image) for image in task.images], prompt
            self._known.move_to_end(key)
            found.append(prompt)
        while len(self._known) > max(self.keep, len(tasks)):
            self._known.popitem(last=False)
        return found

    def prompt(self, task: Task) -> Prompt:
        """The question as the model reads it. To be written by a kind of model."""
        raise NotImplementedError

    def tokens(self, text: str) -> Tensor:
        """[T] ids of an answer, an end id last."""
        raise NotImplementedError

    def text(self, ids: Tensor) -> str:
        """An answer without special tokens."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Forks of a policy share it: a prompt must stay one object."""
        return self


def _reference(image: Any) -> Callable[[], Any]:
    """The image later, without keeping it alive where that can be had."""
    try:
        return ref(image)
    except TypeError:  # paths are strings, which have no weak references
        return lambda: image


def _same(references: Sequence[Callable[[], Any]], images: Sequence[Any]) -> bool:
    return len(references) == len(images) and all(
        (known := reference()) is image or (isinstance(image, str) and known == image)
        for reference, image in zip(references, images, strict=True)
    )
