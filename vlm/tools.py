"""Tools that a policy calls in its turns: an environment that runs them, and two of them.

A call is written as most chat models write it, ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``. A turn
without a call ends the conversation. What a policy does wrong (a name that does not exist, arguments that do not fit,
a box outside the image) is told to it as text; what is wrong with a tool stops the run with one line.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import UsageError, unknown
from ..images import as_pil
from ..plugins import imported, is_place
from ..rewards.image.images import as_float
from ..sandbox import run_code
from ..types import Task
from .conversation import Reply, Turn

Tool = Callable[..., Any]
"""Called with the images so far and the call's arguments as keywords; returns text, a number, an image, or a list of
these. A ``ToolError`` is told to the policy."""


class ToolError(ValueError):
    """A mistake of whoever called a tool, in words that help."""


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: Mapping[str, Any]


def parse_tool_call(text: str) -> ToolCall | None:
    """The first call of a turn, None without one.

    Raises:
        ToolError: there is one that cannot be read.
    """
    _, found, rest = text.partition("<tool_call>")
    if not found:
        return None
    written, closed, _ = rest.partition("</tool_call>")
    try:
        call = json.loads(written if closed else rest)
    except json.JSONDecodeError as error:
        raise ToolError(f"a tool call holds JSON: {error}") from error
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ToolError('a tool call is {"name": ..., "arguments": {...}}')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ToolError(f"the arguments of a tool call are an object, not {type(arguments).__name__}")
    return ToolCall(call["name"], arguments)


def tool_response(text: str) -> str:
    """How Qwen's and Hermes' chat templates show what a tool returned."""
    return f"<tool_response>\n{text}\n</tool_response>"


class ToolBox:
    """An environment that runs the tool which a turn calls.

    ``reply.info`` holds "tool", the name called, and "failed", whether the call was a mistake.

    Args:
        tools: by the name that a policy calls them.
        parse: a turn's text -> its call, or None.
        show: a tool's text -> what the policy reads.
        limit: characters of a tool's text; the rest is left out, and said to be.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        *,
        parse: Callable[[str], ToolCall | None] = parse_tool_call,
        show: Callable[[str], str] = tool_response,
        limit: int = 2000,
    ) -> None:
        self.tools, self.parse, self.show, self.limit = dict(tools), parse, show, limit

    def __call__(self, task: Task, turns: Sequence[Turn]) -> Reply:
        name = ""
        try:
            call = self.parse(turns[-1].text)
            if call is None:
                return Reply(done=True)
            name = call.name
            result = self._run(call, task, turns)
        except ToolError as error:
            return Reply(self.show(f"error: {error}"), info={"tool": name, "failed": True})
        text, images = _sorted(result, name, task)
        if len(text) > self.limit:
            text = f"{text[: self.limit]}\n... ({len(text) - self.limit} more characters)"
        return Reply(self.show(text), images, info={"tool": name, "failed": False})

    def _run(self, call: ToolCall, task: Task, turns: Sequence[Turn]) -> Any:
        tool = self.tools.get(call.name)
        if tool is None:
            raise ToolError(f'there is no tool "{call.name}", but {", ".join(sorted(self.tools))}')
        images = [*task.images, *(image for turn in turns if turn.reply for image in turn.reply.images)]
        try:
            inspect.signature(tool).bind(images, **call.arguments)
        except TypeError as error:
            raise ToolError(f"{call.name}: {error}") from error
        try:
            return tool(images, **call.arguments)
        except ToolError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise UsageError(f'tool "{call.name}" broke down on task {task.id}: {said}') from error


def printed(code: str) -> str:
    """What a program prints in the sandbox, and the line with which it failed, if it did."""
    result = run_code(code)
    return "\n".join(part for part in (result.stdout.rstrip("\n"), result.error) if part)


@dataclass(frozen=True)
class Python:
    """A tool that runs the argument ``code``.

    Attributes:
        run: code -> what it printed, or how it failed; it has to be a sandbox, since the code is a policy's.
    """

    run: Callable[[str], str] = printed

    def __call__(self, images: Sequence[Any], code: str) -> str:
        if not isinstance(code, str):
            raise ToolError(f"code is a text, not {type(code).__name__}")
        return self.run(code)


@dataclass(frozen=True)
class Crop:
    """A tool that cuts the argument ``box`` (left, top, right, bottom; pixels) out of an image and enlarges it.

    The argument ``image`` counts the task's images and then those that tools returned, from 0.

    Attributes:
        size: pixels of the longer side of what is returned.
        least: pixels that a box has in both directions.
    """

    size: int = 224
    least: int = 4

    def __call__(self, images: Sequence[Any], box: Sequence[float], image: int = 0) -> Image.Image:
        if not isinstance(image, int) or not 0 <= image < len(images):
            raise ToolError(f"image {image} does not exist: there are {len(images)}, counted from 0")
        whole = as_pil(images[image], f"image {image}")
        left, top, right, bottom = self._corners(box, whole)
        part = whole.crop((left, top, right, bottom))
        scale = self.size / max(part.size)
        return part.resize(
            (max(1, round(part.width * scale)), max(1, round(part.height * scale))), Image.Resampling.BICUBIC
        )

    def _corners(self, box: Any, whole: Image.Image) -> tuple[int, int, int, int]:
        """The box within the image, in whole pixels."""
        try:
            left, top, right, bottom = (round(float(edge)) for edge in box)
        except (TypeError, ValueError, OverflowError) as error:
            raise ToolError(f"a box is [left, top, right, bottom] in pixels, not {box}") from error
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, whole.width), min(bottom, whole.height)
        if right - left < self.least or bottom - top < self.least:
            raise ToolError(
                f"the box {list(box)} leaves fewer than {self.least} pixels of an image of "
                f"{whole.width} x {whole.height} pixels"
            )
        return left, top, right, bottom


def tools_of(specs: Sequence[str]) -> dict[str, Tool]:
    """Tools by the names that a policy calls them: python, crop, package.module:NAME or FILE.py:NAME.

    Raises:
        UsageError: an unknown name, or nothing at a place.
    """
    own: dict[str, Tool] = {"python": Python(), "crop": Crop()}
    if unnamed := [spec for spec in specs if spec not in own and not is_place(spec)]:
        raise unknown("tool", unnamed[0], own)
    return {spec.rpartition(":")[2]: own[spec] if spec in own else imported(spec) for spec in specs}


def _sorted(result: Any, tool: str, task: Task) -> tuple[str, tuple[Any, ...]]:
    """The text and the images of what a tool returned."""
    texts: list[str] = []
    images: list[Any] = []
    for part in result if isinstance(result, list | tuple) else [result]:
        if isinstance(part, str | bool | int | float):
            texts.append(str(part))
        elif _is_image(part):
            images.append(part)
        else:
            raise UsageError(
                f'tool "{tool}" returned {_described(part)} on task {task.id}: tools return text and images'
            )
    return "\n".join(texts), tuple(images)


def _is_image(value: Any) -> bool:
    if not isinstance(value, Image.Image | np.ndarray | Tensor):
        return False
    try:
        as_float([value])
    except ValueError:
        return False
    return True


def _described(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, np.ndarray | Tensor) else ""
    return f"{type(value).__name__}{shape}"
