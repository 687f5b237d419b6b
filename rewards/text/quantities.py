r"""Numbers in texts: which stand there, and whether a text gives one and no other.

    quantity_of("so 3 + 4 = 7")     the number 7
    quantity_of("5 or 7")           None: it gives two
    quantity_of(r"5\sqrt{3}")       8.66..., to fifty digits

Plain numbers and sums of such are read here and exactly; all other mathematics by :mod:`.mathematics`.
"""

from __future__ import annotations

import ast
import operator
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from .mathematics import evaluated

_LONGEST, _LARGEST_EXPONENT = 300, 200  # beyond, a few letters would be a number that fills the memory
_CLOSE = Fraction(1, 10**40)  # of what is evaluated to fifty digits


@dataclass(frozen=True)
class Quantity:
    """A number as it is written.

    Attributes:
        values: what it may mean: of 50% the number and its hundredth, of "7!" at the end of a sentence 7 and 5040.
        worked_out: it is a value, and no task such as "3 + 4" or "48 / 2".
    """

    values: tuple[Fraction, ...]
    worked_out: bool = True

    def agrees(self, other: Quantity) -> bool:
        return any(near(a, b) for a in self.values for b in other.values)


def near(first: Fraction, second: Fraction, tolerance: float = 0.0, relative: float = 0.0) -> bool:
    """Whether |first - second| ≤ max(tolerance, relative · |second|), but for what fifty digits cannot tell."""
    slack = _CLOSE * max(abs(first), abs(second)) if _long(first) or _long(second) else Fraction(0)
    return abs(first - second) <= max(Fraction(tolerance), Fraction(relative) * abs(second), slack)


def _long(value: Fraction) -> bool:
    return value.denominator > 10**40


