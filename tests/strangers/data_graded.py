"""What grades the answers to one's own questions, and files of prompts and pairs for models that draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from autotelic.types import Rollout, Task

from .cases import Gives, GoesOn, Refuses, Required
from .data import SEPARATORS, dealt, lines, picture, plain, state, written

# --- what grades the answers --------------------------------------------------------------------------------------

DOORS = {"kind": "two doors", "entry": "evaluation"}


def _graded(reward: str, said: str, **row: Any) -> Callable[[Path], object]:
    """How evaluation and gate score an answer that training scores by a reward."""

    def act(folder: Path) -> object:
        from autotelic.vlm.recipes.grpo import Config
        from autotelic.vlm.setting import read_own

        data = lines(folder, [{"prompt": f"{row.get('prompt', 'q')} {i}", **row} for i in range(12)])
        made = read_own(Config(model="some", data=data, rewards=(reward,), gate_labels=2), labels=True)
        task = made.held_out[0]
        columns = {name: [value] for name, value in task.extra.items()} | {"references": [task.reference]}
        scores = made.verify(completions=[said], tasks=[task], prompts=[task.prompt], **columns)
        return (scores["total"] if isinstance(scores, Mapping) else scores)[0]

    return act


GRADED: dict[str, tuple[Required, Callable[[Path], object]]] = {
    "A6: numeric, 72.0 for 72": (Gives(1.0), _graded("numeric", "Answer: 72.0", answer="72")),
    "A6: numeric, a unit": (Gives(1.0), _graded("numeric", "Answer: 1,234 apples", answer="1234")),
    "A6: choice, letter and text": (Gives(1.0), _graded("choice", "(B) blue", answer="B", options=["red", "blue"])),
    "A6: a set in another order": (Gives(1.0), _graded("set", "blue and red", answer="red, blue")),
    "A6: a box that is nearly right": (Gives(0.9), _graded("boxes", "[0, 0, 10, 9]", answer=[0, 0, 10, 10])),
    "A6: exact stays exact": (Gives(0.0), _graded("exact", "72.0", answer="72")),
    "A7: a list holds all that are right": (Gives(1.0), _graded("exact", "4", answer=["4", "four"])),
    "A7: a list is not its Python text": (Gives(0.0), _graded("exact", "['4', 'four']", answer=["4", "four"])),
    "A7: the index of a choice": (Gives(1.0), _graded("choice", "B", answer=1, options=["3", "2", "1"])),
    "A7: the index is not the text": (Gives(0.0), _graded("choice", "C", answer=1, options=["3", "2", "1"])),
    "A7: an index of words": (Gives(1.0), _graded("choice", "dog", answer=1, options=["cat", "dog"])),
    "A7: a float says the same as an integer": (Gives(1.0), _graded("numeric", "72", answer=72.0)),
    "A7: a box in numbers": (Gives(1.0), _graded("boxes", "[0, 0, 10, 10]", answer=[[0, 0, 10, 10]])),
    "A7: numeric, a right answer that is no number": (
        Refuses("q/1.*no number"),
        _graded("numeric", "4", answer="four"),
    ),
    "A7: the index of no option": (Refuses("q/1.*index"), _graded("choice", "B", answer=2, options=["cat", "dog"])),
    "A7: true is no index": (Refuses("q/1.*True"), _graded("choice", "B", answer=True, options=["cat", "dog"])),
    "A7: a box of three numbers": (Refuses("q/1.*box"), _graded("boxes", "[0, 0, 1, 1]", answer=[0, 0, 1])),
    "A7: a float for exact": (Gives(1.0), _graded("exact", "72", answer=72.0)),
    "A7: a truth value": (
        Gives([1.0, 1.0, 0.0]),
        lambda f: [_graded("exact", w, answer=True)(f) for w in ("yes", "true", "no")],
    ),
    "A7: tests that are none": (Refuses("q/1.*statement"), _graded("code", "x", tests=[7])),
    "A7: tests that are no list": (Refuses("q/1"), _graded("code", "x", tests=7)),
    "A7: a set given as a list": (Gives(1.0), _graded("set", "blue, red", answer=["red", "blue"])),
}
for told, (outcome, act) in GRADED.items():
    state(f"vlm {told}", outcome, act, **DOORS)


def _program(folder: Path) -> object:
    """Tests are labels as answers are: rows without an answer are graded, and the gate's are counted."""
    from autotelic.trainers.gates import Canary
    from autotelic.vlm.recipes.grpo import Config
    from autotelic.vlm.setting import read_own

    rows = [{"prompt": f"write f for {i}", "tests": [f"assert f(1) == {i}"]} for i in range(20)]
    made = read_own(Config(model="some", data=lines(folder, rows), rewards=("code",), gate_labels=3), labels=True)
    gate = Canary(made.probes, made.verify)
    return len(made.held_out), gate.labels


