"""Files of questions, prompts and pairs as people bring them, how they are dealt out, and what grades the answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from autotelic.types import Task

from .cases import Gives, Refuses, Required, case

WAITING: set[str] = set()
"""Not repaired yet."""

# --- how a case is stated -----------------------------------------------------------------------------------------


def state(
    name: str,
    required: Required,
    act: Callable[[Path], object],
    *,
    kind: str = "data files",
    modality: str = "vlm",
    entry: str = "questions",
    needs: Sequence[str] = (),
) -> None:
    """A case that a person's data causes."""
    case(
        name,
        kind=kind,
        modality=modality,
        entry=entry,
        required=required,
        by="user",
        waits=name in WAITING,
        needs=needs,
    )(act)


def written(folder: Path, content: str | bytes, name: str = "q.jsonl") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def lines(folder: Path, rows: Sequence[Any], name: str = "q.jsonl") -> str:
    return written(folder, "".join(json.dumps(row) + "\n" for row in rows), name)


def read(content: str | bytes, name: str = "q.jsonl") -> Callable[[Path], list[Any]]:
    """A case's act: the prompts and references of a file of questions."""

    def act(folder: Path) -> list[Any]:
        from autotelic.vlm.questions import read_rows

        return [[task.prompt, task.reference] for task in read_rows(written(folder, content, name))]

    return act


def asked(path: str) -> list[Task]:
    from autotelic.vlm.questions import read_rows

    return read_rows(path)


def dealt(path: str, **how: Any) -> Any:
    from autotelic.vlm.questions import from_file

    return from_file(path, **how)