# A text in tokens ------------------------------------------------------------------------------------------------

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SIGNS = {
    **dict.fromkeys("−–‒﹣－", "-"),  # noqa: RUF001
    **{"×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "⁄": "/", "∕": "/"},  # noqa: RUF001
    **{"π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "°": "", "\u2009": "\u00a0", "\u202f": "\u00a0"},
}
_PLAINER = (
    (re.compile(r"(?<=\d)[\u00a0'](?=\d{3})"), ""),  # thousands
    (re.compile(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3})"), ","),
    (
        re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox)(?![a-zA-Z])\s*\{([^{}]*)\}"),
        r" \1 ",
    ),
    (re.compile(r"\\[,!;:()\[\] ]|[$~]|\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])"), " "),
    (re.compile(r"\^ ?(?:\\circ|\{ ?\\circ ?\})|\\degree(?![a-zA-Z])"), ""),
    (re.compile(r"\\[%$&]"), lambda found: "%" if found[0] == r"\%" else " "),
    (re.compile(r"\\([{}])"), lambda found: "(" if found[1] == "{" else ")"),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\\approx(?![a-zA-Z])|≈"), "="),
    (re.compile(r"(?<=[\d)])\*\*(?=[\d(])"), "^"),
    (re.compile(r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d,])"), lambda found: found[1].replace(" ", "")),
    (re.compile(r"(?<!\\log)_\{[^{}]*\}"), "_"),
)
_TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?![\w.]))?)|"
    r"(?P<command>\\log ?_ ?(?:\d|\{\d+\})|\\[a-zA-Z]+(?:_\d+)?)"
    r"|(?P<word>[^\W\d_]\w*(?:(?<=\d)\.\d+)*(?:['\u2019]\w+)*)|(?P<gap>\s+)|(?P<mark>.)",
    re.DOTALL,
)
_COMMANDS = frozenset(rf"\{name}" for name in ("frac", "sqrt", "pi", "log", "ln", "exp"))
_OTHER: tuple[str, ...] = (
    "pm",
    "mp",
    "le",
    "leq",
    "lt",
    "ge",
    "geq",
    "gt",
    "ne",
    "neq",
    "infty",
    "sin",
    "cos",
    "tan",
    "cot",
    "binom",
)
_OTHER += (
    "sum",
    "prod",
    "int",
    "lim",
    "arcsin",
    "arccos",
    "arctan",
    "in",
    "cup",
    "cap",
    "to",
    "ldots",
    "dots",
    "cdots",
)
_BEYOND = frozenset(rf"\{name}" for name in _OTHER)
_UNITS = frozenset({*"mgshLlNJWVAKCF", "st", "nd", "rd", "th"})
_NO_UNKNOWNS = _UNITS | frozenset("aAI")  # one letter after a number, with space between
_FACTORS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "log",
        "ln",
        "exp",
        "mod",
        "squared",
        "cubed",
        "half",
        "twice",
        "double",
        "triple",
        "dozen",
        "root",
    ]
)
_SCALES = {"hundred": "e2", "thousand": "e3", "million": "e6", "billion": "e9", "trillion": "e12"}
_DATE = re.compile(r"(?<!\d)(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{2,4})(?!\d)")
LIMITS = re.compile(
    r"\b(?:at (?:least|most)|(?:more|less|fewer|greater|other|smaller|larger) than|up to|between|or (?:more|less|fewer)"
    r"|not|never|neither|nor|cannot|wrong|incorrect|false|except|anything but|impossible|unlikely|rul(?:e|ed|ing) out"
    r"|exclud(?:e|es|ed|ing)|(?:over|under|above|below|exceed(?:s|ing)?|almost|nearly)(?= \$?\d))\b|n['\u2019]t\b"
    r"|\d\+(?!\S)",
    re.IGNORECASE,
)
"""Words that deny or bound."""
_REASONS = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
_CONCLUSIONS = re.compile(r"\b(?:so|therefore|thus|hence|altogether|total(?:s|ling)?|makes?|leaves?|equals?)\b", re.I)
_TOTAL = re.compile(
    r"(?<![\d.,])(\d[\d,]{0,30}(?:\.\d{1,30})?) (?:\w{1,20} )?(?:in total|in all|altogether)\b", re.IGNORECASE
)
_CLAUSE = re.compile(r"[,;.] |\b(?:so|then|hence|thus|therefore|gives|means)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?\n][\s*]+(?=\S)")
_REMARK = re.compile(r"\([^()]*\)")


