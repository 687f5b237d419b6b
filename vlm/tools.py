"""Tools that a policy calls in its turns: an environment that runs them, and two of them.

A call is written as most chat models write it, ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``. A turn
without a call ends the conversation. What a policy does wrong (a name that does not exist, arguments that do not fit,
a box outside the image, a tool that breaks down on its arguments) is told to it as text, and never ends a run.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import UsageError, unknown
from ..images import as_pil
from ..plugins import imported, is_place
from ..rewards.image.images import as_float
from ..rewards.text.answers import without_thoughts
from ..sandbox import run_code
from ..types import Task
from ..untrusted import by_bytes, whole
from .conversation import Reply, Turn

Tool = Callable[..., Any]
"""Called with the images so far and the call's arguments as keywords; returns text, a number, an image, or a list of
these. A ``ToolError`` is told to the policy."""


LONGEST = 50
"""How much longer than wide a crop may be; image processors have limits of their own."""


class ToolError(ValueError):
    """A mistake of whoever called a tool, in words that help.

    Attributes:
        rest: what the turn says after a call that could not be read.
    """

    rest: str = ""


@dataclass(frozen=True)
class ToolCall:
    """A tool's name, the arguments, and what the turn says after the call."""

    name: str
    arguments: Mapping[str, Any]
    rest: str = field(default="", compare=False)


def parse_tool_call(text: str) -> ToolCall | None:
    """The first call of a text, None without one.

    Raises:
        ToolError: there is one that cannot be read.
    """
    _, found, rest = text.partition("<tool_call>")
    if not found:
        return None
    written, closed, rest = rest.partition("</tool_call>")
    try:
        return _call(written, rest)
    except ToolError as error:
        error.rest = rest if closed else ""
        raise


def _call(written: str, rest: str) -> ToolCall:
    try:
        call = json.loads(written)
    except json.JSONDecodeError as error:
        raise ToolError(f"a tool call holds JSON: {error}") from error
    except RecursionError as error:
        raise ToolError("a tool call holds JSON: this one is nested too deeply") from error
    except ValueError as error:  # Python reads integers of 4,300 digits at most
        raise ToolError("a tool call holds JSON: a number has too many digits") from error
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ToolError('a tool call is {"name": ..., "arguments": {...}}')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ToolError(f"the arguments of a tool call are an object, not {type(arguments).__name__}")
    return ToolCall(call["name"], arguments, rest)


def tool_response(text: str) -> str:
    """How Qwen's and Hermes' chat templates show what a tool returned."""
    return f"<tool_response>\n{text.replace('</tool_response>', '</tool_response >')}\n</tool_response>"


@dataclass(frozen=True)
class _Result:
    """What came of a call; ``broke`` names the exception of a tool that broke down, or is empty."""

    tool: str
    text: str
    images: tuple[Any, ...] = ()
    failed: bool = False
    broke: str = ""


class ToolBox:
    """An environment that runs the tools which a turn calls, in order; calls within thoughts (<think>) do not run.

    ``reply.info`` holds "tool", the names called, "failed", whether any call failed, and "calls": of each its name,
    whether it failed, and the exception of a tool that broke down (empty where none did). A tool breaks down on bad
    arguments as well as for reasons of its own, so that this is told to the policy, and ``watch.Watch`` counts it; a
    connection that failed is tried once more. What a tool raises as ``UsageError`` ends the run.

    Args:
        tools: by the name that a policy calls them.
        parse: a text -> its first call, or None.
        show: a tool's text -> what the policy reads.
        limit: tokens of what the tools of a turn return; the rest is left out, and said to be.
        shorten: text, tokens -> the text cut, such as ``Renderer.shorten``; without a tokenizer a byte counts as one.
        opened: "<think>" where the chat template opens a thought before the policy speaks (``Renderer.opened``).
        most: calls of a turn that run.

    Raises:
        UsageError: a tool whose arguments cannot be known, such as a built-in function's.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        *,
        parse: Callable[[str], ToolCall | None] = parse_tool_call,
        show: Callable[[str], str] = tool_response,
        limit: int = 1000,
        shorten: Callable[[str, int], str] = by_bytes,
        opened: str = "",
        most: int = 8,
    ) -> None:
        self.tools, self.parse, self.show, self.limit = dict(tools), parse, show, limit
        self.shorten, self.opened, self.most = shorten, opened, most
        for name, tool in self.tools.items():
            try:
                inspect.signature(tool)
            except (TypeError, ValueError) as error:
                raise UsageError(f'tool "{name}" does not tell its arguments: wrap it in a function') from error

    def __call__(self, task: Task, turns: Sequence[Turn]) -> Reply:
        images = [*task.images, *(image for turn in turns if turn.reply for image in turn.reply.images)]
        results: list[_Result] = []
        said = without_thoughts(self.opened + turns[-1].text)
        while len(results) <= self.most:
            call = self._next(said)
            if call is None:
                break
            said = call.rest
            if len(results) == self.most:
                call = ToolError(f"only the first {self.most} calls of a turn run")
            results.append(self._run(call, images))
            images += results[-1].images
        if not results:
            return Reply(done=True)
        each = max(1, self.limit // len(results))
        text = "\n".join(self.show(self.shorten(whole(result.text), each)) for result in results)
        info = {
            "tool": ", ".join(result.tool for result in results if result.tool),
            "failed": any(result.failed for result in results),
            "calls": tuple((result.tool, result.failed, result.broke) for result in results),
        }
        return Reply(text, tuple(image for result in results for image in result.images), info=info)

    def _next(self, text: str) -> ToolCall | ToolError | None:
        try:
            return self.parse(text)
        except ToolError as error:
            return error

    def _run(self, call: ToolCall | ToolError, images: Sequence[Any]) -> _Result:
        """A call's result; whatever goes wrong is told as text."""
        if isinstance(call, ToolError):
            return _Result("", f"error: {call}", failed=True)
        tool = self.tools.get(call.name)
        broke = ""
        try:
            if tool is None:
                raise ToolError(f'there is no tool "{call.name}", but {", ".join(sorted(self.tools))}')
            try:
                inspect.signature(tool).bind(images, **call.arguments)
            except TypeError as error:
                raise ToolError(f"{call.name}: {error}") from error
            try:
                result = tool(images, **call.arguments)
            except (ConnectionError, TimeoutError):
                result = tool(images, **call.arguments)
            return _Result(call.name, *_sorted(result, call.name))
        except ToolError as error:
            said = str(error)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            said = broke = f"{call.name} broke down: {type(error).__name__}: {error}"
        return _Result(call.name, f"error: {said}", failed=True, broke=broke)


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
        sides = sorted((right - left, bottom - top))
        if sides[1] > LONGEST * sides[0]:
            raise ToolError(
                f"the box {list(box)} is {sides[1] / sides[0]:.0f} times longer than wide: {LONGEST} at most"
            )
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


def _sorted(result: Any, tool: str) -> tuple[str, tuple[Any, ...]]:
    """The text and the images of what a tool returned."""
    texts: list[str] = []
    images: list[Any] = []
    for part in result if isinstance(result, list | tuple) else [result]:
        if isinstance(part, str | bool | int | float):
            texts.append(str(part))
        elif _is_image(part):
            images.append(part)
        else:
            raise TypeError(f"{tool} returned {_described(part)}, and tools return text and images")
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