def picture(path: Path, shade: int) -> str:
    Image.new("RGB", (8, 8), (shade % 256, shade // 256, 7)).save(path)
    return path.name


def tasks_of(made: Any) -> dict[str, list[Task]]:
    """The three sides of a file of questions."""
    train = [task for source in made.train.values() for task in source]
    return {"train": train, "held out": list(made.held_out), "gate": list(made.probes)}


# --- files of questions -------------------------------------------------------------------------------------------

ROW = '{"prompt": "how many ?", "answer": "3"}'
ONE = [["how many ?", "3"]]
SEPARATORS = {
    "U+2028": "\u2028",
    "U+2029": "\u2029",
    "U+0085": "\u0085",
    "U+001E": "\u001e",
    "a vertical tab": "\u000b",
}

for told, sign in SEPARATORS.items():
    state(
        f"vlm A17: {told} inside a string",
        Gives([[f"how{sign}many ?", "3"], ["how many ?", "3"]]),
        read(f'{{"prompt": "how{sign}many ?", "answer": "3"}}\n{ROW}\n'),
    )

READ: dict[str, tuple[Required, str | bytes, str]] = {
    "a byte order mark": (Gives(ONE), b"\xef\xbb\xbf" + ROW.encode(), "q.jsonl"),
    "lines that end as on Windows": (Gives(ONE * 2), f"{ROW}\r\n\r\n{ROW}\r\n", "q.jsonl"),
    "an integer of 5,000 digits": (
        Refuses(r"q\.jsonl line 2"),
        ROW + '\n{"prompt": "a", "answer": ' + "9" * 5000 + "}",
        "q.jsonl",
    ),
    "a float beyond all floats": (Refuses(r"q\.jsonl line 2"), ROW + '\n{"prompt": "a", "answer": 1e999}', "q.jsonl"),
    "NaN, which JSON does not have": (Refuses(r"q\.jsonl line 2"), ROW + '\n{"prompt": "a", "answer": NaN}', "q.jsonl"),
    "a file that was cut off": (Refuses(r"q\.jsonl line 2"), ROW + "\n" + ROW[:-9], "q.jsonl"),
    "a hundred thousand brackets": (Refuses(r"q\.jsonl line 1"), '{"prompt": ' + "[" * 100_000, "q.jsonl"),
    "one key twice": (
        Refuses(r'q\.jsonl line 1.*"answer"'),
        '{"prompt": "a", "answer": "1", "answer": "2"}',
        "q.jsonl",
    ),
    "half of a character (a lone surrogate)": (
        Refuses(r"q\.jsonl line 2"),
        ROW + '\n{"prompt": "a\\ud83d", "answer": "1"}',
        "q.jsonl",
    ),
    "half of a character inside messages": (
        Refuses(r"q\.jsonl line 1"),
        '{"prompt": [{"role": "user", "content": "a\\udc00"}], "answer": "1"}',
        "q.jsonl",
    ),
    "another encoding": (Refuses(r"q\.jsonl.*UTF-8"), '{"prompt": "café"}'.encode("latin-1"), "q.jsonl"),
    "UTF-16, as a spreadsheet saves it": (
        Refuses(r"q\.csv.*UTF-8"),
        "prompt\tanswer\na\t1\n".encode("utf-16"),
        "q.csv",
    ),
    "an empty file": (Refuses(r"q\.jsonl.*(no row|empty)"), "", "q.jsonl"),
    "blank lines alone": (Refuses(r"q\.jsonl.*(no row|empty)"), "\n  \n\n", "q.jsonl"),
    "wrong columns": (Refuses(r'q\.jsonl line 1.*"prompt".*text, label'), '{"text": "a", "label": 1}', "q.jsonl"),
    "an empty prompt": (Refuses(r"q\.jsonl line 1"), '{"prompt": "  ", "answer": "1"}', "q.jsonl"),
    "an empty answer": (Refuses(r"q\.jsonl line 1.*answer"), '{"prompt": "a", "answer": ""}', "q.jsonl"),
    "an empty list of answers": (Refuses(r"q\.jsonl line 1.*answer"), '{"prompt": "a", "answer": []}', "q.jsonl"),
    "a picture given as data": (Refuses(r"q\.png"), b"\x89PNG\r\n\x1a\n", "q.png"),
    "an array of objects": (
        Gives([["a", 1], ["b", "x"]]),
        '[{"prompt": "a", "answer": 1},\n {"prompt": "b", "answer": "x"}]',
        "q.json",
    ),
    "objects in lines, called .json": (Gives(ONE * 2), f"{ROW}\n{ROW}\n", "q.json"),
    "an object spread over lines": (Refuses(r"q\.json"), '{\n "prompt": "a",\n "answer": "1"\n', "q.json"),
    "an array that holds a number": (Refuses(r"q\.json row 2"), '[{"prompt": "a", "answer": 1}, 3]', "q.json"),
    "answers of every type": (
        Gives(
            [["a", 72], ["b", 72.5], ["c", True], ["d", "72"], ["e", ["4", "four"]], ["f", [[0, 0, 1, 1]]], ["g", None]]
        ),
        "".join(
            json.dumps({"prompt": prompt, "answer": answer}) + "\n"
            for prompt, answer in zip(
                "abcdefg", [72, 72.5, True, "72", ["4", "four"], [[0, 0, 1, 1]], None], strict=True
            )
        ),
        "q.jsonl",
    ),
    "a CSV, whose cells are texts": (
        Gives([["a", "007"], ["b, c", "NA"], ['say "d"', "1e5"], ["two\nlines", "True"]]),
        '\ufeffprompt,answer\na,007\n"b, c",NA\n"say ""d""",1e5\n"two\nlines",True\n',
        "q.csv",
    ),
    "a CSV of semicolons": (Gives([["a, b", "3"]]), "prompt;answer\na, b;3\n", "q.csv"),
    "a TSV": (Gives([["a, b", "3"]]), "prompt\tanswer\na, b\t3\n", "q.tsv"),
    "a CSV row that is too short": (Refuses(r"q\.csv line 3"), "prompt,answer\na,1\nb\n", "q.csv"),
    "a CSV row that is too long": (Refuses(r"q\.csv line 3"), "prompt,answer\na,1\nb,c,d\n", "q.csv"),
    "a CSV without a header": (Refuses(r'q\.csv.*"prompt"'), "what is 1 + 1 ?,2\nwhat is 2 + 2 ?,4\n", "q.csv"),
    "a CSV that names a column twice": (Refuses(r"q\.csv.*answer"), "prompt,answer,answer\na,1,2\n", "q.csv"),
    "a Parquet file that is none": (Refuses(r"q\.parquet"), b"PAR1 or not", "q.parquet"),
    "a spreadsheet": (Refuses(r"q\.xlsx.*(csv|CSV)"), b"PK\x03\x04", "q.xlsx"),
}
for told, (outcome, content, file) in READ.items():
    state(f"vlm A17: {told}", outcome, read(content, file))


def _parquet(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / "q.parquet")
    return str(folder / "q.parquet")


def _parquet_rows(folder: Path) -> object:
    from autotelic.vlm.questions import read_rows

    shown = folder / "red.png"
    picture(shown, 200)
    rows = [
        {"prompt": "a", "answer": ["4", "four"], "image": {"bytes": shown.read_bytes(), "path": None}, "weight": 2},
        {"prompt": "b\u2028c", "answer": ["5"], "image": {"bytes": shown.read_bytes(), "path": None}, "weight": 3},
    ]
    tasks = read_rows(_parquet(folder, rows))
    seen = {Image.open(task.images[0]).convert("RGB").getpixel((0, 0)) for task in tasks}
    return [[task.prompt, task.reference, task.extra["weight"]] for task in tasks], list(seen)


state(
    "vlm A17: a Parquet file with pictures in it",
    Gives([[["a", ["4", "four"], 2], ["b\u2028c", ["5"], 3]], [(200, 0, 7)]]),
    _parquet_rows,
    needs=["pyarrow"],
)
state(
    "vlm A17: a Parquet file of other columns",
    Refuses(r'q\.parquet row 1.*"prompt".*text'),
    lambda folder: asked(_parquet(folder, [{"text": "a"}])),
    needs=["pyarrow"],
)


def _hub(source: str, splits: Sequence[str]) -> Callable[[Path], object]:
    """Questions of a dataset of the hub, where ``datasets`` is told what the hub would have."""

    def act(folder: Path) -> object:
        import datasets

        from autotelic.vlm.questions import read_rows

        held = {
            split: datasets.Dataset.from_list([{"question": f"{split} {i}", "answer": i} for i in range(2)])
            for split in splits
        }
        asked: list[Any] = []

        def load_dataset(path: str, name: str | None = None, *, split: str | None = None, **_: Any) -> Any:
            asked.append((path, name))
            if path != "some/sums":
                raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub\nor so")
            return datasets.DatasetDict(held) if split is None else held[split.partition("[")[0]]

        real, datasets.load_dataset = datasets.load_dataset, load_dataset
        try:
            return [[task.prompt, task.reference] for task in read_rows(source)], asked[-1]
        finally:
            datasets.load_dataset = real

    return act


HUB: dict[str, tuple[Required, str, Sequence[str]]] = {
    "a dataset of the hub": (Gives([[["train 0", 0], ["train 1", 1]], ("some/sums", None)]), "some/sums", ["train"]),
    "a split of it": (
        Gives([[["test 0", 0], ["test 1", 1]], ("some/sums", None)]),
        "some/sums:test",
        ["train", "test"],
    ),
    "a configuration of it": (
        Gives([[["test 0", 0], ["test 1", 1]], ("some/sums", "main")]),
        "some/sums@main:test",
        ["test"],
    ),
    "several splits, none named": (Refuses("train.*test"), "some/sums", ["train", "test"]),
    "one that is not there": (Refuses("some/summs"), "some/summs:train", ["train"]),
}
for told, (outcome, source, splits) in HUB.items():
    state(f"vlm A17: the hub, {told}", outcome, _hub(source, splits), needs=["datasets"])


def _pictured(rows: Sequence[Mapping[str, Any]]) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        from autotelic.vlm.questions import read_rows

        picture(folder / "red.png", 1)
        (folder / "folder.png").mkdir()
        (folder / "empty.png").write_bytes(b"")
        Image.new("L", (4000, 10)).save(folder / "thread.png")
        return [task.prompt for task in read_rows(lines(folder, rows))]

    return act


PICTURES: dict[str, tuple[Required, Mapping[str, Any]]] = {
    "a picture that is missing": (Refuses(r"line 1.*no\.png"), {"prompt": "a", "image": "no.png"}),
    "a picture that is a folder": (Refuses(r"line 1.*folder\.png"), {"prompt": "a", "image": "folder.png"}),
    "a picture without content": (Refuses(r"line 1.*image 1"), {"prompt": "a", "image": "empty.png"}),
    "another number of <image> than pictures": (
        Refuses(r"line 1.*<image>"),
        {"prompt": "<image><image> a", "image": "red.png"},
    ),
    "<image> where the picture stands": (
        Gives(
            [
                [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "see "},
                            {"type": "image"},
                            {"type": "text", "text": " what ?"},
                        ],
                    }
                ]
            ]
        ),
        {"prompt": "see <image> what ?", "image": "red.png"},
    ),
}
for told, (outcome, row) in PICTURES.items():
    state(f"vlm A17: {told}", outcome, _pictured([{"answer": "1", **row}]))


