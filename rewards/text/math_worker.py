"""The process of :mod:`.mathematics`: one JSON line in, one out; ended by the kernel when a line takes too long."""

from __future__ import annotations

import json
import logging
import re
import resource
import signal
import sys
from typing import Any

import sympy
from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig

SECONDS = 1.0  # of processor time for a line
_MEMORY = 2 << 30
_DIGITS = 50


def read(expression: str) -> list[Any]:
    """What math-verify finds in an expression, which is all of it."""
    found = parse(f"${expression}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    return [one for one in found if not isinstance(one, str)]


def latex(expression: str) -> str:
    """An expression as it is typed, in LaTeX: sqrt(3), 2^(1/2) and a * b have forms of their own there."""
    for opening in (r"\sqrt", "^"):
        start = 0
        while (place := expression.find(f"{opening}(", start)) >= 0 or (
            place := expression.find(f"{opening} (", start)
        ) >= 0:
            left = expression.index("(", place)
            depth, right = 0, len(expression) - 1
            for right in range(left, len(expression)):
                depth += {"(": 1, ")": -1}.get(expression[right], 0)
                if depth == 0:
                    break
            inside = expression[left + 1 : right]
            expression = f"{expression[:left].rstrip()}{{{inside}}}{expression[right + 1 :]}"
            start = place + 1
    expression = re.sub(r"\\sqrt ?(\d+)", r"\\sqrt{\1}", expression)
    expression = re.sub(r"\\frac ?(\d|\\pi)", r"\\frac{\1}", expression)
    expression = re.sub(r"(\\frac\{[^{}]*\}) ?(\d|\\pi)", r"\1{\2}", expression)
    return expression.replace("*", r"\cdot ")


def value(expression: str) -> dict[str, Any] | None:
    """The real number that it is, and whether it is worked out."""
    found = read(latex(expression))
    if len(found) != 1 or not isinstance(found[0], sympy.Expr) or found[0].free_symbols:
        return None
    exact = found[0].doit()
    if exact.is_Rational:
        power = isinstance(found[0], sympy.Pow) and found[0].exp.is_Integer
        return {"value": str(exact), "worked_out": bool(found[0].is_Number or power)}
    number = sympy.N(exact, _DIGITS)
    if not (number.is_Float and number.is_finite):
        return None
    return {"value": str(sympy.Rational(str(number))), "worked_out": True}


def answer(question: dict[str, str]) -> dict[str, Any]:
    """The value of an expression, or whether two are equal."""
    if "value" in question:
        found = value(question["value"])
        return {"found": found is not None, **(found or {})}
    gold = read(question["gold"])
    if not gold:
        return {"found": True, "equal": None}
    said = read(question["said"])
    return {"found": True, "equal": bool(said and verify(gold, said, timeout_seconds=None))}


def main() -> None:
    """Answer lines until there are no more."""
    logging.disable(logging.CRITICAL)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process, whatever this is in
        try:
            said = answer(json.loads(line))
        except Exception:  # MemoryError and RecursionError too: what cannot be read has no value
            said = {"found": False}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