def plainer(text: str) -> str:
    """A text with one spelling for each sign of mathematics, without what only sets it."""
    text = re.sub("[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[¼½¾⅐-⅞]", lambda found: f" {unicodedata.normalize('NFKC', found[0])}", text)
    text = "".join(_SIGNS.get(letter, letter) for letter in text)
    text = _PLAINER[0][0].sub("", text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/").replace("−", "-")  # noqa: RUF001
    text = "".join(str(unicodedata.decimal(letter, letter)) for letter in text)
    for pattern, by in _PLAINER[1:]:
        text = pattern.sub(by, text)
    return text


@dataclass
class _Scan:
    """A text as items: "n" a number or an expression, "=" , "w" a word, "," what else parts them.

    ``broken`` holds why no number can be read from all of it, such as a clock time; empty if one can.
    """

    items: list[tuple[str, str]]
    broken: str = ""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.tokens = [(str(found.lastgroup), found[0]) for found in _TOKEN.finditer(text)]
        self.scan = _Scan([])
        self.pieces: list[str] = []
        self.symbol = False  # a letter was the last thing
        if _DATE.search(text):
            self.scan.broken = "a date"

    def run(self) -> _Scan:
        skip, skipped, depth = False, "", 0
        for place, (kind, token) in enumerate(self.tokens):
            if skip and (kind in ("number", "gap") or token == "{" or "{" in skipped):
                skipped = (skipped + token) if token == "{" or "{" in skipped else ""
                skip = kind == "gap" or ("{" in skipped and token != "}")
                continue
            skipped = ""
            skip = False
            if kind not in ("gap", "command") and token not in "+-*/^":
                self.symbol = False
            if len(self.pieces) > _LONGEST:
                self.scan.broken, self.pieces = "too long", []
            if depth or (token == "(" and self._after(place, -1)[0] == "word" and self._letter_before(place)):
                depth += {"(": 1, ")": -1}.get(token, 0)  # what a function is of
                continue
            if kind == "number":
                self._number(place, token)
            elif kind == "command":
                self._command(token)
            elif kind == "word":
                self._word(place, token)
                skip = self._after(place) == ("mark", "^") and not self.pieces
            elif kind == "gap":
                if "\n" in token:
                    self._stop(",")
                elif self.pieces:
                    self.pieces.append(" ")
            elif token == "^" and not self.pieces:
                skip = True
            else:
                self._mark(place, token)
        self._stop()
        return self.scan

    def _after(self, place: int, step: int = 1) -> tuple[str, str]:
        return self.tokens[place + step] if 0 <= place + step < len(self.tokens) else ("gap", "")

    def _last(self) -> str:
        return next((piece for piece in reversed(self.pieces) if piece != " "), "")

    def _ends_in_operand(self) -> bool:
        last = self._last()
        if last.startswith(r"\log"):
            return False
        return last[:1].isdigit() or last[-1:].isdigit() or last in (")", "}", "%", "!", "e", r"\pi")

    def _number(self, place: int, token: str) -> None:
        groups = token.partition(".")[0].split(",")
        if len(groups) > 1 and (not 1 <= len(groups[0]) <= 3 or any(len(group) != 3 for group in groups[1:])):
            for part in token.split(","):
                self._stop(",")
                self.pieces.append(part)
            return
        halved = [piece for piece in self.pieces[-3:] if piece != " "][-2:] == [r"\frac", r"\pi"]
        if self._ends_in_operand() and not halved and not self._mixed(place):
            if self.pieces[-1] != " " and self.pieces[-1][-1:].isdigit():
                self.scan.broken = "a version"
            if self.pieces[-1] == " " or self.pieces[-1][-1:].isdigit():
                self._stop()
        self.pieces.append(token.replace(",", ""))

    def _mixed(self, place: int) -> bool:
        whole = "".join(self.pieces).strip().lstrip("+-")
        follows = [self._after(place, step)[1] for step in (1, 2, 3)]
        top = next((k for k, token in enumerate(follows) if token.strip()), 0)
        return whole.isdigit() and follows[top] == "/" and self.pieces[-1] == " "

    def _command(self, token: str) -> None:
        if token in _COMMANDS or token.startswith(r"\log"):
            if self.symbol:
                self.scan.broken = self.scan.broken or "an unknown"
            self.pieces.append(token)
        elif token.partition("_")[0] in _BEYOND:
            self.scan.broken = self.scan.broken or f"{token} and not one number"
        else:
            self._stop(",")

    def _word(self, place: int, token: str) -> None:
        glued = bool(self.pieces) and self.pieces[-1] != " "
        before = self._ends_in_operand()
        after = next((t for t in self.tokens[place + 1 : place + 3] if t[0] != "gap"), ("gap", ""))
        low = token.lower()
        if low in ("sqrt", "pi"):
            self._command(rf"\{low}")
        elif low == "x" and before and after[0] in ("number", "command"):
            self.pieces.append("*")
        elif token == "e" and after[1] == "^":
            self.pieces.append("e")
        elif low in ("percent", "percentage") and before:
            self.pieces.append("%")
        elif low in _SCALES and before:
            self.pieces = [*"".join(self.pieces).split(), _SCALES[low]]
        elif (
            (len(token) == 1 and self._unknown(token, before, glued))
            or self._last() in _COMMANDS - {r"\pi"}
            or self.pieces[1:].count("{") > self.pieces[1:].count("}")
        ):
            self.scan.broken = self.scan.broken or "an unknown"
        elif low in _FACTORS:
            self.scan.broken = self.scan.broken or f"{low}, which makes another number of it"
        elif low in ("negative", "minus") and not self.pieces and after[0] == "number":
            self.pieces.append("-")
        else:
            self._stop()
            self.symbol = len(token) == 1 and not before
            self.scan.items.append(("w", token))

    def _unknown(self, letter: str, before: bool, glued: bool) -> bool:
        """Whether a letter is part of an expression: 7x, 7 x, 7 + x."""
        if before:
            return letter not in (_UNITS if glued else _NO_UNKNOWNS)
        return self._last()[-1:] in tuple("+-*/^(")

    def _mark(self, place: int, token: str) -> None:
        before, after = self._after(place, -1), self._after(place)
        if self.symbol and token in "+-*/":
            self.scan.broken = self.scan.broken or "an unknown"
        if token in "+-":
            binary = self._ends_in_operand() or (self.pieces and self.pieces[-1] == "^")
            if not self.pieces and before[0] in ("word", "number") and after[0] in ("number", "command"):
                self._stop(",")  # a hyphen
            elif (
                binary
                or (self.pieces and not "".join(self.pieces).strip("*/({^ +-"))
                or after[0] in ("number", "command")
                or after[1] in ("(", ".", "{")
            ):
                self.pieces.append(token)
            else:
                self._stop(",")
        elif token in "*/^!%":
            if self._ends_in_operand():
                self.pieces.append(token)
        elif token == "(" and self._ends_in_operand():
            if self.pieces[-1] == " ":
                self._stop(",")  # a remark
            self.pieces += ["*", "("] if self.pieces else ["("]
        elif token in "([{)]}":
            self.pieces.append(token)
        elif token == "_" and before[0] == "number":
            self.scan.broken = self.scan.broken or "a number to another base"
        elif token == ":" and before[0] == after[0] == "number":
            self.scan.broken = "a time or a ratio"
        elif token in "<>≤≥≠±":
            self.scan.broken = self.scan.broken or f"{token} and not one number"
        elif token == "=":
            self._stop()
            self.scan.items.append(("=", ""))
        else:
            self._stop(",")

    def _letter_before(self, place: int) -> bool:
        return len(self._after(place, -1)[1]) == 1

    def _stop(self, by: str = "") -> None:
        span = _balanced("".join(self.pieces))
        if any(letter.isdigit() for letter in span) or r"\pi" in span:
            self.scan.items.append(("n", span))
        self.pieces = []
        if by:
            self.scan.items.append((by, ""))


def _balanced(span: str) -> str:
    """A span without brackets that lack their other half, and without operators at its end."""
    opened: list[int] = []
    drop: set[int] = set()
    for place, letter in enumerate(span):
        if letter in "([{":
            opened.append(place)
        elif letter in ")]}":
            if opened and "([{".index(span[opened[-1]]) == ")]}".index(letter):
                opened.pop()
            else:
                drop.add(place)
    drop |= set(opened)
    return "".join(letter for place, letter in enumerate(span) if place not in drop).strip().rstrip("+-*/^ ")


# What an expression is worth -------------------------------------------------------------------------------------

_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
_PLAIN = re.compile(rf"(?P<sign>[+-]?) ?(?P<top>{_NUMBER})(?: ?/ ?(?P<bottom>{_NUMBER}))?(?P<percent> ?%)?")
_MIXED = re.compile(r"(?P<sign>[+-]?) ?(?P<whole>\d{1,9}) ?(?:(?<= )(?P<a>\d+) ?/ ?(?P<b>\d+)|\\frac ?(?P<f>.*))")
_FRACTION = re.compile(r"(?P<sign>[+-]?) ?\\frac ?(?P<f>.*)")
_PARTS = re.compile(r"\{ ?([+-]?\d+(?:\.\d+)?) ?\} ?\{ ?([+-]?\d+(?:\.\d+)?) ?\}|(\d) ?(\d)")
_SCIENTIFIC = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<top>{_NUMBER}) ?\* ?10 ?\^ ?[{{(]? ?(?P<power>[+-]? ?\d{{1,4}}) ?[}})]?"
)
_TOWERS = re.compile(r"\^[^-+*/()]*\^|\d{4}\)* ?!|!!")  # that take the whole time and mean no answer
_ARITHMETIC: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv},
}


