"""Code rewards: programs as answers, judged by tests that they are run against."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ...errors import UsageError
from ...families import GROUND_TRUTH
from ...machine import cores
from ...sandbox import Limits, run_code
from ..models.exhibits import is_text, text_of
from .answers import without_thoughts

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^`\n]*)")
_PYTHON = frozenset({"", "python", "py", "python3", "py3", "python2", "pycon"})


def program_of(text: str) -> str:
    """The last fenced block of Python, or of no named language, outside of thoughts; all of the text if there is none.

    A block that is cut off at the end of the text counts.
    """
    text = without_thoughts(text)
    blocks: list[list[str]] = []
    fence, python = "", False
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if mark is not None and not fence:
            fence, language = mark[1], mark[2].split()[:1]
            if python := "".join(language).lower() in _PYTHON:
                blocks.append([])
        elif mark is not None and mark[1].startswith(fence) and not mark[2].strip():
            fence = ""
        elif fence and python:
            blocks[-1].append(line)
    return textwrap.dedent("\n".join(blocks[-1])) + "\n" if blocks else text


class CodeTests:
    """The share of tests that a program passes, in :mod:`autotelic.sandbox`, whose module says what that contains.

    The column ``tests`` holds a list per sample, of statements (such as "assert f(2) == 4"), which see the program's
    names, or of pairs (input, output), for which the program runs anew and its output is compared line by line without
    the space at the lines' ends. Neither is judged in the program's process: statements run in one of their own and
    call the program's functions, which answer with plain values.

    Args:
        partial: the share of tests passed; False: 1.0 for all of them, else 0.0.
        limits: of each run; what is printed is compared up to ``limits.file_mb``.
        workers: programs run at the same time; None: as many as there are cores.

    Raises:
        UsageError: fewer than one worker, or what :func:`autotelic.sandbox.run_code` raises.
        ValueError: a sample has a test that is neither a statement nor a pair.
    """

    needs = ("tests",)
    families = frozenset({GROUND_TRUTH})

    def __init__(self, partial: bool = True, limits: Limits | None = None, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"programs are run by {workers} workers; at least 1 is needed")
        limits = limits or Limits()
        self.partial, self.workers = partial, workers or cores()
        self.limits = replace(limits, output=max(limits.output, math.ceil(limits.file_mb * 2**20)))

    def __call__(self, completions: Sequence[Any], tests: Sequence[Any], **columns: Any) -> list[float | None]:
        """One score per sample, None for those without tests."""
        jobs = [
            (program_of(text_of(completion)), *_sorted(index, some or ()))
            for index, (completion, some) in enumerate(zip(completions, tests, strict=True))
        ]
        with ThreadPoolExecutor(self.workers) as pool:  # threads, since each waits for a process of its own
            return list(pool.map(self._score, jobs))

    def _score(self, job: tuple[str, list[str], list[tuple[str, str]]]) -> float | None:
        code, statements, pairs = job
        if not statements and not pairs:
            return None
        passed = list(run_code(code, tests=statements, limits=self.limits).passed) if statements else []
        for given, wanted in pairs:
            result = run_code(code, stdin=given, limits=self.limits)
            passed.append(result.ok and _lines(result.stdout) == _lines(wanted))
        return sum(passed) / len(passed) if self.partial else float(all(passed))


def _sorted(index: int, tests: Any) -> tuple[list[str], list[tuple[str, str]]]:
    statements: list[str] = []
    pairs: list[tuple[str, str]] = []
    for test in [tests] if isinstance(tests, str) else tests:
        if isinstance(test, str):
            statements.append(test)
        elif isinstance(test, (list, tuple)) and len(test) == 2 and not is_text(test):
            pairs.append((str(test[0]), str(test[1])))
        elif isinstance(test, Mapping) and {"input", "output"} <= test.keys():
            pairs.append((str(test["input"]), str(test["output"])))
        else:
            raise ValueError(
                f"sample {index}: a test is a statement or a pair (input, output), not {type(test).__name__}"
            )
    return statements, pairs


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