state("vlm A6: programs are graded by their tests, which count as labels", Gives([4, 3]), _program, **DOORS)


def _learned(folder: Path, rows: Sequence[Mapping[str, Any]], **config: Any) -> Any:
    from autotelic.vlm.recipes.grpo import Config
    from autotelic.vlm.setting import read_own

    (folder / "mine.py").write_text("def short(completions, **columns):\n    return [-len(c) for c in completions]\n")
    data = lines(folder, rows)
    return read_own(Config(model="some", data=data, rewards=(f"{folder}/mine.py:short",), **config), labels=True)


state(
    "vlm A6: a reward that verifies nothing leaves evaluation to exact",
    Gives([1.0, 0.0]),
    lambda folder: list(
        _learned(folder, plain(20), gate_labels=2).verify(completions=["1", "x"], references=["1", "1"])
    ),
    **DOORS,
)
state(
    "vlm A6: questions without answers under a reward of one's own",
    GoesOn(),
    lambda folder: _learned(folder, [{"prompt": f"q {i}"} for i in range(20)], gate="none"),
    **DOORS,
)
state(
    "vlm A7: a list of answers and the guess without looking",
    GoesOn(),
    lambda folder: dealt(lines(folder, [{"prompt": f"q {i}", "answer": ["1", str(i)]} for i in range(20)])),
    **DOORS,
)


def _small_model(word: str) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        from autotelic.vlm.recipes.grpo import Config
        from autotelic.vlm.setting import read_own

        for i in range(12):
            Image.new("RGB", (32, 32), (i, 0, 0)).save(folder / f"{i}.png")
        rows = [{"prompt": f"how many {word}", "image": f"{i}.png", "answer": "1"} for i in range(12)]
        return len(read_own(Config(data=lines(folder, rows), gate_labels=2), labels=True).held_out)

    return act


FIRST = {"kind": "first hour", "entry": "--data"}
state(
    "newcomer: --data with the default model, in words that it does not know",
    Refuses("small.*(32 x 32|words).*--model"),
    _small_model("giraffes"),
    **FIRST,
)
state("newcomer: --data with the default model, in its own words", Gives(2), _small_model("red"), **FIRST)


# --- prompts and pairs --------------------------------------------------------------------------------------------

DRAWING = {"modality": "diffusion", "entry": "prompts"}


def prompts(content: str | bytes, name: str = "p.txt") -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        from autotelic.diffusion.prompts import read_prompts

        return [[task.prompt, dict(task.extra)] for task in read_prompts(written(folder, content, name))]

    return act


PROMPTS: dict[str, tuple[Required, str | bytes, str]] = {
    **{
        f"{told} inside a prompt": (Gives([[f"a{sign}cat", {}], ["a dog", {}]]), f"a{sign}cat\na dog\n", "p.txt")
        for told, sign in SEPARATORS.items()
    },
    "U+2028 in JSON lines": (Gives([["a\u2028cat", {}]]), '{"prompt": "a\u2028cat"}', "p.jsonl"),
    "wildcards": (
        Gives([["{red|blue} cat", {}], ["{2$$a|b}", {}], ["a dog", {}]]),
        "{red|blue} cat\n{2$$a|b}\na dog",
        "p.txt",
    ),
    "an object that was cut off, in a text file": (Refuses(r"p\.txt.*line 2"), 'a cat\n{"prompt": "a', "p.txt"),
    "an object without a prompt": (Refuses(r"p\.txt.*line 1"), '{"text": "a cat"}', "p.txt"),
    "plain words in JSON lines": (Refuses(r"p\.jsonl.*line 2"), '{"prompt": "a cat"}\na dog\n', "p.jsonl"),
    "two rows of one prompt": (
        Gives([["a sign", {"text": "OPEN"}], ["a sign", {"text": "SHUT"}]]),
        "".join(f'{{"prompt": "a sign", "text": "{word}"}}\n' for word in ("OPEN", "SHUT", "SHUT")),
        "p.jsonl",
    ),
    "an integer of 5,000 digits": (Refuses(r"p\.jsonl.*line 1"), '{"prompt": "a", "n": ' + "9" * 5000 + "}", "p.jsonl"),
    "a CSV": (Gives([["a, b", {"text": "007"}]]), 'prompt,text\n"a, b",007\n', "p.csv"),
    "an empty file": (Refuses(r"p\.txt"), "\n", "p.txt"),
    "another encoding": (Refuses(r"p\.txt.*UTF-8"), "café".encode("latin-1"), "p.txt"),
    "half of a character": (Refuses(r"p\.jsonl.*line 1"), '{"prompt": "a\\ud83d"}', "p.jsonl"),
}
for told, (outcome, content, file) in PROMPTS.items():
    state(f"diffusion B16: {told}", outcome, prompts(content, file), **DRAWING)


