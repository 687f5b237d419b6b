"""How often verifiers are wrong: answers that are right or wrong by the way they are made, never by a parser.

Each answer is made from a value, a way to write it and words around it; a wrong one from another value, from the right
one beside another, or from the right one denied, bounded or merely thought. For each verifier: the share of wrong
answers that it pays (false accepts) and of right ones that it does not (false rejects), both at most 2 %.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from common import parser_of, save

from autotelic.rewards.names import make_reward

Answer = tuple[str, Any, dict[str, Any]]
"""What is said, the reference, further columns."""
Make = Callable[[random.Random, bool], Answer]
"""Whether the answer shall be right -> one."""

THOUGHTS = [
    "",
    "",
    "",
    "<think>{other}, or not?</think>",
    "{other}? Let me see.</think>\n",
    "<think>= {other}</think> ",
]
MARKED = ["Answer: {said}", "The answer is {said}.", "\\boxed{{{said}}}", "#### {said}", "<answer>{said}</answer>"]
MARKED += [
    "**Answer:** {said}",
    "After some work:\nAnswer: {said}\n",
    "Final answer: **{said}**",
    "so the answer is {said}",
]
PLAIN = ["{said}", " {said}\n", "{said}.", "**{said}**", "It is {said}."]
HEDGES = ["{a} or {b}", "{b} or {a}", "either {a} or {b}", "{a}, {b}", "maybe {a}, maybe {b}", "{b} and {a}"]
DENIALS = ["not {a}", "It is not {a}", "{a} is wrong", "anything but {a}", "it can't be {a}", "never {a}"]
NAMES = ["red", "blue", "green", "black", "white", "pink", "grey", "brown", "orange", "purple", "yellow", "cyan"]
THINGS = ["ball", "cube", "star", "cross", "ring", "cat", "dog", "tree", "house", "boat", "lamp", "chair"]


def said_in(pick: random.Random, said: str, other: str, ways: list[str]) -> str:
    """An answer with words around it, and at times thoughts of another answer before it."""
    return pick.choice(THOUGHTS).format(other=other) + pick.choice(ways).format(said=said)


def beside(pick: random.Random, a: str, b: str) -> str:
    """The right one, hedged, denied or thought only."""
    way = pick.choice([*HEDGES, *DENIALS, "<think>{a}</think>{b}", "<think>{a}", "<think>\\boxed{{{a}}}</think>"])
    return way.format(a=a, b=b)


# Numbers --------------------------------------------------------------------------------------------------------


def grouped(value: int) -> str:
    return f"{value:,}"


def integer(pick: random.Random) -> tuple[int, list[str]]:
    value = pick.choice([pick.randrange(-20, 100), pick.randrange(1000, 10**7)])
    written = [str(value), f"{value}.0", grouped(value), f"${value}$", f"\\text{{{value}}}", f"x = {value}"]
    if value > 0:
        first = pick.randrange(1, value + 5)
        other = f"{first} + {value - first}" if value > first else f"{first} - {first - value}"
        written += [f"{value} = {other}", f"{other} = {value}", f"{value} apples", f"{value} cm^2", f"+{value}"]
        written += [f"${grouped(value)}".replace(",", "{,}") + "$", f"\\frac{{{value * 3}}}{{3}} = {value}"]
    return value, written


def number(pick: random.Random, right: bool) -> Answer:
    kind = pick.choice(["integer", "integer", "decimal", "fraction", "percent", "surd", "pi", "power"])
    reference: Any
    if kind == "integer":
        reference, written = integer(pick)
        others = [str(reference + pick.choice([-10, -1, 1, 2, 10])), str(reference * 10 + 10), str(-reference - 1)]
    elif kind == "decimal":
        whole, part = pick.randrange(1, 5000), pick.randrange(1, 10) * 10 + pick.randrange(1, 10)
        reference = f"{whole}.{part}"
        written = [reference, f"{grouped(whole)}.{part}", f"{reference}0", f"{whole}{part}/100", f"${reference}$ cm"]
        others = [f"{whole}", f"{whole}.{part + 1}", f"{whole}{part}", f"-{reference}", f"{whole}.{part // 10}"]
    elif kind == "fraction":
        bottom = pick.choice([3, 7, 11, 13])
        top = pick.choice([k for k in range(1, 40) if k % bottom])
        reference = f"{top}/{bottom}"
        written = [
            reference,
            f"\\frac{{{top}}}{{{bottom}}}",
            f"\\dfrac{{{2 * top}}}{{{2 * bottom}}}",
            f"{3 * top}/{3 * bottom}",
        ]
        written += [f"\\frac {{{top}}} {{{bottom}}}", f"x = {top}/{bottom}", f"$\\tfrac{{{top}}}{{{bottom}}}$"]
        if top > bottom:
            written += [
                f"{top // bottom} {top % bottom}/{bottom}",
                f"{top // bottom}\\frac{{{top % bottom}}}{{{bottom}}}",
            ]
        if top < 10 and bottom < 10:
            written.append(f"\\frac{top}{bottom}")
        others = [
            f"{top}",
            f"{bottom}/{top}",
            f"{top + 1}/{bottom}",
            f"\\frac{{{top}}}{{{bottom + 1}}}",
            f"{top / bottom:.2f}",
        ]
    elif kind == "percent":
        value = pick.randrange(1, 100)
        reference = pick.choice([f"{value}%", f"{value}"])
        written = [f"{value}%", f"{value} %", f"{value}\\%", f"{value} percent", f"${value}\\%$", f"{value}.0%"]
        others = [f"{value + 1}%", f"{value}0%", f"0.{value + 100}%", f"-{value}%"]
    elif kind == "surd":
        times, root = pick.randrange(2, 20), pick.choice([2, 3, 5, 6, 7])
        reference = f"{times}\\sqrt{{{root}}}"
        written = [reference, f"{times}*sqrt({root})", f"\\sqrt{{{times * times * root}}}", f"{times}√{root}"]
        written += [f"${times} \\cdot \\sqrt{root}$", f"\\frac{{{2 * times}\\sqrt{{{root}}}}}{{2}}"]
        others = [
            str(times),
            str(root),
            f"{times + 1}\\sqrt{{{root}}}",
            f"{times}\\sqrt{{{root + 4}}}",
            f"\\sqrt{{{root}}}",
        ]
    elif kind == "pi":
        times, bottom = pick.randrange(2, 20), pick.choice([3, 7])
        times += times % bottom == 0
        reference = f"\\frac{{{times}\\pi}}{{{bottom}}}"
        written = [reference, f"{times}π/{bottom}", f"{times}*pi/{bottom}", f"\\frac{{{times}}}{{{bottom}}}\\pi"]
        others = [str(times), f"{times}/{bottom}", f"\\frac{{{times + 1}\\pi}}{{{bottom}}}", f"{times}\\pi", "\\pi"]
    else:
        base, power = pick.choice([2, 3, 10]), pick.randrange(2, 7)
        reference = f"{base}^{power}"
        written = [f"{base}^{{{power}}}", str(base**power), f"{grouped(base**power)}", f"${base}^{power}$"]
        others = [str(base), str(power), f"{base}^{power + 1}", str(base**power + 1), f"{base}{power}"]
    good, bad = pick.choice(written), pick.choice(others)
    if right:
        return said_in(pick, good, bad, [*PLAIN, *MARKED]), reference, {}
    if pick.random() < 0.4:
        return said_in(pick, bad, good, [*PLAIN, *MARKED]), reference, {}
    if kind == "integer" and pick.random() < 0.3 and reference > 20:
        ranges = [
            f"at least {reference}",
            f"between {reference - 2} and {reference}",
            f"> {reference}",
            f"{reference}x",
        ]
        ranges += [f"{reference - 3} + 3", f"{reference}:00", " ".join(str(reference - 5 + k) for k in range(8))]
        return said_in(pick, pick.choice(ranges), bad, [*PLAIN, *MARKED]), reference, {}
    good = pick.choice([form for form in written if "=" not in form])
    return said_in(pick, beside(pick, good, bad), bad, ["{said}", *MARKED[:2]]), reference, {}


def digits(pick: random.Random, right: bool) -> Answer:
    value = pick.randrange(1, 10**6)
    other = str(value + pick.choice([-1, 1, 10, 100]))
    if right:
        return said_in(pick, pick.choice([str(value), grouped(value)]), other, [*PLAIN, *MARKED]), value, {}
    said = other if pick.random() < 0.5 else beside(pick, str(value), other)
    return said_in(pick, said, other, ["{said}", *MARKED[:2]]), value, {}


def mathematics(pick: random.Random, right: bool) -> Answer:
    a, b = pick.sample(range(2, 12), 2)
    kinds: list[tuple[str, list[str], list[str]]] = [
        (f"x^2+{a}x+{b}", [f"{b} + {a}x + x^2", f"$x^2 + {a}x + {b}$"], [f"x^2+{b}x+{a}", f"x^2-{a}x+{b}", f"{a}"]),
        (
            f"\\{{{a}, {b}\\}}",
            [f"\\{{{b}, {a}\\}}", f"$\\{{{a},{b}\\}}$"],
            [f"{a}", f"\\{{{a}, {b + 1}\\}}", f"\\{{{b}\\}}"],
        ),
        (f"[0, {a})", [f"[0,{a})", f"$[0, {a})$"], [f"(0, {a})", f"[0, {a}]", f"[0, {a + 1})"]),
        (
            f"\\frac{{x}}{{{a}}}",
            [f"x/{a}", f"\\frac{{2x}}{{{2 * a}}}"],
            [f"\\frac{{{a}}}{{x}}", f"x/{a + 1}", "x", f"{a}"],
        ),
        (f"{a}x", [f"{a} x", f"x \\cdot {a}"], [f"{a + 1}x", f"x^{a}", f"{a}", "x"]),
    ]
    reference, good, bad = pick.choice(kinds)
    if right:
        return said_in(pick, pick.choice(good), pick.choice(bad), ["{said}", *MARKED[:5]]), reference, {}
    if pick.random() < 0.6:
        return said_in(pick, pick.choice(bad), reference, ["{said}", *MARKED[:5]]), reference, {}
    return pick.choice(DENIALS).format(a=reference), reference, {}


# Texts, choices, sets and boxes ---------------------------------------------------------------------------------


def thing(pick: random.Random) -> str:
    return f"{pick.choice(NAMES)} {pick.choice(THINGS)}"


def exact(pick: random.Random, right: bool) -> Answer:
    reference, other = thing(pick), thing(pick)
    while other == reference:
        other = thing(pick)
    forms = [reference, reference.upper(), reference.title(), f"a {reference}", f"the {reference}", f'"{reference}"']
    forms += [f"`{reference}`", reference.replace(" ", "  "), f"\\text{{{reference}}}"]
    ways = [*MARKED, "{said}", " {said}\n", "{said}.", "**{said}**"]
    if right:
        return said_in(pick, pick.choice(forms), other, ways), reference, {}
    wrong = [
        other,
        reference.split()[0],
        reference.split()[1],
        reference[:-1],
        f"{reference}s",
        beside(pick, reference, other),
    ]
    return said_in(pick, pick.choice(wrong), reference, ["{said}", *MARKED[:2]]), reference, {}


def choice(pick: random.Random, right: bool) -> Answer:
    options = pick.sample(NAMES, pick.randrange(3, 6))
    index, wrong = pick.sample(range(len(options)), 2)
    letter, bad = "ABCDE"[index], "ABCDE"[wrong]
    reference: Any = pick.choice([letter, options[index], index])
    forms = [letter, f"({letter})", f"{letter}.", f"{letter}) {options[index]}", options[index], f"({letter.lower()})"]
    forms += [options[index].upper(), f"option {letter}", f"{letter} because {bad} is wrong", f"\\text{{{letter}}}"]
    forms += [f"{letter}, it looks round", f"{letter}: {options[index]}", f"the {options[index]} one"]
    if right:
        return (
            said_in(pick, pick.choice(forms), bad, [*MARKED, "{said}", "**{said}**"]),
            reference,
            {"options": options},
        )
    denied = [
        f"neither {letter}",
        f"all except {letter}",
        f"{letter}/{bad}",
        f"{letter} or {bad}",
        f"{bad}. {options[index]}",
    ]
    denied += [f"{letter} isn't right", f"{letter} is incorrect", f"not ({letter})", f"{letter} or none"]
    said = pick.choice(
        [bad, options[wrong], f"({bad})", beside(pick, letter, bad), pick.choice(denied), pick.choice(denied)]
    )
    said = beside(pick, options[index], options[wrong]) if pick.random() < 0.2 else said
    return said_in(pick, said, letter, ["{said}", *MARKED[:2]]), reference, {"options": options}


def listed(pick: random.Random, items: list[str]) -> str:
    """A list with the separators that people use."""
    way = pick.choice(["comma", "and", "lines", "bullets", "stars", "numbers", "semicolons", "braces", "brackets"])
    if way == "and" and len(items) > 1:
        return f"{', '.join(items[:-1])} and {items[-1]}"
    marks = {"lines": "", "bullets": "- ", "stars": "* ", "numbers": "1. "}
    if way in marks:
        return "\n".join(
            f"{k + 1}. {item}" if way == "numbers" else f"{marks[way]}{item}" for k, item in enumerate(items)
        )
    if way in ("braces", "brackets"):
        opening, closing = ("\\{", "\\}") if way == "braces" else ("[", "]")
        return f"{opening}{', '.join(items)}{closing}"
    return ("; " if way == "semicolons" else ", ").join(items)


def sets(pick: random.Random, right: bool) -> Answer:
    count = pick.randrange(2, 6)
    if pick.random() < 0.3:
        pool = [f"({a}, {b})" for a in range(6) for b in range(6) if a != b]
    else:
        pool = [thing(pick) for _ in range(40)] if pick.random() < 0.5 else [str(k) for k in range(60)]
    items = pick.sample(sorted(set(pool)), count + 2)
    gold, more = items[:count], items[count:]
    reference: Any = gold if "(" not in gold[0] and pick.random() < 0.5 else ", ".join(gold)
    if right:
        said = [f"a {item}" if item[0].isalpha() and pick.random() < 0.2 else item for item in pick.sample(gold, count)]
        return (
            said_in(pick, listed(pick, said), more[0], ["{said}", "Answer:\n{said}", "\\boxed{{{said}}}"]),
            reference,
            {},
        )
    swapped = [gold[0].replace("(", "(1"), *gold[1:]] if "(" in gold[0] else [more[0], *gold[1:]]
    wrong = [listed(pick, gold[1:]), listed(pick, [*gold, more[0]]), listed(pick, swapped), listed(pick, [more[0]])]
    wrong += [" or ".join(gold), f"not {', '.join(gold)}", f"<think>{', '.join(gold)}</think>{more[0]}", "none"]
    if "(" in gold[0]:
        wrong.append(", ".join(f"({item[4]}, {item[1]})" for item in gold))
        wrong.append(", ".join(item.strip("()") for item in gold))
    return pick.choice(["{}", "Answer:\n{}"]).format(pick.choice(wrong)), reference, {}


def boxes(pick: random.Random, right: bool) -> Answer:
    def one() -> list[int]:
        left, top = pick.randrange(0, 400), pick.randrange(0, 400)
        return [left, top, left + pick.randrange(20, 200), top + pick.randrange(20, 200)]

    gold = [one() for _ in range(pick.randrange(1, 4))]
    reference: Any = gold if len(gold) > 1 or pick.random() < 0.5 else gold[0]

    def written(some: list[list[int]]) -> str:
        way = pick.choice(["list", "points", "json", "words", "nested"])
        if way == "points":
            return " ".join(f"({a},{b}),({c},{d})" for a, b, c, d in some)
        if way == "json":
            return "[" + ", ".join(f'{{"bbox_2d": {box}, "label": "a"}}' for box in some) + "]"
        if way == "nested":
            return str([[[a, b], [c, d]] for a, b, c, d in some])
        return " and ".join(map(str, some)) if way == "words" else str(some)

    far = [[a + 1000, b, c + 1000, d] for a, b, c, d in gold]
    if right:
        shuffled = pick.sample(gold, len(gold))
        return (
            said_in(pick, written(shuffled), str(far), ["{said}", "<answer>{said}</answer>", "It is {said}"]),
            reference,
            {},
        )
    wrong = [
        written(far),
        f"<think>{written(gold)}</think>{written(far)}",
        "none",
        str([c for box in gold for c in box] + [1]),
    ]
    wrong += [", ".join(str(c) for box in gold for c in box), written([[c, d, a, b] for a, b, c, d in gold])]
    return pick.choice(wrong), reference, {}


def form(pick: random.Random, right: bool) -> Answer:
    thought, said = f"{thing(pick)}\n{pick.randrange(99)}", thing(pick)
    if right:
        start = pick.choice(["<think>", "", " <think>\n", "\n"])
        between, end = pick.choice(["", " ", "\n"]), pick.choice(["", "\n"])
        return f"{start}{thought}</think>{between}<answer>{said}</answer>{end}", None, {}
    wrong = [f"<answer>{said}</answer>", f"<think>{thought}</think>{said}", f"{thought}<answer>{said}</answer>", said]
    wrong += [f"<think>{thought}</think><answer>{said}</answer> more", f"<think>{thought}</think><answer> </answer>"]
    wrong += [
        f"<think>{thought}</think>" * 2 + f"<answer>{said}</answer>",
        f"<think>{thought}<answer>{said}</answer></think>",
    ]
    wrong += [f"<think>{thought}</think>" + f"<answer>{said}</answer>" * 2, f"<think>{thought}</think><answer>{said}"]
    return pick.choice(wrong), None, {}


# Programs -------------------------------------------------------------------------------------------------------


def code(pick: random.Random, right: bool) -> Answer:
    a, b = pick.randrange(2, 50), pick.randrange(1, 50)
    tests: list[Any] = [f"assert f({k}) == {a * k + b}" for k in pick.sample(range(-20, 20), 3)]
    bodies = [
        f"def f(x):\n    return {a} * x + {b}",
        f"f = lambda x: {a} * x + {b}",
        f"class Line:\n    def at(self, x): return {a} * x + {b}\nf = Line().at",
        f"def f(x):\n    if x > 0: return f(x - 1) + {a}\n    return f(x + 1) - {a} if x else {b}",
        f"import asyncio\nasync def g(x): return {a} * x + {b}\ndef f(x): return asyncio.run(g(x))",
        f"from fractions import Fraction\ndef f(x): return int(Fraction(x) * {a}) + {b}",
    ]
    always = "    __eq__ = __le__ = __lt__ = __ge__ = __gt__ = lambda self, other: True\n    __hash__ = None"
    cheats = [
        f"class Any:\n{always}\ndef f(x): return Any()",
        f"class Int(int):\n{always}\ndef f(x): return Int(0)",
        "import builtins\nbuiltins.compile = lambda *a, **k: 'pass'\ndef f(x): return 0",
        "import os\nos._exit(0)",
        "import sys\ndef f(x): sys.exit(0)",
        "def f(x): raise SystemExit(0)",
        "import builtins\nbuiltins.AssertionError = int\ndef f(x): return 0",
        'import os\nfor fd in range(3, 40):\n    try: os.write(fd, b\'{"test": 0, "passed": true}\\n\')\n'
        "    except OSError: pass\ndef f(x): return 0",
        f"def f(x):\n    return {a} * x + {b + 1}",
        f"def f(x):\n    return {a + 1} * x + {b}",
        f"def f(x):\n    return '{a * 3 + b}'",
        "def f(x): return",
        "def f(x:",
    ]
    body = pick.choice(bodies if right else cheats)
    return (
        pick.choice(["```python\n{}\n```", "Here:\n```py\n{}\n```\nDone.", "{}"]).replace("{}", body),
        None,
        {"tests": tests},
    )


MAKERS: dict[str, Make] = {
    **{"numeric": number, "digits": digits, "math": mathematics, "exact": exact, "choice": choice, "set_exact": sets},
    **{"set": sets, "boxes": boxes, "format": form, "code": code},
}


def measured(name: str, count: int, seed: int) -> dict[str, Any]:
    """The shares of wrong answers paid and of right ones not, with up to ten of each."""
    pick = random.Random(f"{name} {seed}")
    reward, started = make_reward(name), time.perf_counter()
    found: dict[str, Any] = {"answers": 2 * count}
    for right in (True, False):
        rows = [MAKERS[name](pick, right) for _ in range(count)]
        columns = {column: [row[2][column] for row in rows] for column in rows[0][2]}
        scores = reward(completions=[row[0] for row in rows], references=[row[1] for row in rows], **columns)["total"]
        missed = [row for row, score in zip(rows, scores, strict=True) if (score == 1.0) != right]
        kind = "false_rejects" if right else "false_accepts"
        found[kind] = round(len(missed) / count, 4)
        found[f"{kind}_such_as"] = [{"said": said, "reference": str(gold), **row} for said, gold, row in missed[:10]]
    return found | {"seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = parser_of(__doc__, "100 answers of each kind instead of 1,000")
    parser.add_argument("--seed", type=int, default=0, help="of the answers that are made")
    options = parser.parse_args()
    figures: dict[str, Any] = {"seed": options.seed}
    for name in MAKERS:
        figures[name] = row = measured(name, 100 if options.quick else 1000, options.seed)
        print(
            f"{name:10} false accepts {row['false_accepts']:.1%}, false rejects {row['false_rejects']:.1%}", flush=True
        )
        for kind in ("false_accepts", "false_rejects"):
            for missed in row[f"{kind}_such_as"][:3]:
                print(f"    {kind}: {missed}")
    save(options, figures)


if __name__ == "__main__":
    main()
