"""Where a run's questions come from: the small world, sums, or a file of one's own.

Whatever the source, a run gets the same five things: endless or finite training questions per category, held-out
questions for the evaluation, others for the gate, demonstrations where there are some, and how well one answers blind.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

from ..envs.toys import arithmetic, scenes
from ..errors import UsageError
from ..rewards.text.verifiers import Exact, Numeric
from ..splitting import Contents, Part, clusters, deal, ordered
from ..tables import Table, canonical, read_table, stored
from ..types import Rollout, Task
from .rows import PICTURE, keys_of, read_rows, tasks_of
from .verification import Verification, verification

__all__ = ["Questions", "from_file", "read_rows", "small_world", "sums"]

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
        verify: what is right, in evaluation and gate; None where the training reward is all that there is.
        tables: what was read, by the fields that named it.
        note: a line about how many questions went where.
        splits: sides that share no content, by which a run is checked.
        drawn: of the small world, the questions of every side with their scenes; of training the first of each type.
    """

    train: Mapping[str, Source]
    held_out: Sequence[Task]
    probes: Sequence[Task]
    demonstrations: Sequence[tuple[Task, str]] = ()
    blind: Mapping[str, float] = field(default_factory=dict)
    small_world: bool = False
    verify: Any = field(default_factory=Exact)
    tables: Mapping[str, Table] = field(default_factory=dict)
    note: str = ""
    splits: Sequence[Mapping[str, Contents]] = ()
    drawn: Mapping[str, Drawn] = field(default_factory=dict)

    def everything(self) -> Iterator[Task]:
        """The questions of a file, whatever they are for; views that were made of them are left out."""
        for source in self.train.values():
            yield from () if callable(source) else source
        yield from self.held_out
        yield from (task for task in self.probes if not task.parent)

    def splits_with(self, demonstrations: Sequence[Rollout]) -> list[Mapping[str, Contents]]:
        """``splits``, and of the small world by the composition that is asked, or by what is asked of which scene.

        Evaluation shares no composition with anything else, and the gate no question about a scene.

        Args:
            demonstrations: in every view; their scenes are in their ``info``.
        """
        found = list(self.splits)
        if not self.drawn:
            return found
        shown = {r.task.id: (scenes.Question.parse(str(r.task.prompt)), r.info["scene"]) for r in demonstrations}
        held, probes = self.drawn[EVALUATION], self.drawn[PROBES]
        for side, items in {TRAINING: self.drawn[TRAINING], DEMONSTRATIONS: shown, PROBES: probes}.items():
            if items:
                found.append({EVALUATION: _by_composition(held), side: _by_composition(items)})
            if items and side != PROBES:
                found.append({PROBES: _by_scene(probes), side: _by_scene(items)})
        return found


TRAINING, DEMONSTRATIONS, PROBES, EVALUATION = "training", "demonstrations", "the gate's probes", "evaluation"

Drawn = Mapping[str, tuple[scenes.Question, scenes.Scene]]
"""Questions of the small world by name."""


def _by_composition(items: Drawn) -> dict[str, set[str]]:
    return {name: {scenes.composition(*item)} for name, item in items.items()}


def _by_scene(items: Drawn) -> dict[str, set[str]]:
    return {name: {f"{question} in {scene}"} for name, (question, scene) in items.items()}


def blind_baseline(known: Sequence[Task], asked: Sequence[Task]) -> dict[str, float]:
    """Accuracy per category of who answers a question with its commonest answer in ``known``, without looking.

    A question that ``known`` does not have gets its category's commonest answer.
    """
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_category: dict[str, Counter[str]] = defaultdict(Counter)
    for task in known:
        by_text[str(task.prompt)][canonical(task.reference)] += 1
        by_category[task.category][canonical(task.reference)] += 1
    hits: dict[str, list[bool]] = defaultdict(list)
    for task in asked:
        counts = by_text.get(str(task.prompt)) or by_category.get(task.category) or Counter([""])
        hits[task.category].append(counts.most_common(1)[0][0] == canonical(task.reference))
    return {category: sum(row) / len(row) for category, row in hits.items()}


# the small world


@lru_cache(maxsize=4 * len(scenes.TYPES))  # training walks on: old blocks are hardly asked for again
def _block(kind: str, number: int, seed: int, split: int, labels: bool, noise: float) -> list[Task]:
    name = f"train-{seed}-{number}"
    drawn = scenes.questions(kind, BLOCK, name, split=split)
    return scenes.tasks(drawn, name, labels=labels, known=labels, noise=noise)