def _ended(source: str) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        from autotelic.vlm.questions import read_rows

        return read_rows(str(folder / source) if source else str(folder))

    return act


state("vlm A17: a folder given as data", Refuses("is a folder"), _ended(""))
state("vlm A17: a file that is not there", Refuses(r"there is no file .*no\.jsonl"), _ended("no.jsonl"))


# --- how it is dealt out ------------------------------------------------------------------------------------------


def _dealt(rows: Sequence[Mapping[str, Any]], told: Callable[[dict[str, list[Task]]], object], **how: Any) -> Any:
    def act(folder: Path) -> object:
        from autotelic.vlm.questions import from_file

        return told(tasks_of(from_file(lines(folder, rows), **how)))

    return act


def plain(count: int, kinds: int = 1) -> list[dict[str, Any]]:
    return [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1), "category": f"k{i % kinds}"} for i in range(count)]


state(
    "vlm A17: every row of 10,000 is used",
    Gives([10_000, 2000, 60, 210]),
    lambda folder: [
        _dealt(plain(10_000), lambda s: sum(map(len, s.values())), gate_labels=10**6)(folder),
        _dealt(plain(10_000), lambda s: len(s["held out"]))(folder),
        *_dealt(plain(10_000), lambda s: [len(s["held out"]), len(s["gate"])], gate_labels=210, held_out=60)(folder),
    ],
)
state(
    "vlm A17: what evaluation and gate do not ask is trained on",
    Gives(10_000 - 60 - 210),
    _dealt(plain(10_000), lambda s: len(s["train"]), gate_labels=210, held_out=60),
)
state(
    "vlm A17: twenty questions in three categories: each is held out and trained on",
    Gives([["k0", "k1", "k2"], ["k0", "k1", "k2"]]),
    _dealt(
        plain(20, 3), lambda s: [sorted({t.category for t in s[side]}) for side in ("train", "held out")], gate_labels=2
    ),
)
state(
    "newcomer: a category of two is held out once, a category of one is trained on",
    Gives([{"big", "two", "one"}, {"big", "two"}]),
    _dealt(
        [
            {"prompt": f"q{i} ?", "answer": "1", "category": "two" if i in (3, 4) else "one" if i == 8 else "big"}
            for i in range(30)
        ],
        lambda s: [{t.category for t in s[side]} for side in ("train", "held out")],
        gate_labels=2,
    ),
)


