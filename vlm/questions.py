"""Where a run's questions come from: the small world, sums, or a file of one's own.

Whatever the source, a run gets the same five things: endless or finite training questions per category, held-out
questions for the evaluation, others for the gate, demonstrations where there are some, and how well one answers blind.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ..envs.toys import arithmetic, scenes
from ..errors import UsageError
from ..rewards.text.verifiers import Exact, Numeric
from ..types import Task
from .processing import check_image_file, image_places

Source = Callable[[int], Task] | Sequence[Task]
BLOCK = 64
"""Questions of the small world made at once."""


@dataclass
class Questions:
    """What a run asks.

    Attributes:
        train: category -> its training questions; without references in a label-free run.
        held_out: evaluated, always with references; never asked in training.
        probes: asked by the gate; with references only as far as its labels are counted.
        demonstrations: tasks and what to answer, for imitation.
        blind: category -> accuracy of the best guess from the question alone, on ``held_out``.
        small_world: whether views, second looks and redrawing are known.
        verify: what is right, in evaluation and gate.
    """

    train: Mapping[str, Source]
    held_out: Sequence[Task]
    probes: Sequence[Task]
    demonstrations: Sequence[tuple[Task, str]] = ()
    blind: Mapping[str, float] = field(default_factory=dict)
    small_world: bool = False
    verify: Any = field(default_factory=Exact)


def blind_baseline(known: Sequence[Task], asked: Sequence[Task]) -> dict[str, float]:
    """Accuracy per category of who answers a question with its commonest answer in ``known``, without looking.

    A question that ``known`` does not have gets its category's commonest answer.
    """
    by_text: dict[str, Counter[Any]] = defaultdict(Counter)
    by_category: dict[str, Counter[Any]] = defaultdict(Counter)
    for task in known:
        by_text[str(task.prompt)][task.reference] += 1
        by_category[task.category][task.reference] += 1
    hits: dict[str, list[bool]] = defaultdict(list)
    for task in asked:
        counts = by_text.get(str(task.prompt)) or by_category.get(task.category) or Counter([None])
        hits[task.category].append(counts.most_common(1)[0][0] == task.reference)
    return {category: sum(row) / len(row) for category, row in hits.items()}


# the small world


@lru_cache(maxsize=256)
def _block(kind: str, number: int, seed: int, split: int, labels: bool) -> list[Task]:
    name = f"train-{seed}-{number}"
    return scenes.tasks(scenes.questions(kind, BLOCK, name, split=split), name, labels=labels, known=labels)


def _endless(index: int, kind: str, seed: int, split: int, labels: bool) -> Task:
    return _block(kind, index // BLOCK, seed, split, labels)[index % BLOCK]


def small_world(
    seed: int, split: int, *, labels: bool, gate_labels: int, held_out: int, offset: int = 0, probes: int = 30
) -> Questions:
    """Seven types of questions about scenes; the evaluation asks compositions that training never does.

    Args:
        labels: training questions carry references.
        gate_labels: probes with references; without any, each probe comes in two views.
        held_out, offset: evaluated questions per type, and how many are skipped.
        probes: per type, where the gate has no labels.
    """
    train = {kind: partial(_endless, kind=kind, seed=seed, split=split, labels=labels) for kind in scenes.TYPES}
    asked: list[Task] = []
    for kind in scenes.TYPES:
        drawn = scenes.questions(kind, offset + held_out, "held-out", split=split, unseen=True)
        asked += scenes.tasks(drawn, "held-out")[offset:]
    each = -(-gate_labels // len(scenes.TYPES)) if gate_labels else probes
    canary = [t for k in scenes.TYPES for t in scenes.tasks(scenes.questions(k, each, "canary", split=split), "canary")]
    if gate_labels:
        spread = [canary[i * len(canary) // gate_labels] for i in range(gate_labels)]
        canary = [replace(task, category="canary") for task in spread]
    else:
        canary = [view for task in canary for view in two_views(replace(task, reference=None, extra={}))]
    drawn = [item for kind in scenes.TYPES for item in scenes.questions(kind, 300, "blind", split=split)]
    known = [Task("", str(q), reference=_right(q, scene), category=q.type) for q, scene in drawn]  # no picture is seen
    return Questions(train, asked, canary, blind=blind_baseline(known, asked), small_world=True)


def _right(question: scenes.Question, scene: scenes.Scene) -> str | None:
    found = scenes.answer(question, scene)
    return None if found is None else found.word


def two_views(task: Task) -> list[Task]:
    """A question of the small world as it is, and in another view; ``extra["back"]`` undoes the view in answers."""
    import random

    question = scenes.Question.parse(str(task.prompt))
    draw = random.Random(f"view {task.id}")
    view = scenes.View.draw(question, draw)
    back = {view.word(word): word for word in scenes.KINDS[1:]}
    turned = replace(
        task,
        id=f"{task.id}/view",
        prompt=view.text(str(task.prompt)),
        images=(view.picture(task.images[0]),),
        parent=task.id,
        extra={"back": back},
    )
    return [task, turned]


EXPLANATION = (
    "The picture is a grid of 4 x 4 cells, p0 to p15 in reading order; a cell is empty or holds a square, a disc or a "
    "plus in red, green, blue, yellow, magenta or cyan, named like red_disc. Question: {question}? "
    "Name the cells you look at, then write = and the answer, as in: p5 p6 = blue_plus"
)
"""What a model that has never seen the small world is told."""


def explained(questions: Questions) -> Questions:
    """The small world's questions for a model that was not made for it: told in words, pictures enlarged."""

    def tell(task: Task) -> Task:
        picture = task.images[0].repeat(7, 0).repeat(7, 1)
        return replace(task, prompt=EXPLANATION.format(question=task.prompt), images=(picture,))

    def telling(index: int, source: Callable[[int], Task]) -> Task:
        return tell(source(index))

    train = {kind: partial(telling, source=source) for kind, source in questions.train.items() if callable(source)}
    held_out, probes = ([tell(task) for task in several] for several in (questions.held_out, questions.probes))
    return replace(questions, train=train, held_out=held_out, probes=probes, small_world=False)