def _endless(index: int, kind: str, **how: Any) -> Task:
    return _block(kind, index // BLOCK, **how)[index % BLOCK]


def small_world(
    seed: int,
    split: int,
    *,
    labels: bool,
    gate_labels: int,
    held_out: int,
    offset: int = 0,
    probes: int = 30,
    noise: float = scenes.NOISE,
) -> Questions:
    """Seven types of questions about scenes; the evaluation asks compositions that training never does.

    Args:
        labels: training questions carry references.
        gate_labels: probes with references; without any, each probe comes in two views.
        held_out, offset: evaluated questions per type, and how many are skipped.
        probes: per type, where the gate has no labels.
        noise: of the pictures' pixels.
    """
    how: dict[str, Any] = {"seed": seed, "split": split, "labels": labels, "noise": noise}
    train = {kind: partial(_endless, kind=kind, **how) for kind in scenes.TYPES}
    asked, canary, sides = list[Task](), list[Task](), dict[str, dict[str, tuple[scenes.Question, scenes.Scene]]]()
    each = -(-gate_labels // len(scenes.TYPES)) if gate_labels else probes
    for kind in scenes.TYPES:
        held = scenes.questions(kind, offset + held_out, "held-out", split=split, unseen=True)
        probed = scenes.questions(kind, each, "canary", split=split)
        asked += scenes.tasks(held, "held-out", noise=noise)[offset:]
        canary += scenes.tasks(probed, "canary", noise=noise)
        first = scenes.questions(kind, BLOCK, f"train-{seed}-0", split=split)
        for side, items in ((EVALUATION, held), (PROBES, probed), (TRAINING, first)):
            sides.setdefault(side, {}).update({f"{kind} {i}": item for i, item in enumerate(items)})
    if gate_labels:
        spread = [canary[i * len(canary) // gate_labels] for i in range(gate_labels)]
        canary = [replace(task, category="canary") for task in spread]
    else:
        pairs = [_two_views(task, split) for task in canary]
        canary = [task for pair, _ in pairs for task in pair]
        for _, turned in pairs:
            sides[PROBES].update(turned)
    drawn = [item for kind in scenes.TYPES for item in scenes.questions(kind, 300, "blind", split=split)]
    known = [Task("", str(q), reference=_right(q, scene), category=q.type) for q, scene in drawn]  # no picture is seen
    return Questions(train, asked, canary, blind=blind_baseline(known, asked), small_world=True, drawn=sides)


def _right(question: scenes.Question, scene: scenes.Scene) -> str | None:
    found = scenes.answer(question, scene)
    return None if found is None else found.word


def _two_views(task: Task, split: int) -> tuple[list[Task], Drawn]:
    """A question of the small world as it is, and in another view that asks nothing held out, with what that one asks;
    ``extra["back"]`` undoes the view in answers. Nothing where no view was found."""
    import random

    question, scene = scenes.Question.parse(str(task.prompt)), task.extra["scene"]
    view = scenes.seen_view(question, scene, split, random.Random(f"view {task.id}"))
    if view is None:
        return [], {}
    plain, text = replace(task, reference=None, extra={}), view.text(str(task.prompt))
    turned = replace(
        plain,
        id=f"{task.id}/view",
        prompt=text,
        images=(view.picture(task.images[0]),),
        parent=task.id,
        extra={"back": {view.word(word): word for word in scenes.KINDS[1:]}},
    )
    return [plain, turned], {turned.id: (scenes.Question.parse(text), view.scene(scene))}


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

    probed = asked(-(-(gate_labels or probes) // len(kinds)), "probe")[: gate_labels or probes]
    canary = [replace(t, category="canary") for t in probed] if gate_labels else gentle_views(probed)
    sources = {kind: partial(train, kind=kind) for kind in kinds}
    evaluated = [task for i, task in enumerate(asked(offset + held_out, "eval")) if i % (offset + held_out) >= offset]
    known = [arithmetic.source(kind, seed, split=split)(i) for kind in kinds for i in range(500)]
    sides = {TRAINING: _by_numbers(known), PROBES: _by_numbers(probed), EVALUATION: _by_numbers(evaluated)}
    blind = blind_baseline(known, evaluated)
    return Questions(sources, evaluated, canary, blind=blind, verify=Numeric(), splits=[sides])


def _by_numbers(tasks: Sequence[Task]) -> dict[str, set[str]]:
    """What decides the side of a sum: its numbers, in any order."""
    return {task.id: {" ".join(sorted(re.findall(r"\d+", str(task.prompt))))} for task in tasks}


def gentle_views(tasks: Sequence[Task]) -> list[Task]:
    """Questions without references, each also in a view that must not change its answer: the pictures a little darker
    and cut by a fortieth at every side, or a text introduced by a word. Chats without pictures are left out."""
    found = []
    for task in tasks:
        plain = _unlabelled(task)
        if task.images:
            view = replace(plain, images=tuple(_dimmed(image, f"{task.id}: image") for image in task.images))
        elif isinstance(task.prompt, str):
            view = replace(plain, prompt=f"Question: {task.prompt}")
        else:
            continue
        found += [plain, replace(view, id=f"{task.id}/view", parent=task.id)]
    return found


def _dimmed(image: Any, name: str) -> str:
    """The path of a view; decoded, hundreds of them would fill the memory."""
    from io import BytesIO

    from PIL import ImageEnhance

    from ..images import as_pil

    picture = as_pil(image, name)
    width, height = picture.size
    inside = picture.crop((width // 40, height // 40, width - width // 40, height - height // 40))
    content = BytesIO()
    ImageEnhance.Brightness(inside.resize((width, height))).enhance(0.85).save(content, "PNG", compress_level=1)
    return stored(content.getvalue())


# a file of one's own

GATE_VIEWS = 210
"""Most questions that a gate without labels asks, each in two views."""


def from_file(
    path: str,
    *,
    evaluation: str = "",
    gate: bool = True,
    gate_labels: int = 0,
    labels: bool = True,
    held_out: int | None = None,
    offset: int = 0,
    reserved: int | None = None,
    verifiers: Sequence[Any] = (),
    ungraded: bool = False,
    split: int = 0,
) -> Questions:
    """Questions of a file or a dataset (``tables.read_table``), in the columns prompt (or question), image or images
    (paths), answer, category, demonstration.

    Without an evaluation file a fifth of every category is held out, as far as it is asked, and then a fifth of the
    rest for the gate; all else is trained on. Questions about one picture, or in one text without a picture, are never
    on two sides (``splitting``), and what an evaluation file asks is neither trained on nor asked by the gate.

    Args:
        path, evaluation: where the rows are; the latter empty takes them from the former.
        gate: whether there is one.
        gate_labels: questions of the gate, with answers; without any, each of its questions comes in two views.
        labels: training questions carry their answers and demonstrations; demonstrations are there to be imitated.
        held_out, offset: questions per category asked at an evaluation, after so many; None asks all.
        reserved: questions per category held out; None is as many as are asked and skipped. Who evaluates a run again
            gives what the run held out.
        verifiers: grade evaluation and gate, each the questions that have its columns; ``Exact`` where there is none.
        ungraded: take questions without answers too, where no question can be graded.
        split: another one holds out others.

    Raises:
        UsageError: a row is no question, or nothing is left to train on, to evaluate or for the gate.
    """
    own = _Own.read(path)
    source = _Own.read(evaluation) if evaluation else own
    tables = {"data": own.table} | ({"eval_data": source.table} if evaluation else {})
    verify = verification(verifiers, source.tasks)
    if verify is None and not ungraded:
        raise UsageError(f'{evaluation or path}: no question has an "answer", and the evaluation needs one')
    count, total = len(own.tasks), held_out if held_out is None else offset + held_out
    parts = [] if evaluation else [Part(0.2, total if reserved is None else reserved, fit=own.graded(verify))]
    if evaluation:
        source.refuse_ungraded(verify)
        own = own.without(source)
    labelled = gate_labels if verify is not None and own.graded(verify) else 0
    if gate:
        fit = own.graded(verify) if labelled else own.viewable()
        parts.append(Part(0.2, total=labelled or GATE_VIEWS, fit=fit))
    sides = own.dealt(parts, split)
    held = range(len(source.tasks)) if evaluation else sides.pop(0)
    asked = source.window(source.graded(verify) & set(held), held_out, offset, split)
    probes = [own.tasks[row] for row in (sides.pop(0) if gate else ()) if row in fit]
    train = [own.tasks[row] for row in sides.pop()]
    if not train or not asked or (gate and not probes):
        raise UsageError(_nothing(path, evaluation, own, count, bool(train), bool(asked), offset))
    shown = [(task, str(task.extra["demonstration"])) for task in train if task.extra.get("demonstration")]
    sources: dict[str, list[Task]] = defaultdict(list)
    for task in train:
        sources[task.category].append(task if labels else _unlabelled(task))
    canary = [replace(task, category="canary") for task in probes] if labelled else gentle_views(probes)
    blind = blind_baseline(train, asked) if verify is not None else {}
    note = _note(count + (len(asked) if evaluation else 0), train, asked, probes, verify, bool(labelled))
    note += _shared(own)
    dealt = {TRAINING: own.keyed(train), EVALUATION: source.keyed(asked)} | (
        {PROBES: own.keyed(probes)} if gate else {}
    )
    return Questions(sources, asked, canary, shown, blind, verify=verify, tables=tables, note=note, splits=[dealt])


def _shared(own: _Own) -> str:
    """Which rows of a file say the same, and how many show one picture, for the end of a line."""
    told = ""
    if twice := own.table.repeats:
        pairs = [f"{row.where.removeprefix(own.table.name).strip()} {earlier.where}" for earlier, row in twice[:3]]
        named = ", ".join(pair.replace(f" {own.table.name} ", " as ") for pair in pairs)
        told += f"; {len(twice)} rows repeat others: {named}{', …' if len(twice) > 3 else ''}"
    rows_of = Counter(key for keys in own.keys for key in keys if key.startswith(PICTURE))
    if several := [count for count in rows_of.values() if count > 1]:
        told += f"; {len(several)} pictures are shown by {sum(several)} rows, each picture on one side"
    return told


def _note(
    count: int,
    train: Sequence[Task],
    asked: Sequence[Task],
    probes: Sequence[Task],
    verify: Verification | None,
    labelled: bool,
) -> str:
    """A line on how a file was dealt out."""
    judge = "the training reward, as there are no answers" if verify is None else verify.name
    said = f"data: {len(train)} questions to train on, {len(asked)} evaluated by {judge}, {len(probes)} for the gate"
    said += "" if labelled or not probes else " in two views each"
    if others := count - len(train) - len(asked) - len(probes):
        said += f"; {others} are left out: they hang together with these, or come before or after what is evaluated"
    if scarce := sorted({task.category for task in train} - {task.category for task in asked}):
        said += f"; not evaluated, as none can be spared: {', '.join(scarce[:5])}{', …' if len(scarce) > 5 else ''}"
    return said


@dataclass
class _Own:
    """Questions of a file, and what of each may not stand on two sides."""

    table: Table
    tasks: Sequence[Task]
    keys: Sequence[frozenset[str]]

    @classmethod
    def read(cls, path: str) -> _Own:
        table = read_table(path)
        tasks = tasks_of(table)
        return cls(table, tasks, keys_of(tasks, table.contents))

    def keyed(self, tasks: Sequence[Task]) -> dict[str, frozenset[str]]:
        """Questions by what may not stand on two sides, read from themselves."""
        return {task.id: keys for task, keys in zip(tasks, keys_of(tasks, self.table.contents), strict=True)}

    def graded(self, verify: Verification | None) -> set[int]:
        """Questions that evaluation and gate can grade: without a verification, all."""
        return {row for row, task in enumerate(self.tasks) if verify is None or verify.applies(task)}

    def viewable(self) -> set[int]:
        """Questions that a second view can be made of."""
        return {row for row, task in enumerate(self.tasks) if task.images or isinstance(task.prompt, str)}

    def refuse_ungraded(self, verify: Verification | None) -> None:
        graded = self.graded(verify)
        for row, task in enumerate(self.tasks):
            if row not in graded:
                raise UsageError(
                    f'{self.table.rows[row].where}: {task.id} has no "answer", and the evaluation needs one'
                )

    def without(self, other: _Own) -> _Own:
        """The questions that share nothing with others."""
        asked = frozenset().union(*other.keys)
        kept = [row for row, keys in enumerate(self.keys) if not keys & asked]
        return replace(self, tasks=[self.tasks[row] for row in kept], keys=[self.keys[row] for row in kept])

    def dealt(self, parts: Sequence[Part], split: int) -> list[list[int]]:
        return deal(self.keys, [task.category for task in self.tasks], parts, split)

    def window(self, rows: Iterable[int], count: int | None, offset: int, split: int) -> list[Task]:
        """Up to ``count`` questions of every category, after its first ``offset`` in an order by content."""
        seen: dict[str, int] = defaultdict(int)
        kept = []
        for row in ordered(rows, self.keys, split):
            category = self.tasks[row].category
            if seen[category] >= offset and (count is None or seen[category] < offset + count):
                kept.append(row)
            seen[category] += 1
        return [self.tasks[row] for row in sorted(kept)]


def _nothing(path: str, evaluation: str, own: _Own, count: int, trained: bool, asked: bool, offset: int) -> str:
    """Why a file cannot be dealt out."""
    if evaluation and not trained:
        left = f"{len(own.tasks)} of {count} questions of {path}" if own.tasks else f"no question of {path}"
        return f"{left} can be used to train on: {evaluation} asks about the pictures or in the words of the others"
    if not asked and offset:
        return f"{evaluation or path}: no held-out question is left after the first {offset} per category"
    if count > 1 and len(clusters(own.keys)) == 1:
        shared = "one picture" if own.tasks[0].images else "one text"
        more = "--gate none" if asked else "--eval-data"
        return f"all {count} questions of {path} hang together by {shared}, and none can be held out: give {more}"
    if not asked and count >= 10 and len({task.category for task in own.tasks}) == count:
        return f"every question of {path} has a category of its own, and none can be spared: leave the column out"
    if not asked:
        return f"{path} has {count} questions: a run needs 10 or more"
    return f"{path} has {count} questions, and none is left for the gate: give more, or --gate none"


def _unlabelled(task: Task) -> Task:
    extra = {name: value for name, value in task.extra.items() if name not in ("answer", "demonstration")}
    return replace(task, reference=None, extra=extra)