def _sides(folder: Path) -> object:
    from autotelic.diffusion.prompts import file_prompts

    rows = [{"prompt": f"sign {i}", "text": word} for i in range(20) for word in ("OPEN", "SHUT")]
    made = file_prompts(lines(folder, rows))
    texts = [{task.prompt for task in side} for side in (made.rewarded, made.unrewarded, made.probes)]
    return (
        sum(len(side) for side in (made.rewarded, made.unrewarded, made.probes)),
        sum(map(len, texts)),
        len(set.union(*texts)),
    )


state("diffusion B16: rows of one prompt are on one side", Gives([40, 20, 20]), _sides, **DRAWING)


class Blank:
    """An actor that draws black pictures and counts them; nothing in a chain is random."""

    def __init__(self) -> None:
        self.drawn = Counter[str]()
        self.most = 0

    def act(self, tasks: Sequence[Task], n: int, **how: Any) -> list[Rollout]:
        self.most = max(self.most, len(tasks) * n)
        none = torch.zeros(1, dtype=torch.bool)
        for task in tasks:
            self.drawn[task.id] += n
        return [
            Rollout(task, torch.zeros(3, 8, 8), {"path": torch.zeros(2)}, None, none, torch.zeros(1, dtype=torch.long))
            for task in tasks
            for _ in range(n)
        ]

    def evaluated(self) -> Blank:
        return self

    bare = evaluated


def _evaluation(folder: Path) -> object:
    """Prompts that an evaluation of a file of 2,000 draws, and the most pictures in one call of actor and reward."""
    from autotelic.diffusion.evaluation import evaluate
    from autotelic.diffusion.prompts import file_prompts
    from autotelic.diffusion.recipes.ddpo import Config

    data = written(folder, "\n".join(f"thing {i}" for i in range(2000)), "p.txt")
    config = Config(model="some", data=data, eval_episodes=2).resolved(small=False)
    made = file_prompts(data)
    sizes: list[int] = []

    def reward(images: Sequence[Any], **columns: Any) -> list[float]:
        sizes.append(len(images))
        return [0.0] * len(images)

    actor = Blank()
    setting: Any = SimpleNamespace(config=config, prompts=made, reward=reward, judge=None, world=None, start=actor)
    result = evaluate(setting, actor)
    told = [len(row["success"]) for row in result["outcomes"].values()]
    return len(actor.drawn) <= 64, told == [2 * 32, 2 * 32], max(actor.most, *sizes) <= 32


state(
    "diffusion B5: an evaluation draws some of a long file, a few at a time",
    Gives([True, True, True]),
    _evaluation,
    kind="bytes",
    modality="diffusion",
    entry="evaluation",
)


def _gate(folder: Path) -> object:
    from autotelic.diffusion.prompts import file_prompts

    made = file_prompts(
        written(folder, "\n".join(f"thing {i}" for i in range(2000)), "p.txt"), unrewarded=32, probes=24
    )
    return len(made.rewarded), len(made.unrewarded), len(made.probes)


state(
    "diffusion B5: the gate looks at some of a long file, the rest is learned from",
    Gives([2000 - 56, 32, 24]),
    _gate,
    kind="bytes",
    modality="diffusion",
    entry="gate",
)


def _free_text(count: int) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        from autotelic.diffusion.recipes.ddpo import Config
        from autotelic.diffusion.setting import read_own
        from autotelic.envs.toys import shapes

        own = list(shapes.LABELS)[:count]
        data = written(folder, "\n".join([*own, "a cat on a sofa", "a dog by Rembrandt"]), "p.txt")
        made = read_own(Config(data=data, rewards=("jpeg",)))
        return len(made.rewarded) + len(made.unrewarded) + len(made.probes)

    return act


