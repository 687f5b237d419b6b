"""Prepared questions and what the vision tower saw of them, kept up to a limit in bytes."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
from PIL import Image
from torch import Tensor

from ..types import Task
from .backbone import Prompt


@dataclass(frozen=True)
class _Kept:
    """A prompt, the images that it was made of (without keeping them alive), what they held then, and its bytes."""

    prompt: Prompt
    images: tuple[Callable[[], Any], ...]
    contents: tuple[Any, ...]
    size: int


class PromptStore:
    """Prompts by task, the least recently asked for dropped first.

    Args:
        limit: bytes of what is kept, pictures included; the prompts of one call stay in any case.

    Attributes:
        held: bytes of what is kept now.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._known: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def prompts(self, tasks: Sequence[Task], make: Callable[[Task], Prompt]) -> list[Prompt]:
        """One per task; equal ones (same id, same text, same images with the same content) get the same object."""
        found = []
        for task in tasks:
            key = (task.id, str(task.prompt))
            kept = self._known.get(key)
            if kept is None or not _same(kept, task.images):
                self._drop(key)
                prompt = make(task)
                size = prompt.bytes() + sum(len(word) for word in key)
                images, contents = tuple(map(_reference, task.images)), tuple(map(_content, task.images))
                kept = self._known[key] = _Kept(prompt, images, contents, size)
                self.held += size
            self._known.move_to_end(key)
            found.append(kept.prompt)
        while self.held > self.limit and len(self._known) > len(tasks):
            self._drop(next(iter(self._known)))
        return found

    def _drop(self, key: tuple[str, str]) -> None:
        gone = self._known.pop(key, None)
        self.held -= 0 if gone is None else gone.size


class FeatureCache:
    """Features of a frozen tower by prompt and the version of its weights, the least recently used dropped first.

    A prompt that nobody holds any more takes its features along.

    Args:
        limit: bytes of the features.

    Attributes:
        held: bytes of the features kept now.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._known: OrderedDict[ref[Prompt], tuple[int, Any]] = OrderedDict()

    def get(self, prompt: Prompt, version: int) -> Any:
        """``Features`` of the prompt, or None."""
        name = ref(prompt)
        found = self._known.get(name)
        if found is None or found[0] != version:
            return None
        self._known.move_to_end(name)
        return found[1]

    def put(self, prompt: Prompt, version: int, features: Any) -> None:
        self._drop(ref(prompt))
        self._known[ref(prompt, self._drop)] = version, features
        self.held += features.bytes()
        while self.held > self.limit:
            self._drop(next(iter(self._known)))

    def _drop(self, name: ref[Prompt]) -> None:
        gone = self._known.pop(name, None)
        self.held -= 0 if gone is None else gone[1].bytes()


def _reference(image: Any) -> Callable[[], Any]:
    """The image later, without keeping it alive where that can be had."""
    try:
        return ref(image)
    except TypeError:  # paths are strings, which have no weak references
        return lambda: image


def _same(kept: _Kept, images: Sequence[Any]) -> bool:
    return len(kept.images) == len(images) and all(
        ((known := reference()) is image or (isinstance(image, str | Path) and known == image))
        and content == _content(image)
        for reference, content, image in zip(kept.images, kept.contents, images, strict=True)
    )


def _content(image: Any) -> Any:
    """What tells whether an image was written over: a checksum, or a file's time and size; None where it is unknown."""
    try:
        if isinstance(image, str | Path):
            file = os.stat(image)
            return file.st_mtime_ns, file.st_size
        if isinstance(image, Tensor):
            image = image.detach().cpu().numpy()
        if isinstance(image, Image.Image):
            return image.size, image.mode, zlib.crc32(image.tobytes())
        if isinstance(image, np.ndarray):
            return image.shape, zlib.crc32(np.ascontiguousarray(image).data.cast("B"))
    except (OSError, SyntaxError, TypeError, ValueError):  # what cannot be read is told of where it is read
        return None
    return None
