"""What stands between tasks and tokens: questions become prompts, tokens become text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from weakref import ref

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import UsageError
from ..types import Task
from .backbone import Prompt

SHOWN = "shown"
"""Payload entries of images shown after the first prompt: "shown.0.tokens", the places [2] where their reply begins and
ends among the tokens, and "shown.0.NAME", the inputs NAME of the images; then "shown.1.tokens" and so on."""

Stretch = tuple[Prompt, int, int]
"""The prompt that tokens follow, and the places where they begin and end."""


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

    def reply(self, text: str, images: Sequence[Any] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """What the model reads between two turns of its own, and the inputs of the images shown there.

        The ids go from behind the end of its turn to where it speaks again. A speech with a chat format or with eyes
        writes its own (``between_turns`` helps); here it is the text and an end id.
        """
        if images:
            raise UsageError(f"{type(self).__name__} cannot show images in a reply: let the environment answer in text")
        return self.tokens(text), {}

    def join(self, first: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of images and of those shown after them.

        They are stacked along the first axis, or along the second where an Idefics processor puts images there and
        pads them to one size: its ``pixel_attention_mask`` is [1, N, H, W].
        """
        parts = [part for part in (first, more) if part]
        if not all("pixel_attention_mask" in part and part["pixel_attention_mask"].ndim == 4 for part in parts):
            names = dict.fromkeys(name for part in parts for name in part)
            return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}
        height, width = (max(part["pixel_attention_mask"].shape[axis] for part in parts) for axis in (-2, -1))

        def padded(values: Tensor) -> Tensor:
            return pad(values, (0, width - values.shape[-1], 0, height - values.shape[-2]))

        return {name: torch.cat([padded(part[name]) for part in parts], 1) for name in parts[0]} if parts else {}

    def stretches(self, prompt: Prompt, payload: Mapping[str, Tensor]) -> tuple[Stretch, ...]:
        """How to read a rollout's tokens: in one piece, but replies that show images begin a new, longer prompt."""
        found: list[Stretch] = []
        start = 0
        while f"{SHOWN}.{len(found)}.tokens" in payload:
            mark = f"{SHOWN}.{len(found)}."
            reply, after = payload[mark + "tokens"].tolist()
            found.append((prompt, start, reply))
            fresh = {name.removeprefix(mark): values for name, values in payload.items() if name.startswith(mark)}
            fresh.pop("tokens")
            ids = torch.cat([prompt.ids, payload["tokens"][start:after]])
            prompt, start = Prompt(prompt.task_id, ids, self.join(prompt.inputs, fresh)), after
        return (*found, (prompt, start, int(payload["length"])))

    def save(self, folder: Path) -> None:
        """Keep what is needed to read questions again beside a model's weights; here nothing is."""

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


def between_turns(render: Callable[[list[dict[str, Any]]], str], content: Any, end: str) -> str:
    """What a chat template writes between the end of a model's turn and its next one, when ``content`` is said to it.

    Args:
        render: messages -> text with the opening of the model's next turn, such as
            ``lambda m: processor.apply_chat_template(m, tokenize=False, add_generation_prompt=True)``.
        content: of a user's message, in the form that the template takes.
        end: the end token's text, which the model has said itself.

    Raises:
        UsageError: the template leaves out what the model said.
    """
    word = "\ue000"  # stands for the model's turn: a character of nobody's language
    user = {"role": "user", "content": content}
    answered = {"role": "assistant", "content": word if isinstance(content, str) else [{"type": "text", "text": word}]}
    _, found, after = render([user, answered, user]).partition(word)
    if not found:
        raise UsageError("the chat template leaves out what the assistant said: it cannot hold a conversation")
    closed = after.lstrip()
    return closed.removeprefix(end) if closed.startswith(end) else after