FREE = {"kind": "first hour", "modality": "diffusion", "entry": "--data"}
state("newcomer: free text for the default pipeline", Refuses("small.*words.*--model"), _free_text(2), **FREE)


def pairs(content: str) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        from autotelic.diffusion.offline import read_pairs

        picture(folder / "a.png", 255)
        picture(folder / "b.png", 1)
        (folder / "c.png").write_text("no picture")
        found = read_pairs(written(folder, content, "pairs.jsonl"), (4, 4))
        return [[task.prompt, *(round(float(side[0, 0, 0]), 2) for side in two)] for task, *two in found]

    return act


PAIRS: dict[str, tuple[Required, str]] = {
    "U+2028": (Gives([["a\u2028b", 1.0, 0.0]]), '{"prompt": "a\u2028b", "chosen": "a.png", "rejected": "b.png"}'),
    "an integer of 5,000 digits": (
        Refuses("line 1"),
        '{"prompt": "a", "chosen": "a.png", "rejected": "b.png", "n": ' + "9" * 5000 + "}",
    ),
    "a file that was cut off": (Refuses("line 1"), '{"prompt": "a", "chosen": "a.png"'),
    "a column that is missing": (Refuses("line 1.*rejected"), '{"prompt": "a", "chosen": "a.png"}'),
    "a picture that is none": (Refuses(r"line 1.*c\.png"), '{"prompt": "a", "chosen": "a.png", "rejected": "c.png"}'),
    "a picture that is missing": (
        Refuses(r"line 1.*d\.png"),
        '{"prompt": "a", "chosen": "a.png", "rejected": "d.png"}',
    ),
    "one picture twice": (Refuses("line 1.*same"), '{"prompt": "a", "chosen": "a.png", "rejected": "a.png"}'),
    "an empty file": (Refuses("no (pair|row)"), "\n"),
}
for told, (outcome, content) in PAIRS.items():
    state(f"diffusion B16: pairs, {told}", outcome, pairs(content), modality="diffusion", entry="pairs")


def _objects(folder: Path) -> object:
    """What is read again from rows that were given to a Trainer as objects."""
    from autotelic.trainer import write_rows
    from autotelic.vlm.questions import read_rows

    rows = [
        {"prompt": "a\u2028b", "answer": ["4", "four"], "image": Image.new("RGB", (8, 8), (9, 8, 7))},
        {"prompt": "c", "answer": 7, "image": None},
    ]
    first, second = read_rows(str(write_rows(rows, folder / "data" / "data.jsonl")))
    return first.prompt, first.reference, Image.open(first.images[0]).getpixel((0, 0)), second.reference


state(
    "vlm A7: rows given as objects keep their types",
    Gives(["a\u2028b", ["4", "four"], (9, 8, 7), 7]),
    _objects,
    entry="Trainer",
)


def _odd_pictures(folder: Path) -> object:
    """Pictures of every kind of colours, turned ones and undecoded ones, in columns of any name."""
    from io import BytesIO

    from autotelic.trainer import write_rows
    from autotelic.vlm.questions import read_rows

    turned, content = Image.new("RGB", (8, 4), "red"), BytesIO()
    turned.getexif()[0x0112] = 6
    Image.new("RGB", (6, 6), "blue").save(content, "JPEG")
    odd = [Image.new("L", (5, 5)).convert(mode) for mode in ("CMYK", "I", "F", "HSV", "LA", "1")]
    rows = [
        {"prompt": "a", "images": [turned, *odd], "seen/at": turned, "image": None, "n": float("nan")},
        {"prompt": "b", "image": {"bytes": content.getvalue(), "path": "gone.jpg"}},
    ]
    first, second = read_rows(str(write_rows(rows, folder / "data" / "data.jsonl")))
    sizes = [Image.open(path).size for path in (*first.images, *second.images)]
    return sizes[0], len(sizes), sizes[-1], first.extra["n"]


state(
    "vlm A13: pictures of every kind given as objects", Gives([(4, 8), 8, (6, 6), None]), _odd_pictures, entry="Trainer"
)


def _no_rows(folder: Path) -> object:
    from autotelic.trainer import write_rows
    from autotelic.vlm.questions import read_rows

    return read_rows(str(write_rows([], folder / "data.jsonl")))


state("vlm A17: no rows given as objects", Refuses("no row|empty"), _no_rows, entry="Trainer")