@lru_cache(maxsize=1 << 14)
def worth(span: str) -> Quantity | None:
    """What an expression is worth; None if it is no real number, or too long to be one."""
    if len(span) > _LONGEST:
        return None
    while span[:1] + span[-1:] in ("()", "{}", "[]") and _balanced(span[1:-1]) == span[1:-1].strip():
        span = span[1:-1].strip()
    if span.endswith("!") and not span.endswith("!!"):
        without, factorial = worth(span[:-1].rstrip()), _other(span)
        values = [value for one in (without, factorial) if one is not None for value in one.values]
        return Quantity(tuple(values)) if without is not None and without.worked_out else factorial
    return plain(span) or _sum(span) or _other(span)


def plain(span: str) -> Quantity | None:
    r"""A decimal, a fraction (3/4, 1 1/2, \frac34), 6.02 * 10^23 or a percentage; None for all else."""
    if found := _PLAIN.fullmatch(span):
        top, bottom = fraction_of(found["top"]), fraction_of(found["bottom"] or "1")
        if top is None or not bottom:
            return None
        value = -top / bottom if found["sign"] == "-" else top / bottom
        worked_out = found["bottom"] is None or value.denominator > 1 or bottom == 1
        return Quantity((value, value / 100) if found["percent"] else (value,), worked_out)
    if found := _SCIENTIFIC.fullmatch(span):
        top = fraction_of(
            f"{found['top']}e{found['power'].replace(' ', '')}" if "e" not in found["top"].lower() else ""
        )
        return None if top is None else Quantity((-top if found["sign"] == "-" else top,))
    if found := _MIXED.fullmatch(span) or _FRACTION.fullmatch(span):
        held = found.groupdict()
        parts = _PARTS.fullmatch(held["f"].strip()) if held["f"] is not None else None
        if held["f"] is not None and parts is None:
            return None
        a, b = [part for part in parts.groups() if part is not None] if parts else (held["a"], held["b"])
        top, bottom = (None if len(part) > _LONGEST else Fraction(part) for part in (a, b))
        if top is None or not bottom:
            return None
        value = top / bottom + int(held.get("whole") or 0)
        return Quantity((-value if held["sign"] == "-" else value,), value.denominator > 1 or bottom == 1)
    return None


