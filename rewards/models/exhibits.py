"""Inputs of judges: the texts and pictures of what is judged, and the prompts made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from PIL import Image
from torch import Tensor

from ...errors import OutputError, UsageError, unknown
from ...images import as_pil

Prompt = tuple["str | Image.Image", ...]
"""Words and pictures in the order in which the model shall see them."""


@dataclass(frozen=True)
class Exhibit:
    """Input of a judge: the pictures of one output, and its text if it was one."""

    pictures: tuple[Image.Image, ...]
    text: str | None = None


def check_fields(question: str | None, known: Sequence[str], every: bool = False) -> None:
    """Refuse a field of a judge's question that nobody fills in; with ``every`` a question that lacks one, too."""
    named = [field for _, field, _, _ in Formatter().parse(question or "") if field is not None]
    for name in named:
        if name not in known:
            raise unknown("field of a judge's question", name, known)
    for name in known if every else ():
        if name not in named:
            raise ValueError(f"a judge's question needs the field {{{name}}}")


class Exhibitor:
    """Base of judges: turns outputs into exhibits.

    Args:
        frames: how many frames of an episode are shown.
    """

    def __init__(self, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"a judge is shown {frames} frames of an episode; at least 1 is needed")
        self.frames = frames

    def exhibits(self, images: Sequence[Any] | Tensor | None, completions: Sequence[Any] | None) -> list[Exhibit]:
        """One per sample: a text with the task's images, or the pictures that were made."""
        if images is None and completions is None:
            raise ValueError("a judge needs images or completions")
        some = completions if completions is not None else images
        assert some is not None
        out = []
        for index in range(len(some)):
            made = None if completions is None else completions[index]
            given = None if images is None else images[index]
            if made is None or is_text(made):
                text = None if made is None else text_of(made)
                out.append(Exhibit(self.pictures(index, given), text))
            else:
                out.append(Exhibit(self._made(index, made)))
        return out

    def _made(self, index: int, made: Any) -> tuple[Image.Image, ...]:
        try:
            return self.pictures(index, made)
        except UsageError as error:
            raise OutputError(str(error)) from error

    def pictures(self, index: int, shown: Any) -> tuple[Image.Image, ...]:
        """Whatever shows something, as pictures; of an episode, evenly spaced frames with the last among them."""
        if shown is None:
            return ()
        if hasattr(shown, "frames"):
            if shown.frames is None or not len(shown.frames):
                raise ValueError(f"sample {index} is an episode without frames: render it")
            length = len(shown.frames)
            count = min(self.frames, length)
            shown = [shown.frames[math.ceil(length * (k + 1) / count) - 1] for k in range(count)]
        several = isinstance(shown, (list, tuple)) or getattr(shown, "ndim", 3) == 4
        return tuple(as_pil(picture, f"sample {index}") for picture in (shown if several else [shown]))


def is_text(value: Any) -> bool:
    """Whether it is a text or a chat."""
    chat = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(part, Mapping) for part in value)
    return isinstance(value, str) or chat


def texts_of(prompts: Sequence[Any], n: int) -> list[str]:
    """The text of each of n prompts."""
    if len(prompts) != n:
        raise ValueError(f"{n} outputs but {len(prompts)} prompts")
    return [text_of(prompt) for prompt in prompts]


def text_of(value: Any) -> str:
    """A text as it is; of a chat, the words of its last message."""
    if isinstance(value, str):
        return value
    if not is_text(value):
        raise ValueError(f"a {type(value).__name__} is neither a text nor a chat")
    content = value[-1].get("content", "")
    if isinstance(content, str):
        return content
    return " ".join(str(part["text"]) for part in content if "text" in part)
