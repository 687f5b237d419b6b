"""Answers in texts: where they stand, when two are the same, and which columns a reward of them needs.

answer_of(r"... so \\boxed{42}")                 "42"
"""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from ...errors import UsageError
from ...types import Task
from ..reward import Reward

Extract = Callable[[str], str | None]
"""A completion -> its answer, or None if it gives none."""

_THOUGHTS = re.compile(r"(?i:[<◁](/?)(?:think|thinking|thoughts?|reasoning)[>▷])|\[(/?)THINK\]")
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BRACES = re.compile(r"\\boxed\s*\{|\{|\}")
_MARKS = (
    re.compile(r"####\s*"),
    re.compile(r"\banswer(?:[ \t]+is\b[ \t]*:?|[ \t]*(?:\*{1,2}[ \t]*)?:)[\s*]*", re.IGNORECASE),
    re.compile(r"(?<![=!<>:])=(?![=>])[ \t]*"),  # the last, see ``equations``
)
_LATEX_WORDS = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")

_ARTICLE = re.compile(r"^(?:an?|the) (?=\w)")
_TYPED = str.maketrans("\u2019\u2018\u201c\u201d\u2010\u2011\u2013\u2212", "''\"\"----")
_QUOTES = "*`\"'$ \u2018\u2019\u201c\u201d"


def without_thoughts(text: str) -> str:
    """A text without what it thinks: <think>...</think> (also <thinking>, <thought>, <reasoning>, [THINK], ◁think▷).

    Thoughts that are cut off reach to the end of the text; where the prompt has opened them, they reach from its
    beginning to the last closing mark.
    """
    spoken: list[str] = []
    thinking, end = False, 0
    for mark in _THOUGHTS.finditer(text):
        closing = mark[1] or mark[2]
        if closing and not thinking:
            spoken.clear()  # opened in the prompt, or twice
        elif not closing and not thinking:
            spoken.append(text[end : mark.start()])
        thinking, end = not closing, mark.end()
    return "".join(spoken) + ("" if thinking else text[end:])


def answer_of(text: str, whole: bool = True, equations: bool = True, lines: bool = False) -> str | None:
    r"""The answer that a text gives.

    Thoughts are left out (:func:`without_thoughts`). It stands in the last \boxed{...}; else in the last
    <answer>...</answer>; else in its line after the last "####", "Answer:" or "answer is"; else in its line after the
    last "=". What follows a mark counts even if it is long: who hedges there ("A or B") has not answered, and verifiers
    treat it so.

    Args:
        whole: whether a text without any mark is an answer as a whole.
        equations: whether "=" is a mark.
        lines: whether a list with bullets, or what begins below its mark, goes on to the next empty line.

    Returns:
        The answer without space around it; None if there is none, or an empty one.
    """
    text = without_thoughts(text)
    marked = _boxed(text)
    if marked is None:
        marked = _tagged(text)
    for mark in (_MARKS if equations else _MARKS[:-1]) if marked is None else ():
        if found := list(mark.finditer(text)):
            marked = text[found[-1].end() :]
            listed = "\n" in found[-1][0] or re.match(r"(?:[-*•]|\d+[.)])[ \t]", marked)
            marked = re.split(r"\n[ \t]*\n" if lines and listed else "\n", marked, maxsplit=1)[0]
            break
    if marked is None and whole:
        marked = text
    return (marked or "").strip() or None


def _boxed(text: str) -> str | None:
    """What stands in the last complete box, braces matched; read once, however many are left open."""
    opened: list[tuple[int, bool]] = []
    last, found = -1, None
    for brace in _BRACES.finditer(text):
        if brace.group() != "}":
            opened.append((brace.end(), brace.group() != "{"))
        elif opened:
            start, boxed = opened.pop()
            if boxed and start > last:
                last, found = start, text[start : brace.start()]
    return found


def _tagged(text: str) -> str | None:
    """What stands between the last closing tag and the opening one before it."""
    start, found = None, None
    for tag in _TAG.finditer(text):
        if not tag.group(1):
            start = tag.end()
        elif start is not None:
            found, start = text[start : tag.start()], None
    return found


def normalise(text: str) -> str:
    """A text so that spelling does not matter.

    That is case, width, space, hyphens, markdown, quotes, $, a full stop at its end and an article at its beginning.
    """
    text = _LATEX_WORDS.sub(r"\1", unicodedata.normalize("NFKC", text)).casefold().translate(_TYPED)
    text = " ".join(text.split())
    bare = text.strip(_QUOTES).rstrip(".!,;: ").strip(_QUOTES)
    return _ARTICLE.sub("", bare) or text


def vote_of(text: str) -> str | None:
    """The normalised answer of a text: two completions that answer the same give equal votes."""
    answer = answer_of(text)
    return None if answer is None else normalise(answer)


def require_columns(reward: Reward, tasks: Iterable[Task]) -> None:
    """Refuse a reward whose columns no task has, or which cannot read a task's reference, before anything runs.

    A reward names what it needs in an attribute ``needs``; of a function, the parameters without default count. One
    with a method ``check`` (reference, extra columns) raises ValueError there for a reference that it cannot read.

    Raises:
        UsageError: one line with the reward, the column, and what the tasks have; or with the task and its reference.
    """
    tasks = list(tasks)
    always = {"tasks", "prompts", "outputs", "completions", "episodes", "images", "groups", "log_probs", "rollouts"}
    extra = {name for task in tasks for name, value in task.extra.items() if value is not None}
    present = always | extra | ({"references"} if any(task.reference is not None for task in tasks) else set())
    for _, term in reward.terms:
        for column in _needs(term.function):
            if column not in present:
                have = ", ".join(sorted(present - always)) or "neither references nor extra columns"
                raise UsageError(
                    f'reward {term.name} needs the column "{column}", and none of the {len(tasks)} tasks has it: '
                    f"they have {have}"
                )
        check: Any = getattr(term.function, "check", None)
        for task in [task for task in tasks if task.reference is not None] if check is not None else ():
            try:
                check(task.reference, task.extra)
            except ValueError as error:
                raise UsageError(f"reward {term.name}, task {task.id}: {error}") from error


def _needs(function: Any) -> tuple[str, ...]:
    if hasattr(function, "needs"):
        return tuple(function.needs)
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built-in functions may hide theirs
        return ()
    return tuple(p.name for p in parameters if p.kind in keywords and p.default is inspect.Parameter.empty)