def fraction_of(written: str) -> Fraction | None:
    """A decimal, exactly; None if it is none, or longer than 300 digits or beyond 1e200."""
    mantissa, _, exponent = written.replace(",", "").lower().partition("e")
    if not mantissa or len(mantissa) > _LONGEST or len(exponent) > 4 or abs(int(exponent or 0)) > _LARGEST_EXPONENT:
        return None
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


def _sum(span: str) -> Quantity | None:
    """What plain numbers and + - * / ^ make; a power alone is worked out, all else is a task."""
    if not re.fullmatch(r"[\d.+\-*/^(){} ]+", span):
        return None
    written = re.sub(r"\^ ?\{([^{}]*)\}", r"^(\1)", span).replace("^", "**")
    try:
        node = ast.parse(written.strip(), mode="eval").body
        return Quantity((_computed(node),), _power(node))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _power(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _power(node.operand)
    return isinstance(node, ast.Constant) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow))


def _computed(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        value = _computed(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        first, second = _computed(node.left), _computed(node.right)
        if isinstance(node.op, ast.Pow):
            if second.denominator > 1 or abs(second) > _LARGEST_EXPONENT or first.numerator.bit_length() > 64:
                raise ValueError("too large a power")
            return first ** int(second)
        if type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](first, second)
    raise ValueError("no sum of numbers")


def _other(span: str) -> Quantity | None:
    if _TOWERS.search(span):
        return None
    found = evaluated(span)
    return None if found is None else Quantity((found.value,), found.worked_out)


# What a text gives -----------------------------------------------------------------------------------------------


def quantity_of(text: str) -> Quantity | None:
    """The one number that a text gives, worked out or not; None if it gives none, or several.

    In a line with equations the last one counts, whose sides have to agree; in prose all numbers have to, or those
    after "so", or those of the last sentence. What is denied ("not 7") or bounded ("at least 7") is not given.
    """
    text = plainer(text.strip())
    if (found := plain(text)) is not None:
        return found
    if text.count("=") > text.count("==") * 2:
        line = next((line for line in reversed(text.splitlines()) if "=" in line), text)
        whole = _Scanner(line).run()
        return _of_equation(_Scanner(_last_clause(line)).run() if whole.broken else whole)
    text = _REASONS.split(text, maxsplit=1)[0] if any(letter.isdigit() for letter in _before_reason(text)) else text
    tried = [text]
    if (remarks := _REMARK.sub(" ", text)) != text and not re.search(r"\bor\b", text):
        tried.append(remarks)
    total = _TOTAL.search(text)
    for part in (total and total[1], _last(_CONCLUSIONS, text), _last(_SENTENCE, text)):
        if part is not None and re.search(r"[^\W\d_]{2}", text):
            tried.append(part)
    for part in tried:
        scan = _Scanner(part).run()
        numbers = [span for kind, span in scan.items if kind == "n"]
        if numbers and (found := _one(numbers)) is not None:
            return None if scan.broken or LIMITS.search(part) else found
    return None


def _last_clause(line: str) -> str:
    """What stands from the comma, or the word, that goes before the last equation of a line."""
    before, _, after = line.rpartition("=")
    return f"{_CLAUSE.split(before)[-1]}={after}"


def numbers_in(text: str) -> bool:
    """Whether a text holds any number."""
    return any(kind == "n" for kind, _ in _Scanner(plainer(text)).run().items)


def _before_reason(text: str) -> str:
    return _REASONS.split(text, maxsplit=1)[0]


def _last(mark: re.Pattern[str], text: str) -> str | None:
    ends = [found.end() for found in mark.finditer(text)]
    return text[ends[-1] :] if ends and any(letter.isdigit() for letter in text[ends[-1] :]) else None


def _one(spans: Sequence[str]) -> Quantity | None:
    """What all of them are worth, if that is one value."""
    found: list[Quantity] = []
    for span in dict.fromkeys(spans):
        if (one := worth(span)) is None:
            return None
        found.append(one)
        if len(found) > 1 and not one.agrees(found[0]):
            return None
    values = tuple(v for v in found[0].values if all(any(near(v, w) for w in one.values) for one in found))
    return Quantity(values, any(one.worked_out for one in found)) if values else None


def _of_equation(scan: _Scan) -> Quantity | None:
    items = scan.items
    last = max(place for place, (kind, _) in enumerate(items) if kind == "=")
    start = last
    while start >= 2 and items[start - 1][0] == "n" and items[start - 2][0] == "=":
        start -= 2
    first = start - 1 if start >= 1 and items[start - 1][0] == "n" else start
    sides = [span for kind, span in items[first:] if kind == "n"]
    right = items[last + 1 : last + 2]
    if scan.broken or not sides or (right and right[0][0] == "w" and len(right[0][1]) > 1):
        return None
    before = items[:first]
    words = {word.lower() for kind, word in items if kind == "w"}
    if words & {"or", "not", "either", "maybe"}:
        sides = [span for kind, span in items if kind == "n"]
    symbols = {before[-1][1]} if before and before[-1][0] == "w" else set()
    for place, (kind, word) in enumerate(before[:-1]):
        following = before[place + 1 : place + 3]
        if (
            kind == "w"
            and (word in symbols or len(word) == len("".join(symbols)) == 1)
            and [one[0] for one in following] == ["=", "n"]
        ):
            sides.append(following[1][1])
    return None if "not" in words else _one(sides)