# sums


def sums(
    seed: int, split: int, *, labels: bool, gate_labels: int, held_out: int, offset: int = 0, probes: int = 60
) -> Questions:
    """Two-digit sums and differences, for a model of text alone; no numbers of the evaluation occur in training."""
    kinds = ("sum", "difference")

    def train(index: int, kind: str) -> Task:
        task = arithmetic.source(kind, seed, split=split)(index)
        return task if labels else replace(task, reference=None)

    def asked(count: int, part: arithmetic.Part) -> list[Task]:
        drawn = (arithmetic.problems(kind, count, split=split, part=part) for kind in kinds)
        return [task for several in drawn for task in arithmetic.tasks(several)]

    canary = asked(-(-(gate_labels or probes) // len(kinds)), "probe")[: gate_labels or probes]
    canary = [replace(t, category="canary") for t in canary] if gate_labels else gentle_views(canary)
    sources = {kind: partial(train, kind=kind) for kind in kinds}
    evaluated = [task for i, task in enumerate(asked(offset + held_out, "eval")) if i % (offset + held_out) >= offset]
    known = [arithmetic.source(kind, seed, split=split)(i) for kind in kinds for i in range(500)]
    return Questions(sources, evaluated, canary, blind=blind_baseline(known, evaluated), verify=Numeric())


def gentle_views(tasks: Sequence[Task]) -> list[Task]:
    """Questions without references, each also in a view that must not change its answer: the pictures a little darker
    and cut by a fortieth at every side, or a text introduced by a word. Chats without pictures are left out."""
    found = []
    for task in tasks:
        plain = _unlabelled(task)
        if task.images:
            view = replace(plain, images=tuple(_dimmed(image, task.id) for image in task.images))
        elif isinstance(task.prompt, str):
            view = replace(plain, prompt=f"Question: {task.prompt}")
        else:
            continue
        found += [plain, replace(view, id=f"{task.id}/view", parent=task.id)]
    return found


def _dimmed(image: Any, name: str) -> Any:
    from PIL import ImageEnhance

    from .processing import PIXEL_LIMIT, as_pil

    picture = as_pil(image, name, PIXEL_LIMIT)
    width, height = picture.size
    inside = picture.crop((width // 40, height // 40, width - width // 40, height - height // 40))
    return ImageEnhance.Brightness(inside.resize((width, height))).enhance(0.85)


# a file of one's own


def from_file(
    path: str,
    *,
    evaluation: str = "",
    gate_labels: int = 0,
    labels: bool = True,
    held_out: int | None = None,
    offset: int = 0,
) -> Questions:
    """Questions from JSON lines: prompt (or question), image or images (paths), answer, category, demonstration.

    Without an evaluation file every fifth question is held out, and every fifth of the rest goes to the gate. Without
    ``labels`` no training question carries its answer or its demonstration; demonstrations are there to be imitated.
    ``held_out`` questions per category are asked at an evaluation, after the first ``offset``; None asks all.
    """
    rows = read_rows(path)
    if evaluation:
        asked, kept = read_rows(evaluation), rows
    else:
        asked, kept = rows[::5], [row for i, row in enumerate(rows) if i % 5]
    asked = _chosen(asked, held_out, offset)
    probes, train = kept[::5], [row for i, row in enumerate(kept) if i % 5]
    if not train:
        raise UsageError(f"{path} has {len(rows)} questions: a run needs 10 or more")
    if not asked:
        raise UsageError(f"{evaluation or path}: no held-out question is left after the first {offset} per category")
    unlabelled = [task.id for task in asked if task.reference is None]
    if unlabelled:
        raise UsageError(f'{evaluation or path}: {unlabelled[0]} has no "answer", and the evaluation needs one')
    if gate_labels:
        answered = [task for task in probes if task.reference is not None]
        probes = [replace(task, category="canary") for task in answered[:gate_labels]]
    else:
        probes = gentle_views(probes)
    shown = [(task, str(task.extra["demonstration"])) for task in train if task.extra.get("demonstration")]
    sources: dict[str, list[Task]] = defaultdict(list)
    for task in train:
        sources[task.category].append(task if labels else _unlabelled(task))
    return Questions(sources, asked, probes, shown, blind_baseline(train, asked))


def _chosen(tasks: Sequence[Task], count: int | None, offset: int) -> list[Task]:
    """Up to ``count`` tasks of every category, after its first ``offset``."""
    seen: dict[str, int] = defaultdict(int)
    kept = []
    for task in tasks:
        place = seen[task.category] - offset
        seen[task.category] += 1
        if place >= 0 and (count is None or place < count):
            kept.append(task)
    return kept


def _unlabelled(task: Task) -> Task:
    extra = {name: value for name, value in task.extra.items() if name not in ("answer", "demonstration")}
    return replace(task, reference=None, extra=extra)


def read_rows(path: str) -> list[Task]:
    """Tasks of a file of JSON lines. Of images only kind and size are looked at; they are decoded when asked about.

    Raises:
        UsageError: naming file and line of what is no question.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8 ({error}): save it as UTF-8") from error
    tasks: dict[str, Task] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            task = _task(line, file, number)
            if task.id in tasks:
                raise UsageError(f'{file.name} line {number} has the "id" of line {tasks[task.id].seed}: {task.id}')
            tasks[task.id] = task
    return list(tasks.values())


def _task(line: str, file: Path, number: int) -> Task:
    where = f"{file.name} line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is no JSON object: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where} is no JSON object")
    prompt = row.pop("prompt", None) or row.pop("question", None)
    if not prompt:
        raise UsageError(f'{where} has neither "prompt" nor "question"')
    paths = row.pop("images", None) or ([row.pop("image")] if row.get("image") else [])
    if not isinstance(paths, list) or not all(isinstance(name, str) for name in paths):
        raise UsageError(f'{where} wants "image": a path, or "images": a list of paths')
    pictures = tuple(str(file.parent / name) for name in paths)
    missing = [name for name in pictures if not Path(name).is_file()]
    if missing:
        raise UsageError(f"{where} names an image that is not there: {missing[0]}")
    for place, picture in enumerate(pictures, 1):
        check_image_file(picture, f"{where}: image {place}")
    places = image_places(prompt, where)
    if places not in (0, len(pictures)):
        raise UsageError(f"{where}: {places} image blocks in the messages, {len(pictures)} images beside them")
    # "answer" stays a column too, as reward functions written for TRL ask for it
    answer, category = row.get("answer", row.pop("reference", None)), str(row.pop("category", "questions"))
    name = str(row.pop("id", f"{file.stem}/{number}"))
    return Task(name, prompt, pictures, None if answer is None else str(answer), category, number, extra=row)
