"""Answers in texts: where they stand, and when two are the same.

answer_of(r"... so \\boxed{42}")                 "42"
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

Extract = Callable[[str], str | None]
"""A completion -> its answer, or None if it gives none."""

_THOUGHTS = re.compile(r"(?i:[<◁](/?)(?:think|thinking|thoughts?|reasoning)[>▷])|\[(/?)THINK\]")
_Part = tuple[int, int, str]  # where it begins and ends, and what stands in it
_JOINED = re.compile(r"[\s$*]*(?:[,;/]|or|and|,? ?and/or|,? ?or|,? ?and)?[\s$*]*", re.IGNORECASE)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_BRACES = re.compile(r"\\boxed\s*\{|\{|\}")
_MARKS = (
    re.compile(r"####\s*"),
    re.compile(r"\banswer(?:[ \t]+is\b[ \t]*:?|[ \t]*(?:\*{1,2}[ \t]*)?:)[\s*]*", re.IGNORECASE),
    re.compile(r"(?<![=!<>:])=(?![=>])[ \t]*"),  # the last, see ``equations``
)
_LATEX_WORDS = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")

_ARTICLE = re.compile(r"^(?:an?|the) (?=[*`\"'$]*\w)")
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

    Thoughts are left out (:func:`without_thoughts`). It stands in the last \boxed{...}, with those that only a comma or
    "or" parts from it; else so in the last <answer>...</answer>; else in its line after the last "####", "Answer:" or
    "answer is"; else in its line after the last "=". What follows a mark counts even if it is long: who hedges there
    ("A or B") has not answered, and verifiers treat it so.

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
    """What stands in the last complete boxes, braces matched; read once, however many are left open.

    A box in a box is no answer of its own: what hedges around it would be lost.
    """
    opened: list[tuple[int, int | None]] = []
    found: list[tuple[int, int, int]] = []  # where a box starts and ends, and where its inside starts
    for brace in _BRACES.finditer(text):
        if brace.group() != "}":
            opened.append((brace.end(), brace.start() if brace.group() != "{" else None))
        elif opened:
            inside, start = opened.pop()
            if start is not None:
                found.append((start, brace.end(), inside))
    outer: list[_Part] = []
    for start, end, inside in sorted(found):
        if not outer or start >= outer[-1][1]:
            outer.append((start, end, _unboxed(text[inside : end - 1])))
    return _last_of(text, outer)


def _unboxed(text: str) -> str:
    """What stands in a box without boxes of its own; those below the third are left."""
    for _ in range(3):
        text = _BOX.sub(r"\1", text)
    return text


def _tagged(text: str) -> str | None:
    """What stands between the last closing tags and the opening ones before them."""
    opened: re.Match[str] | None = None
    found: list[_Part] = []
    for tag in _TAG.finditer(text):
        if not tag.group(1):
            opened = tag
        elif opened is not None:
            found.append((opened.start(), tag.end(), text[opened.end() : tag.start()]))
            opened = None
    return _last_of(text, found)


def _last_of(text: str, parts: list[_Part]) -> str | None:
    """The last part, with those before it that only a comma, "or" or "and" parts from it: they are one answer."""
    if not parts:
        return None
    start, _, answer = parts[-1]
    for before, end, inside in reversed(parts[:-1]):
        if end > start:  # around the last
            continue
        between = text[end:start] if start - end < 20 else "no"
        if not _JOINED.fullmatch(between):
            break
        answer = f"{inside}{' or ' if 'or' in between.lower() else ', '}{answer}"
        start = before
    return answer


def normalise(text: str) -> str:
    """A text so that spelling does not matter.

    That is case, width, space, hyphens, markdown, quotes, $, a full stop at its end and an article at its beginning.
    """
    text = _LATEX_WORDS.sub(r"\1", unicodedata.normalize("NFKC", text)).casefold().translate(_TYPED)
    text = " ".join(text.split())
    bare = text.strip(_QUOTES).rstrip(".!,;: ").strip(_QUOTES)
    return _ARTICLE.sub("", bare).strip(_QUOTES) or text


def vote_of(text: str) -> str | None:
    """The normalised answer of a text: two completions that answer the same give equal votes."""
    answer = answer_of(text)
    return None if answer is None else normalise(answer)