def _views(folder: Path) -> object:
    """Five types of questions about each of 40 pictures, half of which have a copy under another name."""
    from autotelic.vlm.questions import from_file

    rows = []
    for i in range(40):
        picture(folder / f"{i}.png", i // 2 if i < 20 else i)
        rows += [
            {"prompt": f"type {k} ?", "answer": "1", "image": f"{i}.png", "category": f"type{k}"} for k in range(5)
        ]
    sides = tasks_of(from_file(lines(folder, rows), gate_labels=20))
    seen = {side: {Path(p).read_bytes() for t in tasks for p in t.images} for side, tasks in sides.items()}
    shared = [a + b for a in seen for b in seen if a < b and seen[a] & seen[b]]
    kinds = [sorted({t.category for t in sides[side]}) for side in ("train", "held out")]
    return shared, kinds, sum(map(len, sides.values()))


KINDS_OF_FIVE = [f"type{k}" for k in range(5)]
state(
    "vlm A17: no picture is both held out and trained on, copies included",
    Gives([[], [KINDS_OF_FIVE, KINDS_OF_FIVE], 200]),
    _views,
)


def _same_question(sides: dict[str, list[Task]]) -> object:
    texts = {side: {" ".join(str(t.prompt).lower().split()) for t in tasks} for side, tasks in sides.items()}
    return [a + b for a in texts for b in texts if a < b and texts[a] & texts[b]]


state(
    "vlm A17: one question, spelt in other ways, is never on two sides",
    Gives([]),
    _dealt(
        [{"prompt": text, "answer": str(i)} for i in range(30) for text in (f"Is {i} even?", f"is  {i} EVEN? ")],
        _same_question,
        gate_labels=5,
    ),
)


def _order_of_rows(folder: Path) -> object:
    from autotelic.vlm.questions import from_file

    rows = plain(50)
    sides = [
        {t.prompt for t in from_file(lines(folder, some, f"{n}.jsonl")).held_out}
        for n, some in enumerate((rows, rows[::-1]))
    ]
    return sides[0] == sides[1]


state("vlm A17: what is held out hangs on content, not on the order of rows", Gives(True), _order_of_rows)


def _one_picture(folder: Path) -> object:
    from autotelic.vlm.questions import from_file

    picture(folder / "map.png", 3)
    return from_file(lines(folder, [{**row, "image": "map.png"} for row in plain(20)]), gate_labels=2)


state("vlm A17: all questions about one picture", Refuses("picture.*--eval-data"), _one_picture)


def _overlap(folder: Path) -> object:
    from autotelic.vlm.questions import from_file

    evaluation = lines(folder, plain(5), "asked.jsonl")
    sides = tasks_of(from_file(lines(folder, plain(40)), evaluation=evaluation, gate_labels=2))
    asked = {task.prompt for task in sides["held out"]}
    return sum(task.prompt in asked for side in ("train", "gate") for task in sides[side]), len(asked)


state("vlm A17: the evaluation file repeats training questions", Gives([0, 5]), _overlap)
state(
    "vlm A17: the evaluation file is the training file",
    Refuses("nothing.*train|no question.*train"),
    lambda folder: dealt(lines(folder, plain(20)), evaluation=lines(folder, plain(20), "asked.jsonl")),
)
state(
    "vlm A17: an evaluation file of thousands is asked in part, every category",
    Gives({"k0": 60, "k1": 60, "k2": 60}),
    lambda folder: Counter(
        task.category
        for task in dealt(
            lines(folder, plain(40)), evaluation=lines(folder, plain(3000, 3)[60:], "e.jsonl"), held_out=60
        ).held_out
    ),
)


# --- in which order -----------------------------------------------------------------------------------------------


def _order(seed: int, count: int, resumed: int = 0) -> list[str]:
    from autotelic.trainers.curricula import Uniform

    curriculum = Uniform({"a": [Task(f"t{i}", i) for i in range(12)]}, seed=seed)
    drawn = [task.id for _ in range(resumed) for task in curriculum.sample(1)]
    again = Uniform({"a": [Task(f"t{i}", i) for i in range(12)]}, seed=seed)
    again.load_state_dict(curriculum.state_dict())
    return drawn + [again.sample(1)[0].prompt for _ in range(count - resumed)]


ORDER = {"entry": "curriculum", "modality": "core"}
state(
    "vlm A17: a list of tasks is shuffled, by the seed",
    Gives([True, True, True]),
    lambda folder: [_order(0, 12) != other for other in (list(range(12)), _order(5, 12), _order(0, 24)[12:])],
    **ORDER,
)
state(
    "vlm A17: each row once before any comes twice",
    Gives([list(range(12))] * 3),
    lambda folder: [sorted(_order(1, 36)[start : start + 12]) for start in (0, 12, 24)],
    **ORDER,
)
state(
    "vlm A17: a resumed run goes on in the order it had",
    Gives(True),
    lambda folder: _order(3, 30)[17:] == _order(3, 30, resumed=17)[17:],
    **ORDER,
)


def _more_than_there_are(folder: Path) -> object:
    """Groups and answers of a round of 8 tasks, 4 attempts each, where there are 3."""
    from autotelic.trainers.curricula import Uniform
    from autotelic.trainers.loop import Experiment, Stage, train
    from autotelic.trainers.runs.run_folder import RunFolder
    from tests.toys import TokenToy

    seen: list[tuple[Counter[str], Any]] = []

    def told(groups: Sequence[str], outputs: Sequence[Any], **columns: Any) -> list[float]:
        answers: dict[str, list[Any]] = {}
        for group, said in zip(groups, outputs, strict=True):
            answers.setdefault(group, []).append(said)
        seen.append((Counter(groups), [tuple(several) for several in answers.values()]))
        return [0.0] * len(groups)

    sources = {"a": [Task(f"t{i}", i, horizon=3) for i in range(3)]}
    stage = Stage(1, TokenToy(3), Uniform(sources), told, {}, tasks_per_step=8, group_size=4)
    run = RunFolder.create(folder / "run", recipe="toy", config={}, command="toy")
    train(Experiment([stage], evaluate=lambda actor: {}), run)
    counts, answers = seen[0]
    return sorted(counts.values()), len(set(answers))


state("vlm A17: a round of more tasks than there are", Gives([[4] * 8, 8]), _more_than_there_are, **ORDER)


def _changed(change: Callable[[Path], object], *, before: bool = True) -> Callable[[Path], object]:
    """A run's data is looked at twice, and changed in between."""

    def act(folder: Path) -> object:
        from autotelic.tables import read_table
        from autotelic.trainers.data import remember
        from autotelic.trainers.runs.run_folder import RunFolder

        picture(folder / "red.png", 1)
        data = lines(folder, [{"prompt": "a", "image": "red.png"}, {"prompt": "b"}])
        run = RunFolder.create(folder / "run", recipe="toy", config={}, command="toy")
        remember(run, data=read_table(data))
        change(folder)
        remember(RunFolder.open(run.path), data=read_table(data))
        return "the same"

    return act


CHANGES: dict[str, tuple[Required, Callable[[Path], object]]] = {
    "a row was added": (
        Refuses(r"q\.jsonl.*changed"),
        lambda f: lines(f, [{"prompt": "a", "image": "red.png"}, {"prompt": "c"}]),
    ),
    "a picture was painted over": (Refuses(r"q\.jsonl.*changed"), lambda f: picture(f / "red.png", 2)),
    "nothing was changed but space": (
        Gives("the same"),
        lambda f: written(f, '{"image":"red.png",  "prompt":"a"}\r\n\n{"prompt": "b"}'),
    ),
}
for told, (outcome, change) in CHANGES.items():
    state(f"vlm A17: before a run went on, {told}", outcome, _changed(change), entry="resume", modality="core")
